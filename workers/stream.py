"""A stream: jobs join the model and leave it while it runs. This is the engine's side of it, the port `Feed`.

Beside the model, in a thread of its own, jobs of the lane are claimed and entered before the stream has room for them,
so that a step never waits for SQL. When another lane's turn comes nothing joins any more, and the stream runs dry.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from shared import jobs
from shared.errors import Unavailable
from shared.jobs import ClaimedJob
from workers.ahead import Beside
from workers.generators import Outcome, Work
from workers.meter import Meter
from workers.steps import Steps, Surroundings, timed_out

log = logging.getLogger("aigc.worker")

#: seconds until the next look for more jobs after one that found none: at first, and at most
LOOK_S, RARE_LOOK_S = 0.05, 0.5
#: jobs that cannot join wait at most so long for the stream to end
ASIDE_S = 10.0
#: seconds between two looks at the memory of this process
MEMORY_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What one call beside the model brought."""

    #: newly claimed; None if it is not this lane's turn, nothing waits, or nobody asked
    claimed: Sequence[ClaimedJob] | None
    #: jobs that were to enter, and those of them that did
    asked: Sequence[Work]
    entered: Sequence[Work]
    #: why the database was of no help, if it was not
    failed: Unavailable | None = None


@dataclass(slots=True)
class Stream:
    """The jobs that are in a stream, and those that may join it."""

    around: Surroundings
    steps: Steps
    #: claimed, and not in the model
    waiting: deque[Work]
    #: lane and priority that its jobs are claimed from
    lane: tuple[int, int]
    #: most jobs in the model at once
    room: int
    #: what the generator sees of claimed jobs, and which of them can join
    works: Callable[[Sequence[ClaimedJob]], list[Work]]
    streams: Callable[[Work], bool]
    hand_over: Callable[[Outcome, float], None]
    #: gives jobs back that will have no outcome; raises `Unavailable`
    let_go: Callable[[Sequence[str]], None]
    #: whether any outcome came
    settled: bool = False
    #: most jobs that were in the model at once
    most: int = 0
    #: jobs that are to go back
    unwanted: list[str] = field(default_factory=list)
    _entered: deque[Work] = field(default_factory=deque)
    _aside: list[Work] = field(default_factory=list)
    _aside_since: float = 0.0
    #: jobs that left the model, of which the database knows nothing yet; and those of which it is being told
    _gone: list[str] = field(default_factory=list)
    _leaving: list[str] = field(default_factory=list)
    #: how many jobs enter before there is room for them: more where they are done faster than SQL answers
    _reserve: int = 1
    _begun: bool = False
    _closed: bool = False
    _pause: float = LOOK_S
    _next_look: float = 0.0
    _memory_look: float = 0.0
    _meter: Meter = field(default_factory=Meter)
    _beside: Beside[_Gathered] = field(default_factory=lambda: Beside("stream"))

    # --- the port `Feed` ---

    @property
    def open(self) -> bool:
        """Whether more may come."""
        return not self._closed

    def take(self, room: int) -> Sequence[Work]:
        """At most `room` jobs that are in the model from now on."""
        self.around.session.check()
        if self._beside.done:
            self._fetch()
        self._drop()
        free = min(room, self.room - len(self.steps.left))
        if not self.steps.left and not self._entered:
            self._wait_for_some(free)
        given = self._give(free)
        if len(given) < free and self._beside.going:
            self._reserve = min(self.room, self._reserve * 2)
        if not self._beside.going:
            self._gather(free - len(given))
        self.steps.go_on()
        return given

    def _give(self, free: int) -> list[Work]:
        given: list[Work] = []
        while self._entered and len(given) < free:
            work = self._entered.popleft()
            if self.around.session.wanted(work.job_id):
                given.append(work)
            else:
                self._gone.append(work.job_id)
                self.unwanted.append(work.job_id)
        # A job that was late in an earlier attempt has all its time again.
        self.steps.late.difference_update(work.job_id for work in given)
        self.steps.left.update((work.job_id, work) for work in given)
        self._meter.join(work.job_id for work in given)
        self.most = max(self.most, len(self.steps.left))
        return given

    # --- beside the model ---

    def _wait_for_some(self, free: int) -> None:
        """The model has nothing to do: what is there enters now, else it is looked for once; then the stream ends."""
        self.around.pulse.rest()
        while not self._entered and not self._closed:
            if not self._beside.going:
                self._next_look = 0.0
                self._gather(free)
            if not self._beside.going:
                self._closed = True
                return
            self._fetch()
            self._closed = self._closed or not (self.waiting or self._entered)

    def _gather(self, free: int) -> None:
        """Begin to claim or enter what will be needed soon, unless there is nothing to do."""
        wanted = free + self._reserve - len(self._entered)
        enter = [self.waiting.popleft() for _ in range(min(len(self.waiting), wanted))]
        few = len(self.waiting) + len(self._entered) < max(1, self.room // 2)
        claim = few and self._may_claim()
        if not enter and not claim:
            return
        company = len(self.steps.left) + len(self._entered) + len(enter)
        gone = self.around.session.held(self._gone) if self._begun else None
        if enter:
            self._leaving, self._gone = self._gone, []
        self._beside.begin(lambda: self._call(enter, company, gone, claim=claim))

    def _may_claim(self) -> bool:
        clock = time.monotonic()
        if self._ending(clock):
            self._closed = True
        too_long = bool(self._aside) and clock - self._aside_since > ASIDE_S
        crowded = len(self._aside) >= self.around.microbatch
        return not self._closed and clock >= self._next_look and not (crowded or too_long)

    def _ending(self, clock: float) -> bool:
        if clock >= self._memory_look:
            self._memory_look = clock + MEMORY_LOOK_S
            if self.around.worn_out():
                return True
        return self.around.session.stopping or self.around.resting()

    def _call(
        self, enter: Sequence[Work], company: int, gone: Sequence[tuple[str, int]] | None, *, claim: bool
    ) -> _Gathered:
        """In the other thread: nothing of this object changes here."""
        around, entered, claimed = self.around, list[Work](), None
        try:
            if enter:
                held = around.session.held([work.job_id for work in enter])
                ours = jobs.enter(around.db, around.session.id, held, company, gone=gone)
                entered = [work for work in enter if work.job_id in ours]
            if claim:
                taken = around.ahead.claim(only=self.lane)
                claimed = None if taken is None else taken.jobs
        except Unavailable as error:
            log.error("%s; the stream goes on with what it has", error)
            return _Gathered(claimed, enter, entered, failed=error)
        return _Gathered(claimed, enter, entered)

    def _fetch(self) -> None:
        """Take in what the last call brought; raises what it raised, and `Unavailable` if nothing is left to do."""
        got = self._beside.fetch()
        self._entered.extend(got.entered)
        if got.failed and not got.entered:
            self.waiting.extendleft(reversed(got.asked))
            self._gone[:0] = self._leaving
        else:
            self._begun = self._begun or bool(got.asked)
            entered = {work.job_id for work in got.entered}
            self.unwanted += [work.job_id for work in got.asked if work.job_id not in entered]
        if got.claimed:
            for work in self.works(got.claimed):
                if self.streams(work):
                    self.waiting.append(work)
                else:
                    self._aside_since = self._aside_since if self._aside else time.monotonic()
                    self._aside.append(work)
            self._pause, self._next_look = LOOK_S, 0.0
        else:
            self._next_look = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, RARE_LOOK_S)
        if got.failed is not None and not self.steps.left and not self._entered:
            self._closed = True
            raise got.failed

    # --- how jobs leave ---

    def ended(self, outcome: Outcome) -> None:
        """There is an outcome of a job; of one that was late or not wanted it comes too late."""
        if self.steps.left.pop(outcome.job_id, None) is None:
            return
        self.settled = True
        job, spent = self.steps.jobs[outcome.job_id], self._meter.leave(outcome.job_id)
        self._gone.append(outcome.job_id)
        self.hand_over(outcome, spent)
        self._meter.go_on()
        self.around.costs.spent(job.task, job.model, job.cost, spent)
        self.steps.settled(outcome.job_id)

    def _drop(self) -> None:
        """Late jobs fail now, and those that are not wanted go back: the stream may go on for hours."""
        session, steps = self.around.session, self.steps
        for id_ in [id_ for id_ in steps.late if id_ in steps.left]:
            steps.dropped(id_)
            self._gone.append(id_)
            self.hand_over(timed_out(steps.jobs[id_]), self._meter.leave(id_))
        if session.any_unwanted:
            for id_ in [id_ for id_ in steps.left if not session.wanted(id_)]:
                steps.dropped(id_)
                self._meter.leave(id_)
                self._gone.append(id_)
                self.unwanted.append(id_)
            self.unwanted += [work.job_id for work in self._sorted_out()]
        if self.unwanted:
            self._give_back()

    def _sorted_out(self) -> Iterator[Work]:
        for queue in (self.waiting, self._entered, self._aside):
            unwanted = [work for work in queue if not self.around.session.wanted(work.job_id)]
            for work in unwanted:
                queue.remove(work)
            yield from unwanted

    def _give_back(self) -> None:
        self.around.pulse.rest()  # it is not the model that SQL keeps waiting
        try:
            self.let_go(self.unwanted)
        except Unavailable as error:
            log.error("%s; what is not wanted goes back later", error)
            return
        self.unwanted = []

    def close(self) -> None:
        """The stream is over: wait for what goes on beside it. Raises what that raised."""
        self._closed = True
        try:
            if self._beside.going:
                with suppress(Unavailable):  # what it was to bring stays in the session's hands, and goes back
                    self._fetch()
        finally:
            self._beside.close()

    def at_hand(self) -> tuple[deque[Work], list[Work]]:
        """Jobs that have yet to go through a stream, and those that cannot."""
        return deque([*self._entered, *self.waiting]), self._aside
