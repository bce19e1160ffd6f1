"""The models that are measured: real architectures, random weights, no download. Built once into `.bench/models`.

Texts never end by themselves (no end token), so that every arm makes exactly the tokens that were asked for. The
tokenizers are lossless for ASCII and cover the whole vocabulary, so that texts can be compared character by character.
"""

from __future__ import annotations

import json
import shutil
import string
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.modality_models import GROWN, ROOT, build

#: outside of git, removed by `make clean`
CACHE = ROOT / ".bench"

_LETTERS = string.ascii_letters + " .,;:!?-'\"()"


@dataclass(frozen=True, slots=True)
class TextShape:
    """A GPT-2 or a Llama."""

    kind: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    positions: int = 1024


@dataclass(frozen=True, slots=True)
class PictureShape:
    """A Stable Diffusion: a UNet over latents, a VAE that makes pixels of them."""

    #: side of the picture that the model makes by itself
    side: int
    #: pixels per latent, a power of two
    factor: int
    unet: tuple[int, ...]
    vae: tuple[int, ...]
    text_width: int = 64
    layers_per_block: int = 1
    groups: int = 16
    #: whether the level with the most latents has attention, too
    attends_everywhere: bool = False


TEXTS: Mapping[str, TextShape] = {
    "gpt2-124m": TextShape("gpt2", 50257, 768, 12, 12),
    "gpt2-7m": TextShape("gpt2", 8192, 256, 6, 8),
    "llama-1b": TextShape("llama", 32000, 2048, 18, 16, 4096),
}
PICTURES: Mapping[str, PictureShape] = {
    "unet-256": PictureShape(256, 8, (64, 128, 128), (16, 32, 32, 32)),
    "unet-small-latents": PictureShape(64, 8, (64, 128), (16, 16, 32, 32)),
    "unet-sd15": PictureShape(
        512, 8, (320, 640, 1280, 1280), (128, 256, 512, 512), 768, 2, 32, attends_everywhere=True
    ),
}


def model(name: str) -> Path:
    """The folder of a model, built if it is not there; `gpt2-124m.2` is one more copy with other weights."""
    folder = CACHE / "models" / name
    if not folder.exists():
        print(f"building {name} in {folder}", file=sys.stderr, flush=True)
        building = folder.with_name(folder.name + ".building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        (CACHE / ".gitignore").write_text("*\n")
        kind, _, copy = name.partition(".")
        _builder(kind)(building, int(copy or 0))
        building.rename(folder)
    return folder


def _builder(kind: str) -> Callable[[Path, int], None]:
    if kind in TEXTS:
        return lambda folder, seed: _build_text(folder, TEXTS[kind], seed)
    if kind in GROWN:
        return lambda folder, seed: build(folder, GROWN[kind], seed)
    return lambda folder, seed: _build_pictures(folder, PICTURES[kind], seed)


def _build_text(folder: Path, shape: TextShape, seed: int) -> None:
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    _save_tokenizer(folder, shape.vocabulary, shape.positions)
    torch.manual_seed(seed)
    endless = {"bos_token_id": None, "eos_token_id": None}
    if shape.kind == "gpt2":
        made = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=shape.vocabulary, n_positions=shape.positions, n_embd=shape.width, n_layer=shape.layers,
                n_head=shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **endless,
            )
        )  # fmt: skip
    else:
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.width * 4,
                num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
                max_position_embeddings=shape.positions, tie_word_embeddings=True, **endless,
            )
        )  # fmt: skip
    made.generation_config = GenerationConfig(**endless)
    made.save_pretrained(folder)


def _save_tokenizer(folder: Path, size: int, positions: int) -> None:
    """Byte-level BPE with `size` tokens: all bytes, then pairs and triples of letters until it is full."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [letter if letter != " " else "Ġ" for letter in _LETTERS]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in letters for b in letters]
    merges += [(a + b, c) for a in letters for b in letters for c in letters]
    merges = merges[: size - len(tokens)]
    tokens += [a + b for a, b in merges]
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=positions).save_pretrained(folder)


def _build_pictures(folder: Path, shape: PictureShape, seed: int) -> None:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    scratch = folder / "scratch"
    size = _save_clip_tokenizer(scratch)
    tokenizer = CLIPTokenizer.from_pretrained(scratch)
    shutil.rmtree(scratch)
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=size, hidden_size=shape.text_width, intermediate_size=shape.text_width * 4,
        num_hidden_layers=12 if shape.text_width > 64 else 2, num_attention_heads=shape.text_width // 32,
        projection_dim=shape.text_width, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    )  # fmt: skip
    levels = len(shape.unet) - 1
    first = "CrossAttn" if shape.attends_everywhere else ""
    unet = UNet2DConditionModel(
        sample_size=shape.side // shape.factor, block_out_channels=shape.unet, norm_num_groups=shape.groups,
        layers_per_block=shape.layers_per_block, cross_attention_dim=shape.text_width,
        attention_head_dim=8 if shape.text_width > 64 else 16,
        down_block_types=(f"{first}DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * (levels - 1), f"{first}UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=shape.vae, norm_num_groups=16, latent_channels=4,
        layers_per_block=shape.layers_per_block, down_block_types=("DownEncoderBlock2D",) * len(shape.vae),
        up_block_types=("UpDecoderBlock2D",) * len(shape.vae),
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def _save_clip_tokenizer(folder: Path) -> int:
    """Each letter a token; returns how many there are."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder, model_max_length=77).save_pretrained(folder)
    return len(tokens)
