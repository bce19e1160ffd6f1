"""What waits in the queues of a worker, how its tenants stand, and how many workers share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select

from shared.database import Database, now
from shared.operators import not_paused
from shared.scheduling import Account, Standing, Waiting, standing
from shared.service import most_served
from shared.tables import backlog, batches, lanes, service, worker_sessions

#: whether a worker could take this lane now, by its id, priority, task and model
Takes = Callable[[int, int, str, str], bool]
#: a queue, and a priority within it: what tenants share
Share = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Look:
    """What could be claimed at one moment."""

    waiting: Sequence[Waiting]
    #: by the database, in seconds since 1970
    clock: float
    #: workers that are alive and were not asked to end, by the queue they serve
    workers: Mapping[str, int]
    #: how the tenants that wait stand
    standings: Mapping[Share, Standing]

    def sharing(self, lane: Waiting) -> int:
        """How many workers that are alive could take jobs of this lane."""
        return max(1, self.workers.get(lane.queue, 1))

    def ready(self, queue: str, priority: int) -> int:
        """How many jobs of this priority could be claimed from a queue, by whoever serves it."""
        return sum(lane.ready for lane in self.waiting if (lane.queue, lane.priority) == (queue, priority))


def look(db: Database, queues: Sequence[str], takes: Takes) -> Look:
    """Ready jobs by lane and priority, but for paused queues and what this worker cannot take. Raises `Unavailable`.

    Tenants with nothing that it can take do not count as waiting: a model that cannot be loaded would hold back for
    ever where others begin.
    """
    with db.read() as connection:
        clock = float(connection.execute(select(now())).scalar_one())
        rows = [r for r in connection.execute(_ready(queues)) if takes(r.lane_id, r.priority, r.task, r.model)]
        if not rows:
            return Look([], clock, {}, {})
        standings = _standings(connection, rows)
        served = [queue for row in connection.execute(_alive()) for queue in row.queues.split(",")]
    workers = {queue: served.count(queue) for queue in set(served)}
    return Look(_lanes(rows, standings), clock, workers, standings)


def _ready(queues: Sequence[str]) -> Any:
    b = backlog.c
    return (
        select(
            b.lane_id, lanes.c.queue, lanes.c.task, lanes.c.model, lanes.c.claimed_at, b.priority, b.tenant_id,
            func.min(b.opened_at).label("oldest"), func.sum(b.ready).label("ready"),
        )
        .join(lanes, lanes.c.id == b.lane_id)
        .join(batches, batches.c.id == b.batch_id)
        .where(b.ready > 0, batches.c.cancelled_at.is_(None), lanes.c.queue.in_(queues), not_paused(lanes.c.queue))
        .group_by(
            b.lane_id, lanes.c.queue, lanes.c.task, lanes.c.model, lanes.c.claimed_at, b.priority, b.tenant_id
        )
    )  # fmt: skip


def _alive() -> Any:
    w = worker_sessions.c
    return select(w.queues).where(
        w.ended_at.is_(None), w.lease_expires_at > now(), w.drain_requested_at.is_(None)
    )  # fmt: skip


def _standings(connection: Connection, rows: Sequence[Row[Any]]) -> dict[Share, Standing]:
    ready: dict[Share, set[str]] = {}
    for row in rows:
        ready.setdefault((row.queue, row.priority), set()).add(row.tenant_id)
    standings = {}
    for (queue, priority), tenants in ready.items():
        accounts = _accounts(connection, queue, priority, tenants)
        nobody_stayed = not any(accounts[name].active for name in tenants & accounts.keys())
        last = most_served(connection, queue, priority) if nobody_stayed else 0.0
        standings[queue, priority] = standing(accounts, frozenset(tenants), last=last)
    return standings


def _accounts(connection: Connection, queue: str, priority: int, tenants: set[str]) -> dict[str, Account]:
    """Of the tenants that wait, and of those that did at the last claim."""
    c = service.c
    known = connection.execute(
        select(c.tenant_id, c.served_s, c.claimed_s, c.active).where(
            c.queue == queue, c.priority == priority, or_(c.active, c.tenant_id.in_(tenants))
        )
    )
    return {row.tenant_id: Account(row.served_s, row.claimed_s, row.active) for row in known}


def _lanes(rows: Sequence[Row[Any]], standings: Mapping[Share, Standing]) -> list[Waiting]:
    """Rows by tenant, as lanes."""
    by_lane: dict[tuple[int, int], list[Row[Any]]] = {}
    for row in rows:
        by_lane.setdefault((row.lane_id, row.priority), []).append(row)
    waiting = []
    for (lane_id, priority), members in by_lane.items():
        one = members[0]
        virtual = standings[one.queue, priority].virtual
        waiting.append(
            Waiting(
                lane_id, one.queue, one.task, one.model, priority,
                since=max(min(row.oldest for row in members), one.claimed_at or 0.0),
                ready=sum(int(row.ready) for row in members),
                tenants={row.tenant_id: virtual[row.tenant_id] for row in members},
            )
        )  # fmt: skip
    return waiting
