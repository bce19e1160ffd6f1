"""The models of the other modalities: those of `examples/tiny_models`, grown until a job takes its time.

That is 0.05 to 0.5 s on two cores: beside a model of two milliseconds nothing is measured but the queue, and beside one
of a minute nothing of it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Grown:
    """A tiny model, and what is larger in it."""

    #: its name in `examples/tiny_models`
    tiny: str
    #: settings by the part that they belong to: of a pipeline a component, else of the config; "" is the model itself
    larger: Mapping[str, Mapping[str, Any]]
    #: of its own defaults for writing
    writing: Mapping[str, Any] | None = None
    #: pixels along a side of the pictures that it looks at
    side: int | None = None


#: by name: MiniLM's size, a ViT-GPT2, a lightweight Swin2SR, a VITS, a MusicGen, a Whisper, an LTX
GROWN: Mapping[str, Grown] = {
    "embedder": Grown(
        "classifier", {"": {"dim": 384, "hidden_dim": 1536, "n_layers": 6, "n_heads": 12, "initializer_range": 0.1}}
    ),
    "captioner": Grown(
        "vit_gpt2",
        {
            "encoder": {
                "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6,
                "image_size": 224, "patch_size": 16, "initializer_range": 0.1,
            },
            "decoder": {"n_embd": 384, "n_layer": 6, "n_head": 6, "initializer_range": 0.1},
        },
        writing={"num_beams": 1, "max_length": None},
        side=224,
    ),
    "enlarger": Grown(
        "swin2sr",
        {"": {"image_size": 64, "embed_dim": 36, "depths": [2, 2], "num_heads": [6, 6], "window_size": 8}},
    ),
    "voice": Grown(
        "vits",
        {
            "": {
                "hidden_size": 96, "num_hidden_layers": 4, "ffn_dim": 384, "flow_size": 96,
                "duration_predictor_filter_channels": 96, "prior_encoder_num_flows": 4,
                "prior_encoder_num_wavenet_layers": 4, "upsample_initial_channel": 128, "initializer_range": 0.05,
            }
        },
    ),
    "composer": Grown(
        "musicgen",
        {
            "decoder": {"hidden_size": 256, "ffn_dim": 1024, "num_hidden_layers": 6, "num_attention_heads": 8},
            "audio_encoder": {"num_filters": 8, "hidden_size": 32, "codebook_dim": 32},
        },
        # The likeliest token at each step: what is drawn otherwise, each arm would draw in its own way.
        writing={"top_k": 1},
    ),
    "listener": Grown(
        "whisper",
        {
            "": {
                "d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 512,
                "decoder_ffn_dim": 512, "init_std": 0.1,
            }
        },
    ),
    "filmer": Grown(
        "ltx",
        {
            "transformer": {
                "num_attention_heads": 8, "attention_head_dim": 32, "cross_attention_dim": 256, "num_layers": 4,
            },
            "vae": {"block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4},
        },
    ),
}  # fmt: skip


def build(folder: Path, grown: Grown, seed: int) -> None:
    """Write such a model into an empty folder."""
    import torch

    sys.path.insert(0, str(ROOT / "examples"))
    import tiny_models

    scratch = folder / "scratch"
    shutil.copytree(getattr(tiny_models, grown.tiny)(scratch), folder, dirs_exist_ok=True)
    shutil.rmtree(scratch)
    torch.manual_seed(seed)
    (_grow_pipeline if (folder / "model_index.json").exists() else _grow_model)(folder, grown)


def _grow_pipeline(folder: Path, grown: Grown) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    for name, larger in grown.larger.items():
        part = getattr(pipe, name)
        pipe.register_modules(**{name: type(part).from_config({**part.config, **larger})})
    pipe.save_pretrained(folder)


def _grow_model(folder: Path, grown: Grown) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    for name, larger in grown.larger.items():
        part = getattr(config, name) if name else config
        for setting, value in larger.items():
            setattr(part, setting, value)
    model = getattr(transformers, config.architectures[0])(config)
    for module in model.modules():
        if type(module).__name__ == "EncodecEuclideanCodebook":
            module.embed.normal_(0.0, 2.0)  # it begins with zeros: whatever is written would sound the same
    if model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        model.generation_config.update(**(grown.writing or {}))
    model.save_pretrained(folder)
    if grown.side is not None:
        images = transformers.AutoImageProcessor.from_pretrained(folder)
        images.size = {"height": grown.side, "width": grown.side}
        images.save_pretrained(folder)
