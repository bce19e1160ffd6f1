"""What work costs on this device, learned while it is done: t(n) = a·n + b for each model and shape.

Pure: no clock and no device in here. From the model of costs follows how many jobs a microbatch is worth: the fewest
whose jobs per second come close to the best, for a larger one would only make stops slower and take more memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

#: a microbatch may be this much slower per job than the best
TOLERANCE = 0.03
#: no microbatch is made larger than what is expected to take so many seconds
MOST_S = 60.0
#: what a measurement weighs after each one that follows it
_DECAY = 0.9
#: sizes that are tried on purpose, as shares of the largest, before anything is concluded
_EXPLORED = (1.0, 0.5, 0.25)
#: models and shapes that are remembered, and sizes of each
_REMEMBERED, _SIZES = 1024, 48


@dataclass(slots=True)
class _Mean:
    """An exponentially weighted mean."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        self.total = self.total * _DECAY + value
        self.weight = self.weight * _DECAY + 1.0

    @property
    def value(self) -> float:
        return self.total / self.weight


@dataclass(slots=True)
class _Known:
    """What is known of one model and shape."""

    #: seconds by size, each as it was measured last
    sizes: OrderedDict[int, _Mean] = field(default_factory=OrderedDict)
    #: sizes that were run: the first run of one warms things up and tells nothing
    warm: set[int] = field(default_factory=set)

    def add(self, n: int, seconds: float) -> None:
        self.sizes.setdefault(n, _Mean()).add(seconds)
        self.sizes.move_to_end(n)
        while len(self.sizes) > _SIZES:
            self.sizes.popitem(last=False)

    def line(self) -> tuple[float, float]:
        """(a, b) of t = a·n + b by least squares, neither below zero. One size alone counts as proportional."""
        weights = [(n, mean.value, mean.weight) for n, mean in self.sizes.items()]
        total = sum(weight for _, _, weight in weights)
        mean_n = sum(n * weight for n, _, weight in weights) / total
        mean_t = sum(t * weight for _, t, weight in weights) / total
        spread = sum(weight * (n - mean_n) ** 2 for n, _, weight in weights)
        both = sum(weight * (n - mean_n) * (t - mean_t) for n, t, weight in weights)
        slope = min(max(both / spread, 0.0), mean_t / mean_n) if spread else mean_t / mean_n
        return slope, mean_t - slope * mean_n

    def expected(self, n: int) -> float:
        """Seconds: as measured where this size was, else by the line."""
        measured = self.sizes.get(n)
        if measured is not None:
            return measured.value
        a, b = self.line()
        return a * n + b


class Costs:
    """Seconds of microbatches by model and shape, and what a unit of estimated cost takes."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._units: OrderedDict[tuple[str, str], tuple[_Mean, _Mean]] = OrderedDict()

    def measured(self, key: Hashable, n: int, seconds: float) -> None:
        """A microbatch of n jobs of this model and shape took so long in the model."""
        known = self._known.setdefault(key, _Known())
        self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        if n not in known.warm:
            known.warm.add(n)
            return
        known.add(n, seconds)

    def expected(self, key: Hashable, n: int) -> float | None:
        """Seconds that n such jobs are expected to take together; None if nothing is known."""
        known = self._known.get(key)
        return known.expected(n) if known and known.sizes else None

    def suggested(self, key: Hashable, most: int) -> int:
        """How many such jobs to run together, of at most `most`.

        First some sizes are tried: the largest, a half, a quarter, each once to warm up and once to measure. Then it is
        the smallest size whose jobs per second are within 3 % of the best; never more than what takes a minute.
        """
        known = self._known.get(key)
        if known is None or most <= 1:
            return most
        for share in _EXPLORED:
            size = max(1, int(most * share))
            if size not in known.sizes and (not known.sizes or known.expected(size) <= MOST_S):
                return size
        rates = {n: n / max(known.expected(n), 1e-9) for n in _candidates(most)}
        best = max(rates.values())
        for n, rate in rates.items():
            if rate >= best * (1 - TOLERANCE):
                return n if known.expected(n) <= MOST_S else self._prompt(known, n)
        return most

    def _prompt(self, known: _Known, most: int) -> int:
        """The largest size that is done within a minute; one job always may be tried."""
        return max((n for n in _candidates(most) if known.expected(n) <= MOST_S), default=1)

    def spent(self, task: str, model: str, cost: float, seconds: float) -> None:
        """Jobs estimated at `cost` took so many seconds of the device."""
        seconds_mean, cost_mean = self._units.setdefault((task, model), (_Mean(), _Mean()))
        self._units.move_to_end((task, model))
        while len(self._units) > _REMEMBERED:
            self._units.popitem(last=False)
        seconds_mean.add(seconds)
        cost_mean.add(cost)

    def seconds(self, task: str, model: str, cost: float) -> float:
        """Seconds of this device that a job of this estimated cost takes; the estimate where nothing is known."""
        known = self._units.get((task, model))
        if known is None or known[1].total <= 0:
            return cost
        return cost * known[0].total / known[1].total


def _candidates(most: int) -> list[int]:
    """Powers of two, and the largest itself: few sizes, so that each is soon known, and those that devices like."""
    sizes = [1 << k for k in range(most.bit_length()) if 1 << k < most]
    return [*sizes, most]
