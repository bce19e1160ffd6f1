"""What the figures were taken on: versions, cores, and how much of the machine others used meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import psutil

#: threads that every arm computes with
THREADS = os.cpu_count() or 1

_PACKAGES = (
    "aigc", "torch", "transformers", "diffusers", "tokenizers", "celery", "kombu", "redis", "SQLAlchemy", "psycopg",
    "boto3", "pillow",
)  # fmt: skip


def kind() -> str:
    """`2-cores`, or the name of the GPU: part of the name of a file of results."""
    names = gpus()
    return "-".join(names[0].lower().split()) if names else f"{THREADS}-cores"


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that torch could use; empty if there are none. Imports no torch."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()]


def described() -> dict[str, Any]:
    """Hardware and versions, for the record."""
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "python": sys.version.split()[0], "system": platform.platform(), "processor": _processor(),
        "cores": THREADS, "physical_cores": psutil.cpu_count(logical=False), "gpus": gpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "versions": versions,
    }  # fmt: skip


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as info:  # noqa: PTH123 - a device, not a file
        for line in info:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


class Load:
    """What others do to this machine while something is measured (`with`); see `note` afterwards."""

    def __init__(self) -> None:
        self.note: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._average = os.getloadavg()[0]
        self._busy, self._ours, self._clock = _busy(), _ours(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = (time.monotonic() - self._clock) * THREADS
        others = (_busy() - self._busy) - (_ours() - self._ours)
        self.note = {
            "load_before": round(self._average, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "others_share_of_cpu": round(min(1.0, max(0.0, others / seconds)), 3) if seconds else 0.0,
        }


def _busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def _ours() -> float:
    """Seconds of CPU that this process and all below it have used, ended ones included as far as they are known."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
