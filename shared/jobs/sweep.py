"""What nobody needs any more is swept out: backlog rows of batches that have ended."""

from __future__ import annotations

from sqlalchemy import Connection, and_, delete, exists, select, tuple_

from shared.database import Database
from shared.jobs.pieces import CHUNK, all_of
from shared.tables import backlog, batch_counters


def sweep_backlog(db: Database) -> int:
    """Remove the backlog rows of batches with nothing left to run; returns how many.

    Safe at any time: a row with nothing ready says the same as no row, and a job that becomes ready again brings its
    row back.
    """
    b, c = backlog.c, batch_counters.c
    ended = exists().where(c.batch_id == b.batch_id, c.waiting + c.queued + c.running == 0)
    over = and_(b.ready == 0, ended)
    keys = select(b.batch_id, b.lane_id, b.priority).where(over)

    def work(connection: Connection) -> int:
        found = connection.execute(keys.limit(CHUNK).with_for_update(skip_locked=True, of=backlog)).all()
        if found:
            these = tuple_(b.batch_id, b.lane_id, b.priority).in_([tuple(row) for row in found])
            connection.execute(delete(backlog).where(these, b.ready == 0))
        return len(found)

    return all_of(db, keys, work)
