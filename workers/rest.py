"""How long claims rest after trouble: longer each time, until something went well."""

from __future__ import annotations

import time

#: claims rest for at most so long after a part has failed again and again
MAX_REST_S = 60.0


class Rest:
    """A pause that doubles with each trouble after the one before, and begins anew once something went well."""

    def __init__(self, first_s: float) -> None:
        """`first_s` is how long the first one lasts."""
        self._first_s = self._next_s = first_s
        self._until = 0.0

    @property
    def going_on(self) -> bool:
        """Whether nothing is to be claimed yet."""
        return time.monotonic() < self._until

    def begin(self) -> float:
        """Rest from now on; returns for how many seconds. Trouble during a rest makes it no longer."""
        if not self.going_on:
            self._until = time.monotonic() + self._next_s
            self._next_s = min(self._next_s * 2, max(MAX_REST_S, self._first_s))
        return self._until - time.monotonic()

    def end(self) -> None:
        """Something went well."""
        self._until, self._next_s = 0.0, self._first_s
