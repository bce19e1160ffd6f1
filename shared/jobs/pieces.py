"""What several transitions share: the guard G, how a running job leaves its worker, and what is booked then."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    case,
    func,
    null,
    select,
    tuple_,
    update,
)

from shared.counters import count_error, hold, moved
from shared.database import Database, as_json, moment, now
from shared.many import insert_many, pairs
from shared.service import correct
from shared.tables import (
    PULSE,
    attempts,
    duties,
    jobs,
)

log = logging.getLogger("aigc.fence")

#: rows per transaction where a transition covers very many
CHUNK = 2000
#: seconds before the second, third, … attempt; the last one for all that follow
BACKOFF_S = (2.0, 8.0, 30.0, 120.0, 300.0)

_ATTEMPT = (
    "job_id", "epoch", "tenant_id", "worker_session", "claimed_at", "ended_at", "outcome", "error_code",
    "error_message", "device_s", "record",
)  # fmt: skip

#: what every transition returns of a job, for the books
MOVED = (
    jobs.c.id,
    jobs.c.batch_id,
    jobs.c.tenant_id,
    jobs.c.line,
    jobs.c.lane_id,
    jobs.c.priority,
    jobs.c.state,
    jobs.c.cost,
)


def held_by(session: str, held: Sequence[tuple[str, int]]) -> ColumnElement[bool]:
    """The guard G for jobs as (id, epoch)."""
    return and_(
        tuple_(jobs.c.id, jobs.c.epoch).in_(pairs(held)),
        jobs.c.worker_session == session,
        jobs.c.state == "running",
    )


def last_pulse() -> ColumnElement[float]:
    """When a keeper last reached the database, in seconds since 1970; the clock where none ever has."""
    return func.coalesce(select(duties.c.done_at).where(duties.c.name == PULSE).scalar_subquery(), moment())


def fenced(transition: str, session: str, ids: Collection[str]) -> None:
    """Say that the guard held: a worker wanted to write to jobs that are not its own any more."""
    if ids:
        log.warning("fenced: %d job(s) of session %s had another owner (%s)", len(ids), session, transition)


def lock(connection: Connection, guard: ColumnElement[bool]) -> None:
    """Take these jobs, by sorted id: before a transaction that changes them in several statements books the first."""
    if connection.dialect.name != "sqlite":
        connection.execute(select(jobs.c.id).where(guard).order_by(jobs.c.id).with_for_update())


def take_back(connection: Connection, guard: ColumnElement[bool], **values: Any) -> Sequence[Row[Any]]:
    """Running jobs leave their worker: the statement behind T6, T7 and T9."""
    state = values["state"]
    return connection.execute(
        update(jobs)
        .where(guard)
        .values(
            worker_session=None, company=None, progress=None, deadline_at=None,
            finished_at=case((state.in_(("failed", "cancelled")), now()), else_=null()), **values,
        )
        .returning(
            *MOVED, jobs.c.epoch, jobs.c.claimed_at, jobs.c.available_at,
            (now() - jobs.c.entered_at).label("since_entered_s"),
        )
    ).all()  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ended:
    """Attempts that ended alike, for the books."""

    #: as `take_back` returned them
    rows: Sequence[Row[Any]]
    #: what became of the attempts of jobs that are queued again: retried, given_back, lost; else it is the job's state
    again: str
    #: code and message of the attempts
    code: str | None
    message: str | None
    #: what the events say
    data: Mapping[str, Any]
    #: code and message under which jobs that have failed for good are summed up
    error: tuple[str, str]
    #: more about the attempt of a job, by its id
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def book(connection: Connection, session: str, endings: Sequence[Ended], *, epochs_back: int = 0) -> None:
    """Write down how attempts ended, and move the books; all jobs of the transaction have to be taken by now."""
    hold(connection, (row.batch_id for ended in endings for row in ended.rows))
    for ended in endings:
        for target, ready in (("queued", True), ("queued", False), ("failed", False), ("cancelled", False)):
            these = [
                row
                for row in ended.rows
                if row.state == target and (target == "queued" and row.available_at is None) == ready
            ]
            outcome = ended.again if target == "queued" else target
            end_attempts(
                connection, session, these, outcome, ended.facts, ended.code, ended.message, epochs_back=epochs_back
            )
            moved(connection, these, "running", target, outcome, ready=int(ready), session=session, data=ended.data)
            if target == "failed":
                count_errors(connection, these, *ended.error)
    for ended in endings:
        correct(connection, ended.rows, {row.id: _spent(row, ended.facts.get(row.id, {})) for row in ended.rows})


def _spent(row: Row[Any], facts: Mapping[str, Any]) -> float:
    """Device seconds of an attempt; where nobody has measured them, at most what it was estimated at."""
    measured: float | None = facts.get("device_s")
    if measured is not None:
        return measured
    return 0.0 if row.since_entered_s is None else float(max(0.0, min(row.cost, row.since_entered_s)))


class Waited(Protocol):
    """Where a job stood before it ended without having run."""

    state: str
    available_at: float | None


def leave_queue(
    connection: Connection, before: Mapping[str, Waited], rows: Sequence[Row[Any]], target: str, kind: str
) -> None:
    """Book that jobs which waited have ended; `before` says where each of them stood."""
    hold(connection, (row.batch_id for row in rows))
    for source, was_ready in (("waiting", False), ("queued", False), ("queued", True)):
        these = [
            row
            for row in rows
            if before[row.id].state == source
            and (source == "queued" and before[row.id].available_at is None) == was_ready
        ]
        moved(connection, these, source, target, kind, ready=-1 if was_ready else 0)


def by_line(db: Database, batch_id: str, which: ColumnElement[bool]) -> Iterator[list[str]]:
    """The ids of these jobs of a batch, a chunk at a time; all chunks together read the batch once.

    Each chunk is looked up without a lock, when it is asked for: the statement that uses it has its own guard.
    """
    last, c = 0, jobs.c
    while True:
        with db.read() as connection:
            rows = connection.execute(
                select(c.id, c.line).where(c.batch_id == batch_id, c.line > last, which).order_by(c.line).limit(CHUNK)
            ).all()
        if rows:
            yield [row.id for row in rows]
            last = rows[-1].line
        if len(rows) < CHUNK:
            return


def all_of(db: Database, which: Select[Any], work: Callable[[Connection], int]) -> int:
    """Chunk after chunk, each in a transaction of its own, until one is not full; returns how many rows.

    `work` is not begun unless a look finds something of `which`: most rounds of a keeper find nothing, and would only
    stand in the way of those who write.
    """
    with db.read() as connection:
        if connection.execute(which.limit(1)).first() is None:
            return 0
    total = 0
    while True:
        done = db.write(work)
        total += done
        if done < CHUNK:
            return total


def end_attempts(
    connection: Connection,
    session: str,
    rows: Sequence[Row[Any]],
    outcome: str,
    facts: Mapping[str, Mapping[str, Any]],
    code: str | None = None,
    message: str | None = None,
    *,
    epochs_back: int = 0,
) -> None:
    """Write down how an attempt of each row ended; `epochs_back` if the transition has raised the epoch already."""
    if not rows:
        return
    ended_at = connection.scalar(select(now()))
    records: dict[int, str] = {}  # most attempts of a group share theirs
    lines = []
    for row in rows:
        known = facts.get(row.id, {})
        record = known.get("record")
        if record is not None and id(record) not in records:
            records[id(record)] = as_json(dict(record))
        lines.append(
            (
                row.id, row.epoch - epochs_back, row.tenant_id, session, row.claimed_at, ended_at, outcome, code,
                message, known.get("device_s"), None if record is None else records[id(record)],
            )
        )  # fmt: skip
    insert_many(connection, attempts, _ATTEMPT, lines)


def storable(text: str) -> str:
    """A message from anywhere, as every database takes it: without NUL, and valid Unicode."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def count_errors(connection: Connection, rows: Sequence[Row[Any]], code: str, message: str) -> None:
    """Add final failures to the sums of their batches."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.batch_id] = counts.get(row.batch_id, 0) + 1
    for batch_id in sorted(counts):
        count_error(connection, batch_id, code, message, counts[batch_id])


def backoff() -> ColumnElement[float]:
    """Seconds before the next attempt: capped, and jittered so that a crowd does not come back as one."""
    steps = dict(enumerate(BACKOFF_S[:-1]))
    pause: ColumnElement[float] = case(steps, value=jobs.c.attempts, else_=BACKOFF_S[-1])
    return pause * random.uniform(0.75, 1.25)
