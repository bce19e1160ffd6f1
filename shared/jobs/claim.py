"""T3: queued → running, many jobs of one lane at once; and their entry into the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import (
    Connection,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from shared.counters import moved
from shared.database import Database, moment, now
from shared.jobs.lease import SessionLost, is_open
from shared.jobs.pieces import MOVED, held_by
from shared.operators import not_paused
from shared.tables import backlog, batches, jobs, lanes, worker_sessions


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


def claim(db: Database, *, session: str, lane_id: int, priority: int, limit: int, window_s: float) -> list[ClaimedJob]:
    """Take up to `limit` ready jobs of one lane and priority, oldest batch first, worth at most `window_s` seconds.

    At least one job is taken if there is one; none of a paused queue, and none by a worker that was asked to end.
    Raises `SessionLost` if the session was presumed dead.
    """

    def work(connection: Connection) -> list[ClaimedJob]:
        ours = connection.execute(select(worker_sessions.c.drain_requested_at).where(is_open(session))).first()
        if ours is None:
            raise SessionLost
        lane = connection.execute(select(lanes).where(lanes.c.id == lane_id, not_paused(lanes.c.queue))).first()
        if lane is None or ours.drain_requested_at is not None:
            return []
        picked = _pick(connection, lane_id, priority, limit, window_s)
        if not picked:
            return []
        c = jobs.c
        rows = connection.execute(
            update(jobs)
            .where(c.id.in_(picked), c.state == "queued")
            .values(
                state="running", epoch=c.epoch + 1, worker_session=session, claimed_at=now(),
                entered_at=None, company=None, progress=None, available_at=None, deadline_at=None,
            )
            .returning(
                *MOVED, c.custom_id, c.params_json, c.seed, c.epoch, c.attempts, c.max_company, c.timeout_s, c.cost
            )
        ).all()  # fmt: skip
        moved(connection, rows, "queued", "running", "claimed", ready=-1, session=session)
        order = {id_: n for n, id_ in enumerate(picked)}
        return [
            ClaimedJob(
                id=row.id, batch_id=row.batch_id, tenant_id=row.tenant_id, custom_id=row.custom_id, task=lane.task,
                model=lane.model, params_json=row.params_json, seed=row.seed, epoch=row.epoch,
                attempt=row.attempts + 1, max_company=row.max_company, timeout_s=row.timeout_s, cost=row.cost,
            )
            for row in sorted(rows, key=lambda row: order[row.id])
        ]  # fmt: skip

    return db.write(work)


def _pick(connection: Connection, lane_id: int, priority: int, limit: int, window_s: float) -> list[str]:
    batch_ids = connection.scalars(
        select(backlog.c.batch_id)
        .join(batches, batches.c.id == backlog.c.batch_id)
        .where(
            backlog.c.lane_id == lane_id,
            backlog.c.priority == priority,
            backlog.c.ready > 0,
            batches.c.cancelled_at.is_(None),
        )
        .order_by(backlog.c.opened_at, backlog.c.batch_id)
        .limit(limit)
    ).all()
    picked: list[str] = []
    cost = 0.0
    for batch_id in batch_ids:
        rows = connection.execute(
            select(jobs.c.id, jobs.c.cost)
            .where(
                jobs.c.batch_id == batch_id,
                jobs.c.lane_id == lane_id,
                jobs.c.priority == priority,
                jobs.c.state == literal("queued", literal_execute=True),
                jobs.c.available_at.is_(None),
                or_(jobs.c.expires_at.is_(None), jobs.c.expires_at > moment()),
            )
            .order_by(jobs.c.line)
            .limit(limit - len(picked))
            .with_for_update(skip_locked=True)
        ).all()
        for row in rows:
            if picked and cost + row.cost > window_s:
                return picked
            picked.append(row.id)
            cost += row.cost
        if len(picked) >= limit:
            break
    return picked


def enter(db: Database, session: str, held: Sequence[tuple[str, int]], company: int) -> set[str]:
    """Jobs, as (id, epoch), enter the model in one microbatch of `company`; returns those that are ours still.

    Those of ours that were in the model before have left it: should the worker die now, it is not their doing, and
    their time in the model is up no more. That of a job that enters begins; its deadline follows with `renew`.
    """
    c = jobs.c
    entering = tuple_(c.id, c.epoch).in_(list(held))

    def work(connection: Connection) -> set[str]:
        connection.execute(
            update(jobs)
            .where(
                c.worker_session == session, c.state == literal("running", literal_execute=True),
                c.company.is_not(None), ~entering,
            )
            .values(company=None, deadline_at=None)
        )  # fmt: skip
        rows = connection.execute(
            update(jobs)
            .where(held_by(session, held))
            .values(entered_at=now(), company=company, deadline_at=None)
            .returning(c.id)
        )
        return {row.id for row in rows}

    return db.write(work, replayable=True)
