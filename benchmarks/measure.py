"""How everything is measured: arms in turn, A B A B, medians of ratios, and what disturbed them."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import Load
from benchmarks.models import CACHE

#: how threads wait for each other: which is best depends on the machine and on who else is there
OPENMP: Mapping[str, Mapping[str, str]] = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "bound": {"OMP_PROC_BIND": "true"},
    "default": {},
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one arm."""

    units: float
    seconds: float
    #: whatever else is worth keeping
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    quick: bool
    #: only to see that everything runs: the figures mean nothing, and are not kept
    trial: bool = False
    #: of the usual seconds, for a family whose rows are many
    share: float = 1.0

    @property
    def rounds(self) -> int:
        """Fewest rounds of each arm."""
        return 1 if self.trial else 3 if self.quick else 5

    @property
    def seconds(self) -> float:
        """Steady work of each arm, in all its rounds together, at least."""
        return self.share * (1.0 if self.trial else 7.0 if self.quick else 60.0)

    @property
    def words(self) -> str:
        """For those who read the figures."""
        much = f"about {self.seconds:g} s of work of each arm"
        return f"{self.rounds} rounds or more and {much}, unless a row says otherwise"

    def size(self, rate: float, *, deal: int = 1, least: int = 1) -> int:
        """How many units a round must have at this rate, in whole deals."""
        wanted = max(least, rate * self.seconds / self.rounds)
        return max(1, math.ceil(wanted / deal)) * deal


@dataclass(slots=True)
class Measured:
    """One row of the table, as measured."""

    #: of `goals.GOALS`
    row: str
    #: what is held against the goal
    ratio: float
    #: lowest and highest of the rounds
    spread: tuple[float, float]
    #: the figures behind the ratio, in words
    figures: str
    #: from where to where was measured, and what a reader must know
    how: str
    arms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class NotMeasured(Exception):
    """This machine cannot measure a row; says why."""


@dataclass
class Bench:
    """What a family of rows is given."""

    plan: Plan
    #: empty, removed after the family
    folder: Path

    def say(self, text: str) -> None:
        """Progress, for who waits."""
        print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def interleave(self, arms: Mapping[str, Callable[[], Sample]]) -> Rounds:
        """Run the arms in turn until each has had its rounds and its seconds; at most four times the rounds."""
        return self._interleave(arms, self._enough)

    def interleave_rounds(self, arms: Mapping[str, Callable[[], Sample]], rounds: int) -> Rounds:
        """Run the arms in turn, so many rounds: for what takes a moment and is no throughput."""
        return self._interleave(arms, lambda taken: min(map(len, taken.values())) >= rounds)

    def _interleave(
        self, arms: Mapping[str, Callable[[], Sample]], enough: Callable[[Mapping[str, list[Sample]]], bool]
    ) -> Rounds:
        taken: dict[str, list[Sample]] = {name: [] for name in arms}
        with Load() as load:
            while not enough(taken):
                for name, arm in arms.items():
                    sample = arm()
                    taken[name].append(sample)
                    self.say(f"{name}: {sample.units:g} in {sample.seconds:.3f} s = {sample.rate:.4g}/s")
        return Rounds(taken, load.note)

    def _enough(self, taken: Mapping[str, Sequence[Sample]]) -> bool:
        fewest = min(len(samples) for samples in taken.values())
        if fewest < self.plan.rounds:
            return False
        # A hair less than asked for is enough: the size of a round was reckoned from a trial.
        long_enough = all(sum(s.seconds for s in samples) >= 0.85 * self.plan.seconds for samples in taken.values())
        return long_enough or self.plan.trial or fewest >= 4 * self.plan.rounds

    def openmp(self, what: str, rate: Callable[[str], float]) -> str:
        """Which OpenMP setting makes an arm fastest; `rate` tries one."""
        return self.choice(f"openmp {what}", lambda: {way: rate(way) for way in OPENMP}, "passive")

    def choice(self, key: str, trial: Callable[[], Mapping[str, float]], default: str) -> str:
        """The name that a trial gave the highest rate, remembered in `.bench/choices.json`.

        A quick run takes what is remembered, else the default: it has no time for trials.
        """
        path = CACHE / "choices.json"
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if key not in known:
            if self.plan.quick:
                return default
            rates = dict(trial())
            known = json.loads(path.read_text()) if path.exists() else {}
            known[key] = {"best": max(rates, key=lambda name: rates[name]), "rates": rates}
            path.write_text(json.dumps(known, indent=1))
            self.say(f"{key}: {known[key]['best']} of {rates}")
        return str(known[key]["best"])


@dataclass(frozen=True, slots=True)
class Rounds:
    """All rounds of all arms."""

    taken: Mapping[str, list[Sample]]
    load: Mapping[str, Any]

    def rate(self, arm: str) -> float:
        """The median."""
        return statistics.median(sample.rate for sample in self.taken[arm])

    def measured(
        self, row: str, over: str, under: str, *, unit: str, how: str, per_s: float = 1, **details: Any
    ) -> Measured:
        """The rate of one arm over that of another, round by round; `per_s` of these units are one a second."""
        pairs = list(zip(self.taken[over], self.taken[under], strict=True))
        ratios = [a.rate / b.rate for a, b in pairs]
        return Measured(
            row,
            statistics.median(ratios),
            (min(ratios), max(ratios)),
            f"{per_s * self.rate(over):,.4g} against {per_s * self.rate(under):,.4g} {unit}",
            how,
            {arm: [sample.rate for sample in self.taken[arm]] for arm in (over, under)},
            {"load": dict(self.load), **details},
        )


def middle(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Median, and lowest and highest."""
    return statistics.median(values), (min(values), max(values))
