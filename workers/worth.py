"""What it is worth to keep a model in memory: pure, so that it can be tried without one.

GreedyDual-Size with frequency (Cao and Irani, *Cost-aware WWW proxy caching algorithms*, 1997; Cherkasova, 1998): a
model is worth the seconds that its loading takes, times how often it is used, for each megabyte that it takes; and the
worth of what was dropped is added to whatever is used after that, so that nothing lives on old merits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from shared.scheduling import ModelKey

#: uses count half after so many seconds
HALF_LIFE_S = 300.0
#: what one gap between two uses weighs in their mean
_RECENT = 0.3


@dataclass(slots=True)
class _Known:
    """One model."""

    credit: float = 0.0
    uses: float = 0.0
    used_at: float = 0.0
    #: mean seconds between two uses; None before the second
    gap_s: float | None = None


class Worth:
    """The worth of models by key; the clock is the caller's."""

    def __init__(self) -> None:
        """Nothing was used yet."""
        self._known: dict[ModelKey, _Known] = {}
        self._inflation = 0.0

    def used(self, key: ModelKey, clock: float, *, load_s: float, size_mb: float) -> None:
        """It is used now; loading it takes so long, and it takes so much room."""
        known = self._known.setdefault(key, _Known(used_at=clock))
        elapsed = max(0.0, clock - known.used_at)
        if known.uses > 0:
            gap = known.gap_s
            known.gap_s = elapsed if gap is None else gap + _RECENT * (elapsed - gap)
        known.uses = known.uses * 0.5 ** (elapsed / HALF_LIFE_S) + 1.0
        known.used_at = clock
        known.credit = self._inflation + known.uses * max(load_s, 1e-3) / max(size_mb, 1.0)

    def least(self, keys: Iterable[ModelKey], wanted: Collection[ModelKey]) -> ModelKey:
        """The one to go first: what nobody waits for, then what is worth least."""
        return min(keys, key=lambda key: (key in wanted, self._known.get(key, _Known()).credit))

    def dropped(self, key: ModelKey) -> None:
        """It is no longer in memory."""
        known = self._known.get(key)
        if known is not None:
            self._inflation = max(self._inflation, known.credit)

    def in_steady_use(self, key: ModelKey, clock: float, within_s: float) -> bool:
        """Whether it is used more often than every `within_s` seconds, and was within the last so many."""
        known = self._known.get(key)
        if known is None or known.gap_s is None:
            return False
        return known.gap_s <= within_s and clock - known.used_at <= within_s
