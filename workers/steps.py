"""What a running generator sees of the engine: steps, clocks, and a place to leave things on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shared.database import Database
from shared.jobs import PUBLISHED_ROLES, ClaimedJob, Progress
from shared.storage import Storage
from workers.ceilings import Ceilings
from workers.finisher import Finisher, Published
from workers.generators import Output, Work
from workers.pulse import Pulse
from workers.session import Session

#: where a checkpoint's facts say which generator and model made it
MADE_BY = "made_by"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a window needs beside its jobs and its model."""

    db: Database
    session: Session
    finisher: Finisher
    pulse: Pulse
    ceilings: Ceilings
    #: the storage in force; raises `Unavailable`
    storage: Callable[[], Storage]
    #: whether this process should end after the microbatch
    worn_out: Callable[[], bool]
    #: seconds that one step of the model may take
    stall_s: float


@dataclass(slots=True)
class Steps:
    """What a running generator sees of the engine: the port `Run`."""

    surroundings: Surroundings
    #: jobs of the microbatch that have no outcome yet
    left: dict[str, Work]
    #: the same and those that have one
    jobs: Mapping[str, ClaimedJob]
    #: generator, its version and the model: what a checkpoint has to agree with
    maker: Mapping[str, Any]
    #: when each job was first heard of
    begun: dict[str, float] = field(default_factory=dict)
    #: jobs that took too long
    late: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """The microbatch is about to enter the model."""
        limits = [self.jobs[id_].timeout_s for id_ in self.left]
        # Which of them the first step is about, nobody knows yet: only when all are limited, all can be late.
        known = [limit for limit in limits if limit is not None]
        clock = time.monotonic()
        deadline = clock + max(known) if known and len(known) == len(limits) else None
        self._sign(clock, deadline)

    def _sign(self, clock: float, deadline: float | None) -> None:
        self.surroundings.pulse.wait(clock, self.surroundings.stall_s, deadline)

    def settled(self, job_id: str) -> None:
        """There is an outcome of this job: its time does not count any more."""
        self.surroundings.session.progressed({job_id: Progress(1.0)})
        self._sign(time.monotonic(), self._deadline())

    @property
    def session(self) -> str:
        """Id of the worker session."""
        return self.surroundings.session.id

    def step(self, job_ids: Sequence[str], done: int, total: int) -> None:
        """Note progress; raises if nothing of the microbatch is wanted any more."""
        clock = time.monotonic()
        for id_ in job_ids:
            begun = self.begun.setdefault(id_, clock)
            limit = self.jobs[id_].timeout_s
            if limit is not None and clock - begun > limit:
                self.late.add(id_)
        session = self.surroundings.session
        share = min(1.0, done / max(1, total))
        session.progressed({id_: Progress(share, self._left_s(id_, clock)) for id_ in job_ids})
        self._sign(clock, self._deadline())
        session.check([id_ for id_ in self.left if id_ not in self.late])

    def _left_s(self, id_: str, clock: float) -> float | None:
        limit = self.jobs[id_].timeout_s
        return None if limit is None else self.begun[id_] + limit - clock

    def _deadline(self) -> float | None:
        """When the first of the jobs that have begun is late."""
        ends = [
            begun + limit
            for id_, begun in self.begun.items()
            if id_ in self.left and id_ not in self.late and (limit := self.jobs[id_].timeout_s) is not None
        ]
        return min(ends, default=None)

    def wanted(self, job_id: str) -> bool:
        """Whether an outcome of this job is of use."""
        return job_id not in self.late and self.surroundings.session.wanted(job_id)

    def publish(self, job_id: str, output: Output, *, position: int = 0) -> None:
        """Hand a preview, metric or checkpoint over to be stored; the job goes on."""
        if output.role not in PUBLISHED_ROLES:
            raise ValueError(f"a running job publishes {', '.join(PUBLISHED_ROLES)}, not {output.role!r}")
        if output.role == "checkpoint":
            output = replace(output, facts={**output.facts, MADE_BY: dict(self.maker)})
        if self.wanted(job_id):
            self.surroundings.finisher.put(Published(self.jobs[job_id], output, position))
            self._sign(time.monotonic(), self._deadline())
