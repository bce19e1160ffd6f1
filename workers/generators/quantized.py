"""Weights in 8 or 4 bits, by bitsandbytes: on an NVIDIA GPU, where the operator has set that for a model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from shared.errors import ModelRejected
from workers.generators import ModelFiles


def require_able(files: ModelFiles, device: str) -> None:
    """Raise `ModelRejected` with `memory_unsupported` if this worker cannot hold this model so."""
    why = None
    if not device.startswith("cuda"):
        why = "that needs an NVIDIA GPU, and this worker computes on a CPU"
    elif files.weights is not None:
        why = "a checkpoint in a single file cannot be; save it as a folder (save_pretrained)"
    elif find_spec("bitsandbytes") is None:
        why = "this worker has no bitsandbytes: pip install bitsandbytes"
    if why is not None:
        raise ModelRejected("memory_unsupported", f"{files.ref} is to be held in {files.memory.quantization}: {why}")


def how(bits: str, dtype: torch.dtype) -> dict[str, Any]:
    """What the libraries are told, for `8bit` or `4bit`; computed is in `dtype`."""
    if bits == "8bit":
        return {"load_in_8bit": True}
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
