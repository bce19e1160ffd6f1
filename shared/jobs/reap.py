"""T7: the jobs of workers that are dead, or presumed to be, are taken back.

Whether a lease has lapsed is judged by the *pulse*, the last moment at which a keeper reached the database, and never
by the clock at the moment of writing: a keeper, or a whole server, that was frozen between its look and its write
then judges by what was known before, and reaps nobody who merely was frozen with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    exists,
    false,
    func,
    literal,
    null,
    select,
    true,
    update,
)

from shared.counters import moved, upsert
from shared.database import Database, now
from shared.jobs.pieces import backoff, count_errors, end_attempts, storable, take_back
from shared.tables import (
    PULSE,
    duties,
    jobs,
    worker_sessions,
)

_DIED = "the worker that ran this job alone died every time; its memory may not suffice, or the model crashes on it"
_STOPPED = "the worker had to stop, and its time ran out"


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a keeper learns when it leaves its sign of life."""

    #: nobody ever did so before: nothing is known of the time until now, and nothing may be reaped on it
    first: bool
    #: seconds since the last sign of life of any keeper
    gap_s: float
    #: how many sessions were given the gap, because it was too long to judge them by it
    extended: int


def beat(db: Database, *, lease_s: float, interval_s: float) -> Pulse:
    """Leave a sign of life, before anything is reaped; after a gap, first extend all leases by it.

    A gap is longer than three keeper intervals, a third of a lease, and a second: the database was away, or every
    keeper was. No session is known to be dead then that was not before. It gets the gap on top of its lease, yet no
    more than a whole lease from now. Keepers take turns, so that a gap counts once. Raises `Unavailable`.
    """
    d, w = duties.c, worker_sessions.c
    usual_s = max(3 * interval_s, lease_s / 3, 1.0)

    def work(connection: Connection) -> Pulse:
        last = connection.scalar(select(d.done_at).where(d.name == PULSE).with_for_update())
        if last is None:
            first = upsert(connection)(duties).values(name=PULSE, done_at=now()).on_conflict_do_nothing()
            connection.execute(first)
            return Pulse(first=True, gap_s=0.0, extended=0)
        # One reading for all that follows: should we freeze here, the next pulse sees the rest of the gap.
        clock = connection.execute(select(now())).scalar_one()
        gap, extended = clock - last, 0
        if gap > usual_s:
            whole = case((w.lease_expires_at > clock + lease_s, w.lease_expires_at), else_=clock + lease_s)
            longer = case((w.lease_expires_at + gap < whole, w.lease_expires_at + gap), else_=whole)
            extended = connection.execute(
                update(worker_sessions)
                .where(w.ended_at.is_(None), w.lease_expires_at > last)
                .values(lease_expires_at=longer)
            ).rowcount
        connection.execute(update(duties).where(d.name == PULSE).values(done_at=clock))
        return Pulse(first=False, gap_s=max(0.0, gap), extended=extended)

    return db.write(work, replayable=True)


def reap(db: Database) -> list[str]:
    """End the sessions whose lease had lapsed at the last pulse and take their jobs back; returns the sessions.

    The crash is charged to a job that was alone in the model; a job that was in company gets a smaller company next
    time instead, so that a job that kills its worker is soon alone.
    """
    w = worker_sessions.c
    with db.read() as connection:
        lapsed = connection.scalars(select(w.id).where(w.ended_at.is_(None), _lapsed())).all()
        orphaned = connection.scalars(
            select(jobs.c.worker_session)
            .distinct()
            .join(worker_sessions, w.id == jobs.c.worker_session)
            .where(jobs.c.state == literal("running", literal_execute=True), w.ended_at.is_not(None))
        ).all()

    def work(connection: Connection, session: str) -> bool:
        ended = _end(connection, session, "lost", _lapsed())
        if not ended and not _has_ended(connection, session):
            return False
        return _take_jobs(connection, session, code="worker_died", message=None, charged=True) > 0 or ended

    return [session for session in sorted({*lapsed, *orphaned}) if db.write(lambda c, s=session: work(c, s))]  # type: ignore[misc]


def bury(
    db: Database, session: str, *, code: str = "worker_died", message: str | None = None, charged: bool = True
) -> bool:
    """End a session whose process is known to be dead, without a wait for its lease, and take its jobs back.

    As `reap`: a job that was alone in the model is charged, with this code and message, and those in company get a
    smaller one. Not `charged`, the worker had to stop and ran out of time: then all go back as they were. May be
    repeated; returns whether there was anything left to end or to take back. Raises `Unavailable`.
    """
    why = None if message is None else storable(message)

    def work(connection: Connection) -> bool:
        ended = _end(connection, session, "lost" if charged else "stopped", true())
        if not ended and not _has_ended(connection, session):
            return False
        taken = _take_jobs(connection, session, code=storable(code)[:64], message=why, charged=charged)
        return ended or taken > 0

    return db.write(work, replayable=True)


def _lapsed() -> ColumnElement[bool]:
    """Whether a lease was over at the last pulse; by the clock where no keeper has ever left one."""
    pulse = select(duties.c.done_at).where(duties.c.name == PULSE).scalar_subquery()
    return worker_sessions.c.lease_expires_at < func.coalesce(pulse, now())


def _end(connection: Connection, session: str, end: str, guard: ColumnElement[bool]) -> bool:
    w = worker_sessions.c
    ended = connection.execute(
        update(worker_sessions).where(w.id == session, w.ended_at.is_(None), guard).values(ended_at=now(), end=end)
    )
    return ended.rowcount == 1


def _has_ended(connection: Connection, session: str) -> bool:
    w = worker_sessions.c
    return bool(connection.scalar(select(exists().where(w.id == session, w.ended_at.is_not(None)))))


def _take_jobs(connection: Connection, session: str, *, code: str, message: str | None, charged: bool) -> int:
    """Take everything back from a session that has ended; returns how many jobs."""
    c, blame = jobs.c, message or _DIED
    # Without a company it was not in the model: not yet, or not any more.
    alone = and_(c.company.is_not(None), c.company <= 1) if charged else false()
    in_company = and_(c.company.is_not(None), c.company > 1) if charged else false()
    spent = and_(alone, c.attempts + 1 >= c.max_attempts)
    rows = take_back(
        connection, and_(c.worker_session == session, c.state == literal("running", literal_execute=True)),
        state=case((c.cancel_requested, "cancelled"), (spent, "failed"), else_="queued"), epoch=c.epoch + 1,
        attempts=case((alone, c.attempts + 1), else_=c.attempts),
        max_company=case((in_company, case((c.company > 8, 8), else_=1)), else_=c.max_company),
        available_at=case((and_(alone, ~spent, ~c.cancel_requested), now() + backoff()), else_=null()),
        error_code=case((alone, code), else_=null()), error_message=case((alone, blame), else_=null()),
    )  # fmt: skip
    gone = "lost" if charged else "given_back"
    data = {"code": code} if charged else {"reason": message or _STOPPED}
    for target, delayed in (("queued", False), ("queued", True), ("failed", False), ("cancelled", False)):
        these = [row for row in rows if row.state == target and (row.available_at is not None) == delayed]
        outcome = gone if target == "queued" else target
        end_attempts(connection, session, these, outcome, {}, code if charged else None, message, epochs_back=1)
        ready = int(target == "queued" and not delayed)
        moved(connection, these, "running", target, outcome, ready=ready, session=session, data=data)
        if target == "failed":
            count_errors(connection, these, code, blame)
    return len(rows)
