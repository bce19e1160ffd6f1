"""Release of what is due, and T11: what the clock decides."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    Connection,
    and_,
    exists,
    literal,
    select,
    update,
)

from shared.counters import moved
from shared.database import Database, now
from shared.jobs.pieces import CHUNK, MOVED, count_errors
from shared.tables import batches, jobs


def release_due(db: Database) -> int:
    """Let jobs go whose time of waiting is over; returns how many."""

    def work(connection: Connection) -> int:
        c = jobs.c
        due = and_(c.state == literal("queued", literal_execute=True), c.available_at <= now())
        ids = connection.scalars(select(c.id).where(due).limit(CHUNK).with_for_update(skip_locked=True)).all()
        if not ids:
            return 0
        rows = connection.execute(
            update(jobs).where(c.id.in_(ids), due).values(available_at=None).returning(*MOVED)
        ).all()
        moved(connection, rows, "queued", "queued", "released", ready=1)
        return len(rows)

    return _all_of(db, work)


def expire(db: Database) -> int:
    """T11: fail the jobs that nobody started in time; returns how many."""
    message = "it was not started before its time ran out (expires)"

    def work(connection: Connection) -> int:
        c = jobs.c
        # Not while its batch is loading: counters and backlog begin when it opens.
        opened = exists().where(batches.c.id == c.batch_id, batches.c.state == "open")
        late = and_(c.state.in_(("waiting", "queued")), c.expires_at <= now(), opened)
        before = {
            row.id: row
            for row in connection.execute(
                select(c.id, c.state, c.available_at).where(late).limit(CHUNK).with_for_update(skip_locked=True)
            )
        }
        if not before:
            return 0
        rows = connection.execute(
            update(jobs)
            .where(c.id.in_(list(before)), late)
            .values(
                state="failed", finished_at=now(), epoch=c.epoch + 1, available_at=None,
                error_code="expired", error_message=message,
            )
            .returning(*MOVED)
        ).all()  # fmt: skip
        for source, was_ready in (("waiting", False), ("queued", False), ("queued", True)):
            these = [
                row
                for row in rows
                if before[row.id].state == source
                and (source == "queued" and before[row.id].available_at is None) == was_ready
            ]
            moved(connection, these, source, "failed", "expired", ready=-1 if was_ready else 0)
            count_errors(connection, these, "expired", message)
        return len(rows)

    return _all_of(db, work)


def _all_of(db: Database, work: Callable[[Connection], int]) -> int:
    """Chunk after chunk, each in a transaction of its own, until one is not full."""
    total = 0
    while True:
        done = db.write(work)
        total += done
        if done < CHUNK:
            return total
