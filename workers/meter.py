"""Time in the model, shared out among the jobs that are in it at the same time."""

from __future__ import annotations

import time
from collections.abc import Iterable


class Meter:
    """Each moment counts in equal parts for those that are in the model then: the sum is what was spent."""

    def __init__(self) -> None:
        """Nothing is in the model yet."""
        #: seconds in the model so far
        self.spent = 0.0
        self._since = time.monotonic()
        #: what one job would have gathered that was there from the beginning
        self._each = 0.0
        self._joined: dict[str, float] = {}

    def join(self, job_ids: Iterable[str]) -> None:
        """These are in the model from now on."""
        self._count()
        self._joined.update((id_, self._each) for id_ in job_ids)

    def leave(self, job_id: str) -> float:
        """This one is done or dropped; returns its seconds, none for one that was not in the model."""
        self._count()
        joined = self._joined.pop(job_id, None)
        return 0.0 if joined is None else self._each - joined

    def pause(self) -> None:
        """What passes from now on is not the model's doing."""
        self._count()

    def go_on(self) -> None:
        """The model goes on after a pause."""
        self._since = time.monotonic()

    def _count(self) -> None:
        clock = time.monotonic()
        if self._joined:
            self.spent += clock - self._since
            self._each += (clock - self._since) / len(self._joined)
        self._since = clock
