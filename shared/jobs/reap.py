"""T7: the jobs of workers that are presumed dead are taken back."""

from __future__ import annotations

from sqlalchemy import (
    Connection,
    and_,
    case,
    literal,
    null,
    select,
    update,
)

from shared.counters import moved
from shared.database import Database, now
from shared.jobs.pieces import backoff, count_errors, end_attempts, take_back
from shared.tables import (
    jobs,
    worker_sessions,
)


def reap(db: Database) -> list[str]:
    """End the sessions whose lease has lapsed and take their jobs back; returns the sessions.

    The crash is charged to a job that was alone in the model; a job that was in company gets a smaller company next
    time instead, so that a job that kills its worker is soon alone.
    """
    with db.read() as connection:
        lapsed = connection.scalars(
            select(worker_sessions.c.id).where(
                worker_sessions.c.ended_at.is_(None), worker_sessions.c.lease_expires_at < now()
            )
        ).all()
        orphaned = connection.scalars(
            select(jobs.c.worker_session)
            .distinct()
            .join(worker_sessions, worker_sessions.c.id == jobs.c.worker_session)
            .where(
                jobs.c.state == literal("running", literal_execute=True),
                worker_sessions.c.ended_at.is_not(None),
            )
        ).all()
    return [session for session in sorted({*lapsed, *orphaned}) if db.write(lambda c, s=session: _reap(c, s))]  # type: ignore[misc]


def _reap(connection: Connection, session: str) -> bool:
    w, c = worker_sessions.c, jobs.c
    connection.execute(
        update(worker_sessions)
        .where(w.id == session, w.ended_at.is_(None), w.lease_expires_at < now())
        .values(ended_at=now(), end="lost")
    )
    if connection.scalar(select(w.ended_at).where(w.id == session)) is None:
        return False
    # Without a company it was not in the model: not yet, or not any more.
    alone = and_(c.company.is_not(None), c.company <= 1)
    in_company = and_(c.company.is_not(None), c.company > 1)
    spent = and_(alone, c.attempts + 1 >= c.max_attempts)
    message = (
        "the worker that ran this job alone died every time; its memory may not suffice, or the model crashes on it"
    )
    rows = take_back(
        connection, and_(c.worker_session == session, c.state == literal("running", literal_execute=True)),
        state=case((c.cancel_requested, "cancelled"), (spent, "failed"), else_="queued"), epoch=c.epoch + 1,
        attempts=case((alone, c.attempts + 1), else_=c.attempts),
        max_company=case((in_company, case((c.company > 8, 8), else_=1)), else_=c.max_company),
        available_at=case((and_(alone, ~spent, ~c.cancel_requested), now() + backoff()), else_=null()),
        error_code=case((alone, "worker_died"), else_=null()), error_message=case((alone, message), else_=null()),
    )  # fmt: skip
    for target, delayed in (("queued", False), ("queued", True), ("failed", False), ("cancelled", False)):
        these = [row for row in rows if row.state == target and (row.available_at is not None) == delayed]
        outcome = "lost" if target == "queued" else target
        end_attempts(connection, session, these, outcome, {}, "worker_died", epochs_back=1)
        ready = int(target == "queued" and not delayed)
        moved(connection, these, "running", target, outcome, ready=ready, session=session)
        if target == "failed":
            count_errors(connection, these, "worker_died", message)
    return True
