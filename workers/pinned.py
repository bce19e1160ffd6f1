"""The device that this process computes on: torch's side of it, imported when it is needed."""

from __future__ import annotations

from shared.errors import RequestError
from shared.settings import Settings
from workers.generators import Device


def pinned_device(settings: Settings) -> Device:
    """The device of this process. Imports torch; raises `RequestError` if CUDA was asked for and is not there."""
    if settings.device == "cpu":
        return Device("cpu", "float32")
    import torch

    if torch.cuda.is_available():
        return Device("cuda:0", settings.dtype)
    if settings.device == "cuda":
        raise RequestError(
            f"this worker was to compute on a GPU, and torch {torch.__version__} sees none: "
            "install a CUDA build of torch, or start it with --devices cpu"
        )
    return Device("cpu", "float32")


def free_cached(device: str) -> None:
    """Give memory that torch keeps for later back to the device."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, of the device or of the host."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()
