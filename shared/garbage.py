"""Collection: objects that nobody refers to, and nobody can come to refer to, are deleted from the storage.

An object goes in three steps, each of which may be the last before a crash: it is condemned in SQL, so that no
transition refers to it any more; it is deleted from the storage; its row is deleted. What was begun is begun again
from the condemned row. Workers never delete.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, literal, or_, select, update

from shared.database import Database, moment
from shared.errors import Unavailable
from shared.storage import ObjectInfo, Storage
from shared.tables import artifacts, files, objects, tenants, worker_sessions

log = logging.getLogger("aigc.keeper")

#: objects that are condemned, deleted or looked up together
CHUNK = 500
#: objects deleted at the same time: a store far away takes its time for each
AT_ONCE = 8
#: what somebody began to upload so long ago, and nothing came of
UPLOAD_S = 86_400.0
#: what `Storage.check` wrote may be this old before it counts as left behind
PROBE_S = 3600.0
#: what is in the storage since longer before the first use of this database is not this database's to judge
LEEWAY_S = 60.0


def collect(db: Database, storage: Storage, *, limit: int = 10_000) -> int:
    """Delete objects that were replaced or whose batch is gone, and uploads that came to nothing; returns how many.

    Never what an artifact refers to, and never what a session that goes on has announced. About `limit` at most.
    Raises `Unavailable`: if it is the storage, everything not yet deleted stays condemned, for the next time.
    """
    total = 0
    while total < limit:
        keys = _condemned(db) or _condemn(db)
        if not keys:
            break
        gone = _delete(storage, keys)
        forget = delete(objects).where(objects.c.key.in_(gone), objects.c.state == "condemned")
        total += db.write(lambda connection, forget=forget: connection.execute(forget).rowcount, replayable=True)  # type: ignore[misc]
        if len(gone) < len(keys):
            # The one that failed, once more, to have its error.
            storage.delete(next(key for key in keys if key not in gone))
    return total


def _loose(state: str) -> ColumnElement[bool]:
    """Objects in this state, said so that SQLite finds its partial index."""
    o = objects.c
    return and_(o.state != literal("stored", literal_execute=True), o.state == literal(state, literal_execute=True))


def _condemned(db: Database) -> list[str]:
    with db.read() as connection:
        chosen = select(objects.c.key).where(_loose("condemned")).order_by(objects.c.created_at).limit(CHUNK)
        return list(connection.scalars(chosen))


def _collectable() -> ColumnElement[bool]:
    o, w = objects.c, worker_sessions.c
    at_work = exists().where(w.id == o.worker_session, w.ended_at.is_(None))
    referred = or_(exists().where(artifacts.c.object_key == o.key), exists().where(files.c.object_key == o.key))
    given_up = and_(_loose("uploading"), o.created_at < moment() - UPLOAD_S)
    return and_(or_(_loose("dropped"), and_(_loose("intended"), ~at_work), given_up), ~referred)


def _condemn(db: Database) -> list[str]:
    """Step one: from here on no transition refers to these any more. Looks first, so as not to write for nothing."""
    o = objects.c
    candidates = select(o.key).where(_collectable()).limit(CHUNK)
    with db.read() as connection:
        if connection.execute(candidates.limit(1)).first() is None:
            return []

    def work(connection: Connection) -> list[str]:
        keys = connection.scalars(candidates.with_for_update(skip_locked=True, of=objects)).all()
        condemned = update(objects).where(o.key.in_(keys), _collectable()).values(state="condemned").returning(o.key)
        return list(connection.scalars(condemned))

    return db.write(work)


def _delete(storage: Storage, keys: Iterable[str]) -> list[str]:
    """Step two; returns the keys of which no object is left. A storage that fails is asked for no more of them."""
    away = False

    def one(key: str) -> str | None:
        nonlocal away
        try:
            if not away:
                storage.delete(key)
                return key
        except Unavailable:
            away = True
        return None

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="collector") as pool:
        return [key for key in pool.map(one, keys) if key is not None]


def collect_strays(db: Database, storage: Storage, *, older_than_s: float = 86_400.0) -> int:
    """Delete what is in the storage and has no row at all, if it was last written longer ago; returns how many.

    Such is what a worker that was presumed dead has uploaded after its row was collected. The intent is written before
    the upload, so what has no row is nobody's. Everything below the address of the storage is taken to belong to this
    database, except what was there before its first use: a database that was confused with another deletes nothing.

    Reads the whole listing; memory does not grow with it. Raises `Unavailable`.
    """
    with db.read() as connection:
        first: float | None = connection.scalar(select(func.min(tenants.c.created_at)))
    if first is None:
        return 0
    clock, total, begin = db.clock(), 0, first - LEEWAY_S

    def is_old(entry: ObjectInfo) -> bool:
        if entry.key.startswith("probe/"):
            return entry.modified < clock - PROBE_S
        return begin < entry.modified < clock - older_than_s

    for chunk in _chunks(entry.key for entry in storage.list() if is_old(entry)):
        with db.read() as connection:
            known = set(connection.scalars(select(objects.c.key).where(objects.c.key.in_(chunk))))
        strays = [key for key in chunk if key not in known]
        for key in strays:
            storage.delete(key)
        total += len(strays)
    if total:
        log.info("%d object(s) of nobody were deleted from the storage", total)
    return total


def _chunks(keys: Iterator[str]) -> Iterator[Sequence[str]]:
    while chunk := list(islice(keys, CHUNK)):
        yield chunk
