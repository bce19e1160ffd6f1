"""What operators steer: queues that rest, workers that are to end; and what they see of the keepers.

None of it touches a job's state. A paused queue is passed over by claims, looks and rings (`not_paused`), so what runs
goes on and nothing is lost; a worker reads with its lease that it is to end, and finishes or gives back what it holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, literal, not_, or_, select, update

from shared.counters import upsert
from shared.database import Database, now
from shared.errors import NotFound, RequestError
from shared.tables import PULSE, attempts, duties, jobs, lanes, paused_queues, worker_sessions

#: names that an error lists at most
_NAMED = 8
#: as jobs may name one
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class PausedQueue:
    """A queue of which nothing is claimed for now."""

    queue: str
    #: seconds since 1970
    since: float
    #: in the operator's words
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {"queue": self.queue, "since": self.since, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Drain:
    """A worker session that was asked to end, and how far that is."""

    session: str
    #: host and device
    worker: str
    #: seconds since 1970
    requested_at: float
    #: when it ended; None while it goes on
    ended_at: float | None = None
    #: `stopped` in good order, or `lost`: its lease ran out, and its jobs were taken back
    end: str | None = None
    #: jobs seen in its hands since it was asked, and how their attempts ended (None: not yet)
    jobs: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def outcomes(self) -> Mapping[str, int]:
        """How many of its jobs ended how: `succeeded`, `given_back`, …; `running` for those that have not."""
        return Counter(outcome or "running" for outcome in self.jobs.values())

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "session": self.session, "worker": self.worker, "requested_at": self.requested_at,
            "ended_at": self.ended_at, "end": self.end, "outcomes": dict(self.outcomes),
        }  # fmt: skip


def not_paused(queue: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether the queue in this column is not paused."""
    return queue.not_in(select(paused_queues.c.queue))


def pause(db: Database, queue: str, reason: str | None = None) -> PausedQueue:
    """From now on nothing of this queue is claimed; what runs goes on.

    A queue that is paused already stays so since when it was, and takes a new reason if one is given. One that nobody
    knows yet can be paused, too. Raises `RequestError` if this can be no queue's name, or the reason no text.
    """
    if not _NAME.fullmatch(queue):
        raise RequestError(f"{queue!r} can be no queue's name: at most 64 letters, digits, dots, dashes, underscores")
    if reason is not None and ("\x00" in reason or not _is_unicode(reason)):
        raise RequestError("the reason is not valid Unicode")

    def work(connection: Connection) -> PausedQueue:
        values = {"queue": queue, "paused_at": now(), "reason": reason}
        statement = upsert(connection)(paused_queues).values(values)
        kept = func.coalesce(statement.excluded.reason, paused_queues.c.reason)
        connection.execute(statement.on_conflict_do_update(index_elements=["queue"], set_={"reason": kept}))
        return _paused(connection.execute(select(paused_queues).where(paused_queues.c.queue == queue)).one())

    return db.write(work, replayable=True)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def resume(db: Database, queue: str) -> bool:
    """Let the queue go on; returns whether it was paused. Whoever calls it rings, so that workers hear of it."""
    this = delete(paused_queues).where(paused_queues.c.queue == queue)
    return db.write(lambda connection: connection.execute(this).rowcount == 1)


def paused(db: Database) -> list[PausedQueue]:
    """The queues that are paused, by name."""
    with db.read() as connection:
        rows = connection.execute(select(paused_queues).order_by(paused_queues.c.queue)).all()
    return [_paused(row) for row in rows]


def _paused(row: Row[Any]) -> PausedQueue:
    return PausedQueue(row.queue, row.paused_at, row.reason)


def known_queues(db: Database) -> list[str]:
    """Queues that jobs were submitted to or that workers who have not ended serve, by name."""
    with db.read() as connection:
        used = set(connection.scalars(select(lanes.c.queue).distinct()))
        served = connection.scalars(select(worker_sessions.c.queues).where(worker_sessions.c.ended_at.is_(None)))
        return sorted(used | {queue for queues in served for queue in queues.split(",")})


def keeper_silent_s(db: Database) -> float | None:
    """Seconds since a keeper did a round on this database; None if none ever has."""
    with db.read() as connection:
        seen = connection.scalar(select(now() - duties.c.done_at).where(duties.c.name == PULSE))
    return None if seen is None else max(0.0, float(seen))


def keeper_patience_s(interval_s: float) -> float:
    """Seconds without a round of any keeper after which none is taken to be alive; `interval_s` lie between rounds."""
    return max(15.0, 5 * interval_s)


def drain(db: Database, worker: str) -> list[Drain]:
    """Ask a worker to finish or give back what it holds, and to end; returns its sessions.

    `worker` is its name (host and device; all of its sessions are meant), the id of a session, or the unique beginning
    of either. Asked twice, the first time stands. Raises `NotFound` with the workers there are, and `RequestError` if
    the beginning fits several.
    """
    w = worker_sessions.c

    def work(connection: Connection) -> list[str]:
        ids = _sessions(connection, worker)
        values = {w.drain_requested_at: func.coalesce(w.drain_requested_at, now())}
        connection.execute(update(worker_sessions).where(w.id.in_(ids)).values(values))
        return ids

    ids = db.write(work, replayable=True)
    with db.read() as connection:
        rows = connection.execute(select(worker_sessions).where(w.id.in_(ids)).order_by(w.id)).all()
    return drained(db, [Drain(row.id, row.worker, row.drain_requested_at) for row in rows])


def drained(db: Database, drains: Sequence[Drain]) -> list[Drain]:
    """How far they are now: which have ended and how, and what became of the jobs that were in their hands."""
    w = worker_sessions.c
    with db.read() as connection:
        held = _held(connection, [drain.session for drain in drains])
        seen = {d.session: sorted({*d.jobs, *held.get(d.session, ())}) for d in drains}
        ended = {
            (row.worker_session, row.job_id): row.outcome
            for ids in seen.values()
            for row in connection.execute(
                select(attempts.c.job_id, attempts.c.worker_session, attempts.c.outcome)
                .where(attempts.c.job_id.in_(ids))
                .order_by(attempts.c.epoch)
            )
        }
        # Last, so that a session that reads as ended has ended with everything that it held.
        rows = {
            row.id: row
            for row in connection.execute(select(worker_sessions).where(w.id.in_([d.session for d in drains])))
        }
    return [
        Drain(
            d.session, d.worker, d.requested_at, ended_at=rows[d.session].ended_at, end=rows[d.session].end,
            jobs={id_: ended.get((d.session, id_), d.jobs.get(id_)) for id_ in seen[d.session]},
        )
        for d in drains
    ]  # fmt: skip


def _held(connection: Connection, sessions: Sequence[str]) -> dict[str, list[str]]:
    running = jobs.c.state == literal("running", literal_execute=True)
    found: dict[str, list[str]] = {}
    rows = connection.execute(
        select(jobs.c.id, jobs.c.worker_session).where(jobs.c.worker_session.in_(sessions), running)
    )
    for row in rows:
        found.setdefault(row.worker_session, []).append(row.id)
    return found


def _sessions(connection: Connection, worker: str) -> list[str]:
    """The sessions that go by this name, id or beginning."""
    w = worker_sessions.c
    going_on = w.ended_at.is_(None)
    exactly = connection.scalars(select(w.id).where(going_on, or_(w.id == worker, w.worker == worker))).all()
    if exactly:
        return list(exactly)
    by_name, by_id = (column.startswith(worker, autoescape=True) for column in (w.worker, w.id))
    names = set(connection.scalars(select(w.worker).where(going_on, by_name))) if worker else set()
    # A session whose worker is among the names is no second meaning.
    ids = set(connection.scalars(select(w.id).where(going_on, by_id, not_(by_name)))) if worker else set()
    if len(names) + len(ids) > 1:
        shown = _listed(sorted(names | ids))
        raise RequestError(f"{worker!r} is the beginning of several workers ({shown}): write more of it")
    if not names and not ids:
        alive = sorted(set(connection.scalars(select(w.worker).where(going_on, w.lease_expires_at > now()))))
        known = f"alive are {_listed(alive)}" if alive else "none is alive"
        raise NotFound(f"there is no worker {worker!r}: {known}")
    return list(connection.scalars(select(w.id).where(going_on, or_(w.worker.in_(names), w.id.in_(ids)))))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
