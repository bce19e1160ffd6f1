"""T12: what a running job leaves behind without ending: previews, metrics, and checkpoints to go on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, select, update

from shared.counters import hold, moved
from shared.database import Database, as_json
from shared.jobs.pieces import CHUNK, MOVED, fenced, held_by
from shared.many import insert_many, listed, pairs
from shared.tables import artifacts, jobs, objects

#: what a running job may publish
PUBLISHED_ROLES = ("preview", "metric", "checkpoint")
_ARTIFACT = (
    "tenant_id", "job_id", "role", "position", "object_key", "start", "bytes", "media_type", "sha256", "facts",
)  # fmt: skip
#: the order in which checkpoints of a job were made, whatever their positions
BY_AGE = (objects.c.created_at, artifacts.c.id)


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """A file of a job, where it lies: `bytes` from `start` of its object."""

    object_key: str
    object_bytes: int
    role: str
    position: int
    start: int
    bytes: int
    media_type: str
    sha256: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Publication:
    """A file of a job that goes on running."""

    id: str
    epoch: int
    artifact: StoredArtifact


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """Where the newest checkpoint of a job lies, and what its maker said of it."""

    object_key: str
    start: int
    bytes: int
    sha256: str
    facts: Mapping[str, Any]


def publish(db: Database, session: str, publications: Sequence[Publication]) -> set[str]:
    """Show files of jobs that are still running; one of the same role and position takes the place of the one before.

    Returns the ids that are ours still; what belongs to others now is left out. What was replaced is collected later.
    """
    by_id = {(item.id, item.epoch): item for item in publications}

    def work(connection: Connection) -> set[str]:
        rows = connection.execute(
            select(*MOVED, jobs.c.epoch).where(held_by(session, list(by_id))).order_by(jobs.c.id).with_for_update()
        ).all()
        ours = {row.id for row in rows}
        items = [(row, item) for row in rows for item in publications if (item.id, item.epoch) == (row.id, row.epoch)]
        refer(connection, [(row.id, row.tenant_id, [item.artifact]) for row, item in items])
        hold(connection, (row.batch_id for row in rows))
        for role in sorted({item.artifact.role for _, item in items}):
            these = {row.id: row for row, item in items if item.artifact.role == role}
            moved(
                connection, list(these.values()), "running", "running", "published", session=session,
                data={"role": role},
            )  # fmt: skip
        return ours

    standing = db.write(work, replayable=True)
    fenced("T12", session, {item.id for item in publications} - standing)
    return standing


def refer(
    connection: Connection, files: Sequence[tuple[str, str, Sequence[StoredArtifact]]], *, done: bool = False
) -> None:
    """Artifacts of jobs, as (job, tenant, files), come to refer to their objects, in place of what stood there.

    Jobs that are `done` need no checkpoints any more, and no previews of what is finished now. The jobs are locked.
    """
    _store(connection, {item.object_key: item.object_bytes for _, _, items in files for item in items})
    rows = {
        (id_, item.role, item.position): (
            tenant_id, id_, item.role, item.position, item.object_key, item.start, item.bytes, item.media_type,
            item.sha256, as_json(dict(item.facts)) if item.facts else "{}",
        )
        for id_, tenant_id, items in files
        for item in items
    }  # fmt: skip
    a = artifacts.c
    there = connection.execute(
        select(a.id, a.job_id, a.role, a.position, a.object_key).where(a.job_id.in_(listed(id_ for id_, _, _ in files)))
    ).all()
    gone = [
        row
        for row in there
        if (row.job_id, row.role, row.position) in rows or (done and row.role in ("checkpoint", "preview"))
    ]
    for start in range(0, len(gone), CHUNK):
        connection.execute(delete(artifacts).where(a.id.in_([row.id for row in gone[start : start + CHUNK]])))
    insert_many(connection, artifacts, _ARTIFACT, list(rows.values()))
    _drop(connection, [row.object_key for row in gone])


def _store(connection: Connection, sizes: Mapping[str, int]) -> None:
    """Objects are stored now, and have so many bytes."""
    if not sizes:
        return
    wanted = pairs(sizes.items()).subquery()
    stored = connection.scalars(
        update(objects)
        .where(objects.c.key == wanted.c.key, objects.c.state.in_(("intended", "stored")))
        .values(state="stored", bytes=wanted.c.number)
        .returning(objects.c.key)
    )
    missing = sizes.keys() - set(stored)
    if missing:
        raise RuntimeError(f"object {min(missing)} was collected before its artifact was recorded; a defect of ours")


def drop_artifacts(connection: Connection, which: ColumnElement[bool]) -> None:
    """Delete artifacts; objects to which none refers any more are marked for the collector."""
    _drop(connection, connection.scalars(delete(artifacts).where(which).returning(artifacts.c.object_key)))


def _drop(connection: Connection, keys: Iterable[str]) -> None:
    o, in_order = objects.c, sorted(set(keys))
    referred = exists(select(artifacts.c.id).where(artifacts.c.object_key == o.key))
    for start in range(0, len(in_order), CHUNK):
        some = o.key.in_(listed(in_order[start : start + CHUNK]))
        connection.execute(update(objects).where(some, o.state == "stored", ~referred).values(state="dropped"))


def checkpoints(db: Database, job_ids: Sequence[str]) -> dict[str, StoredCheckpoint]:
    """The newest checkpoint of each of these jobs that has one. Raises `Unavailable`."""
    a = artifacts.c
    with db.read() as connection:
        rows = connection.execute(
            select(a.job_id, a.object_key, a.start, a.bytes, a.sha256, a.facts)
            .join(objects, objects.c.key == a.object_key)
            .where(a.job_id.in_(listed(job_ids)), a.role == "checkpoint")
            .order_by(*BY_AGE)
        ).all()
    return {row.job_id: StoredCheckpoint(row.object_key, row.start, row.bytes, row.sha256, row.facts) for row in rows}
