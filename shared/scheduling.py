"""Which lane a worker serves next, and whose jobs its window holds: pure functions of what waits, what tenants were
served, what is in memory, and the clock.

No I/O and no clock of its own, so that claims and simulations ask the very same questions. In this order:

1. Priority: while jobs of a higher one wait, no lower one is served.
2. Fairness: within a priority, tenants share what the workers of a queue do, in seconds. Each has a *virtual service*:
   what it was served, plus what is claimed of it now. A lane may be chosen while the least served tenant in it is no
   more than a *turn* ahead of the least served one of all (`start-time fair queueing
   <https://doi.org/10.1109/90.649569>`_, with a turn as the packet).
3. Affinity: among those, a lane whose model is in memory, until another has waited close to the age bound.

Before 2 and 3, a lane may be left to other workers that have its model in memory and are about to be free: waiting a
little for them costs less than one more load (`delay scheduling <https://doi.org/10.1145/1755913.1755940>`_). What is
left counts for priority, but neither for fairness nor for affinity.

Whoever comes back from idleness begins at the smallest service that a tenant with waiting jobs stands at: time in which
nothing was asked for is no credit, and jobs that were cancelled before they ran were never charged.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared.services import is_remote

#: seconds that a worker stays with a lane while others that cost nothing to change to wait, and how far a tenant may
#: get ahead of the least served one for it
TURN_S = 5.0
#: seconds of work that one claim is worth, where that is more than a microbatch
WINDOW_S = 1.0
#: one claim takes no more seconds of work than that, however few jobs they are
LONGEST_S = 600.0
#: most jobs of one claim: beyond it the transaction gets longer and nothing gets cheaper
WINDOW_JOBS = 1024
#: most tenants whose jobs one claim mixes
WINDOW_TENANTS = 64
#: a model that was loaded works for so many times its load before age alone can have another one loaded
EARNED = 2.0
#: a model in steady use makes place for another one, with the device idle, once that has waited so many times its load
SWAP_PATIENCE = 6.0
#: a lane is left to workers that have its model, all of them at work, until it has waited so many times its load …
LEFT_LOADS = 2.0
#: … and while its jobs are worth no more than so many times its load for each of them
LEFT_WORTH = 4.0
#: seconds that a model is taken to need for loading where nobody has seen it
UNKNOWN_LOAD_S = 5.0

#: (task, model)
ModelKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Ready jobs of one lane at one priority."""

    lane_id: int
    queue: str
    task: str
    #: model reference; empty for tasks without a model
    model: str
    priority: int
    #: since when some of it waits while none of it is claimed, in seconds since 1970
    since: float
    #: how many jobs
    ready: int
    #: virtual service of the tenants whose jobs they are, as in `Standing`
    tenants: Mapping[str, float] = field(hash=False)
    #: other workers of its queue that have its model in memory, or load it now, and are at work; 0 if one of them is
    #: idle: that one could have taken it, and has not
    holders: int = 0
    #: seconds of work that its jobs are worth, about; need not be known where nobody holds its model
    work_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What a worker has at hand, and what it would take to change that."""

    #: models in memory → seconds since they were loaded
    resident: Mapping[ModelKey, float] = field(default_factory=dict)
    #: seconds that models took to load, here or as measured before
    load_s: Mapping[ModelKey, float] = field(default_factory=dict)
    #: the lane that was served last
    current: int | None = None
    #: whether another model could only be loaded in place of one that is in steady use
    tight: bool = False

    def has(self, lane: Waiting) -> bool:
        """Whether the lane can be served without loading anything."""
        return not lane.model or is_remote(lane.model) or (lane.task, lane.model) in self.resident

    def has_earned(self, lane: Waiting) -> bool:
        """Whether the model of a lane at hand was in memory for long enough to be worth its load."""
        key = (lane.task, lane.model)
        return self.resident.get(key, math.inf) >= EARNED * self.load_s.get(key, 0.0)

    def change_s(self, lane: Waiting) -> float:
        """Seconds that pass before the first job of the lane can run."""
        return 0.0 if self.has(lane) else self.load_s.get((lane.task, lane.model), UNKNOWN_LOAD_S)


def choose(
    waiting: Sequence[Waiting], memory: Memory, now: float, *, age_bound_s: float, turn_s: float = TURN_S
) -> Waiting | None:
    """The lane to serve next, with those of its tenants whose turn it is; None if nothing waits, or nothing that is
    worth loading a model for yet.

    A lane whose turn it is by priority and fairness waits for affinity's sake no longer than `age_bound_s`, unless so
    many models take turns that loading them takes longer than that: then each that was loaded works for `EARNED` times
    as long as its loading took before the next one is.
    """
    top = _top(waiting)
    mine = [lane for lane in top if not _is_left(lane, memory, now, age_bound_s=age_bound_s)]
    if not mine and len(top) < len(waiting):
        mine = top  # nobody idles for the sake of a load, with jobs of a lower priority behind it
    if not mine:
        return None
    most = _most_served(mine, memory, turn_s)
    fair = [lane for lane in mine if _least(lane) <= most[lane.queue]]
    found = _by_affinity(waiting, fair, most, memory, now, age_bound_s=age_bound_s, turn_s=turn_s)
    if found is None:
        return None
    return replace(found, tenants={name: at for name, at in found.tenants.items() if at <= most[found.queue]})


def _is_left(lane: Waiting, memory: Memory, now: float, *, age_bound_s: float) -> bool:
    """Whether a worker that would have to load the model of a lane leaves it to those that have it, and are at work.

    It does no longer once the lane has waited for `LEFT_LOADS` of its loads, nor beyond the moment from which on it
    could still be loaded and served within the age bound (half the bound, where loading takes longer than that); nor
    if the jobs are worth more than `LEFT_WORTH` loads for each of the others. A claim by one of them begins the wait
    anew, so that a lane that is served well stays theirs, and one whose workers are stuck does not.
    """
    if lane.holders < 1 or memory.has(lane):
        return False
    load_s = memory.change_s(lane)
    patience = min(LEFT_LOADS * load_s, max(age_bound_s / 2, age_bound_s - load_s - WINDOW_S))
    return now - lane.since < patience and lane.work_s <= LEFT_WORTH * load_s * lane.holders


def _top(waiting: Sequence[Waiting]) -> list[Waiting]:
    top = max((lane.priority for lane in waiting), default=0)
    return [lane for lane in waiting if lane.priority == top]


def _least(lane: Waiting) -> float:
    return min(lane.tenants.values(), default=0.0)


def _most_served(waiting: Sequence[Waiting], memory: Memory, turn_s: float) -> dict[str, float]:
    """The virtual service up to which it is a tenant's turn, by queue: a turn beyond the least served.

    A turn is as long as the change that the least served of all would need, if that is longer: else two tenants with a
    model each would have the worker load all the time.
    """
    served = {lane: _least(lane) for lane in _top(waiting)}
    least: dict[str, float] = {}
    for lane, at in served.items():
        least[lane.queue] = min(least.get(lane.queue, at), at)
    turn = max(turn_s, EARNED * min(memory.change_s(lane) for lane, at in served.items() if at <= least[lane.queue]))
    return {queue: at + turn for queue, at in least.items()}


def _by_affinity(
    waiting: Sequence[Waiting],
    fair: Sequence[Waiting],
    most: Mapping[str, float],
    memory: Memory,
    now: float,
    *,
    age_bound_s: float,
    turn_s: float,
) -> Waiting | None:
    """Of the lanes whose turn it is, the one that costs least to serve, unless another has waited for too long."""
    oldest = min(fair, key=lambda lane: (lane.since, lane.lane_id))
    at_hand = [lane for lane in fair if memory.has(lane)]
    patience = _patience(fair, memory, age_bound_s, turn_s)
    if not at_hand:
        swap_s = min(patience, SWAP_PATIENCE * memory.change_s(oldest)) if memory.tight else 0.0
        early = now - oldest.since < swap_s and not any(memory.has(lane) for lane in waiting)
        return None if early else oldest
    current = next((lane for lane in at_hand if lane.lane_id == memory.current), None)
    if now - oldest.since >= patience:
        return current if current is not None and not memory.has_earned(current) else oldest
    if current is not None and all(now - lane.since <= turn_s for lane in at_hand if lane is not current):
        return current
    return min(at_hand, key=lambda lane: (_least(lane) - most[lane.queue], lane.since, lane.lane_id))


def _patience(fair: Sequence[Waiting], memory: Memory, age_bound_s: float, turn_s: float) -> float:
    """Seconds that a lane may wait so that it, and all that wait like it, are served before the bound."""
    lead = sum((1 + EARNED) * memory.change_s(lane) + WINDOW_S for lane in fair if not memory.has(lane)) + turn_s
    return max(age_bound_s / 4, age_bound_s - lead)


# --- a window ---


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one claim takes. At least one job; more until a bound is met."""

    #: most jobs
    limit: int
    #: seconds that pass before the first of them runs: jobs are taken beyond the limit until they are worth a load
    load_s: float = 0.0
    #: so many jobs are taken even if they are worth more than `window_s`: a device wants a whole microbatch
    least: int = 1
    #: seconds of work, as jobs are estimated
    window_s: float = WINDOW_S
    #: seconds of work that it never exceeds by more than its first job
    longest_s: float = LONGEST_S

    def met(self, n: int, taken_s: float, next_s: float) -> bool:
        """Whether a job worth `next_s` is one too many beside `n` that are worth `taken_s`."""
        if n == 0:
            return self.limit < 1
        if n >= self.limit and (taken_s >= self.load_s or n >= WINDOW_JOBS):
            return True
        worth = taken_s + next_s
        return worth > self.longest_s or (n >= self.least and worth > max(self.window_s, self.load_s))


def window(ready: int, active_workers: int, most: int) -> int:
    """How many jobs one claim takes at most: no more than a fair share of all that is ready for so many workers.

    A lone worker with 20 ready jobs takes them all; eight workers with 20 ready jobs take three each.
    """
    share = -(-ready // max(1, active_workers))
    return max(1, min(share, most))


def fill(
    tenants: Mapping[str, float], jobs: Mapping[str, Iterator[tuple[str, float]]], bounds: Bounds
) -> dict[str, str]:
    """The jobs of a window, as {job: tenant} in the order in which they were taken.

    `tenants` is the virtual service of each; `jobs` gives the jobs of each in order, as (job, estimated seconds). The
    next job is always one of the least served tenant, counting what was taken so far, so that tenants come level as
    far as their jobs and the bounds let them.
    """
    level = [(served, tenant) for tenant, served in tenants.items()]
    heapq.heapify(level)
    taken: dict[str, str] = {}
    taken_s = 0.0
    while level:
        served, tenant = level[0]
        job, cost = next(jobs[tenant], (None, 0.0))
        if job is None:
            heapq.heappop(level)
            continue
        if bounds.met(len(taken), taken_s, cost):
            break
        taken[job] = tenant
        taken_s += cost
        heapq.heapreplace(level, (served + cost, tenant))
    return taken


# --- what tenants were served ---


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of one tenant at one queue and priority."""

    #: device seconds, as measured
    served_s: float
    #: estimated seconds of its jobs that are claimed and not ended
    claimed_s: float
    #: whether something of it was ready at the last claim of anybody
    active: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """The tenants with ready jobs of one queue and priority."""

    #: what decides between them: served, and claimed
    virtual: Mapping[str, float]
    #: where those begin who come back
    floor: float
    #: who had nothing ready before
    back: frozenset[str]
    #: who had, and has no more
    gone: frozenset[str]


def standing(accounts: Mapping[str, Account], ready: frozenset[str], *, last: float = 0.0) -> Standing:
    """How the tenants in `ready` stand to each other.

    Whoever comes back begins where the least served of the others stands, without what is claimed of that one now: what
    runs at this moment, it could not take part in. Where nobody else waits, at `last`, the most that anybody has.
    """
    stayed = {name for name in ready if (known := accounts.get(name)) is not None and known.active}
    floor = min((accounts[name].served_s for name in stayed), default=last)
    virtual = {}
    for name in ready:
        known = accounts.get(name, Account(0.0, 0.0, active=False))
        served = known.served_s if name in stayed else max(known.served_s, floor)
        virtual[name] = served + known.claimed_s
    gone = frozenset(name for name, known in accounts.items() if known.active and name not in ready)
    return Standing(virtual, floor, ready - stayed, gone)
