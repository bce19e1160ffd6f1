"""What a worker takes next: look into SQL → choose a lane → claim a window of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared import jobs
from shared.database import Database
from shared.jobs import ClaimedJob
from shared.scheduling import WINDOW_JOBS, WINDOW_S, Memory, Waiting, choose, window
from shared.settings import Settings
from workers.look import Look, look
from workers.residency import Residency

#: seconds for which a lane that gave nothing is left alone: at first, and at most
BARREN_S, MAX_BARREN_S = 1.0, 10.0

#: (task, model, estimated seconds) → seconds on this device
Seconds = Callable[[str, str, float], float]


def _as_estimated(_task: str, _model: str, cost: float) -> float:
    return cost


@dataclass(frozen=True, slots=True)
class Taken:
    """What one claim gave."""

    #: in the order in which they were to be claimed; empty if others were faster
    jobs: list[ClaimedJob]
    lane_id: int
    priority: int
    #: whether ready jobs of the lane were left over
    full: bool


class Claims:
    """The claims of one worker. Not for several threads at once."""

    def __init__(
        self, db: Database, settings: Settings, queues: Sequence[str], seconds: Seconds = _as_estimated
    ) -> None:
        """`seconds` says what the work of a task and model, estimated at so many seconds, takes on this device."""
        self._db = db
        self._settings = settings
        self._queues = list(queues)
        self._seconds = seconds
        # Lanes that gave nothing although jobs were announced: others were faster, or nobody has ended them yet.
        # Each until when, and for how long: a drain may last for hours.
        self._barren: dict[tuple[int, int], tuple[float, float]] = {}
        self._current: int | None = None
        self._session = ""
        #: whether the last look found jobs that are left alone for a while: to others, or as not worth a load yet
        self.leaves_some = False

    def begin(self) -> None:
        """A drain begins: lanes that gave nothing in the last one may be tried again."""
        self._barren.clear()

    def next(
        self,
        session: str,
        residency: Residency,
        *,
        limit: int | None = None,
        only: tuple[int, int] | None = None,
        full: bool = False,
        idle: bool = False,
    ) -> Taken | None:
        """Claim a window of the lane whose turn it is; None if nothing waits for this worker.

        `limit`: most jobs. `only`, as (lane, priority): claim only if it is this one's turn. `full`, for who has work
        yet: claim only if there is a whole microbatch, and two for each other worker that shares the queue, so that
        they come to an end together. `idle`, for who holds nothing: a job that comes alone, and whose model is in
        memory, enters it with its claim. Raises `SessionLost`, `Unavailable`.
        """
        self._session = session
        memory = residency.memory(self._current)
        seen = self._look(residency, memory)
        lane = choose(seen.waiting, memory, seen.clock, age_bound_s=self._settings.age_bound_s)
        self.leaves_some = lane is None and bool(seen.waiting)
        if lane is None or (only is not None and only != (lane.lane_id, lane.priority)):
            return None
        workers = seen.sharing(lane)
        most = window(seen.ready(lane.queue, lane.priority), workers, WINDOW_JOBS)
        most = most if limit is None else min(most, limit)
        if most < 1 or (full and lane.ready < self._settings.microbatch * (2 * workers - 1)):
            return None
        residency.expect({(one.task, one.model) for one in seen.waiting if one.model})
        begin = idle and memory.has(lane)
        return self._claim(session, lane, most, seen, memory.change_s(lane), begin)

    def _claim(self, session: str, lane: Waiting, most: int, seen: Look, load_s: float, begin: bool) -> Taken:
        pace = max(1e-6, self._seconds(lane.task, lane.model, 1.0))
        claimed = jobs.claim(
            self._db, session=session, lane_id=lane.lane_id, priority=lane.priority, limit=most, window_s=WINDOW_S,
            least=self._settings.microbatch, pace=pace, load_s=load_s, tenants=lane.tenants,
            seen=seen.standings[lane.queue, lane.priority], begin=begin,
        )  # fmt: skip
        if claimed:
            self._current = lane.lane_id
            self._barren.pop((lane.lane_id, lane.priority), None)
        else:
            self._leave_alone((lane.lane_id, lane.priority))
        return Taken(claimed, lane.lane_id, lane.priority, full=bool(claimed) and lane.ready > len(claimed))

    def _leave_alone(self, lane: tuple[int, int]) -> None:
        _, pause = self._barren.get(lane, (0.0, BARREN_S / 2))
        pause = min(pause * 2, MAX_BARREN_S)
        self._barren[lane] = (time.monotonic() + pause, pause)

    def _look(self, residency: Residency, memory: Memory, *, barren: bool = False) -> Look:
        set_aside, clock = residency.set_aside_for_now, time.monotonic()

        def takes(lane_id: int, priority: int, task: str, model: str) -> bool:
            until, _ = self._barren.get((lane_id, priority), (0.0, 0.0))
            return (task, model) not in set_aside and (barren or until <= clock)

        return look(self._db, self._queues, takes, me=self._session, at_hand=memory.resident)

    def sees_work(self, residency: Residency) -> bool:
        """Whether anything is ready that this worker would take now, had it been idle. Raises `Unavailable`."""
        memory = residency.memory(self._current)
        seen = self._look(residency, memory, barren=True)
        return choose(seen.waiting, memory, seen.clock, age_bound_s=self._settings.age_bound_s) is not None
