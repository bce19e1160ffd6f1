"""Release of what is due, and T11: what the clock decides."""

from __future__ import annotations

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    select,
    update,
)

from shared.counters import moved
from shared.database import Database, moment, now
from shared.jobs.pieces import CHUNK, MOVED, all_of, count_errors, leave_queue
from shared.tables import batches, jobs

_NEVER_STARTED = "it was not started within the time that was set for it (--expires)"
_TRIED_BEFORE = "the time that was set for it (--expires) ran out before another try"


def due() -> ColumnElement[bool]:
    """Jobs whose time of waiting is over. The state stands in the statement as in the index: SQLite needs it so."""
    return and_(jobs.c.state == literal("queued", literal_execute=True), jobs.c.available_at <= moment())


def late() -> ColumnElement[bool]:
    """Jobs whose time to be started is over; not while their batch is loading: its books begin when it opens."""
    c = jobs.c
    opened = exists().where(batches.c.id == c.batch_id, batches.c.state == "open")
    waits = c.state.in_(bindparam("waits", ("waiting", "queued"), expanding=True, literal_execute=True))
    return and_(c.expires_at.is_not(None), waits, c.expires_at <= moment(), opened)


def release_due(db: Database) -> int:
    """Let jobs go whose time of waiting is over; returns how many."""
    c = jobs.c

    def work(connection: Connection) -> int:
        ids = connection.scalars(select(c.id).where(due()).limit(CHUNK).with_for_update(skip_locked=True)).all()
        if not ids:
            return 0
        rows = connection.execute(
            update(jobs).where(c.id.in_(ids), due()).values(available_at=None).returning(*MOVED)
        ).all()
        moved(connection, rows, "queued", "queued", "released", ready=1)
        return len(rows)

    return all_of(db, select(c.id).where(due()), work)


def expire(db: Database) -> int:
    """T11: fail the jobs that nobody started in time; returns how many.

    One that was tried before and waits for its next try keeps the last error in its message.
    """
    c = jobs.c
    tried, last = c.error_code.is_not(None), func.coalesce(c.error_message, c.error_code)
    message = case((tried, f"{_TRIED_BEFORE}; the last one failed: " + last), else_=_NEVER_STARTED)

    def work(connection: Connection) -> int:
        before = {
            row.id: row
            for row in connection.execute(
                select(c.id, c.state, c.available_at, c.error_code)
                .where(late())
                .limit(CHUNK)
                .with_for_update(skip_locked=True, of=jobs)
            )
        }
        if not before:
            return 0
        rows = connection.execute(
            update(jobs)
            .where(c.id.in_(list(before)), late())
            .values(
                state="failed", finished_at=now(), epoch=c.epoch + 1, available_at=None,
                error_code="expired", error_message=message,
            )
            .returning(*MOVED)
        ).all()  # fmt: skip
        leave_queue(connection, before, rows, "failed", "expired")
        for example, was_tried in ((_NEVER_STARTED, False), (_TRIED_BEFORE, True)):
            these = [row for row in rows if (before[row.id].error_code is not None) == was_tried]
            count_errors(connection, these, "expired", example)
        return len(rows)

    return all_of(db, select(c.id).where(late()), work)
