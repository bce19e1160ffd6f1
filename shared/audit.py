"""The books held against the rows: counters, backlog and sums of errors of a batch, as they are and as they should be.

Every transition moves the books in its own transaction, so a difference is a defect of ours or a hand in the database.
It must not stay: a count too high hides that a batch is done, a backlog too low leaves jobs that nobody claims.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Connection,
    Integer,
    Select,
    String,
    and_,
    cast,
    func,
    insert,
    literal,
    null,
    select,
    text,
    union_all,
    update,
)

from shared.counters import record, upsert
from shared.database import Database, now
from shared.tables import JOB_STATES, backlog, batch_counters, batch_errors, batches, jobs

log = logging.getLogger("aigc.keeper")

#: where a batch has ready jobs: lane and priority
_Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Books:
    """One side: what is booked, or what the rows say."""

    states: dict[str, int] = field(default_factory=dict)
    ready: dict[_Place, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Both sides at one moment."""

    #: whether the books have to be right: those of a batch begin when it opens
    is_open: bool
    #: whether there are counters at all
    has_counters: bool
    booked: _Books
    real: _Books

    def differences(self) -> list[str]:
        """In words; empty if all is well."""
        return list(self._told()) if self.is_open else []

    def _told(self) -> Iterator[str]:
        if not self.has_counters:
            yield "there are no counters"
        for state in JOB_STATES:
            booked, real = self.booked.states.get(state, 0), self.real.states.get(state, 0)
            if booked != real:
                yield f"{state}: {booked} booked, {real} there"
        for lane_id, priority in sorted({*self.booked.ready, *self.real.ready}):
            booked, real = (side.ready.get((lane_id, priority), 0) for side in (self.booked, self.real))
            if booked != real:
                yield f"ready in lane {lane_id} at priority {priority}: {booked} booked, {real} there"
        for code in sorted({*self.booked.errors, *self.real.errors}):
            booked, real = self.booked.errors.get(code, 0), self.real.errors.get(code, 0)
            if booked != real:
                yield f"error {code}: {booked} booked, {real} there"


def audit(db: Database, batch_id: str) -> list[str]:
    """Where the books of a batch differ from its rows, in words. Takes no lock: one statement sees one moment.

    Reads the index or the rows of the whole batch. Raises `Unavailable`.
    """
    with db.read() as connection:
        return _look(connection, batch_id).differences()


def repair(db: Database, batch_id: str) -> list[str]:
    """Set the books of a batch right, with nobody moving them meanwhile; returns the differences that there were.

    They are left as an event `counters_repaired` and in the log. Raises `Unavailable`.
    """

    def work(connection: Connection) -> list[str]:
        if connection.dialect.name == "postgresql":
            # Every transition changes a row of the first before it commits, so none is half-way once we have both.
            connection.execute(text("LOCK TABLE batch_counters, backlog IN SHARE ROW EXCLUSIVE MODE"))
        seen = _look(connection, batch_id)
        differences = seen.differences()
        if differences:
            _set_right(connection, batch_id, seen)
        return differences

    differences = db.write(work)
    if differences:
        log.error("the books of batch %s were wrong and were set right: %s", batch_id, "; ".join(differences))
    return differences


def _look(connection: Connection, batch_id: str) -> _Snapshot:
    booked, real, opened, has_counters = _Books(), _Books(), False, False
    for kind, key, lane_id, priority, n in connection.execute(_statement(batch_id)):
        side = real if kind.startswith("real") else booked
        if kind == "open":
            opened = True
        elif kind.endswith("state"):
            has_counters |= kind == "booked state"
            side.states[key] = n
        elif kind.endswith("ready"):
            side.ready[lane_id, priority] = n
        else:
            side.errors[key or ""] = n
    return _Snapshot(opened, has_counters, booked, real)


def _statement(batch_id: str) -> Select[Any]:
    """All of it as (what, key, lane, priority, number), in one statement and hence at one moment."""
    j, b, c, e = jobs.c, backlog.c, batch_counters.c, batch_errors.c
    none, no_key = cast(null(), Integer), cast(null(), String)
    n = func.count()
    claimable = and_(j.batch_id == batch_id, j.state == literal("queued", literal_execute=True))
    parts = [
        select(literal("open").label("kind"), batches.c.id.label("key"), none.label("lane_id"),
               none.label("priority"), literal(1).label("n"))
        .where(batches.c.id == batch_id, batches.c.state == "open"),
        select(literal("real state"), j.state, none, none, n).where(j.batch_id == batch_id).group_by(j.state),
        *(
            select(literal("booked state"), literal(state), none, none, c[state]).where(c.batch_id == batch_id)
            for state in JOB_STATES
        ),
        select(literal("real ready"), no_key, j.lane_id, j.priority, n)
        .where(claimable, j.available_at.is_(None)).group_by(j.lane_id, j.priority),
        select(literal("booked ready"), no_key, b.lane_id, b.priority, b.ready).where(b.batch_id == batch_id),
        select(literal("real errors"), j.error_code, none, none, n)
        .where(j.batch_id == batch_id, j.state == "failed").group_by(j.error_code),
        select(literal("booked errors"), e.code, none, none, e["count"]).where(e.batch_id == batch_id),
    ]  # fmt: skip
    both = union_all(*parts).subquery()
    return select(both.c.kind, both.c.key, both.c.lane_id, both.c.priority, both.c.n)


def _set_right(connection: Connection, batch_id: str, seen: _Snapshot) -> None:
    batch = connection.execute(select(batches).where(batches.c.id == batch_id)).one()
    states = {state: seen.real.states.get(state, 0) for state in JOB_STATES}
    counters = upsert(connection)(batch_counters).values(batch_id=batch_id, **states)
    connection.execute(counters.on_conflict_do_update(index_elements=["batch_id"], set_=states))
    for lane_id, priority in sorted({*seen.booked.ready, *seen.real.ready}):
        ready = seen.real.ready.get((lane_id, priority), 0)
        row = upsert(connection)(backlog).values(
            batch_id=batch_id, lane_id=lane_id, priority=priority, tenant_id=batch.tenant_id,
            opened_at=func.coalesce(literal(batch.opened_at), now()), ready=ready,
        )  # fmt: skip
        connection.execute(
            row.on_conflict_do_update(index_elements=["batch_id", "lane_id", "priority"], set_={"ready": ready})
        )
    for code in sorted({*seen.booked.errors, *seen.real.errors}):
        _set_error(connection, batch_id, code, seen.real.errors.get(code, 0))
    differences = seen.differences()
    record(
        connection,
        [
            {
                "tenant_id": batch.tenant_id, "batch_id": batch_id, "kind": "counters_repaired", "jobs": None,
                "count": len(differences), "worker_session": None, "data": {"differences": differences},
            }
        ],
    )  # fmt: skip


def _set_error(connection: Connection, batch_id: str, code: str, n: int) -> None:
    e = batch_errors.c
    known = update(batch_errors).where(e.batch_id == batch_id, e.code == code).values(count=n)
    if connection.execute(known).rowcount == 0:
        failed = and_(jobs.c.batch_id == batch_id, jobs.c.state == "failed", jobs.c.error_code == code)
        example = connection.scalar(select(jobs.c.error_message).where(failed).order_by(jobs.c.line).limit(1))
        connection.execute(insert(batch_errors).values(batch_id=batch_id, code=code, count=n, example=example or ""))


class Auditor:
    """Walks through the batches that are open, a few at a time and round again, and sets right what is wrong twice."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._after = ""
        self._suspects: dict[str, None] = {}

    def walk(self, *, for_s: float = 1.0) -> int:
        """Audit batches for about so many seconds, at least one; returns how many had to be repaired.

        A batch is repaired if it differs in two walks in a row. Raises `Unavailable`.
        """
        until, repaired = time.monotonic() + for_s, 0
        for batch_id in list(self._suspects):
            del self._suspects[batch_id]
            if audit(self._db, batch_id):
                repaired += bool(repair(self._db, batch_id))
        while batch_id := self._next():
            if audit(self._db, batch_id):
                self._suspects[batch_id] = None
            if time.monotonic() >= until:
                break
        return repaired

    def _next(self) -> str:
        """The next open batch; empty at the end, from where it begins again the next time."""
        b = batches.c
        following = select(b.id).where(b.id > self._after, b.state == "open").order_by(b.id).limit(1)
        with self._db.read() as connection:
            self._after = connection.scalar(following) or ""
        return self._after
