"""Batches of many finished jobs, made without a worker: what a large installation looks like to those who read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

from sqlalchemy import insert, literal, select, update

from aigc import Client
from shared import jobs as transitions
from shared.database import Database, now
from shared.ids import job_id, new_session_id
from shared.many import insert_many
from shared.settings import Settings
from shared.storage import open_storage
from shared.tables import artifacts, attempts, backlog, batch_counters, events, jobs, objects

#: texts that share an object
PACK = 500

_OF_OBJECTS = ("key", "tenant_id", "worker_session", "state", "bytes", "created_at")
_OF_ARTIFACTS = (
    "tenant_id", "job_id", "role", "position", "object_key", "start", "bytes", "media_type", "sha256", "facts",
)  # fmt: skip
_OF_ATTEMPTS = (
    "job_id", "epoch", "tenant_id", "worker_session", "claimed_at", "ended_at", "outcome", "device_s", "record",
)  # fmt: skip


def echo(total: int) -> Iterator[dict[str, Any]]:
    return ({"task": "echo", "params": {"message": f"message {line}"}} for line in range(1, total + 1))


def finished(settings: Settings, db: Database, total: int, *, name: str | None = None) -> str:
    """The id of a batch whose every job has said its message, in texts that lie in packs."""
    batch_id = Client(settings).submit(echo(total), name=name).id
    session = _session(db)
    tenant, storage = settings.tenant, open_storage(settings)
    files: list[tuple[Any, ...]] = []
    keys: list[tuple[Any, ...]] = []
    for first in range(1, total + 1, PACK):
        texts = [f"message {line}".encode() for line in range(first, min(first + PACK, total + 1))]
        key = f"{tenant}/{batch_id}/packs/{session}-{first}"
        storage.put(key, b"".join(texts), media_type="application/octet-stream")
        keys.append((key, tenant, session, "stored", sum(map(len, texts)), 1.0))
        start = 0
        for line, text in enumerate(texts, first):
            sha256 = hashlib.sha256(text).hexdigest()
            id_ = job_id(batch_id, line)
            files.append((tenant, id_, "output", 0, key, start, len(text), "text/plain", sha256, "{}"))
            start += len(text)
    db.write(lambda c: insert_many(c, objects, _OF_OBJECTS, keys))
    for begin in range(0, total, 20_000):
        some = files[begin : begin + 20_000]
        db.write(lambda c, some=some: insert_many(c, artifacts, _OF_ARTIFACTS, some))  # type: ignore[misc]
    _book(db, batch_id, session, total)
    return batch_id


def _session(db: Database) -> str:
    session = new_session_id()
    about = {"id": session, "worker": "large", "host": "large", "pid": 1, "device": "cpu", "queues": "cpu"}
    transitions.open_session(db, {**about, "versions": {"aigc": "0"}, "condition": {}}, 600.0)
    return session


def _book(db: Database, batch_id: str, session: str, total: int) -> None:
    """As if a worker had claimed and finished all of them, 64 at a time."""
    ended = select(
        jobs.c.id, literal(1), jobs.c.tenant_id, literal(session), now(), now(), literal("succeeded"), literal(0.01),
        literal("{}"),
    ).where(jobs.c.batch_id == batch_id)  # fmt: skip

    def work(connection: Any) -> None:
        connection.execute(
            update(jobs).where(jobs.c.batch_id == batch_id).values(state="succeeded", epoch=1, finished_at=now())
        )
        connection.execute(insert(attempts).from_select(_OF_ATTEMPTS, ended))
        connection.execute(
            update(batch_counters)
            .where(batch_counters.c.batch_id == batch_id)
            .values(queued=0, succeeded=total, started_at=now() - 1, finished_at=now())
        )
        connection.execute(update(backlog).where(backlog.c.batch_id == batch_id).values(ready=0))
        connection.execute(insert(events).values(at=now(), batch_id=batch_id, tenant_id="default"), _events(total))

    db.write(work)


def _events(total: int) -> list[dict[str, Any]]:
    runs = ((first, min(first + 63, total)) for first in range(1, total + 1, 64))
    return list(
        chain.from_iterable(
            ({"kind": kind, "jobs": [[first, last]], "count": last - first + 1} for kind in ("claimed", "succeeded"))
            for first, last in runs
        )
    )
