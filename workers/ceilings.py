"""How many jobs fit into memory at once: learned from what they took and from what did not fit, forgotten slowly."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

#: microbatches at the ceiling that have to fit before one more job is tried
PATIENCE = 20
#: share of the memory that a microbatch may be planned to fill
FILLED = 0.9


@dataclass(slots=True)
class _Ceiling:
    jobs: int
    fitted: int = 0


class Ceilings:
    """For each model and shape, the largest microbatch that is worth trying. No clock and no device in here."""

    def __init__(self) -> None:
        """Nothing is known, so anything may be tried."""
        self._known: dict[Hashable, _Ceiling] = {}
        #: jobs of the largest microbatch that was measured, and how many would fit by that
        self._measured: dict[Hashable, tuple[int, int]] = {}

    def limit(self, key: Hashable, wanted: int) -> int:
        """How many of `wanted` jobs may run together; at least one."""
        known = self._known.get(key)
        most = wanted if known is None else min(wanted, known.jobs)
        tried, fits = self._measured.get(key, (wanted, wanted))
        return max(1, min(most, max(tried, fits)))

    def measured(self, key: Hashable, jobs: int, taken: int, room: int) -> None:
        """So many jobs together took so many bytes at their peak, of `room` that there were for them.

        A larger microbatch is planned by this share per job. What a microbatch takes whatever its size counts as the
        jobs' own, so that the plan is on the safe side and comes closer to the truth with each larger one.
        """
        tried, _ = self._measured.get(key, (0, 0))
        if jobs >= tried and taken > 0:
            self._measured[key] = (jobs, int(room * FILLED * jobs / taken))

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
