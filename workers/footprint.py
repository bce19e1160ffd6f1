"""How much memory models take, and how much there is: of a GPU as torch counts it, else of the host."""

from __future__ import annotations

from pathlib import Path

import psutil

from shared.settings import Settings
from workers.generators import Device, ModelFiles

MB = 2**20
#: share of a GPU's memory that stays free for what models compute
WORKING_SHARE = 0.15


class Footprint:
    """Measures what is loaded between its making and `grown`."""

    def __init__(self, device: Device) -> None:
        """Measures from now on."""
        self._device = device.name
        self._before = _used(self._device)

    def grown(self) -> int:
        """Bytes that were taken since."""
        return max(0, _used(self._device) - self._before)


def _used(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def expected(files: ModelFiles, device: Device) -> int:
    """Bytes that a model is expected to take, by its files; weights stored in half are twice as large in float32."""
    weights = sum(path.stat().st_size for path in _weights(files))
    halves = str(files.config.get("dtype") or files.config.get("torch_dtype") or "") in ("float16", "bfloat16")
    return weights * 2 if halves and device.dtype == "float32" else weights


def _weights(files: ModelFiles) -> list[Path]:
    if files.weights is not None:
        return [files.weights]
    return [path for path in files.folder.rglob("*.safetensors") if path.is_file()]


def room(settings: Settings, device: Device, resident: int) -> int:
    """Bytes that may still be taken by models, beside those that take `resident`."""
    rooms = []
    if settings.resident_mb:
        rooms.append(settings.resident_mb * MB - resident)
    if device.name.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device.name)
        cached = torch.cuda.memory_reserved(device.name) - torch.cuda.memory_allocated(device.name)
        rooms.append(int(free + cached - total * WORKING_SHARE))
    elif not settings.resident_mb:
        rooms.append(int(psutil.virtual_memory().available))
    return min(rooms)


def host_room(settings: Settings, parked: int) -> int:
    """Bytes of the host that may still be taken by models that leave a GPU, beside those that take `parked`."""
    host = psutil.virtual_memory()
    most = settings.parked_mb * MB if settings.parked_mb else host.total // 4
    return int(min(most - parked, host.available // 2))
