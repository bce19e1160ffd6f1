"""The storage as a worker has it: opened when it is needed, proved before it is trusted again after trouble."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from shared.errors import Unavailable
from shared.storage import Storage


class Depot:
    """One storage for all threads of a worker, looked for afresh after trouble: a disk may come back elsewhere."""

    def __init__(self, opened: Callable[[], Storage], *, pause_s: float) -> None:
        """`opened` gives a storage that has been proved, or raises `Unavailable`; asked at most once in `pause_s`."""
        self._opened = opened
        self._pause_s = pause_s
        self._guard = threading.Lock()
        self._storage: Storage | None = None
        self._trouble: Unavailable | None = None
        self._again_at = 0.0
        self._since = 0.0

    def get(self) -> Storage:
        """The storage. Raises `Unavailable`, while it rests after trouble with the words of that."""
        with self._guard:
            if self._storage is not None:
                return self._storage
            if self._trouble is not None and time.monotonic() < self._again_at:
                trouble = self._trouble
                raise Unavailable(trouble.part, trouble.address, trouble.reason, trouble.advice)
            try:
                self._storage = self._opened()
            except Unavailable as error:
                if error.part == "storage":
                    self._note(error)
                raise
            return self._storage

    def failed(self, error: Unavailable) -> None:
        """It did not do what it was asked to."""
        with self._guard:
            if self._storage is not None or self._trouble is None:  # or it is known, and has its pause already
                self._note(error)

    def worked(self) -> None:
        """It did."""
        with self._guard:
            self._trouble = None

    def troubled_s(self) -> float:
        """For how long it has been in trouble, without one thing stored in between; 0 if it is not."""
        with self._guard:
            return time.monotonic() - self._since if self._trouble is not None else 0.0

    def _note(self, error: Unavailable) -> None:
        clock = time.monotonic()
        if self._trouble is None:
            self._since = clock
        self._storage, self._trouble, self._again_at = None, error, clock + self._pause_s
