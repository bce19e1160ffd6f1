"""How many jobs fit into memory at once: learned from what did not fit, forgotten slowly."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

#: microbatches at the ceiling that have to fit before one more job is tried
PATIENCE = 20


@dataclass(slots=True)
class _Ceiling:
    jobs: int
    fitted: int = 0


class Ceilings:
    """For each model and shape, the largest microbatch that is worth trying. No clock and no device in here."""

    def __init__(self) -> None:
        """Nothing is known, so anything may be tried."""
        self._known: dict[Hashable, _Ceiling] = {}

    def limit(self, key: Hashable, wanted: int) -> int:
        """How many of `wanted` jobs may run together; at least one."""
        known = self._known.get(key)
        return wanted if known is None else max(1, min(wanted, known.jobs))

    def ran_out(self, key: Hashable, jobs: int) -> None:
        """So many jobs together ran out of memory: half of them may be tried."""
        known = self._known.setdefault(key, _Ceiling(jobs))
        known.jobs, known.fitted = max(1, min(known.jobs, jobs // 2)), 0

    def fitted(self, key: Hashable, jobs: int) -> None:
        """So many jobs together fitted. After enough of them at the ceiling, it creeps up by an eighth."""
        known = self._known.get(key)
        if known is None or jobs < known.jobs:
            return
        known.fitted += 1
        if known.fitted >= PATIENCE:
            known.jobs, known.fitted = known.jobs + max(1, known.jobs // 8), 0
