"""T7: the jobs of workers that are dead, or presumed to be, are taken back.

Whether a lease has lapsed is judged by the *pulse*, the last moment at which a keeper reached the database, and never
by the clock at the moment of writing: a keeper, or a whole server, that was frozen between its look and its write
then judges by what was known before, and reaps nobody who merely was frozen with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    exists,
    false,
    literal,
    null,
    select,
    true,
    update,
)

from shared.counters import upsert
from shared.database import Database, RowsLocked, now
from shared.jobs.pieces import Ended, backoff, book, last_pulse, storable, take_back
from shared.tables import (
    PULSE,
    duties,
    jobs,
    worker_sessions,
)

_DIED = "the worker that ran this job alone died every time; its memory may not suffice, or the model crashes on it"
#: seconds that a keeper waits for the rows of one session while others are to be reaped
REAPING_WAIT_S = 1.0

_STOPPED = "the worker had to stop, and its time ran out"


@dataclass(frozen=True, slots=True)
class Beat:
    """What a keeper learns when it leaves its sign of life."""

    #: nobody ever did so before: nothing is known of the time until now, and nothing may be reaped on it
    first: bool
    #: seconds since the last sign of life of any keeper
    gap_s: float
    #: how many sessions were given the gap, because it was too long to judge them by it
    extended: int


def beat(db: Database, *, lease_s: float, interval_s: float) -> Beat:
    """Leave a sign of life, before anything is reaped; after a gap, first extend all leases and deadlines by it.

    A gap is longer than three keeper intervals, a third of a lease, and a second, or than two thirds of a lease: the
    database was away, or every keeper was. No session is known to be dead then that was not before, and no job to be
    stuck that was not to be taken back. A session gets the gap on top of its lease, yet no more than a whole lease from
    now; a job gets it on top of its deadline. Keepers take turns, so that a gap counts once. Raises `Unavailable`.
    """
    d = duties.c
    # A worker renews at least three times a lease: nobody who is alive lapses in what counts as usual.
    usual_s = min(max(3 * interval_s, lease_s / 3, 1.0), lease_s * 2 / 3)

    def work(connection: Connection) -> Beat:
        last = connection.scalar(select(d.done_at).where(d.name == PULSE).with_for_update())
        if last is None:
            first = upsert(connection)(duties).values(name=PULSE, done_at=now()).on_conflict_do_nothing()
            connection.execute(first)
            return Beat(first=True, gap_s=0.0, extended=0)
        # One reading for all that follows: should we freeze here, the next pulse sees the rest of the gap.
        clock = connection.execute(select(now())).scalar_one()
        gap, extended = clock - last, 0
        if gap > usual_s:
            extended = _extend_leases(connection, last, clock, lease_s)
            _move_deadlines(connection, last - lease_s, gap)
        connection.execute(update(duties).where(d.name == PULSE).values(done_at=clock))
        return Beat(first=False, gap_s=max(0.0, gap), extended=extended)

    return db.write(work, replayable=True)


def _extend_leases(connection: Connection, good_at: float, clock: float, lease_s: float) -> int:
    """Give the sessions whose lease was good then the time since, up to a whole lease from now; returns how many."""
    w = worker_sessions.c
    whole = case((w.lease_expires_at > clock + lease_s, w.lease_expires_at), else_=clock + lease_s)
    longer = w.lease_expires_at + (clock - good_at)
    # Rows that somebody has locked are being renewed or ended: the pulse waits for nobody.
    theirs = (
        select(w.id)
        .where(w.ended_at.is_(None), w.lease_expires_at > good_at)
        .order_by(w.id)
        .with_for_update(skip_locked=True)
    )
    extended = update(worker_sessions).where(w.id.in_(theirs)).values(
        lease_expires_at=case((longer < whole, longer), else_=whole)
    )  # fmt: skip
    return connection.execute(extended).rowcount


def _move_deadlines(connection: Connection, after: float, gap_s: float) -> None:
    """Give the running jobs that the time without the database made late, or may have, that time on top."""
    c = jobs.c
    timed = and_(c.state == literal("running", literal_execute=True), c.deadline_at > after)
    theirs = select(c.id).where(timed).order_by(c.id).with_for_update(skip_locked=True)
    connection.execute(update(jobs).where(c.id.in_(theirs), timed).values(deadline_at=c.deadline_at + gap_s))


def reap(db: Database) -> list[str]:
    """End the sessions whose lease had lapsed at the last pulse and take their jobs back; returns the sessions.

    The crash is charged to a job that was alone in the model; a job that was in company gets a smaller company next
    time instead, so that a job that kills its worker is soon alone. The first retry of a job is due at once: it has
    waited for a lease.

    A session whose rows somebody else holds locked (a worker that is frozen in a transaction) is left to the next
    round and holds up no other; raises `RowsLocked` if only such are left, else `Unavailable`.
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
        taken = _take_jobs(connection, session, code="worker_died", message=None, charged=True, waited=True)
        return ended or taken > 0

    reaped: list[str] = []
    locked: dict[str, RowsLocked] = {}
    for session in sorted({*lapsed, *orphaned}):
        try:
            if db.write(partial(work, session=session), lock_wait_s=REAPING_WAIT_S):
                reaped.append(session)
        except RowsLocked as error:
            locked[session] = error
    if locked and not reaped:
        last = locked.popitem()
        which = ", ".join([*locked, last[0]])
        reason = f"somebody holds the rows of dead workers locked, and their jobs wait for that (sessions {which})"
        raise RowsLocked("database", last[1].address, reason, last[1].advice) from last[1]
    return reaped


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
    return worker_sessions.c.lease_expires_at < last_pulse()


def _end(connection: Connection, session: str, end: str, guard: ColumnElement[bool]) -> bool:
    w = worker_sessions.c
    ended = connection.execute(
        update(worker_sessions).where(w.id == session, w.ended_at.is_(None), guard).values(ended_at=now(), end=end)
    )
    return ended.rowcount == 1


def _has_ended(connection: Connection, session: str) -> bool:
    w = worker_sessions.c
    return bool(connection.scalar(select(exists().where(w.id == session, w.ended_at.is_not(None)))))


def _take_jobs(
    connection: Connection, session: str, *, code: str, message: str | None, charged: bool, waited: bool = False
) -> int:
    """Take everything back from a session that has ended; returns how many jobs.

    Where its jobs have `waited` for a lease to lapse, the first that a job is charged with comes without a pause.
    """
    c, blame = jobs.c, message or _DIED
    # Without a company it was not in the model: not yet, or not any more.
    alone = and_(c.company.is_not(None), c.company <= 1) if charged else false()
    in_company = and_(c.company.is_not(None), c.company > 1) if charged else false()
    spent = and_(alone, c.attempts + 1 >= c.max_attempts)
    pause = and_(alone, ~spent, ~c.cancel_requested, c.attempts > 0 if waited else true())
    rows = take_back(
        connection, and_(c.worker_session == session, c.state == literal("running", literal_execute=True)),
        state=case((c.cancel_requested, "cancelled"), (spent, "failed"), else_="queued"), epoch=c.epoch + 1,
        attempts=case((alone, c.attempts + 1), else_=c.attempts),
        max_company=case((in_company, case((c.company > 8, 8), else_=1)), else_=c.max_company),
        available_at=case((pause, now() + backoff()), else_=null()),
        error_code=case((alone, code), else_=null()), error_message=case((alone, blame), else_=null()),
    )  # fmt: skip
    data = {"code": code} if charged else {"reason": message or _STOPPED}
    ended = Ended(rows, "lost" if charged else "given_back", code if charged else None, message, data, (code, blame))
    book(connection, session, [ended], epochs_back=1)
    return len(rows)
