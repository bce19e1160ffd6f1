"""T5, T6, T9: how an attempt ends in the hands of its worker: succeeded, failed, or given back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    case,
    exists,
    literal,
    null,
    select,
    tuple_,
    update,
)

from shared.counters import moved
from shared.database import Database, now
from shared.jobs.identical import note_makers, tell_waiting
from shared.jobs.pieces import MOVED, Ended, backoff, book, end_attempts, fenced, held_by, lock, storable, take_back
from shared.jobs.publish import StoredArtifact, refer
from shared.many import insert_many, pairs
from shared.service import correct
from shared.tables import (
    jobs,
    objects,
)

#: a job given back more often than this without a charge fails: something is wrong with its surroundings
MAX_GIVE_BACKS = 50


@dataclass(frozen=True, slots=True)
class Success:
    """A job's result, stored and ready to be made visible."""

    id: str
    epoch: int
    artifacts: Sequence[StoredArtifact]
    device_s: float
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that ended in an error."""

    id: str
    epoch: int
    code: str
    message: str
    retryable: bool
    device_s: float = 0.0


def intend(db: Database, session: str, tenant_id: str, keys: Sequence[str]) -> None:
    """Note which objects are about to be uploaded, so that what nobody comes to refer to can be collected."""
    announce(db, session, [(key, tenant_id) for key in keys])


def announce(db: Database, session: str, keys: Sequence[tuple[str, str]]) -> None:
    """The same for objects of several tenants, as (key, tenant)."""

    def work(connection: Connection) -> None:
        clock = connection.scalar(select(now()))
        rows = [(key, tenant_id, session, "intended", clock) for key, tenant_id in keys]
        columns = ("key", "tenant_id", "worker_session", "state", "created_at")
        insert_many(connection, objects, columns, rows, or_ignore=True)

    db.write(work, replayable=True)


def nothing_stored_yet(db: Database) -> bool:
    """Whether no object was ever stored: then a storage that is missing may be made."""
    with db.read() as connection:
        return not connection.scalar(select(exists(select(objects.c.key).where(objects.c.state == "stored"))))


def succeed(db: Database, session: str, results: Sequence[Success]) -> set[str]:
    """Make results visible, all at once; returns the ids that stand as ours.

    A job that was taken from us meanwhile is left out, and so are its artifacts.
    """
    by_id = {result.id: result for result in results}
    keys = [(result.id, result.epoch) for result in results]
    awaited: list[str] = []

    def work(connection: Connection) -> set[str]:
        rows = connection.execute(
            update(jobs)
            .where(held_by(session, keys))
            .values(
                state="succeeded",
                finished_at=now(),
                progress=1.0,
                deadline_at=None,
                error_code=None,
                error_message=None,
            )
            .returning(*MOVED, jobs.c.epoch, jobs.c.claimed_at, jobs.c.fingerprint, jobs.c.awaited_at)
        ).all()
        standing = {row.id for row in rows}
        if len(standing) < len(keys):
            # What an earlier try of this transaction committed, when the answer to its COMMIT was lost.
            standing |= set(
                connection.scalars(
                    select(jobs.c.id).where(
                        tuple_(jobs.c.id, jobs.c.epoch).in_(pairs(keys)),
                        jobs.c.worker_session == session,
                        jobs.c.state == "succeeded",
                    )
                )
            )
        if not rows:
            return standing
        note_makers(connection, rows, {row.id: by_id[row.id].record for row in rows})
        awaited[:] = (row.id for row in rows if row.awaited_at is not None)
        refer(connection, [(row.id, row.tenant_id, by_id[row.id].artifacts) for row in rows], done=True)
        end_attempts(
            connection,
            session,
            rows,
            "succeeded",
            {row.id: {"device_s": by_id[row.id].device_s, "record": by_id[row.id].record} for row in rows},
        )
        moved(connection, rows, "running", "succeeded", "succeeded", session=session)
        correct(connection, rows, {row.id: by_id[row.id].device_s for row in rows})
        return standing

    stands = db.write(work, replayable=True)
    fenced("T5", session, by_id.keys() - stands)
    tell_waiting(db, awaited)
    return stands


def fail(db: Database, session: str, failures: Sequence[Failure]) -> set[str]:
    """End attempts in error: charged; tried again later if that may help and attempts are left, else failed.

    Returns the ids that were still ours.
    """
    groups: dict[tuple[str, str, bool], list[Failure]] = {}
    for failure in failures:
        kind = (storable(failure.code)[:64], storable(failure.message), failure.retryable)
        groups.setdefault(kind, []).append(failure)

    def work(connection: Connection) -> set[str]:
        lock(connection, held_by(session, [(failure.id, failure.epoch) for failure in failures]))
        endings: list[Ended] = []
        for (code, message, retryable), members in groups.items():
            c = jobs.c
            again = and_(literal(retryable), c.attempts + 1 < c.max_attempts, ~c.cancel_requested)
            rows = take_back(
                connection, held_by(session, [(member.id, member.epoch) for member in members]),
                state=case((c.cancel_requested, "cancelled"), (again, "queued"), else_="failed"),
                attempts=c.attempts + 1, available_at=case((again, now() + backoff()), else_=null()),
                error_code=code, error_message=message,
            )  # fmt: skip
            spent = {member.id: {"device_s": member.device_s} for member in members}
            endings.append(Ended(rows, "retried", code, message, {"code": code}, (code, message), spent))
        book(connection, session, endings)
        return {row.id for ended in endings for row in ended.rows}

    return db.write(work, replayable=True)


def give_back(
    db: Database,
    session: str,
    held: Sequence[tuple[str, int]],
    reason: str,
    *,
    delay_s: float = 0.0,
    counted: bool = True,
    code: str | None = None,
) -> set[str]:
    """T9: return jobs, as (id, epoch), without a charge; returns the ids that were ours.

    Those that are to be cancelled end here. Give-backs have a cap of their own, unless they are not `counted`: while a
    part of the system is away, for however long, no job fails for it. With a `code`, the reason is shown as the job's
    error until it is done.
    """
    c = jobs.c
    too_often = and_(literal(counted), c.give_backs >= MAX_GIVE_BACKS)
    reason = storable(reason)
    message = f"given back {MAX_GIVE_BACKS} times without being finished; the last time: {reason}"

    def work(connection: Connection) -> set[str]:
        rows = take_back(
            connection, held_by(session, held),
            state=case((c.cancel_requested, "cancelled"), (too_often, "failed"), else_="queued"),
            give_backs=c.give_backs + int(counted), available_at=now() + delay_s if delay_s > 0 else None,
            error_code=case((too_often, "given_back_too_often"), else_=literal(code) if code else null()),
            error_message=case((too_often, message), else_=literal(reason) if code else null()),
        )  # fmt: skip
        data = {"reason": reason}
        book(connection, session, [Ended(rows, "given_back", None, reason, data, ("given_back_too_often", message))])
        return {row.id for row in rows}

    return db.write(work, replayable=True)
