"""Threads that take things out of one queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """Up to `most` threads that do the same with everything that is put in; they are started as they are needed."""

    def __init__(
        self, name: str, most: int, work: Callable[[T], None], *, on_defect: Callable[[BaseException], None]
    ) -> None:
        """What `work` raises goes to `on_defect`, and its thread goes on."""
        self._name, self._most, self._work, self._on_defect = name, most, work, on_defect
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._unfinished = 0
        self._threads: list[threading.Thread] = []

    def put(self, item: T) -> None:
        """Have it done; returns at once."""
        with self._guard:
            self._unfinished += 1
            if len(self._threads) < min(self._unfinished, self._most):
                name = f"{self._name}-{len(self._threads) + 1}"
                self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
                self._threads[-1].start()
        self._queue.put(item)

    def close(self, *, abandon: bool = False) -> None:
        """Do what is in it and end the threads; or abandon it, and whoever is at something that may never end."""
        while abandon and not self._queue.empty():
            with suppress(queue.Empty):
                self._queue.get_nowait()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0 if abandon else None)
        self._threads = []

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._work(item)
            except BaseException as error:  # noqa: BLE001 - kept, and raised again in the worker's own thread
                self._on_defect(error)
            with self._guard:
                self._unfinished -= 1
            del item  # what it holds may be large, and the next one long in coming
