"""T1: a batch comes in. Its jobs are stored in chunks while it is `loading`; one guarded update opens it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    insert,
    or_,
    select,
    update,
)

from shared.counters import record, upsert
from shared.database import Database, moment, now
from shared.errors import NotAllowed
from shared.files import refer_to_files
from shared.ids import job_id
from shared.jobs.bulk import NewJob, store
from shared.jobs.pieces import CHUNK, by_line
from shared.jobs.publish import drop_artifacts
from shared.tables import (
    artifacts,
    backlog,
    batch_counters,
    batches,
    events,
    jobs,
    lanes,
    tenants,
)

#: seconds after which a submission that shows no life is taken for dead
LOADING_TIMEOUT_S = 3600.0
#: the same where somebody submits again under its idempotency key
SILENT_S = 30.0


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch about to be stored."""

    id: str
    tenant: str
    name: str | None
    total: int
    idempotency_key: str | None
    request_digest: str
    #: ids of the uploaded files that its jobs name
    files: Sequence[str] = ()


class Lane(NamedTuple):
    """What the scheduler chooses between: jobs of one lane may run together."""

    queue: str
    task: str
    model: str
    adapters: str = ""


def begin_batch(db: Database, batch: NewBatch) -> str:
    """Make room for a batch in state `loading`; returns its id.

    The same request under the same idempotency key gives the id of the batch that came first. Raises `NotAllowed` if
    the key belongs to another request, or to one that is being submitted right now.
    """
    return db.write(partial(_begin, batch=batch), replayable=True)


def _begin(connection: Connection, batch: NewBatch) -> str:
    connection.execute(upsert(connection)(tenants).values(id=batch.tenant, created_at=now()).on_conflict_do_nothing())
    for _ in range(2):
        earlier = _replayed(connection, batch)
        if earlier is not None:
            return earlier
        statement = upsert(connection)(batches).values(
            id=batch.id, tenant_id=batch.tenant, name=batch.name, state="loading", total=batch.total,
            idempotency_key=batch.idempotency_key, request_digest=batch.request_digest,
            created_at=now(), touched_at=now(),
        )  # fmt: skip
        connection.execute(statement.on_conflict_do_nothing())
        if connection.scalar(select(exists().where(batches.c.id == batch.id))):
            refer_to_files(connection, batch.id, batch.tenant, batch.files)
            return batch.id
        # The same key came in at the same moment under another id, and was first: look again.
    raise NotAllowed(f"idempotency key {batch.idempotency_key!r} is being used right now: try again in a minute")


def _replayed(connection: Connection, batch: NewBatch) -> str | None:
    """The batch that this request has made before; a dead attempt loses the key, and a keeper clears it away."""
    if batch.idempotency_key is None:
        return None
    first = connection.execute(
        select(batches, (now() - batches.c.touched_at).label("silent_s")).where(
            batches.c.tenant_id == batch.tenant, batches.c.idempotency_key == batch.idempotency_key
        )
    ).first()
    if first is None or first.id == batch.id:
        return None
    if first.state == "loading" and first.silent_s >= SILENT_S:
        _give_up(connection, first.id, batches.c.touched_at <= moment() - SILENT_S)
        return None
    if first.request_digest != batch.request_digest:
        raise NotAllowed(
            f"idempotency key {batch.idempotency_key!r} belongs to batch {first.id}, which asked for something else: "
            "use another key for another request"
        )
    if first.state == "open":
        return str(first.id)
    raise NotAllowed(f"the same request is being submitted right now as batch {first.id}: try again in a minute")


def add_jobs(db: Database, batch_id: str, rows: Sequence[NewJob]) -> None:
    """Store a block of a loading batch's jobs. Nothing can claim them before `open_batch`.

    Raises `NotAllowed` if the batch vanished meanwhile (its submission was silent for too long).
    """
    db.write(partial(_add, batch_id=batch_id, rows=rows), replayable=True)


def _add(connection: Connection, batch_id: str, rows: Sequence[NewJob]) -> None:
    # First the batch: from here on nobody clears it away before we are done.
    touched = connection.execute(
        update(batches)
        .where(batches.c.id == batch_id, _is_loading())
        .values(touched_at=now())
        .returning(batches.c.tenant_id, batches.c.touched_at)
    ).first()
    if touched is None:
        raise _cleared(batch_id)
    if not connection.scalar(select(exists().where(jobs.c.id == job_id(batch_id, rows[0].line)))):
        store(connection, batch_id, touched.tenant_id, touched.touched_at, rows)


def _cleared(batch_id: str) -> NotAllowed:
    return NotAllowed(f"batch {batch_id} took too long to submit and was cleared away: submit it again")


def lane_ids(db: Database, wanted: Iterable[Lane]) -> dict[Lane, int]:
    """The numbers of these lanes, made where they are new."""
    return db.write(partial(_number, wanted=wanted), replayable=True)


def _number(connection: Connection, wanted: Iterable[Lane]) -> dict[Lane, int]:
    found = {}
    for lane in sorted(set(wanted)):
        values = lane._asdict()
        connection.execute(upsert(connection)(lanes).values(values).on_conflict_do_nothing())
        found[lane] = connection.execute(
            select(lanes.c.id).where(*(lanes.c[column] == value for column, value in values.items()))
        ).scalar_one()
    return found


def open_batch(db: Database, batch: NewBatch, ready: Mapping[tuple[int, int], int]) -> None:
    """The moment of acceptance: all jobs are stored, now they count. `ready` is {(lane id, priority): jobs}.

    Raises `NotAllowed` if the batch vanished meanwhile (its submission was silent for too long).
    """
    db.write(partial(_open, batch=batch, ready=ready), replayable=True)


def _open(connection: Connection, batch: NewBatch, ready: Mapping[tuple[int, int], int]) -> None:
    state = connection.scalar(select(batches.c.state).where(batches.c.id == batch.id))
    if state == "open":
        return
    opened = connection.execute(
        update(batches)
        .where(batches.c.id == batch.id, _is_loading())
        .values(state="open", opened_at=now(), touched_at=now())
    )
    if opened.rowcount != 1:
        raise _cleared(batch.id)
    connection.execute(insert(batch_counters).values(batch_id=batch.id, queued=batch.total))
    if ready:
        connection.execute(
            insert(backlog).values(opened_at=now(), batch_id=batch.id, tenant_id=batch.tenant),
            [
                {"lane_id": lane_id, "priority": priority, "ready": n}
                for (lane_id, priority), n in sorted(ready.items())
            ],
        )
    record(
        connection,
        [
            {
                "tenant_id": batch.tenant,
                "batch_id": batch.id,
                "kind": "submitted",
                "count": batch.total,
                "jobs": None,
            }
        ],
    )


def store_batch(
    db: Database,
    batch: NewBatch,
    wanted: Sequence[Lane],
    rows: Callable[[list[int]], Sequence[NewJob]],
    ready: Mapping[tuple[int, int], int],
) -> tuple[str, list[int]]:
    """All of that in one transaction, for a batch that is small: begin, number the lanes, add the jobs, open.

    `rows` makes the jobs once the numbers of `wanted` are known; `ready` is {(index into `wanted`, priority): jobs}.
    Returns the batch's id, or that of the batch that came first under its idempotency key; and the lanes' numbers.
    Raises `NotAllowed` as `begin_batch`.
    """

    def work(connection: Connection) -> tuple[str, list[int]]:
        first = _begin(connection, batch)
        if first != batch.id:
            return first, []
        numbers = _number(connection, wanted)
        ids = [numbers[lane] for lane in wanted]
        # Not so where an earlier run of this stands, and only the answer to its COMMIT was lost.
        if connection.scalar(select(batches.c.state).where(batches.c.id == batch.id)) == "loading":
            _add(connection, batch.id, rows(ids))
            _open(connection, batch, {(ids[lane], priority): n for (lane, priority), n in ready.items()})
        return first, ids

    return db.write(work, replayable=True)


def abandon_batch(db: Database, batch_id: str) -> int:
    """Clear a batch away that never opened; returns how many (0 or 1)."""
    db.write(partial(_give_up, batch_id=batch_id), replayable=True)
    return clear_away(db, batch_id)


def abandon_silent_batches(db: Database) -> int:
    """Clear away batches whose submission died half-way; returns how many."""
    silent = batches.c.touched_at < moment() - LOADING_TIMEOUT_S
    with db.read() as connection:
        ids = connection.scalars(
            select(batches.c.id).where(batches.c.state == "loading", or_(silent, batches.c.cancelled_at.is_not(None)))
        ).all()
    for id_ in ids:
        db.write(partial(_give_up, batch_id=id_, which=silent), replayable=True)
    return sum(clear_away(db, id_) for id_ in ids)


def _is_loading() -> ColumnElement[bool]:
    return and_(batches.c.state == "loading", batches.c.cancelled_at.is_(None))


def _is_given_up(batch_id: str) -> ColumnElement[bool]:
    return and_(batches.c.id == batch_id, batches.c.state == "loading", batches.c.cancelled_at.is_not(None))


def _give_up(connection: Connection, batch_id: str, which: ColumnElement[bool] | None = None) -> None:
    """From here on nothing is added to the batch, nothing opens it, and its idempotency key is free."""
    guard = and_(batches.c.id == batch_id, _is_loading(), *(() if which is None else (which,)))
    connection.execute(update(batches).where(guard).values(cancelled_at=now(), idempotency_key=None))


def clear_away(db: Database, batch_id: str) -> int:
    """Remove a batch that was given up, its jobs first: a million of them are too many for one transaction.

    Returns how many (0 or 1). Objects that only its artifacts referred to are the collector's from then on.
    """
    remove = partial(_remove, batch_id=batch_id)
    for ids in by_line(db, batch_id, exists().where(_is_given_up(batch_id))):
        db.write(partial(remove, ids=ids), replayable=True)
    while db.write(partial(_remove_events, batch_id=batch_id), replayable=True) == CHUNK:
        continue
    # What is left (nothing, as a rule) goes with it: ON DELETE CASCADE.
    return db.write(remove, replayable=True)


def _remove(connection: Connection, *, batch_id: str, ids: Sequence[str] | None = None) -> int:
    """These jobs with all that hangs on them, or without `ids` the batch itself; returns how many."""
    # Whoever else clears it away waits: of an object that two chunks share, the second one must see what is left.
    if connection.scalar(select(batches.c.id).where(_is_given_up(batch_id)).with_for_update()) is None:
        return 0
    if ids is None:
        return connection.execute(delete(batches).where(batches.c.id == batch_id)).rowcount
    drop_artifacts(connection, artifacts.c.job_id.in_(ids))
    return connection.execute(delete(jobs).where(jobs.c.id.in_(ids), jobs.c.batch_id == batch_id)).rowcount


def _remove_events(connection: Connection, *, batch_id: str) -> int:
    if connection.scalar(select(batches.c.id).where(_is_given_up(batch_id)).with_for_update()) is None:
        return 0
    first = select(events.c.id).where(events.c.batch_id == batch_id).order_by(events.c.id).limit(CHUNK)
    return connection.execute(delete(events).where(events.c.id.in_(first))).rowcount
