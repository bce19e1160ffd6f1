"""Scores of texts, pictures and recordings, each by the well-kept library of its field.

One module per kind of thing. A measure takes a `Case` and gives `Score`s; it says `tick()` once per output that it has
looked at, or once if it looks at all of them together. Nothing here imports torch before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

from workers.generators import Run

#: says that another step is done; raises what ends the job
Tick = Callable[[], None]


class Unwanted(Exception):
    """The job was cancelled: what is left of it need not be done."""


class Steps:
    """Counts the steps of a job, and lets what ends it pass. Raises `Unwanted` once nobody wants it any more."""

    def __init__(self, run: Run, job_id: str, total: int) -> None:
        self._run = run
        self._job_id = job_id
        self._total = total
        self._done = 0

    def __call__(self) -> None:
        """Another one is done."""
        self._done += 1
        self.again()

    def again(self) -> None:
        """Within a step that takes long: see whether to go on."""
        if self._done:
            self._run.step([self._job_id], self._done, self._total)
        if not self._run.wanted(self._job_id):
            raise Unwanted


#: digits behind the point in what is written down
DIGITS = 8


@dataclass(frozen=True, slots=True)
class Score:
    """What a metric says of all outputs of a job."""

    metric: str
    #: None where there is none: `notes` say why
    value: float | None
    #: in which direction it gets better
    better: Literal["higher", "lower"]
    #: `0–100`, `dB`, …
    scale: str
    #: the distribution that computed it
    library: str
    #: everything that another value has to have in common with this one to be compared with it
    signature: str
    #: outputs that it was computed from
    n: int
    #: of each output alone, where there is such a thing; None for an output that has none
    items: Sequence[float | None] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    #: what a reader should know before drawing conclusions
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Without the values of single outputs."""
        return {
            "metric": self.metric, "value": rounded(self.value), "better": self.better, "scale": self.scale,
            "n": self.n, "library": self.library, "version": version(self.library), "signature": self.signature,
            "details": {name: _tidy(value) for name, value in self.details.items()}, "notes": list(self.notes),
        }  # fmt: skip


def rounded(value: float | None) -> float | None:
    """A number as it is written down."""
    return None if value is None else round(float(value), DIGITS) + 0.0  # no -0.0


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there; None if there are none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def signed(**facts: object) -> str:
    """A signature of name:value pairs."""
    said = {True: "yes", False: "no"}
    return "|".join(
        f"{name}:{said[value] if isinstance(value, bool) else value}" for name, value in facts.items()
    )  # fmt: skip


def _tidy(value: Any) -> Any:
    if isinstance(value, float):
        return rounded(value)
    return [_tidy(each) for each in value] if isinstance(value, (list, tuple)) else value
