"""The small gateway that the client stands over: plain records, cursor pages. Direct to SQL, Redis and storage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, BinaryIO, Protocol

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, or_, select

from producer.records import ArtifactRecord, BatchRecord, ErrorSum, EventRecord, JobRecord, WorkerRecord
from producer.spool import Spool
from producer.submit import Submitted, submit
from producer.why import why
from shared import jobs as transitions
from shared.counters import RATE_WINDOW_S
from shared.database import Database, now
from shared.errors import NotFound, RequestError
from shared.ids import batch_of, is_job_id
from shared.queue import Queue
from shared.settings import Settings
from shared.storage import Storage, open_storage
from shared.tables import (
    JOB_STATES,
    artifacts,
    attempts,
    batch_counters,
    batch_errors,
    batches,
    events,
    jobs,
    lanes,
    worker_sessions,
)


class Gateway(Protocol):
    """What a client needs. Every method may raise `Unavailable`; those that take a reference raise `NotFound`."""

    def submit(
        self, spool: Spool, *, batch_id: str, name: str | None, idempotency_key: str | None, expires_s: float | None
    ) -> Submitted:
        """Store a validated spool as a batch and ring."""
        ...

    def batch(self, reference: str) -> BatchRecord:
        """A batch by id, by the beginning of its id, or by its name (the newest of that name)."""
        ...

    def batches(self, *, limit: int, before: tuple[float, str] | None = None) -> list[BatchRecord]:
        """Batches, newest first; the next page comes before the last one's `(created_at, id)`."""
        ...

    def job(self, job_id: str) -> JobRecord:
        """A job with its artifacts."""
        ...

    def jobs(
        self, batch_id: str, *, after: int = 0, limit: int = 500, states: Sequence[str] | None = None
    ) -> list[JobRecord]:
        """Jobs of a batch by line; the next page comes after the last one's `line`."""
        ...

    def events(
        self, batch_id: str, *, after: int = 0, limit: int = 500, line: int | None = None
    ) -> tuple[list[EventRecord], int]:
        """What happened to a batch (or one line of it) after a cursor, and the cursor to go on from."""
        ...

    def workers(self) -> list[WorkerRecord]:
        """Workers that are alive."""
        ...

    def why(self, job_id: str) -> str:
        """In words, why a job is not done."""
        ...

    def open(self, artifact: ArtifactRecord) -> BinaryIO:
        """The content of an artifact; close it."""
        ...

    def link(self, artifact: ArtifactRecord, *, expires_s: int = 3600, download_name: str | None = None) -> str:
        """A link to an artifact that has an object of its own."""
        ...

    def cancel_batch(self, batch_id: str) -> int:
        """Cancel what is not finished; returns how many jobs that concerns."""
        ...

    def cancel_jobs(self, ids: Sequence[str]) -> int:
        """The same for some jobs."""
        ...

    def retry(self, batch_id: str, ids: Sequence[str] | None = None) -> int:
        """Put failed and cancelled jobs back with a fresh allowance; returns how many."""
        ...


class DirectGateway:
    """The gateway of a machine that reaches the database, Redis and the storage itself."""

    def __init__(self, settings: Settings) -> None:
        """Looks at the schema at once: raises `Unavailable` or `RequestError`. The rest is asked when needed."""
        self.settings = settings
        self.db = Database(settings)
        self.db.prepare()
        self.queue = Queue(settings)

    @cached_property
    def storage(self) -> Storage:
        """Where the artifacts lie."""
        return open_storage(self.settings, create=False)

    def submit(
        self, spool: Spool, *, batch_id: str, name: str | None, idempotency_key: str | None, expires_s: float | None
    ) -> Submitted:
        """See `producer.submit.submit`."""
        return submit(
            self.settings, self.db, spool, batch_id=batch_id, name=name, idempotency_key=idempotency_key,
            expires_s=expires_s,
        )  # fmt: skip

    def batch(self, reference: str) -> BatchRecord:
        """By id, name, or beginning of an id. What is a job's id is never taken for a batch's name."""
        if not _storable(reference):
            raise NotFound(f"there is no batch {reference!r}")
        with self.db.read() as connection:
            row = self._first_batch(connection, batches.c.id == reference)
            if row is None and not is_job_id(reference):
                row = self._first_batch(connection, batches.c.name == reference)
                if row is None and len(reference) >= 4:
                    row = self._only_batch(connection, reference)
            if row is None:
                raise NotFound(f"there is no batch {reference!r}: `aigc list` shows what there is")
            return _batch_record(row, _errors(connection, row.id))

    def _first_batch(self, connection: Connection, condition: ColumnElement[bool]) -> Row[Any] | None:
        return connection.execute(
            self._batch_rows().where(condition).order_by(batches.c.created_at.desc()).limit(1)
        ).first()

    def _only_batch(self, connection: Connection, beginning: str) -> Row[Any] | None:
        """The batch whose id begins so; raises `RequestError` if that is said of several."""
        rows = connection.execute(
            self._batch_rows()
            .where(batches.c.id.startswith(beginning, autoescape=True))
            .order_by(batches.c.id)
            .limit(6)
        ).all()
        if len(rows) > 1:
            names = ", ".join(row.id for row in rows[:5])
            raise RequestError(f"{beginning!r} is the beginning of several batches ({names}, …): write more of it")
        return rows[0] if rows else None

    def batches(self, *, limit: int, before: tuple[float, str] | None = None) -> list[BatchRecord]:
        """Newest first; of those made at the same moment the id decides."""
        statement = self._batch_rows().order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
        if before is not None:
            moment, id_ = before
            same = and_(batches.c.created_at == moment, batches.c.id < id_)
            # The first of these bounds the walk over the index.
            statement = statement.where(batches.c.created_at <= moment, or_(batches.c.created_at < moment, same))
        with self.db.read() as connection:
            rows = connection.execute(statement).all()
            return [_batch_record(row, _errors(connection, row.id)) for row in rows]

    def _batch_rows(self) -> Select[Any]:
        c = batch_counters.c
        return (
            select(batches, *(c[state] for state in JOB_STATES), c.started_at, c.finished_at, c.window_started_at,
                   c.window_finished, c.last_rate, now().label("now"))
            .outerjoin(batch_counters, c.batch_id == batches.c.id)
            .where(batches.c.tenant_id == self.settings.tenant)
        )  # fmt: skip

    def job(self, job_id: str) -> JobRecord:
        """With artifacts and record."""
        with self.db.read() as connection:
            found = self._job_records(connection, jobs.c.id == job_id, limit=1) if _storable(job_id) else []
        if not found:
            raise NotFound(f"there is no job {job_id!r}: its id is <batch>-<line>, see `aigc list`")
        return found[0]

    def jobs(
        self, batch_id: str, *, after: int = 0, limit: int = 500, states: Sequence[str] | None = None
    ) -> list[JobRecord]:
        """By line."""
        condition = (jobs.c.batch_id == batch_id) & (jobs.c.line > after)
        if states is not None:
            condition &= jobs.c.state.in_(states)
        with self.db.read() as connection:
            return self._job_records(connection, condition, limit=limit)

    def _job_records(self, connection: Connection, condition: Any, *, limit: int) -> list[JobRecord]:
        rows = connection.execute(
            select(jobs, lanes.c.task, lanes.c.model, lanes.c.queue)
            .join(lanes, lanes.c.id == jobs.c.lane_id)
            .where(jobs.c.tenant_id == self.settings.tenant, condition)
            .order_by(jobs.c.batch_id, jobs.c.line)
            .limit(limit)
        ).all()
        done = [row.id for row in rows if row.state == "succeeded"]
        files: dict[str, list[ArtifactRecord]] = {}
        for row in connection.execute(
            select(artifacts).where(artifacts.c.job_id.in_(done)).order_by(artifacts.c.role, artifacts.c.position)
        ):
            files.setdefault(row.job_id, []).append(_artifact_record(row))
        made: dict[str, Any] = {
            row.job_id: row
            for row in connection.execute(
                select(attempts.c.job_id, attempts.c.device_s, attempts.c.record, worker_sessions.c.versions)
                .outerjoin(worker_sessions, worker_sessions.c.id == attempts.c.worker_session)
                .where(attempts.c.job_id.in_(done), attempts.c.outcome == "succeeded")
            )
        }
        return [_job_record(row, files.get(row.id, []), made.get(row.id)) for row in rows]

    def events(
        self, batch_id: str, *, after: int = 0, limit: int = 500, line: int | None = None
    ) -> tuple[list[EventRecord], int]:
        """Events cover many jobs each, so those of one line are sifted here."""
        with self.db.read() as connection:
            rows = connection.execute(
                select(events)
                .where(events.c.tenant_id == self.settings.tenant, events.c.batch_id == batch_id, events.c.id > after)
                .order_by(events.c.id)
                .limit(limit)
            ).all()
        found = [_event_record(row) for row in rows]
        if line is not None:
            found = [e for e in found if not e.jobs or any(first <= line <= last for first, last in e.jobs)]
        return found, rows[-1].id if rows else after

    def workers(self) -> list[WorkerRecord]:
        """By their leases."""
        running = (
            select(func.count()).where(jobs.c.worker_session == worker_sessions.c.id, jobs.c.state == "running")
        ).scalar_subquery()
        with self.db.read() as connection:
            rows = connection.execute(
                select(worker_sessions, running.label("running"), now().label("now"))
                .where(worker_sessions.c.ended_at.is_(None), worker_sessions.c.lease_expires_at > now())
                .order_by(worker_sessions.c.started_at)
            ).all()
        return [
            WorkerRecord(
                session=row.id, worker=row.worker, device=row.device, queues=tuple(row.queues.split(",")),
                started_at=row.started_at, running=row.running, condition=row.condition,
                silent_s=max(0.0, row.now - (row.lease_expires_at - self.settings.lease_s)),
            )
            for row in rows
        ]  # fmt: skip

    def why(self, job_id: str) -> str:
        """See `producer.why`."""
        return why(self.db, self.job(job_id), self.workers())

    def open(self, artifact: ArtifactRecord) -> BinaryIO:
        """Only the artifact's own bytes, also when it shares its object."""
        return self.storage.open(artifact.key, start=artifact.start, length=artifact.bytes)

    def link(self, artifact: ArtifactRecord, *, expires_s: int = 3600, download_name: str | None = None) -> str:
        """Refused for an artifact inside a pack: the link would show its neighbours."""
        if "/packs/" in artifact.key:
            raise NotFound("this output lies in one object with others: read it instead of linking to it")
        return self.storage.link(
            artifact.key, expires_s=expires_s, download_name=download_name, media_type=artifact.media_type
        )

    def cancel_batch(self, batch_id: str) -> int:
        """The mark stands at once; rows follow."""
        return transitions.cancel_batch(self.db, self.settings.tenant, batch_id)

    def cancel_jobs(self, ids: Sequence[str]) -> int:
        """At once if they wait, at their next step if they run."""
        return transitions.cancel_jobs(self.db, self.settings.tenant, ids)

    def retry(self, batch_id: str, ids: Sequence[str] | None = None) -> int:
        """Rings by the keeper's next round."""
        if ids:
            batch_id = batch_of(ids[0])
        return transitions.retry(self.db, self.settings.tenant, batch_id, ids)


def _storable(reference: str) -> bool:
    """Whether a database takes this text at all: a terminal may send bytes that are no Unicode."""
    return "\x00" not in reference and not any("\ud800" <= character <= "\udfff" for character in reference)


def _errors(connection: Connection, batch_id: str) -> tuple[ErrorSum, ...]:
    rows = connection.execute(
        select(batch_errors)
        .where(batch_errors.c.batch_id == batch_id, batch_errors.c["count"] > 0)
        .order_by(batch_errors.c["count"].desc())
        .limit(20)
    )
    found = (row._mapping for row in rows)  # noqa: SLF001 - `count` is a tuple's method
    return tuple(ErrorSum(code=row["code"], count=row["count"], example=row["example"]) for row in found)


def _batch_record(row: Row[Any], errors: tuple[ErrorSum, ...]) -> BatchRecord:
    counts = {state: getattr(row, state) or 0 for state in JOB_STATES}
    finished = counts["succeeded"] + counts["failed"] + counts["cancelled"]
    if row.state == "loading":
        status = "loading"
    elif finished == row.total:
        status = "done"
    else:
        status = "running" if counts["running"] or finished else "queued"
    rate = _rate(row, counts["succeeded"] + counts["failed"], done=status == "done")
    left = row.total - finished
    eta = 0.0 if status == "done" else (left / rate if rate else None)
    return BatchRecord(
        id=row.id, name=row.name, status=status, total=row.total, counts=counts, rate_per_s=rate, eta_s=eta,
        errors=errors, created_at=row.created_at, cancelled=row.cancelled_at is not None,
    )  # fmt: skip


def _rate(row: Row[Any], finished: int, *, done: bool) -> float | None:
    """Finished jobs per second: over the whole time when done, else over the window that runs or the one before."""
    if not finished or row.started_at is None or row.finished_at is None:
        return None
    if done:
        return float(finished / max(1e-3, row.finished_at - row.started_at))
    in_window = row.now - (row.window_started_at or row.started_at)
    if row.last_rate is not None and in_window < RATE_WINDOW_S / 2:
        return float(row.last_rate)
    return float(row.window_finished / in_window) if in_window > 0 and row.window_finished else row.last_rate


def _artifact_record(row: Row[Any]) -> ArtifactRecord:
    return ArtifactRecord(
        id=row.id, role=row.role, position=row.position, key=row.object_key, start=row.start, bytes=row.bytes,
        media_type=row.media_type, sha256=row.sha256, facts=row.facts,
    )  # fmt: skip


def _job_record(row: Row[Any], files: list[ArtifactRecord], made: Row[Any] | None) -> JobRecord:
    error = {"code": row.error_code, "message": row.error_message or ""} if row.error_code else None
    timings = {
        name: getattr(row, name) for name in ("created_at", "available_at", "claimed_at", "entered_at", "finished_at")
    }
    return JobRecord(
        id=row.id, batch_id=row.batch_id, line=row.line, custom_id=row.custom_id, status=row.state, task=row.task,
        model=row.model or None, queue=row.queue, priority=row.priority, params=json.loads(row.params_json),
        seed=row.seed, metadata=json.loads(row.metadata_json) if row.metadata_json else None, progress=row.progress,
        attempt=row.attempts + (1 if row.state in ("running", "succeeded") else 0), error=error,
        artifacts=tuple(files), timings={**timings, "device_s": made.device_s if made else None},
        record={**(made.record or {}), "versions": made.versions} if made else None,
    )  # fmt: skip


def _event_record(row: Row[Any]) -> EventRecord:
    m = row._mapping  # noqa: SLF001 - `count` is a tuple's method
    return EventRecord(
        id=m["id"], at=m["at"], batch_id=m["batch_id"], kind=m["kind"], count=m["count"],
        jobs=tuple((first, last) for first, last in m["jobs"] or ()), worker_session=m["worker_session"],
        data=m["data"],
    )  # fmt: skip
