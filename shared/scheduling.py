"""Which lane a worker serves next: a pure function of what waits, what is in memory, and the clock.

No I/O and no clock of its own, so that claims and simulations ask the very same question.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """Ready jobs of one lane at one priority."""

    lane_id: int
    task: str
    #: model reference; empty for tasks without a model
    model: str
    priority: int
    #: when the oldest batch among them was opened, in seconds since 1970
    oldest: float
    #: how many jobs
    ready: int


def choose(waiting: Sequence[Waiting], resident: Collection[str], now: float, *, age_bound_s: float) -> Waiting | None:
    """The lane to serve next, or None if nothing waits.

    Priority first. Within it the oldest, unless a lane whose model is in memory (or that needs none) waits too and
    nothing has waited longer than `age_bound_s`: models are not swapped for every job, and nobody starves.
    """
    if not waiting:
        return None
    top = max(lane.priority for lane in waiting)
    candidates = sorted(
        (lane for lane in waiting if lane.priority == top), key=lambda lane: (lane.oldest, lane.lane_id)
    )
    oldest = candidates[0]
    if now - oldest.oldest > age_bound_s:
        return oldest
    at_hand = [lane for lane in candidates if not lane.model or lane.model in resident]
    return at_hand[0] if at_hand else oldest


def window(ready: int, active_workers: int, microbatch: int, ahead: int = 2) -> int:
    """How many jobs one claim takes: a few microbatches, and no more than a fair share of what is ready.

    A lone worker with 20 ready jobs takes them all; eight workers with 20 ready jobs take three each.
    """
    share = -(-ready // max(1, active_workers))
    return max(1, min(share, microbatch * ahead))
