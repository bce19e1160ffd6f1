"""Models of transformers: how they are loaded safely, how they leave a device and come back."""

from __future__ import annotations

import gc
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

from shared.errors import ModelRejected
from workers.generators import Device, Generator, ModelFiles, quantized

_SAFELY = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(files: ModelFiles, **options: Any) -> Any:
    """The tokenizer of a model. Raises `ModelRejected` with `model_not_a_model` if it cannot be read."""
    return load_part(files, AutoTokenizer, **options)


def load_part(files: ModelFiles, auto: Any, **options: Any) -> Any:
    """A feature extractor, an image processor or the like. Raises `ModelRejected` with `model_not_a_model`."""
    try:
        return auto.from_pretrained(files.folder, **options, **_SAFELY)
    except (OSError, ValueError) as error:
        raise ModelRejected("model_not_a_model", f"{files.ref} cannot be loaded: {error}") from error


def load_model(files: ModelFiles, auto: Any, device: Device, *, what: str, spare: tuple[str, ...] = ()) -> Any:
    """A model by one of the Auto classes, on its device and ready to be asked: safetensors only, no code of its own.

    Weights whose names begin with one of `spare` may be missing: what they make is not asked for.

    Raises `ModelRejected`: `model_not_a_model` if files are missing or cannot be read, `model_wrong_task` if the
    weights have no part that makes it `what`, `memory_unsupported` if it cannot be held as the operator has set.
    """
    logging.disable_progress_bar()
    fewer = _in_fewer_bits(files, device)
    try:
        model, info = auto.from_pretrained(
            files.folder, dtype=dtype_on(device), use_safetensors=True, output_loading_info=True, **fewer, **_SAFELY
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelRejected("model_not_a_model", f"{files.ref} cannot be loaded: {error}") from error
    missing = [name for name in info["missing_keys"] if not name.startswith(spare)]
    if missing:
        raise ModelRejected("model_wrong_task", f"{files.ref} lacks weights of {what}, such as {min(missing)}")
    return (model if fewer else model.to(device.name)).eval()


def _in_fewer_bits(files: ModelFiles, device: Device) -> dict[str, Any]:
    """What a loader is told where the weights are to take less room, and are brought to the device as they are read."""
    bits = files.memory.quantization
    if bits is None:
        return {}
    quantized.require_able(files, device.name)
    config = BitsAndBytesConfig(**quantized.how(bits, dtype_on(device)))
    return {"quantization_config": config, "device_map": {"": device.name}}


def dtype_on(device: Device) -> torch.dtype:
    """A CPU always computes in float32."""
    return torch.float32 if device.name == "cpu" else getattr(torch, device.dtype)


class Pretrained(Generator):
    """A generator over one model of transformers."""

    heeds: ClassVar[frozenset[str]] = frozenset({"quantization"})

    def __init__(self, model: Any) -> None:
        self._model = model
        #: where the model computes, should it be parked
        self._home: torch.device = model.device

    def park(self) -> bool:
        """Move the weights to the host, in pages that a GPU reads by itself on the way back; not those of few bits."""
        if getattr(self._model, "quantization_method", None) is not None:
            return False
        self._home = self._model.device
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            host = tensor.data.to("cpu")
            tensor.data = host.pin_memory() if torch.cuda.is_available() else host
        return True

    def unpark(self) -> None:
        """Move the weights back."""
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            tensor.data = tensor.data.to(self._home, non_blocking=True)

    def unload(self) -> None:
        """Drop the model and give its memory back."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
