"""T7 by the clock: jobs whose time in the model is long up, and whose worker has not ended them."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, case, literal, null, select

from shared.counters import moved
from shared.database import Database, now
from shared.jobs.pieces import CHUNK, all_of, backoff, count_errors, end_attempts, take_back
from shared.tables import jobs

_MESSAGE = "its time was up (timeout_s), and its worker did not end it"


def reap_overdue(db: Database, margin_s: float) -> int:
    """Take jobs back that passed their deadline more than `margin_s` seconds ago; returns how many.

    The third line: a worker ends its late jobs between two steps, and its parent ends a worker that is stuck in one.
    Charged like any other timeout.
    """
    c = jobs.c
    late = and_(c.state == literal("running", literal_execute=True), c.deadline_at < now() - margin_s)

    def work(connection: Connection) -> int:
        found = connection.execute(
            select(c.id, c.worker_session).where(late).order_by(c.id).limit(CHUNK).with_for_update(skip_locked=True)
        ).all()
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
    for target, outcome in (("queued", "retried"), ("failed", "failed"), ("cancelled", "cancelled")):
        these = [row for row in rows if row.state == target]
        end_attempts(connection, session, these, outcome, {}, "timed_out", _MESSAGE, epochs_back=1)
        moved(connection, these, "running", target, outcome, session=session, data={"code": "timed_out"})
        if target == "failed":
            count_errors(connection, these, "timed_out", _MESSAGE)
