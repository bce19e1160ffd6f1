"""Jobs that wait in a worker for a microbatch: which of those that can be cut of them is run next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from workers.generators import Work

#: a job that was passed over so often is in the next microbatch
PASSED_OVER = 6


class Pool:
    """Jobs of one lane, in the order in which they came."""

    def __init__(self, works: Iterable[Work]) -> None:
        """`works` came first."""
        self._works: dict[str, Work] = {}
        self._passed_over: dict[str, int] = {}
        self.add(works)

    def __len__(self) -> int:
        return len(self._works)

    def add(self, works: Iterable[Work]) -> None:
        """These come last."""
        for work in works:
            self._works[work.job_id] = work
            self._passed_over[work.job_id] = 0

    def remove(self, part: Sequence[Work]) -> None:
        """These are run now; all others are passed over."""
        for work in part:
            del self._works[work.job_id], self._passed_over[work.job_id]
        for id_ in self._passed_over:
            self._passed_over[id_] += 1

    def sort_out(self, wanted: Callable[[str], bool]) -> list[str]:
        """Remove the jobs that nobody wants any more; returns which they were."""
        unwanted = [id_ for id_ in self._works if not wanted(id_)]
        for id_ in unwanted:
            del self._works[id_], self._passed_over[id_]
        return unwanted

    def fullest(
        self, cut: Callable[[Sequence[Work]], Sequence[Sequence[Work]]], fitting: Callable[[Sequence[Work]], int]
    ) -> tuple[Sequence[Work], bool]:
        """The microbatch to run next, and whether it is as large as it can be or may not wait for more.

        `cut` gives what may run together, `fitting` says how many of such jobs are to.
        """
        if not self._works:
            return (), False
        best: tuple[float, Sequence[Work]] = (0.0, ())
        for part in cut(list(self._works.values())):
            most = fitting(part) if part else 1
            if any(self._passed_over[work.job_id] >= PASSED_OVER for work in part[:most]):
                return part[:most], True
            share = min(1.0, len(part) / most)
            if share > best[0]:
                best = (share, part[:most])
        share, part = best
        if not part:  # a generator that gives a job to no microbatch must not keep it for ever
            return list(self._works.values())[:1], True
        return part, share >= 1.0
