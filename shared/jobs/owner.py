"""T8, T10: what the owner of jobs decides: cancel, retry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    exists,
    func,
    null,
    or_,
    select,
    update,
)

from shared.counters import count_error, moved
from shared.database import Database, now
from shared.errors import NotAllowed, NotFound
from shared.jobs.pieces import CHUNK, MOVED, by_line, leave_queue
from shared.tables import batch_counters, batches, jobs


def cancel_jobs(db: Database, tenant: str, ids: Sequence[str]) -> int:
    """Cancel jobs: at once if they wait, at their next step if they run. Returns how many it concerned."""
    opened = exists().where(batches.c.id == jobs.c.batch_id, batches.c.state == "open")
    return sum(db.write(partial(_cancel, which=and_(_of(tenant, some), opened))) for some in _chunks(ids))


def cancel_batch(db: Database, tenant: str, batch_id: str) -> int:
    """Cancel a batch: from now on nothing of it is claimed, its rows follow in chunks. Returns how many jobs.

    Raises `NotFound`, and `NotAllowed` while the batch is being submitted.
    """

    def mark(connection: Connection) -> None:
        marked = connection.execute(
            update(batches)
            .where(batches.c.id == batch_id, batches.c.tenant_id == tenant, batches.c.state == "open")
            .values(cancelled_at=func.coalesce(batches.c.cancelled_at, now()))
        )
        if marked.rowcount == 1:
            return
        if connection.scalar(select(exists().where(batches.c.id == batch_id, batches.c.tenant_id == tenant))):
            raise NotAllowed(f"batch {batch_id} is still being submitted: stop that, or cancel it once it is stored")
        raise NotFound(f"there is no batch {batch_id}")

    db.write(mark, replayable=True)
    return _cancel_rows(db, batch_id)


def finish_cancelled(db: Database) -> int:
    """Let the rows of cancelled batches follow where whoever cancelled them died on the way; returns how many jobs."""
    c = batch_counters.c
    with db.read() as connection:
        unfinished = connection.scalars(
            select(batches.c.id)
            .join(batch_counters, c.batch_id == batches.c.id)
            .where(batches.c.cancelled_at.is_not(None), c.waiting + c.queued > 0)
        ).all()
    return sum(_cancel_rows(db, batch_id) for batch_id in unfinished)


def _cancel_rows(db: Database, batch_id: str) -> int:
    total = 0
    # Pass after pass until one finds nothing: a job may have become ready again behind the first one.
    while done := sum(
        db.write(partial(_cancel, which=jobs.c.id.in_(ids))) for ids in by_line(db, batch_id, _cancellable())
    ):
        total += done
    return total


def _of(tenant: str, ids: Sequence[str]) -> ColumnElement[bool]:
    return and_(jobs.c.tenant_id == tenant, jobs.c.id.in_(ids))


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Databases take only so many parameters in a statement."""
    in_order = sorted(set(ids))
    return (in_order[start : start + CHUNK] for start in range(0, len(in_order), CHUNK))


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
    leave_queue(connection, before, rows, "cancelled", "cancelled")
    marked = [row for row in rows if row.state == "running"]
    moved(connection, marked, "running", "running", "cancel_requested")
    return len(rows)


def retry(db: Database, tenant: str, batch_id: str, ids: Sequence[str] | None = None, *, cancelled: bool = True) -> int:
    """T10: put failed (and cancelled) jobs of a batch back with all their tries again; returns how many.

    `ids` picks some of them; `cancelled=False` leaves cancelled ones alone. Each is put back once, also if it fails
    again meanwhile. A cancellation that has not reached every row is finished first: others are not revived with them.
    """
    states = ("failed", "cancelled") if cancelled else ("failed",)
    which = and_(jobs.c.batch_id == batch_id, jobs.c.tenant_id == tenant, jobs.c.state.in_(states))
    put_back = partial(_retry, batch_id=batch_id, states=states)
    _finish_cancel(db, tenant, batch_id)
    chunks = by_line(db, batch_id, which) if ids is None else _chunks(ids)
    return sum(db.write(partial(put_back, which=and_(which, jobs.c.id.in_(some)))) for some in chunks)


def _finish_cancel(db: Database, tenant: str, batch_id: str) -> None:
    marked = and_(batches.c.id == batch_id, batches.c.tenant_id == tenant, batches.c.cancelled_at.is_not(None))
    with db.read() as connection:
        unfinished = connection.scalar(select(exists().where(marked, batches.c.state == "open")))
    if unfinished:
        _cancel_rows(db, batch_id)


def _retry(connection: Connection, *, batch_id: str, which: ColumnElement[bool], states: Sequence[str]) -> int:
    c = jobs.c
    this = and_(batches.c.id == batch_id, batches.c.state == "open")
    stands = connection.scalar(select(batches.c.id).where(this).with_for_update(key_share=True)) is not None
    before = {
        row.id: row
        for row in connection.execute(select(c.id, c.state, c.error_code).where(which).order_by(c.id).with_for_update())
    }
    if not before:
        return 0
    if not stands:  # it was kept long enough, and is being deleted
        raise NotFound(f"there is no batch {batch_id}")
    connection.execute(update(batches).where(this).values(cancelled_at=None))
    rows = connection.execute(
        update(jobs)
        .where(c.id.in_(list(before)), c.state.in_(states))
        .values(
            state="queued", epoch=c.epoch + 1, attempts=0, give_backs=0, max_company=None, available_at=None,
            expires_at=None, cancel_requested=False, worker_session=None, claimed_at=None, entered_at=None,
            company=None, finished_at=None, progress=None, error_code=None, error_message=None, blockers=0,
        )
        .returning(*MOVED)
    ).all()  # fmt: skip
    for source in states:
        these = [row for row in rows if before[row.id].state == source]
        moved(connection, these, source, "queued", "retry_requested", ready=1)
    codes = Counter(before[row.id].error_code for row in rows if before[row.id].state == "failed")
    for code, n in sorted((code, n) for code, n in codes.items() if code):
        count_error(connection, batch_id, code, "", -n)
    return len(rows)
