"""What weights take in memory, told from the headers of their safetensors files: before anything is loaded, or fetched.

The format is a length of eight bytes, that much JSON (name → dtype, shape, offsets), and the numbers:
https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from shared.models_file import Quantization

#: what loading takes beyond the weights, as a share of them, where nobody has measured it
MARGIN = 0.05
#: longest header that the format allows
MAX_HEADER = 100_000_000

#: bytes of an element; floats that a loader turns into the device's number type
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LOADED = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
#: with what belongs to each block of weights
_QUANTIZED: dict[Quantization, float] = {"8bit": 1.05, "4bit": 0.5625}
#: these stay as they are where the rest is quantized
_LOOKED_UP = re.compile(r"embed|lm_head|\bwte\b|\bwpe\b|\bshared\b")
_SHARD = re.compile(r"(?P<stem>.*)-\d{5}-of-\d{5}")
#: loaders look for these, and for nothing else where they are there; those of transformers take the whole file first
_STEMS = ("model", "diffusion_pytorch_model")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header."""

    name: str
    #: as the format calls it
    dtype: str
    shape: tuple[int, ...]
    #: as it is stored
    bytes: int


@dataclass(frozen=True, slots=True)
class Weights:
    """What the files of a model hold."""

    #: floating numbers in matrices, which can be quantized
    matrices: int = 0
    #: other floating numbers
    others: int = 0
    #: bytes of what stays as it is stored: whole numbers, floats of eight bits, weights that are quantized in the file
    rest: int = 0

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Self:
        """Of all these together."""
        matrices = others = rest = 0
        for tensor in tensors:
            if tensor.dtype not in _FLOATS:
                rest += tensor.bytes
            elif len(tensor.shape) == 2 and not _LOOKED_UP.search(tensor.name):
                matrices += math.prod(tensor.shape)
            else:
                others += math.prod(tensor.shape)
        return cls(matrices, others, rest)

    def __add__(self, more: Weights) -> Weights:
        return Weights(self.matrices + more.matrices, self.others + more.others, self.rest + more.rest)

    def loaded(self, dtype: str, quantization: Quantization | None = None) -> int:
        """Bytes in memory, margin included, as this number type and with so many bits of what can be quantized."""
        each = _LOADED[dtype]
        in_matrix = each if quantization is None else min(each, _QUANTIZED[quantization])
        return int((self.matrices * in_matrix + self.others * each + self.rest) * (1 + MARGIN))


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a file. Raises `ValueError` that says what is wrong with it, also where its end is missing."""
    try:
        with path.open("rb") as file:
            there = file.seek(0, 2)
            file.seek(0)
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= size <= min(MAX_HEADER, there - 8):
                raise ValueError(f"{path.name} is no safetensors file, or not all of it is there")
            tensors, end = _parsed(path.name, file.read(size))
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from None
    if there != 8 + size + end:
        raise ValueError(f"{path.name} has {there:,} bytes, and {8 + size + end:,} by its own header: fetch it again")
    return tensors


def _parsed(name: str, header: bytes) -> tuple[list[Tensor], int]:
    """The tensors, and how many bytes they have together."""
    tensors, end = list[Tensor](), 0
    try:
        for key, about in json.loads(header).items():
            if key != "__metadata__":
                start, stop = about["data_offsets"]
                tensors.append(
                    Tensor(key, str(about["dtype"]), tuple(map(int, about["shape"])), int(stop) - int(start))
                )
                end = max(end, int(stop))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{name} has a header that cannot be understood") from None
    return tensors, end


def weights_in(folder: Path) -> dict[str, Weights]:
    """By part, which is a folder below this one (`.` is itself): of the files that are loaded.

    A file that cannot be understood counts as it is stored.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors") if path.is_file()]
    parts: dict[str, Weights] = {}
    for name in loaded_names(names):
        try:
            found = Weights.of(read_header(folder / name))
        except ValueError:
            found = Weights(rest=(folder / name).stat().st_size)
        part = part_of(name)
        parts[part] = parts.get(part, Weights()) + found
    return parts


def part_of(name: str) -> str:
    """The part of a model that a file belongs to."""
    return str(PurePosixPath(name).parent)


def loaded_names(names: Sequence[str]) -> list[str]:
    """Of safetensors files of a model, those that are loaded: where a folder has its weights twice, once."""
    by_folder: dict[str, dict[str, dict[bool, list[str]]]] = {}
    for name in names:
        path = PurePosixPath(name)
        shard = _SHARD.fullmatch(path.stem)
        stem = shard["stem"] if shard else path.stem
        kinds = by_folder.setdefault(str(path.parent), {}).setdefault(stem, {})
        kinds.setdefault(shard is not None, []).append(name)
    chosen: list[str] = []
    for stems in by_folder.values():
        usual = [stem for stem in _STEMS if stem in stems]
        for stem in usual[:1] or stems:
            kinds = stems[stem]
            in_parts_first = stem == "diffusion_pytorch_model"
            chosen += kinds.get(in_parts_first) or kinds[not in_parts_first]
    return sorted(chosen)
