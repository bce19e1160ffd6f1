"""Room one of a job's life, the only way in: spool → chunks into a batch that is `loading` → open → ring."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unicodedata import category

from producer.spool import Spool
from shared import jobs
from shared.database import CommitUnknown, Database
from shared.errors import AigcError, RequestError, Unavailable
from shared.ids import is_job_id, job_id
from shared.jobs import NewBatch, NewJob
from shared.queue import IDS_PER_MESSAGE, queue_of
from shared.settings import Settings

log = logging.getLogger("aigc.submit")

#: a batch of so many jobs is stored and opened in one transaction
SMALL = 100
MAX_NAME = 200
#: ten years
MAX_EXPIRES_S = 10 * 365 * 86400


@dataclass(frozen=True, slots=True)
class Submitted:
    """An accepted batch: from here on none of its jobs is lost."""

    batch_id: str
    total: int
    #: the same request had been accepted before, under the same idempotency key
    replayed: bool
    #: what did not go well but harms nothing, such as a Redis that does not answer
    warnings: tuple[str, ...] = ()


def submit(
    settings: Settings,
    db: Database,
    spool: Spool,
    *,
    batch_id: str,
    name: str | None = None,
    idempotency_key: str | None = None,
    expires_s: float | None = None,
) -> Submitted:
    """Store a spool as one batch. Once this returns, the batch is accepted, whatever Redis does.

    Raises `Unavailable` if SQL does not answer, `RequestError` if the name or the idempotency key cannot be; then
    nothing was accepted. Only `CommitUnknown` leaves open whether it was, and says under which id to look.
    """
    _require_sound(name, idempotency_key, expires_s)
    batch = NewBatch(batch_id, settings.tenant, name, spool.total, idempotency_key, spool.digest, spool.files)
    store = _in_one_go if spool.total <= SMALL and len(spool.ends) == 1 else _in_blocks
    first, lane_ids = store(settings, db, spool, batch, expires_s)
    if first != batch.id:
        return Submitted(first, spool.total, replayed=True)
    if spool.with_cache:
        _match(db, batch, set(lane_ids))
    return Submitted(batch.id, spool.total, replayed=False, warnings=_ring(settings, db, spool, batch.id))


def _require_sound(name: str | None, idempotency_key: str | None, expires_s: float | None) -> None:
    if name is not None and is_job_id(name):
        raise RequestError(f"the name {name!r} has the form of a job's id: choose another")
    for what, value in (("name", name), ("idempotency key", idempotency_key)):
        if value is not None and (not value.strip() or len(value) > MAX_NAME):
            raise RequestError(f"the {what} must have 1 to {MAX_NAME} characters")
        if value is not None and any(category(character) in ("Cc", "Cs") for character in value):
            raise RequestError(f"the {what} must not contain control characters, and be valid Unicode")
    if expires_s is not None and not 0 < expires_s <= MAX_EXPIRES_S:
        raise RequestError(f"expires must be more than 0 and at most {MAX_EXPIRES_S} seconds, got {expires_s}")


@contextmanager
def _not_accepted() -> Iterator[None]:
    """Before the batch opens a COMMIT without an answer leaves nothing open: nothing was accepted."""
    try:
        yield
    except CommitUnknown as error:
        raise Unavailable(
            error.part, error.address, error.reason, "nothing was accepted: see that it runs, and submit again"
        ) from error


def _in_one_go(
    settings: Settings, db: Database, spool: Spool, batch: NewBatch, expires_s: float | None
) -> tuple[str, list[int]]:
    """One transaction: a single job is not to wait for four."""
    expires_at = db.clock() + expires_s if expires_s else None

    def rows(lane_ids: list[int]) -> list[NewJob]:
        return next(spool.blocks(lane_ids, max_attempts=settings.max_attempts, expires_at=expires_at))

    with _acceptance(batch):
        return jobs.store_batch(db, batch, spool.lanes, rows, spool.ready)


def _in_blocks(
    settings: Settings, db: Database, spool: Spool, batch: NewBatch, expires_s: float | None
) -> tuple[str, list[int]]:
    """A batch that is `loading` takes one block after the other; what is stored half is cleared away."""
    with _not_accepted():
        first = jobs.begin_batch(db, batch)
    if first != batch.id:
        return first, []
    try:
        with _not_accepted():
            numbers = jobs.lane_ids(db, spool.lanes)
            lane_ids = [numbers[lane] for lane in spool.lanes]
            expires_at = db.clock() + expires_s if expires_s else None
            for block in spool.blocks(lane_ids, max_attempts=settings.max_attempts, expires_at=expires_at):
                jobs.add_jobs(db, batch.id, block)
        with _acceptance(batch):
            jobs.open_batch(db, batch, {(lane_ids[lane], priority): n for (lane, priority), n in spool.ready.items()})
    except CommitUnknown:
        raise  # never clear away what may have been accepted
    except BaseException:
        _clear_away(db, batch.id)
        raise
    return first, lane_ids


@contextmanager
def _acceptance(batch: NewBatch) -> Iterator[None]:
    """The transaction that opens the batch: where the answer to its COMMIT is lost, say under which id to look."""
    try:
        yield
    except CommitUnknown as error:
        raise CommitUnknown(
            error.part,
            error.address,
            f"{error.reason}; batch {batch.id} may have been accepted: look with `aigc status {batch.id}`",
        ) from error


def _match(db: Database, batch: NewBatch, lane_ids: set[int]) -> None:
    """What was made before, or is being made, need not wait for a worker to say so; should this fail, one does."""
    try:
        jobs.match_batch(db, batch.id, jobs.known_makers(db, lane_ids))
    except AigcError as error:
        log.warning("identical work is found by the workers alone: %s", error)


def _clear_away(db: Database, batch_id: str) -> None:
    try:
        jobs.abandon_batch(db, batch_id)
    except Unavailable as error:
        log.warning("an unfinished submission was left behind, the keeper clears it away: %s", error)


def _ring(settings: Settings, db: Database, spool: Spool, batch_id: str) -> tuple[str, ...]:
    queues, bell = sorted({lane.queue for lane in spool.lanes}), queue_of(settings)
    ids = [job_id(batch_id, line) for line in range(1, min(spool.total, IDS_PER_MESSAGE) + 1)]
    try:
        if len(queues) > 1 or len(ids) < spool.total or not bell.knock(queues[0], batch_id, ids):
            bell.ring(db, queues)
    except AigcError as error:
        return (f"the jobs are stored; they start when Redis answers: {error}",)
    except Exception as error:
        # Whatever Redis and its clients do: the jobs stand in SQL, and the answer is "accepted".
        log.warning("ringing failed", exc_info=True)
        return (f"the jobs are stored; they start when the keeper can ring: {type(error).__name__}: {error}",)
    return ()
