"""The devices of this host, found without torch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from shared.errors import RequestError


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """One worker's place: a device and the queues that fit it."""

    #: `cpu`, or the GPU's index
    name: str
    #: what CUDA_VISIBLE_DEVICES is set to; empty hides every GPU
    visible: str
    queues: tuple[str, ...]


def gpu_uuids() -> list[str]:
    """UUIDs of the NVIDIA GPUs in the driver's order; empty if there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listed = subprocess.run(
            [tool, "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip().startswith("GPU-")]


def slots(devices: str, queues: tuple[str, ...] = ()) -> list[DeviceSlot]:
    """Which workers `--devices` asks for: `all`, `cpu`, or GPU indexes such as `0,2`.

    `all` means one worker per GPU, serving `gpu`, and one for `cpu`; where there is no GPU, one CPU worker serves both.
    Raises `RequestError` that names the GPUs there are.
    """
    uuids = gpu_uuids()
    if devices == "all":
        if not uuids:
            return [DeviceSlot("cpu", "", queues or ("gpu", "cpu"))]
        return [
            *(DeviceSlot(str(n), uuid, queues or ("gpu",)) for n, uuid in enumerate(uuids)),
            *([] if queues else [DeviceSlot("cpu", "", ("cpu",))]),
        ]
    chosen = []
    for part in (part.strip() for part in devices.split(",")):
        if part == "cpu":
            chosen.append(DeviceSlot("cpu", "", queues or (("gpu", "cpu") if not uuids else ("cpu",))))
        elif part.isdigit() and int(part) < len(uuids):
            chosen.append(DeviceSlot(part, uuids[int(part)], queues or ("gpu",)))
        else:
            there = f"the GPUs here are 0 to {len(uuids) - 1}" if uuids else "this host has no NVIDIA GPU"
            raise RequestError(
                f"--devices {devices}: {part!r} is no device; {there}; write all, cpu, or indexes like 0,2"
            )
    return chosen
