"""Files that were uploaded to be the input of jobs: one row and one object per content and tenant.

An object is announced before it is sent (`uploading`), and belongs to the file once its row is there. A batch refers to
the files that its jobs name; what none refers to goes with the retention.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, select, update

from shared.counters import upsert
from shared.database import Database, moment, now
from shared.errors import NotAllowed
from shared.many import listed
from shared.tables import batch_files, files, objects, tenants

#: files that are looked up or forgotten together
CHUNK = 1000


@dataclass(frozen=True, slots=True)
class File:
    """An uploaded file."""

    id: str
    #: where it lies in the storage
    key: str
    name: str
    media_type: str
    bytes: int
    sha256: str


def find(db: Database, tenant_id: str, sha256: str) -> File | None:
    """The file of this tenant with this content, whose time begins anew; None if there is none."""
    f = files.c

    def work(connection: Connection) -> File | None:
        row = connection.execute(
            update(files).where(f.tenant_id == tenant_id, f.sha256 == sha256).values(used_at=now()).returning(*_COLUMNS)
        ).first()
        return None if row is None else File(*row)

    return db.write(work, replayable=True)


def announce(db: Database, tenant_id: str, key: str) -> None:
    """Say that an object is about to be sent under this key; nobody deletes it for a day."""

    def work(connection: Connection) -> None:
        connection.execute(upsert(connection)(tenants).values(id=tenant_id, created_at=now()).on_conflict_do_nothing())
        values = {"key": key, "tenant_id": tenant_id, "worker_session": "", "state": "uploading", "created_at": now()}
        connection.execute(upsert(connection)(objects).values(values).on_conflict_do_nothing())

    db.write(work, replayable=True)


def keep(db: Database, tenant_id: str, file: File) -> File:
    """Store the row of a file whose object is there. Where the same content came in meanwhile, that one is returned."""
    f, o = files.c, objects.c

    def work(connection: Connection) -> File:
        values = {
            "id": file.id, "tenant_id": tenant_id, "object_key": file.key, "name": file.name,
            "media_type": file.media_type, "bytes": file.bytes, "sha256": file.sha256, "created_at": now(),
            "used_at": now(),
        }  # fmt: skip
        held = update(objects).where(o.key == file.key, o.state.in_(("uploading", "stored")))
        if connection.execute(held.values(state="stored", bytes=file.bytes)).rowcount != 1:
            raise NotAllowed(f"the upload of {file.name} took too long: upload it again")
        connection.execute(upsert(connection)(files).values(values).on_conflict_do_nothing())
        row = connection.execute(select(*_COLUMNS).where(f.tenant_id == tenant_id, f.sha256 == file.sha256)).one()
        if row.id != file.id:
            connection.execute(update(objects).where(o.key == file.key).values(state="dropped"))
        return File(*row)

    return db.write(work, replayable=True)


def locate(db: Database, tenant_id: str, ids: Collection[str]) -> Mapping[str, File]:
    """Those of these files that there are, by id."""
    with db.read() as connection:
        rows = connection.execute(
            select(*_COLUMNS).where(files.c.tenant_id == tenant_id, files.c.id.in_(listed(ids)))
        ).all()
    return {row.id: File(*row) for row in rows}


def refer_to_files(connection: Connection, batch_id: str, tenant_id: str, ids: Sequence[str]) -> None:
    """A batch names these files: from now on they stay as long as it does. Raises `NotAllowed` if one is gone."""
    f = files.c
    for start in range(0, len(ids), CHUNK):
        some = sorted(ids[start : start + CHUNK])
        held = update(files).where(f.tenant_id == tenant_id, f.id.in_(listed(some))).values(used_at=now())
        there = set(connection.scalars(held.returning(f.id)))
        if gone := [id_ for id_ in some if id_ not in there]:
            raise NotAllowed(f"there is no file:{gone[0]}: upload it again, and submit with its new id")
        rows = [{"batch_id": batch_id, "file_id": id_} for id_ in some]
        connection.execute(upsert(connection)(batch_files).values(rows).on_conflict_do_nothing())


def forget_unused(db: Database, older_than_s: float) -> int:
    """Drop files that no batch names, and were last used longer ago; returns how many. Their objects are collected."""
    f, o = files.c, objects.c
    unused = (f.used_at < moment() - older_than_s, ~exists().where(batch_files.c.file_id == f.id))

    def work(connection: Connection) -> int:
        some = connection.scalars(select(f.id).where(*unused).limit(CHUNK).with_for_update(skip_locked=True)).all()
        keys = connection.scalars(delete(files).where(f.id.in_(listed(some)), *unused).returning(f.object_key)).all()
        connection.execute(update(objects).where(o.key.in_(listed(keys))).values(state="dropped"))
        return len(keys)

    total = 0
    while done := db.write(work, replayable=True):
        total += done
    return total


_COLUMNS = (files.c.id, files.c.object_key, files.c.name, files.c.media_type, files.c.bytes, files.c.sha256)
