"""T7 by the clock: jobs whose time in the model is long up, and whose worker has not ended them."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, case, literal, null, select

from shared.counters import hold
from shared.database import Database, now
from shared.jobs.pieces import CHUNK, Ended, all_of, backoff, book, last_pulse, take_back
from shared.tables import jobs

_MESSAGE = "its time was up (timeout_s), and its worker did not end it"


def reap_overdue(db: Database, margin_s: float) -> int:
    """Take jobs back that had passed their deadline by more than `margin_s` at the last pulse; returns how many.

    The third line: a worker ends its late jobs between two steps, and its parent ends a worker that is stuck in one.
    Charged like any other timeout. After a time without the database `beat` has moved the deadlines together with the
    pulse: no keeper charges a job for it.
    """
    c = jobs.c
    late = and_(c.state == literal("running", literal_execute=True), c.deadline_at < last_pulse() - margin_s)

    def work(connection: Connection) -> int:
        found = connection.execute(
            select(c.id, c.batch_id, c.worker_session)
            .where(late)
            .order_by(c.id)
            .limit(CHUNK)
            .with_for_update(skip_locked=True)
        ).all()
        hold(connection, (row.batch_id for row in found))
        for session in sorted({row.worker_session for row in found}):
            ids = [row.id for row in found if row.worker_session == session]
            _take_back(connection, session, and_(c.id.in_(ids), c.worker_session == session, late))
        return len(found)

    return all_of(db, select(c.id).where(late), work)


def _take_back(connection: Connection, session: str, guard: ColumnElement[bool]) -> None:
    c = jobs.c
    again = and_(c.attempts + 1 < c.max_attempts, ~c.cancel_requested)
    rows = take_back(
        connection, guard, state=case((c.cancel_requested, "cancelled"), (again, "queued"), else_="failed"),
        epoch=c.epoch + 1, attempts=c.attempts + 1, available_at=case((again, now() + backoff()), else_=null()),
        error_code="timed_out", error_message=_MESSAGE,
    )  # fmt: skip
    code = "timed_out"
    ended = Ended(rows, "retried", code, _MESSAGE, {"code": code}, (code, _MESSAGE))
    book(connection, session, [ended], epochs_back=1)
