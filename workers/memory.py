"""Memory that a worker gathers and does not give back: noticed between microbatches, cured by a new process."""

from __future__ import annotations

from collections.abc import Collection

#: looks after a change of the models in memory before their needs are taken for granted
SETTLING = 3


class Growth:
    """Tells growth from need: memory that grows while the same models are loaded is nobody's any more."""

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes` of growth are too much; 0 = never."""
        self._limit = limit_bytes
        self._models: frozenset[str] = frozenset()
        self._seen = 0
        self._settled = 0

    def too_much(self, models: Collection[str], used_bytes: int) -> bool:
        """Note what is in use after a window, with these models in memory; whether it has grown beyond the limit."""
        if frozenset(models) != self._models:
            self._models, self._seen, self._settled = frozenset(models), 0, 0
        self._seen += 1
        if self._seen <= SETTLING:
            self._settled = max(self._settled, used_bytes)
            return False
        return 0 < self._limit < used_bytes - self._settled
