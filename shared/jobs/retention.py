"""What was kept long enough: batches that ended a while ago go, with all that hangs on them."""

from __future__ import annotations

from functools import partial

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from shared.database import Database, moment, now
from shared.jobs.identical import ended_and_awaited
from shared.jobs.submission import clear_away
from shared.tables import batch_counters, batches, jobs


def retire_batches(db: Database, older_than_s: float) -> int:
    """Delete the batches whose jobs are all final and ended longer ago; returns how many.

    A batch is given up first, like a submission that died: from then on it is not shown and nothing revives it, and
    should we die on the way, `abandon_silent_batches` goes on. An owner's retry that comes before that wins.
    """
    with db.read() as connection:
        over = connection.scalars(
            select(batches.c.id)
            .join(batch_counters, batch_counters.c.batch_id == batches.c.id)
            .where(batches.c.state == "open", _ended(older_than_s))
            .order_by(batches.c.id)
        ).all()
    retired = (id_ for id_ in over if db.write(partial(_retire, batch_id=id_, older_than_s=older_than_s)))
    return sum(clear_away(db, id_) for id_ in retired)


def _ended(older_than_s: float) -> ColumnElement[bool]:
    c = batch_counters.c
    ended_at = func.coalesce(c.finished_at, batches.c.opened_at)
    # Identical jobs may be about to be given files of its own.
    awaited = batches.c.id.in_(select(jobs.c.batch_id).where(ended_and_awaited()))
    return and_(c.waiting + c.queued + c.running == 0, ended_at < moment() - older_than_s, ~awaited)


def _retire(connection: Connection, *, batch_id: str, older_than_s: float) -> bool:
    """Give the batch up if it still is to go."""
    b = batches.c
    # The lock first, and the counters in a statement of their own: a retry that held the lock is in them then.
    if connection.scalar(select(b.id).where(b.id == batch_id, b.state == "open").with_for_update()) is None:
        return False
    ended = connection.scalar(
        select(b.id)
        .join(batch_counters, batch_counters.c.batch_id == b.id)
        .where(b.id == batch_id, _ended(older_than_s))
    )
    if ended is None:
        return False
    given_up = {"state": "loading", "cancelled_at": now(), "idempotency_key": None}
    connection.execute(update(batches).where(b.id == batch_id).values(given_up))
    return True
