"""How much memory models take, and how much there is: of a GPU as torch counts it, else of the host."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from shared.settings import Settings
from workers.generators import Device

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


def capacity(settings: Settings, device: Device) -> int:
    """Bytes that models may take on this device when nothing else is in its memory."""
    if device.name.startswith("cuda"):
        import torch

        total = int(torch.cuda.get_device_properties(device.name).total_memory)
    else:
        total = host_total()
    return min(total, settings.resident_mb * MB) if settings.resident_mb else total


def host_total() -> int:
    """Bytes of memory of this host, or what a container may take of it."""
    total = int(psutil.virtual_memory().total)
    for place in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path("/sys/fs/cgroup", place).read_text(encoding="ascii")))
    return total


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
