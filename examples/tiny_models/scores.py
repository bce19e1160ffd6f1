"""Tiny models that look at pictures, for scores of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tiny_models.building import cached, save_clip_tokenizer

_SIDE = 32


def _save_processor(folder: Path, kind: str) -> None:
    """As the repositories of real models have it: scaled to the short side, and cropped to a square."""
    about = {
        "image_processor_type": kind, "do_resize": True, "size": {"shortest_edge": _SIDE}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": _SIDE, "width": _SIDE}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.45], "image_std": [0.25, 0.3, 0.2],
        "do_convert_rgb": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(about))


@cached
def clip(folder: Path) -> None:
    """A CLIP of 32 pixels and 77 letters."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    size = save_clip_tokenizer(folder / "scratch")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "scratch")
    shutil.rmtree(folder / "scratch")
    torch.manual_seed(6)
    config = CLIPConfig(
        text_config={
            "vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 77, "bos_token_id": size - 2, "eos_token_id": size - 1,
            "pad_token_id": size - 1, "projection_dim": 16,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": _SIDE, "patch_size": 8, "projection_dim": 16,
        },
        projection_dim=16,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _save_processor(folder, "CLIPImageProcessor")


@cached
def dinov2(folder: Path) -> None:
    """A DINOv2 of 32 pixels: eight features."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(7)
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=_SIDE, patch_size=8,
        layerscale_value=1.0, initializer_range=0.3,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    _save_processor(folder, "BitImageProcessor")
