"""T12: what a running job leaves behind without ending: previews, metrics, and checkpoints to go on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, select, tuple_, update

from shared.counters import hold, moved, upsert
from shared.database import Database
from shared.jobs.pieces import CHUNK, MOVED, fenced, held_by
from shared.tables import artifacts, jobs, objects

#: what a running job may publish
PUBLISHED_ROLES = ("preview", "metric", "checkpoint")
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


def refer(connection: Connection, files: Sequence[tuple[str, str, Sequence[StoredArtifact]]]) -> None:
    """Artifacts of jobs, as (job, tenant, files), come to refer to their objects, in place of what stood there."""
    used = {item.object_key: item.object_bytes for _, _, items in files for item in items}
    for key in sorted(used):
        taken = connection.execute(
            update(objects)
            .where(objects.c.key == key, objects.c.state.in_(("intended", "stored")))
            .values(state="stored", bytes=used[key])
        )
        if taken.rowcount != 1:
            raise RuntimeError(f"object {key} was collected before its artifact was recorded; a defect of ours")
    rows = [
        {
            "tenant_id": tenant_id, "job_id": id_, "role": item.role, "position": item.position,
            "object_key": item.object_key, "start": item.start, "bytes": item.bytes, "media_type": item.media_type,
            "sha256": item.sha256, "facts": dict(item.facts),
        }
        for id_, tenant_id, items in files
        for item in items
    ]  # fmt: skip
    if not rows:
        return
    a = artifacts.c
    places = [(row["job_id"], row["role"], row["position"]) for row in rows]
    before = set(connection.scalars(select(a.object_key).where(tuple_(a.job_id, a.role, a.position).in_(places))))
    statement = upsert(connection)(artifacts)
    new = statement.excluded
    replaced = {name: new[name] for name in ("object_key", "start", "bytes", "media_type", "sha256", "facts")}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["job_id", "role", "position"], set_=replaced), rows
    )
    _drop(connection, before)


def supersede(connection: Connection, job_ids: Sequence[str]) -> None:
    """Jobs that are done need no checkpoints, and no previews of what is finished now."""
    drop_artifacts(
        connection, and_(artifacts.c.job_id.in_(list(job_ids)), artifacts.c.role.in_(("checkpoint", "preview")))
    )


def drop_artifacts(connection: Connection, which: ColumnElement[bool]) -> None:
    """Delete artifacts; objects to which none refers any more are marked for the collector."""
    _drop(connection, connection.scalars(delete(artifacts).where(which).returning(artifacts.c.object_key)))


def _drop(connection: Connection, keys: Iterable[str]) -> None:
    o, in_order = objects.c, sorted(set(keys))
    referred = exists(select(artifacts.c.id).where(artifacts.c.object_key == o.key))
    for start in range(0, len(in_order), CHUNK):
        some = o.key.in_(in_order[start : start + CHUNK])
        connection.execute(update(objects).where(some, o.state == "stored", ~referred).values(state="dropped"))


def checkpoints(db: Database, job_ids: Sequence[str]) -> dict[str, StoredCheckpoint]:
    """The newest checkpoint of each of these jobs that has one. Raises `Unavailable`."""
    a = artifacts.c
    with db.read() as connection:
        rows = connection.execute(
            select(a.job_id, a.object_key, a.start, a.bytes, a.sha256, a.facts)
            .join(objects, objects.c.key == a.object_key)
            .where(a.job_id.in_(list(job_ids)), a.role == "checkpoint")
            .order_by(*BY_AGE)
        ).all()
    return {row.job_id: StoredCheckpoint(row.object_key, row.start, row.bytes, row.sha256, row.facts) for row in rows}
