"""A process that was started by another one should not outlive it."""

from __future__ import annotations

import os
import signal
import threading

from shared.settings import Settings

#: seconds between two looks
LOOK_S = 0.5


def orphaned(settings: Settings) -> bool:
    """Whether the process that started this one is gone."""
    return settings.parent_pid != 0 and os.getppid() != settings.parent_pid


def stop_when_orphaned(settings: Settings) -> None:
    """Send ourselves SIGTERM once the process that started this one is gone."""
    if settings.parent_pid:
        threading.Thread(target=_watch, args=(settings,), name="parent", daemon=True).start()


def _watch(settings: Settings) -> None:
    pause = threading.Event()
    while not orphaned(settings):
        pause.wait(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
