"""T3: queued → running, many jobs of one lane at once; and their entry into the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, literal, or_, select, update

from shared.counters import moved
from shared.database import Database, moment, now
from shared.jobs.lease import SessionLost, is_open
from shared.jobs.pieces import MOVED, held_by
from shared.many import listed
from shared.operators import not_paused
from shared.scheduling import LONGEST_S, WINDOW_TENANTS, Bounds, Standing, fill
from shared.service import charge
from shared.tables import backlog, batches, jobs, lanes, worker_sessions

#: ready jobs that are looked up first
FIRST_PORTION = 32


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that is ours to run, under this epoch."""

    id: str
    batch_id: str
    tenant_id: str
    custom_id: str
    task: str
    model: str
    params_json: str
    seed: int
    epoch: int
    attempt: int
    max_company: int | None
    timeout_s: float | None
    cost: float
    #: what it asks for, as a digest; only where its owner wants identical work done once
    fingerprint: str | None = None
    #: the models that it names beside its own, as its lane holds them
    adapters: str = ""
    #: whether it has entered the model with its claim
    entered: bool = False


def claim(
    db: Database,
    *,
    session: str,
    lane_id: int,
    priority: int,
    limit: int,
    window_s: float,
    least: int = 1,
    pace: float = 1.0,
    load_s: float = 0.0,
    tenants: Mapping[str, float] | None = None,
    seen: Standing | None = None,
    begin: bool = False,
) -> list[ClaimedJob]:
    """Take up to `limit` ready jobs of one lane and priority, worth at most `window_s` seconds of a device that takes
    `pace` seconds for an estimated one; but `least` of them whatever they are worth, as far as `LONGEST_S` lets them,
    and more than `limit` where the model has to be loaded first and they are not worth that yet.

    Each is one of the least served of `tenants`, counting what was taken so far; of a tenant the oldest batch first.
    Without `tenants`, whose jobs they are makes no difference. Each tenant is charged for what is taken of it; `seen`
    is how all of them stood. At least one job is taken if there is one; none of a paused queue, and none by a worker
    that was asked to end. With `begin`, for a session that holds nothing and has the model in memory, a job that comes
    alone enters the model at once. Raises `SessionLost` if the session was presumed dead.
    """
    bounds = Bounds(limit, load_s / pace, least, window_s / pace, LONGEST_S / pace)

    def work(connection: Connection) -> list[ClaimedJob]:
        ours = connection.execute(select(worker_sessions.c.drain_requested_at).where(is_open(session))).first()
        if ours is None:
            raise SessionLost
        lane = connection.execute(select(lanes).where(lanes.c.id == lane_id, not_paused(lanes.c.queue))).first()
        if lane is None or ours.drain_requested_at is not None:
            return []
        picked = _pick(connection, lane_id, priority, bounds, tenants)
        alone = begin and len(picked) == 1
        rows = _take(connection, session, picked, alone) if picked else []
        if not rows:
            return []
        moved(connection, rows, "queued", "running", "claimed", ready=-1, session=session)
        charge(connection, lane_id, lane.queue, priority, _costs(rows), seen)
        order = {id_: n for n, id_ in enumerate(picked)}
        return [
            ClaimedJob(
                id=row.id, batch_id=row.batch_id, tenant_id=row.tenant_id, custom_id=row.custom_id, task=lane.task,
                model=lane.model, params_json=row.params_json, seed=row.seed, epoch=row.epoch,
                attempt=row.attempts + 1, max_company=row.max_company, timeout_s=row.timeout_s, cost=row.cost,
                fingerprint=row.fingerprint, adapters=lane.adapters, entered=alone,
            )
            for row in sorted(rows, key=lambda row: order[row.id])
        ]  # fmt: skip

    return db.write(work)


def _take(connection: Connection, session: str, picked: Sequence[str], alone: bool) -> Sequence[Row[Any]]:
    c = jobs.c
    entered: dict[str, Any] = {"entered_at": now() if alone else None, "company": 1 if alone else None}
    return connection.execute(
        update(jobs)
        .where(c.id.in_(listed(picked)), c.state == "queued")
        .values(
            state="running", epoch=c.epoch + 1, worker_session=session, claimed_at=now(),
            progress=None, available_at=None, deadline_at=None, **entered,
        )
        .returning(
            *MOVED, c.custom_id, c.params_json, c.seed, c.epoch, c.attempts, c.max_company, c.timeout_s, c.cost,
            c.fingerprint,
        )
    ).all()  # fmt: skip


def _costs(rows: Sequence[Row[Any]]) -> dict[str, float]:
    """Estimated seconds by tenant."""
    costs: dict[str, float] = {}
    for row in rows:
        costs[row.tenant_id] = costs.get(row.tenant_id, 0.0) + row.cost
    return costs


def _pick(
    connection: Connection, lane_id: int, priority: int, bounds: Bounds, tenants: Mapping[str, float] | None
) -> Sequence[str]:
    """The jobs of the next window, in order."""
    lane = and_(
        backlog.c.lane_id == lane_id, backlog.c.priority == priority, backlog.c.ready > 0,
        exists().where(batches.c.id == backlog.c.batch_id, batches.c.cancelled_at.is_(None)),
    )  # fmt: skip
    if tenants is None:
        return list(fill({"": 0.0}, {"": _ready(connection, lane, bounds)}, bounds))
    level = dict(sorted(tenants.items(), key=lambda tenant: tenant[1])[:WINDOW_TENANTS])
    queues = {name: _ready(connection, and_(lane, backlog.c.tenant_id == name), bounds) for name in level}
    return list(fill(level, queues, bounds))


def _ready(connection: Connection, which: ColumnElement[bool], bounds: Bounds) -> Iterator[tuple[str, float]]:
    """Ready jobs of these rows of the backlog, oldest batch first, then by line: (id, estimated seconds).

    They are looked up, and locked, in portions that grow: most windows are far smaller than they may be.
    """
    b, c = backlog.c, jobs.c
    order = select(b.batch_id, b.lane_id, b.priority).where(which).order_by(b.opened_at, b.batch_id)
    for row in connection.execute(order.limit(bounds.limit)).all():
        portion, line = min(bounds.limit, max(bounds.least, FIRST_PORTION)), 0
        while True:
            found = connection.execute(
                select(c.id, c.cost, c.line)
                .where(
                    c.batch_id == row.batch_id, c.lane_id == row.lane_id, c.priority == row.priority, c.line > line,
                    c.state == literal("queued", literal_execute=True), c.available_at.is_(None),
                    or_(c.expires_at.is_(None), c.expires_at > moment()),
                )
                .order_by(c.line)
                .limit(portion)
                .with_for_update(skip_locked=True)
            ).all()  # fmt: skip
            yield from ((job.id, job.cost) for job in found)
            if len(found) < portion:
                break
            portion, line = min(bounds.limit, portion * 8), found[-1].line


def enter(
    db: Database,
    session: str,
    held: Sequence[tuple[str, int]],
    company: int,
    *,
    gone: Sequence[tuple[str, int]] | None = None,
) -> set[str]:
    """Jobs, as (id, epoch), enter the model, where they are `company` jobs together; returns those that are ours still.

    Those of ours that were in the model before have left it, or only those of `gone` if it is given: the others stay,
    in the new company. Should the worker die now, it is not the doing of those that left, and their time in the model
    is up no more. That of a job that enters begins; its deadline follows with `renew`.
    """
    c = jobs.c
    in_model = and_(
        c.worker_session == session, c.state == literal("running", literal_execute=True), c.company.is_not(None)
    )

    def work(connection: Connection) -> set[str]:
        if gone is None:
            connection.execute(update(jobs).where(in_model).values(company=None, deadline_at=None))
        else:
            if gone:
                left = update(jobs).where(held_by(session, gone), c.company.is_not(None))
                connection.execute(left.values(company=None, deadline_at=None))
            connection.execute(update(jobs).where(in_model, c.company != company).values(company=company))
        rows = connection.execute(
            update(jobs)
            .where(held_by(session, held))
            .values(entered_at=now(), company=company, deadline_at=None)
            .returning(c.id)
        ).all()
        return {row.id for row in rows}

    return db.write(work, replayable=True)
