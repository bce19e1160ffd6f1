"""T8, T10: what the owner of jobs decides: cancel, retry."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    func,
    null,
    or_,
    select,
    update,
)

from shared.counters import count_error, moved
from shared.database import Database, now
from shared.errors import NotFound

#: rows per transaction where a transition covers very many
from shared.jobs.pieces import CHUNK, MOVED
from shared.tables import (
    backlog,
    batches,
    jobs,
)


def cancel_jobs(db: Database, tenant: str, ids: Sequence[str]) -> int:
    """Cancel jobs: at once if they wait, at their next step if they run. Returns how many it concerned."""
    return db.write(lambda connection: _cancel(connection, and_(jobs.c.tenant_id == tenant, jobs.c.id.in_(ids))))


def cancel_batch(db: Database, tenant: str, batch_id: str) -> int:
    """Cancel a batch: from now on nothing of it is claimed, its rows follow in chunks. Returns how many jobs."""

    def mark(connection: Connection) -> None:
        marked = connection.execute(
            update(batches)
            .where(batches.c.id == batch_id, batches.c.tenant_id == tenant, batches.c.state == "open")
            .values(cancelled_at=func.coalesce(batches.c.cancelled_at, now()))
        )
        if marked.rowcount != 1:
            raise NotFound(f"there is no batch {batch_id}")
        connection.execute(delete(backlog).where(backlog.c.batch_id == batch_id))

    db.write(mark, replayable=True)
    total = 0
    open_ones = and_(jobs.c.batch_id == batch_id, _cancellable())
    while True:
        done = db.write(
            lambda connection: _cancel(
                connection, jobs.c.id.in_(select(jobs.c.id).where(open_ones).order_by(jobs.c.id).limit(CHUNK))
            )
        )
        total += done
        if done < CHUNK:
            return total


def _cancellable() -> ColumnElement[bool]:
    running = and_(jobs.c.state == "running", ~jobs.c.cancel_requested)
    return or_(jobs.c.state.in_(("waiting", "queued")), running)


def _cancel(connection: Connection, which: ColumnElement[bool]) -> int:
    c = jobs.c
    # Where each job stands before the statement decides what the booking has to say.
    before = {
        row.id: row
        for row in connection.execute(
            select(c.id, c.state, c.available_at).where(which, _cancellable()).order_by(c.id).with_for_update()
        )
    }
    if not before:
        return 0
    rows = connection.execute(
        update(jobs)
        .where(c.id.in_(list(before)), _cancellable())
        .values(
            state=case((c.state == "running", "running"), else_="cancelled"),
            finished_at=case((c.state == "running", null()), else_=now()),
            epoch=case((c.state == "running", c.epoch), else_=c.epoch + 1),
            cancel_requested=True,
            available_at=None,
        )
        .returning(*MOVED)
    ).all()
    for source, was_ready in (("waiting", False), ("queued", False), ("queued", True)):
        these = [
            row
            for row in rows
            if before[row.id].state == source
            and (source == "queued" and before[row.id].available_at is None) == was_ready
        ]
        moved(connection, these, source, "cancelled", "cancelled", ready=-1 if was_ready else 0)
    marked = [row for row in rows if row.state == "running"]
    moved(connection, marked, "running", "running", "cancel_requested")
    return len(rows)


def retry(db: Database, tenant: str, batch_id: str, ids: Sequence[str] | None = None, *, cancelled: bool = True) -> int:
    """T10: put failed (and cancelled) jobs of a batch back with a fresh allowance; returns how many.

    `ids` picks some of them; `cancelled=False` leaves cancelled ones alone.
    """
    states = ("failed", "cancelled") if cancelled else ("failed",)
    c = jobs.c
    which = and_(c.batch_id == batch_id, c.tenant_id == tenant, c.state.in_(states))
    if ids is not None:
        which = and_(which, c.id.in_(ids))

    def work(connection: Connection) -> int:
        before = connection.execute(
            select(c.id, c.state, c.error_code).where(which).order_by(c.id).limit(CHUNK).with_for_update()
        ).all()
        if not before:
            return 0
        connection.execute(update(batches).where(batches.c.id == batch_id).values(cancelled_at=None))
        rows = connection.execute(
            update(jobs)
            .where(c.id.in_([row.id for row in before]), c.state.in_(states))
            .values(
                state="queued", epoch=c.epoch + 1, attempts=0, give_backs=0, available_at=None, expires_at=None,
                cancel_requested=False, worker_session=None, claimed_at=None, entered_at=None, company=None,
                finished_at=None, progress=None, error_code=None, error_message=None,
            )
            .returning(*MOVED)
        ).all()  # fmt: skip
        was = {row.id: row for row in before}
        for source in states:
            these = [row for row in rows if was[row.id].state == source]
            moved(connection, these, source, "queued", "retry_requested", ready=1)
        codes = [was[row.id].error_code for row in rows if was[row.id].state == "failed"]
        for code in sorted({code for code in codes if code}):
            count_error(connection, batch_id, code, "", -codes.count(code))
        return len(rows)

    total = 0
    while True:
        done = db.write(work)
        total += done
        if done < CHUNK:
            return total
