"""T4: worker sessions and their lease. One small row is renewed per worker, not one per job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
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


def open_session(db: Database, session: Mapping[str, Any], lease_s: float) -> None:
    """Begin a worker session; its lease runs from now."""

    def work(connection: Connection) -> None:
        statement = upsert(connection)(worker_sessions).values(
            **session, started_at=now(), lease_expires_at=now() + lease_s
        )
        connection.execute(statement.on_conflict_do_nothing())

    db.write(work, replayable=True)


def renew(
    db: Database, session: str, lease_s: float, condition: Mapping[str, Any], progress: Mapping[str, float]
) -> dict[str, Held]:
    """Extend the lease, leave word of our condition and our jobs' progress; returns the jobs that still are ours.

    Raises `SessionLost` if the session was presumed dead.
    """

    def work(connection: Connection) -> dict[str, Held]:
        renewed = connection.execute(
            update(worker_sessions)
            .where(is_open(session))
            .values(lease_expires_at=now() + lease_s, condition=dict(condition))
        )
        if renewed.rowcount != 1:
            raise SessionLost
        if progress:
            connection.execute(
                update(jobs)
                .where(jobs.c.id == bindparam("job"), jobs.c.worker_session == session, jobs.c.state == "running")
                .values(progress=bindparam("share")),
                [{"job": id_, "share": share} for id_, share in sorted(progress.items())],
            )
        rows = connection.execute(
            select(jobs.c.id, jobs.c.epoch, jobs.c.cancel_requested).where(
                jobs.c.worker_session == session, jobs.c.state == literal("running", literal_execute=True)
            )
        )
        return {row.id: Held(row.epoch, row.cancel_requested) for row in rows}

    return db.write(work, replayable=True)


def close_session(db: Database, session: str) -> None:
    """End a session in good order, after its last job was finished or given back."""

    def work(connection: Connection) -> None:
        connection.execute(update(worker_sessions).where(is_open(session)).values(ended_at=now(), end="stopped"))

    db.write(work, replayable=True)


def is_open(session: str) -> ColumnElement[bool]:
    """The guard of a session: it has not been ended, by itself or by a keeper."""
    return and_(worker_sessions.c.id == session, worker_sessions.c.ended_at.is_(None))
