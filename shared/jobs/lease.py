"""T4: worker sessions and their lease. One small row is renewed per worker, not one per job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    and_,
    bindparam,
    literal,
    select,
    update,
)

from shared.counters import upsert
from shared.database import Database, now
from shared.tables import (
    jobs,
    worker_sessions,
)


class SessionLost(Exception):
    """This worker session was presumed dead and its jobs were given to others: begin a new one."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the database says of a job that this session runs."""

    epoch: int
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job in the model is."""

    #: share of its steps that are done, 0..1
    share: float
    #: seconds until its time is up, if it has a limit
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Renewed:
    """What the database says to a worker that shows a sign of life."""

    #: the jobs that are still its own
    held: Mapping[str, Held]
    #: whether an operator wants it to end
    drain: bool


def open_session(db: Database, session: Mapping[str, Any], lease_s: float) -> None:
    """Begin a worker session; its lease runs from now."""

    def work(connection: Connection) -> None:
        statement = upsert(connection)(worker_sessions).values(
            **session, started_at=now(), lease_expires_at=now() + lease_s
        )
        connection.execute(statement.on_conflict_do_nothing())

    db.write(work, replayable=True)


def renew(
    db: Database, session: str, lease_s: float, condition: Mapping[str, Any], progress: Mapping[str, Progress]
) -> Renewed:
    """Extend the lease, leave word of our condition and our jobs' progress; returns the jobs that still are ours.

    Raises `SessionLost` if the session was presumed dead.
    """
    w, c = worker_sessions.c, jobs.c

    def work(connection: Connection) -> Renewed:
        renewed = connection.execute(
            update(worker_sessions)
            .where(is_open(session))
            .values(lease_expires_at=now() + lease_s, condition=dict(condition))
            .returning(w.drain_requested_at)
        ).first()
        if renewed is None:
            raise SessionLost
        if progress:
            connection.execute(
                update(jobs)
                .where(c.id == bindparam("job"), c.worker_session == session, c.state == "running")
                .values(progress=bindparam("share"), deadline_at=now() + bindparam("left_s", type_=Double)),
                [{"job": id_, "share": p.share, "left_s": p.left_s} for id_, p in sorted(progress.items())],
            )
        rows = connection.execute(
            select(c.id, c.epoch, c.cancel_requested).where(
                c.worker_session == session, c.state == literal("running", literal_execute=True)
            )
        ).all()
        held = {row.id: Held(row.epoch, row.cancel_requested) for row in rows}
        return Renewed(held, drain=renewed.drain_requested_at is not None)

    return db.write(work, replayable=True)


def close_session(db: Database, session: str) -> None:
    """End a session in good order, after its last job was finished or given back."""

    def work(connection: Connection) -> None:
        connection.execute(update(worker_sessions).where(is_open(session)).values(ended_at=now(), end="stopped"))

    db.write(work, replayable=True)


def is_open(session: str) -> ColumnElement[bool]:
    """The guard of a session: it has not been ended, by itself or by a keeper."""
    return and_(worker_sessions.c.id == session, worker_sessions.c.ended_at.is_(None))
