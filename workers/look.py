"""What waits in the queues of a worker, and how many share it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from shared.database import Database, now
from shared.operators import not_paused
from shared.scheduling import Waiting
from shared.tables import backlog, batches, lanes, worker_sessions


@dataclass(frozen=True, slots=True)
class Look:
    """What could be claimed at one moment."""

    waiting: Sequence[Waiting]
    #: by the database, in seconds since 1970
    clock: float
    #: workers that are alive and were not asked to end, by the queue they serve
    workers: dict[str, int]
    #: queue of each lane
    queues: dict[int, str]

    def without(self, set_aside: Collection[tuple[str, str]]) -> Sequence[Waiting]:
        """Lanes but those of a (task, model) that cannot be loaded here for now."""
        return [lane for lane in self.waiting if (lane.task, lane.model) not in set_aside]

    def sharing(self, lane: Waiting) -> int:
        """How many workers that are alive could take jobs of this lane."""
        return max(1, self.workers.get(self.queues[lane.lane_id], 1))


def look(db: Database, queues: Sequence[str]) -> Look:
    """Ready jobs by lane and priority, but for paused queues. Raises `Unavailable`."""
    ready = (
        select(
            backlog.c.lane_id,
            lanes.c.queue,
            lanes.c.task,
            lanes.c.model,
            backlog.c.priority,
            func.min(backlog.c.opened_at).label("oldest"),
            func.sum(backlog.c.ready).label("ready"),
        )
        .join(lanes, lanes.c.id == backlog.c.lane_id)
        .join(batches, batches.c.id == backlog.c.batch_id)
        .where(
            backlog.c.ready > 0,
            batches.c.cancelled_at.is_(None),
            lanes.c.queue.in_(queues),
            not_paused(lanes.c.queue),
        )
        .group_by(backlog.c.lane_id, lanes.c.queue, lanes.c.task, lanes.c.model, backlog.c.priority)
    )
    alive = select(worker_sessions.c.queues).where(
        worker_sessions.c.ended_at.is_(None),
        worker_sessions.c.lease_expires_at > now(),
        worker_sessions.c.drain_requested_at.is_(None),
    )
    with db.read() as connection:
        clock = float(connection.execute(select(now())).scalar_one())
        rows = connection.execute(ready).all()
        served = [queue for row in connection.execute(alive) for queue in row.queues.split(",")]
    return Look(
        waiting=[Waiting(r.lane_id, r.task, r.model, r.priority, r.oldest, int(r.ready)) for r in rows],
        clock=clock,
        workers={queue: served.count(queue) for queue in set(served)},
        queues={row.lane_id: row.queue for row in rows},
    )
