"""What a running generator sees of the engine: steps, clocks, and a place to leave things on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shared.database import Database
from shared.errors import JobFailed
from shared.jobs import PUBLISHED_ROLES, ClaimedJob, Progress
from shared.storage import Storage
from workers.ahead import Ahead
from workers.ceilings import Ceilings
from workers.costs import Costs
from workers.finisher import Finisher, Published
from workers.generators import Failed, Output, Work
from workers.inputs import Inputs
from workers.pulse import Pulse
from workers.session import Session

#: where a checkpoint's facts say which generator and model made it
MADE_BY = "made_by"

_DONE = Progress(1.0)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a window needs beside its jobs and its model."""

    db: Database
    session: Session
    finisher: Finisher
    pulse: Pulse
    ceilings: Ceilings
    costs: Costs
    #: claims beside the model
    ahead: Ahead
    #: the files that jobs name
    inputs: Inputs
    #: the storage in force; raises `Unavailable`
    storage: Callable[[], Storage]
    #: whether this process should end after the microbatch
    worn_out: Callable[[], bool]
    #: whether nothing more may be claimed for now
    resting: Callable[[], bool]
    #: most jobs in a microbatch, where the generator does not say
    microbatch: int
    #: seconds that one step of the model may take
    stall_s: float


@dataclass(slots=True)
class Steps:
    """What a running generator sees of the engine: the port `Run`."""

    surroundings: Surroundings
    #: jobs in the model that have no outcome yet; in a stream others join
    left: dict[str, Work]
    #: the same and those that have one
    jobs: Mapping[str, ClaimedJob]
    #: generator, its version and the model: what a checkpoint has to agree with
    maker: Mapping[str, Any]
    #: in a stream a job that is not wanted is dropped, and nothing has to end for it
    streaming: bool = False
    #: jobs that took too long
    late: set[str] = field(default_factory=set)
    #: jobs that were heard of
    _begun: set[str] = field(default_factory=set)
    #: when the time of each of them is up, of those that have a limit
    _ends: dict[str, float] = field(default_factory=dict)

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

    def go_on(self) -> None:
        """The model goes on after something that was not its doing."""
        self._sign(time.monotonic(), self._deadline())

    def settled(self, job_id: str) -> None:
        """There is an outcome of this job: its time does not count any more."""
        self._begun.discard(job_id)
        if self._ends.pop(job_id, None) is None:
            self.surroundings.session.settled(job_id)
        else:
            self.surroundings.session.progressed({job_id: _DONE})
        self.go_on()

    def dropped(self, job_id: str) -> None:
        """This job is in the model no more, and has no outcome."""
        self.left.pop(job_id, None)
        self._begun.discard(job_id)
        self._ends.pop(job_id, None)

    @property
    def session(self) -> str:
        """Id of the worker session."""
        return self.surroundings.session.id

    def step(self, job_ids: Sequence[str], done: int, total: int) -> None:
        """Note progress; raises if nothing of the microbatch is wanted any more."""
        clock = time.monotonic()
        self._heard_of(job_ids, clock)
        share = min(1.0, done / max(1, total))
        progress = dict.fromkeys(job_ids, _DONE if share == 1.0 else Progress(share))
        if self._ends:
            progress |= {id_: Progress(share, self._ends[id_] - clock) for id_ in job_ids if id_ in self._ends}
        self._stepped(progress, clock)

    def advance(self, progress: Mapping[str, tuple[int, int]]) -> None:
        """The same for jobs at different points."""
        clock = time.monotonic()
        self._heard_of(progress, clock)
        noted = {}
        for id_, (done, total) in progress.items():
            end = self._ends.get(id_)
            noted[id_] = Progress(min(1.0, done / max(1, total)), None if end is None else end - clock)
        self._stepped(noted, clock)

    def _heard_of(self, job_ids: Iterable[str], clock: float) -> None:
        """The time of a job begins with the first step that names it; who is over its time is late."""
        for id_ in job_ids:
            if id_ not in self._begun:
                if id_ in self.left:
                    self._begun.add(id_)
                    limit = self.jobs[id_].timeout_s
                    if limit is not None:
                        self._ends[id_] = clock + limit
            elif id_ in self._ends and clock > self._ends[id_]:
                self.late.add(id_)

    def _stepped(self, progress: Mapping[str, Progress], clock: float) -> None:
        session = self.surroundings.session
        session.progressed(progress)
        self._sign(clock, self._deadline())
        session.check()
        if not self.streaming and (session.any_unwanted or self.late):
            session.require_wanted(id_ for id_ in self.left if id_ not in self.late)

    def _deadline(self) -> float | None:
        """When the first of the jobs that have begun is late. Wanted jobs do not end for unwanted ones."""
        if not self._ends:
            return None
        ends = [(id_, end) for id_, end in self._ends.items() if id_ not in self.late]
        if self.surroundings.session.any_unwanted and any(self.wanted(id_) for id_ in self.left):
            ends = [(id_, end) for id_, end in ends if self.wanted(id_)]
        return min((end for _, end in ends), default=None)

    def wanted(self, job_id: str) -> bool:
        """Whether an outcome of this job is of use."""
        if job_id in self.late or (self.streaming and job_id not in self.left):
            return False  # once it has left a stream nobody else knows that it was not wanted
        return self.surroundings.session.wanted(job_id)

    def publish(self, job_id: str, output: Output, *, position: int = 0) -> None:
        """Hand a preview, metric or checkpoint over to be stored; the job goes on."""
        if output.role not in PUBLISHED_ROLES:
            raise ValueError(f"a running job publishes {', '.join(PUBLISHED_ROLES)}, not {output.role!r}")
        if output.role == "checkpoint":
            output = replace(output, facts={**output.facts, MADE_BY: dict(self.maker)})
        if self.wanted(job_id):
            self.surroundings.finisher.put(Published(self.jobs[job_id], output, position))
            self.go_on()


def timed_out(job: ClaimedJob) -> Failed:
    """The end of a job that is over its time."""
    message = f"it was not done {job.timeout_s:g} s after it began (timeout_s)"
    return Failed(job.id, JobFailed("timed_out", message, retryable=True))
