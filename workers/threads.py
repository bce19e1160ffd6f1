"""How many threads a worker computes with, and how they wait. To be set before torch is imported."""

from __future__ import annotations

import os

import psutil

from shared.settings import Settings


def set_thread_policy(settings: Settings) -> None:
    """Set OpenMP's variables for this process and its children, unless an operator has set them.

    Passive waiting is stable beside other busy processes, where spinning can be fifty times slower.
    """
    threads = settings.threads or psutil.cpu_count(logical=False) or os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
