"""Files to judge: pairs of pictures, of recordings, and lines of text; and models for the tests alone."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import wave
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tiny_models.building import cached

RATE = 16_000


@cache
def folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="aigc-scores-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def picture(name: str, shades: npt.NDArray[np.uint8] | int, size: tuple[int, int] = (24, 20)) -> str:
    """A picture of these shades, or of one grey."""
    image = Image.fromarray(shades) if isinstance(shades, np.ndarray) else Image.new("RGB", size, (shades,) * 3)
    path = folder() / f"{name}.png"
    image.save(path)
    return str(path)


def noise(name: str, seed: int, *, size: tuple[int, int] = (24, 20), spread: int = 256) -> str:
    """A picture of random shades."""
    rng = np.random.default_rng(seed)
    return picture(name, rng.integers(0, spread, (size[1], size[0], 3), dtype=np.uint8))


def sound(name: str, samples: npt.NDArray[np.float64], rate: int = RATE) -> str:
    """A recording in 16 bits, of samples between -1 and 1; two rows are stereo."""
    rows = np.atleast_2d(samples)
    path = folder() / f"{name}.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(rows))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(rows.T * 32767).astype("<i2").tobytes())
    return str(path)


def tone(hertz: float, *, seconds: float = 1.0, phase: float = 0.0, rate: int = RATE) -> npt.NDArray[np.float64]:
    """Half as loud as can be."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate + phase)


def written(name: str, text: str) -> str:
    path = folder() / f"{name}.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


@cached
def hearing(folder: Path) -> None:
    """A wav2vec 2.0 that writes letters, at random."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghij"]
    (folder / "vocab.json").write_text(json.dumps({letter: n for n, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=RATE, do_normalize=True).save_pretrained(folder)
    torch.manual_seed(8)
    config = Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        conv_dim=[16, 16, 16], conv_kernel=[10, 8, 8], conv_stride=[10, 8, 8], num_feat_extract_layers=3,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, initializer_range=0.5,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)


@cached
def vgg16(folder: Path) -> None:
    """VGG-16 with random weights, saved as timm does it: without the layers that classify."""
    import torch
    from safetensors.torch import save_file

    from workers.generators.evaluator_lpips import Vgg

    torch.manual_seed(9)
    weights = {f"features.{name}": value.contiguous() for name, value in Vgg().features.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    about = {"architecture": "vgg16", "num_classes": 1000, "num_features": 4096, "pretrained_cfg": {"tag": "tv_in1k"}}
    (folder / "config.json").write_text(json.dumps(about))


@cached
def uniform(folder: Path) -> None:
    """A GPT-2 to which every next token is as likely as any other, and whose tokenizer knows one token a byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate([*letters, "<s>"])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_positions=32, n_embd=8, n_layer=1, n_head=1, bos_token_id=256, eos_token_id=256)
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.save_pretrained(folder)
