"""The device that this process computes on: torch's side of it, imported when it is needed."""

from __future__ import annotations

from shared.errors import RequestError
from shared.settings import Settings
from workers.generators import Device


def pinned_device(settings: Settings) -> Device:
    """The device of this process. Imports torch; raises `RequestError` if CUDA was asked for and is not there."""
    if settings.device == "cpu":
        return Device("cpu", "float32", settings.compile)
    import torch

    if torch.cuda.is_available():
        return Device("cuda:0", settings.dtype, settings.compile)
    if settings.device == "cuda":
        raise RequestError(
            f"this worker was to compute on a GPU, and torch {torch.__version__} sees none: "
            "install a CUDA build of torch, or start it with --devices cpu"
        )
    return Device("cpu", "float32", settings.compile)


def free_cached(device: str) -> None:
    """Give memory that torch keeps for later back to the device."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice, of the device or of the host."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


class PeakMemory:
    """How much of the device's memory is taken at the peak of what comes; on a CPU nobody can tell."""

    def __init__(self, device: str) -> None:
        """Measures from now on."""
        self._cuda = device if device.startswith("cuda") else None
        if self._cuda is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = int(torch.cuda.memory_allocated(self._cuda))

    def measured(self) -> tuple[int, int] | None:
        """Bytes taken at the peak, and those that there were to take; None where that cannot be measured."""
        if self._cuda is None:
            return None
        import torch

        taken = int(torch.cuda.max_memory_allocated(self._cuda)) - self._before
        free, _ = torch.cuda.mem_get_info(self._cuda)
        cached = int(torch.cuda.memory_reserved(self._cuda)) - self._before
        return taken, int(free) + max(0, cached)
