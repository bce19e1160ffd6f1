"""A process that was started by another one should not outlive it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from shared.settings import Settings

#: seconds between two looks
LOOK_S = 0.5


def orphaned(settings: Settings) -> bool:
    """Whether the process that started this one is gone."""
    return settings.parent_pid != 0 and os.getppid() != settings.parent_pid


def stop_when_orphaned(settings: Settings) -> None:
    """Send ourselves SIGTERM once the process that started this one is gone."""
    if settings.parent_pid:
        call_when_orphaned(settings.parent_pid, lambda: os.kill(os.getpid(), signal.SIGTERM))


def call_when_orphaned(parent_pid: int, then: Callable[[], None]) -> None:
    """Call once, from a thread of its own, when this process has another parent than that one."""
    threading.Thread(target=_watch, args=(parent_pid, then), name="parent", daemon=True).start()


def _watch(parent_pid: int, then: Callable[[], None]) -> None:
    pause = threading.Event()
    while os.getppid() == parent_pid:
        pause.wait(LOOK_S)
    then()
