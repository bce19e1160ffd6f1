"""What moves along with every change of a job's state, in the same transaction: counters, backlog, errors, events.

Transitions lock in one order, so that they do not deadlock: duties → worker_sessions → batches → jobs → objects and
artifacts → batch_counters → backlog → batch_errors → events. A transaction takes all its jobs before it books, and the
counters of all its batches before the first of several bookings (`hold`), each by sorted id; what comes after the
counters of a batch is guarded by them. One statement that changes many jobs takes them in an order of PostgreSQL's own:
should two of those meet the wrong way round, one of them is run again (`shared.database`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection, case, insert, update
from sqlalchemy.dialects import postgresql, sqlite

from shared.database import now
from shared.tables import FINAL_STATES, backlog, batch_counters, batch_errors, events

#: seconds over which the rate of a batch is measured
RATE_WINDOW_S = 20.0


class Moved(Protocol):
    """A job row, as the transitions return it."""

    id: str
    batch_id: str
    tenant_id: str
    line: int
    lane_id: int
    priority: int


def upsert(connection: Connection) -> Any:
    """The dialect's INSERT … ON CONFLICT."""
    return sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert


def hold(connection: Connection, batch_ids: Iterable[str]) -> None:
    """Lock the counters of these batches, by sorted id: before several bookings in one transaction."""
    wanted = sorted(set(batch_ids))
    if len(wanted) > 1 and connection.dialect.name != "sqlite":
        for batch_id in wanted:
            _lock(connection, batch_id)


def _lock(connection: Connection, batch_id: str) -> None:
    # Changes nothing and locks the row; with SELECT … FOR UPDATE the table's lock would come too late for a repair.
    c = batch_counters.c
    connection.execute(update(batch_counters).where(c.batch_id == batch_id).values(started_at=c.started_at))


def moved(
    connection: Connection,
    rows: Sequence[Moved],
    source: str,
    target: str,
    kind: str,
    *,
    ready: int = 0,
    session: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Book that these jobs went from one state to another.

    `ready` is +1 if they can now be claimed, -1 if they could before, else 0. `kind` names the event.

    The counters of a batch are locked before its event is written, so that the ids of its events are handed out in
    the order in which their transactions commit: who has read up to one of them has missed none.
    """
    if not rows:
        return
    by_batch: dict[str, list[Moved]] = {}
    for row in rows:
        by_batch.setdefault(row.batch_id, []).append(row)
    for batch_id in sorted(by_batch):
        _count(connection, batch_id, source, target, len(by_batch[batch_id]))
    if ready:
        _move_backlog(connection, rows, ready)
    record(
        connection,
        [
            {
                "tenant_id": members[0].tenant_id,
                "batch_id": batch_id,
                "kind": kind,
                "jobs": ranges(row.line for row in members),
                "count": len(members),
                "worker_session": session,
                "data": dict(data) if data else None,
            }
            for batch_id, members in sorted(by_batch.items())
        ],
    )


def _count(connection: Connection, batch_id: str, source: str, target: str, n: int) -> None:
    c = batch_counters.c
    values: dict[Any, Any] = {}
    if source != target:
        values = {c[source]: c[source] - n, c[target]: c[target] + n}
    if target == "running":
        values[c.started_at] = case((c.started_at.is_(None), now()), else_=c.started_at)
    if target in FINAL_STATES:
        full = now() - c.window_started_at >= RATE_WINDOW_S
        values |= {
            c.finished_at: now(),
            c.last_rate: case((full, c.window_finished / (now() - c.window_started_at)), else_=c.last_rate),
            c.window_finished: case((full, n), else_=c.window_finished + n),
            c.window_started_at: case(
                (c.window_started_at.is_(None), case((c.started_at.is_(None), now()), else_=c.started_at)),
                (full, now()),
                else_=c.window_started_at,
            ),
        }
    if not values and connection.dialect.name != "sqlite":
        _lock(connection, batch_id)
    if values:
        connection.execute(update(batch_counters).where(c.batch_id == batch_id).values(values))


def _move_backlog(connection: Connection, rows: Sequence[Moved], ready: int) -> None:
    """Jobs that become ready again reappear in the backlog even if their row there was removed meanwhile."""
    counts = Counter((row.batch_id, row.lane_id, row.priority, row.tenant_id) for row in rows)
    for (batch_id, lane_id, priority, tenant_id), n in sorted(counts.items()):
        if ready < 0:
            connection.execute(
                update(backlog)
                .where(
                    backlog.c.batch_id == batch_id,
                    backlog.c.lane_id == lane_id,
                    backlog.c.priority == priority,
                )
                .values(ready=backlog.c.ready - n)
            )
            continue
        statement = upsert(connection)(backlog).values(
            batch_id=batch_id,
            lane_id=lane_id,
            priority=priority,
            tenant_id=tenant_id,
            opened_at=now(),
            ready=n,
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["batch_id", "lane_id", "priority"], set_={"ready": backlog.c.ready + n}
            )
        )


def record(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append events."""
    connection.execute(insert(events).values(at=now()), list(rows))


def count_error(connection: Connection, batch_id: str, code: str, example: str, n: int) -> None:
    """Add to the sum of errors of a batch; a negative `n` takes away what its owner retries."""
    if n < 0:
        connection.execute(
            update(batch_errors)
            .where(batch_errors.c.batch_id == batch_id, batch_errors.c.code == code)
            .values(count=case((batch_errors.c.count + n < 0, 0), else_=batch_errors.c.count + n))
        )
        return
    statement = upsert(connection)(batch_errors).values(batch_id=batch_id, code=code, count=n, example=example)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["batch_id", "code"], set_={"count": batch_errors.c.count + n})
    )


def ranges(lines: Iterable[int]) -> list[list[int]]:
    """Lines as sorted [first, last] runs."""
    runs: list[list[int]] = []
    for line in sorted(lines):
        if runs and line == runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    return runs
