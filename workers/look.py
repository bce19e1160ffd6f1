"""What waits in the queues of a worker, how its tenants stand, and how many workers share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, and_, func, literal, or_, select

from shared.database import Database, now
from shared.operators import not_paused
from shared.scheduling import Account, ModelKey, Standing, Waiting, standing
from shared.service import most_served
from shared.tables import backlog, batches, jobs, lanes, service, worker_sessions

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


def look(
    db: Database, queues: Sequence[str], takes: Takes, *, me: str = "", at_hand: Collection[ModelKey] = ()
) -> Look:
    """Ready jobs by lane and priority, but for paused queues and what this worker cannot take. Raises `Unavailable`.

    Tenants with nothing that it can take do not count as waiting: a model that cannot be loaded would hold back for
    ever where others begin. `me` is the session of this worker, `at_hand` what it has in memory: of lanes with another
    model it says who else has that, and what their jobs are worth by their own reckoning.
    """
    with db.read() as connection:
        clock = float(connection.execute(select(now())).scalar_one())
        rows = [r for r in connection.execute(_ready(queues)) if takes(r.lane_id, r.priority, r.task, r.model)]
        if not rows:
            return Look([], clock, {}, {})
        standings = _standings(connection, rows)
        waiting = _lanes(rows, standings)
        if all(not lane.model or (lane.task, lane.model) in at_hand for lane in waiting):
            alive: Sequence[Row[Any]] = connection.execute(_alive()).all()
        else:
            alive = connection.execute(_alive().add_columns(*_doing())).all()
            waiting = _with_holders(connection, waiting, [row for row in alive if row.id != me], at_hand)
    served = [queue for row in alive for queue in row.queues.split(",")]
    workers = {queue: served.count(queue) for queue in set(served)}
    return Look(waiting, clock, workers, standings)


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


def _doing() -> Sequence[Any]:
    """Of a worker session: its id, the models in its memory, and the lane of a job that it holds (none: it is idle)."""
    w = worker_sessions.c
    held = and_(jobs.c.worker_session == w.id, jobs.c.state == literal("running", literal_execute=True))
    lane = select(jobs.c.lane_id).where(held).limit(1).scalar_subquery()
    return w.id, w.condition["models"].label("models"), lane.label("lane_id")


def _with_holders(
    connection: Connection, waiting: Sequence[Waiting], others: Sequence[Row[Any]], at_hand: Collection[ModelKey]
) -> list[Waiting]:
    """With the workers that have what this one has not, where all of them are at work."""
    having: dict[tuple[str, str], dict[str, int | None]] = {}
    serving: dict[int, dict[str, int | None]] = {}
    for other in others:
        serving.setdefault(other.lane_id, {})[other.id] = other.lane_id
        for queue in other.queues.split(","):
            for model in other.models or ():
                having.setdefault((queue, model), {})[other.id] = other.lane_id
    held: dict[int, int] = {}
    for lane in waiting:
        if lane.model and (lane.task, lane.model) not in at_hand:
            have = having.get((lane.queue, lane.model), {}) | serving.get(lane.lane_id, {})
            held[lane.lane_id] = 0 if None in have.values() else len(have)
    costs = _costs(connection, [lane_id for lane_id, holders in held.items() if holders])
    return [
        replace(
            lane, holders=holders, work_s=lane.ready * costs.get((lane.lane_id, lane.priority), math.inf)
        ) if (holders := held.get(lane.lane_id, 0)) else lane
        for lane in waiting
    ]  # fmt: skip


def _costs(connection: Connection, lane_ids: Sequence[int]) -> dict[tuple[int, int], float]:
    """What one job of each lane and priority is estimated at: one that is ready stands for all."""
    if not lane_ids:
        return {}
    b, c = backlog.c, jobs.c
    one = (
        select(b.lane_id, b.priority, func.min(b.batch_id).label("batch_id"))
        .where(b.ready > 0, b.lane_id.in_(lane_ids))
        .group_by(b.lane_id, b.priority)
        .subquery()
    )
    ready = and_(c.state == literal("queued", literal_execute=True), c.available_at.is_(None))
    first = and_(c.batch_id == one.c.batch_id, c.lane_id == one.c.lane_id, c.priority == one.c.priority, ready)
    cost = select(c.cost).where(first).order_by(c.line).limit(1).scalar_subquery()
    rows = connection.execute(select(one.c.lane_id, one.c.priority, cost.label("cost")))
    return {(row.lane_id, row.priority): row.cost for row in rows if row.cost is not None}


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
