"""The small gateway that the client stands over: plain records, cursor pages. Direct to SQL, Redis and storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, literal, null, or_, select

from producer.aliases import ToldAlias, told_aliases
from producer.records import (
    ArtifactRecord,
    BatchRecord,
    ErrorSum,
    EventRecord,
    JobRecord,
    Resumed,
    SystemRecord,
    WorkerRecord,
)
from producer.rows import artifact_record, batch_record, event_record, job_record, with_attempts, worker_record
from producer.spool import Spool
from producer.submit import Submitted, submit
from producer.uploads import upload
from producer.why import why
from shared import files, operators
from shared import jobs as transitions
from shared.database import Database, now
from shared.errors import NotFound, RequestError, Unavailable
from shared.files import File
from shared.ids import batch_of, is_job_id, job_id
from shared.many import listed
from shared.operators import Drain, PausedQueue
from shared.queue import Queue
from shared.settings import Settings
from shared.storage import Storage, open_storage
from shared.tables import (
    JOB_STATES,
    artifacts,
    attempts,
    backlog,
    batch_counters,
    batch_errors,
    batches,
    events,
    jobs,
    lanes,
    worker_sessions,
)

#: roles that are shown of a job that is not done
PUBLISHED = ("preview", "metric")


class Gateway(Protocol):
    """What a client needs. Every method may raise `Unavailable`; those that take a reference raise `NotFound`."""

    def submit(
        self, spool: Spool, *, batch_id: str, name: str | None, idempotency_key: str | None, expires_s: float | None
    ) -> Submitted:
        """Store a validated spool as a batch and ring."""
        ...

    def upload(self, path: Path) -> File:
        """Store a file that jobs may name as `file:<id>`; one whose content is there already is not sent again."""
        ...

    def file(self, id_: str) -> File:
        """An uploaded file."""
        ...

    def has_output(self, job_id: str, position: int) -> bool:
        """Whether this job has succeeded, and has an output at this position."""
        ...

    def outputs(self, batch_id: str, media: str, *, limit: int) -> list[tuple[str, int]]:
        """Job and position of the outputs of a batch whose media type begins so, by line and position."""
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

    def aliases(self) -> Mapping[str, ToldAlias]:
        """Names that operators have given to models, as the workers that are alive tell of them."""
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

    def system(self) -> SystemRecord:
        """Workers, keepers and queues as they are now."""
        ...

    def queues(self) -> list[str]:
        """The queues that somebody has used or serves."""
        ...

    def pause(self, queue: str, reason: str | None = None) -> PausedQueue:
        """Claim nothing of a queue any more; what runs goes on. Harmless when it is paused already."""
        ...

    def resume(self, queue: str) -> Resumed:
        """Let a queue go on. Harmless when it is not paused."""
        ...

    def drain(self, worker: str) -> list[Drain]:
        """Ask the sessions of a worker to finish or give back what they hold, and to end."""
        ...

    def drained(self, drains: Sequence[Drain]) -> list[Drain]:
        """The same, as far as they are now."""
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

    def upload(self, path: Path) -> File:
        """See `producer.uploads.upload`."""
        create = transitions.nothing_stored_yet(self.db)
        return upload(self.db, open_storage(self.settings, create=create), self.settings.tenant, path)

    def file(self, id_: str) -> File:
        """Of this tenant."""
        found = files.locate(self.db, self.settings.tenant, [id_]) if _storable(id_) else {}
        if id_ not in found:
            raise NotFound(f"there is no file:{id_}: upload it with `aigc upload FILE`")
        return found[id_]

    def has_output(self, job_id: str, position: int) -> bool:
        """Of a job of this tenant."""
        a, j = artifacts.c, jobs.c
        query = (
            select(a.id)
            .join(jobs, j.id == a.job_id)
            .where(j.id == job_id, j.tenant_id == self.settings.tenant, j.state == "succeeded")
            .where(a.role == "output", a.position == position)
        )
        with self.db.read() as connection:
            return connection.execute(query).first() is not None

    def outputs(self, batch_id: str, media: str, *, limit: int) -> list[tuple[str, int]]:
        """Of a batch of this tenant; of its jobs that have succeeded."""
        a, j = artifacts.c, jobs.c
        query = (
            select(a.job_id, a.position)
            .join(jobs, j.id == a.job_id)
            .where(j.batch_id == batch_id, j.tenant_id == self.settings.tenant, j.state == "succeeded")
            .where(a.role == "output", a.media_type.startswith(media, autoescape=True))
            .order_by(j.line, a.position)
            .limit(limit)
        )
        with self.db.read() as connection:
            return [(row.job_id, row.position) for row in connection.execute(query)]

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
            return batch_record(row, _errors(connection, row.id))

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
            return [batch_record(row, _errors(connection, row.id)) for row in rows]

    def _batch_rows(self) -> Select[Any]:
        c = batch_counters.c
        return (
            select(batches, *(c[state] for state in JOB_STATES), c.started_at, c.finished_at, c.window_started_at,
                   c.window_finished, c.last_rate, now().label("now"))
            .outerjoin(batch_counters, c.batch_id == batches.c.id)
            .where(batches.c.tenant_id == self.settings.tenant)
            # What is being deleted is not shown.
            .where(or_(batches.c.state == literal("open", literal_execute=True), batches.c.cancelled_at.is_(None)))
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
        done = {row.id for row in rows if row.state == "succeeded"}
        awaited = transitions.awaited_by(connection, rows)
        made_files: dict[str, list[ArtifactRecord]] = {}
        for row in connection.execute(
            select(artifacts)
            .where(artifacts.c.job_id.in_(listed(row.id for row in rows)), artifacts.c.role != "checkpoint")
            .order_by(artifacts.c.role, artifacts.c.position)
        ):
            # What a job that is not done shows is no result: previews and metrics.
            if row.role in PUBLISHED or row.job_id in done:
                made_files.setdefault(row.job_id, []).append(artifact_record(row))
        made: dict[str, Any] = {
            row.job_id: row
            for row in connection.execute(
                select(attempts.c.job_id, attempts.c.device_s, attempts.c.record, attempts.c.worker_session).where(
                    attempts.c.job_id.in_(listed(done)), attempts.c.outcome.in_(("succeeded", "served"))
                )
            )
        }
        # Of the few sessions that made a page of jobs the versions are read once, not with every job.
        sessions = listed({row.worker_session for row in made.values()})
        of_sessions = select(worker_sessions.c.id, worker_sessions.c.versions).where(worker_sessions.c.id.in_(sessions))
        versions = {row.id: row.versions for row in connection.execute(of_sessions)} if made else {}
        return [
            job_record(row, made_files.get(row.id, []), made.get(row.id), versions, awaited.get(row.id)) for row in rows
        ]

    def events(
        self, batch_id: str, *, after: int = 0, limit: int = 500, line: int | None = None
    ) -> tuple[list[EventRecord], int]:
        """Events cover many jobs each, so those of one line are sifted here."""
        with self.db.read() as connection:
            rows = connection.execute(
                select(events, worker_sessions.c.worker)
                .outerjoin(worker_sessions, worker_sessions.c.id == events.c.worker_session)
                .where(events.c.tenant_id == self.settings.tenant, events.c.batch_id == batch_id, events.c.id > after)
                .order_by(events.c.id)
                .limit(limit)
            ).all()
            found = [event_record(row) for row in rows]
            if line is not None:
                found = [e for e in found if not e.jobs or any(first <= line <= last for first, last in e.jobs)]
                found = with_attempts(found, self._attempts(connection, job_id(batch_id, line))) if found else []
        return found, rows[-1].id if rows else after

    def _attempts(self, connection: Connection, id_: str) -> list[Row[Any]]:
        """Those of a job that have ended, and the one that runs."""
        c, ours = attempts.c, self.settings.tenant
        ended = connection.execute(select(attempts).where(c.job_id == id_, c.tenant_id == ours).order_by(c.epoch))
        running = connection.execute(
            select(
                jobs.c.epoch, jobs.c.worker_session, jobs.c.claimed_at, null().label("ended_at"),
                null().label("outcome"), null().label("error_code"), null().label("error_message"),
            ).where(jobs.c.id == id_, jobs.c.tenant_id == ours, jobs.c.state == "running")
        )  # fmt: skip
        return [*ended, *running]

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
        return [worker_record(row, self.settings.lease_s) for row in rows]

    def aliases(self) -> Mapping[str, ToldAlias]:
        """From their sessions."""
        w = worker_sessions.c
        alive = select(w.condition).where(w.ended_at.is_(None), w.lease_expires_at > now())
        with self.db.read() as connection:
            return told_aliases(connection.scalars(alive).all())

    def system(self) -> SystemRecord:
        """From small tables and the backlog: costs the same for ten jobs or ten million."""
        ready = (
            select(lanes.c.queue, func.sum(backlog.c.ready))
            .join(lanes, lanes.c.id == backlog.c.lane_id)
            .join(batches, batches.c.id == backlog.c.batch_id)
            .where(backlog.c.ready > 0, batches.c.cancelled_at.is_(None))
            .group_by(lanes.c.queue)
            .order_by(lanes.c.queue)
        )
        delayed = select(jobs.c.id).where(
            jobs.c.state == literal("queued", literal_execute=True), jobs.c.available_at.is_not(None)
        )
        with self.db.read() as connection:
            waiting = {queue: int(n) for queue, n in connection.execute(ready)}
            any_delayed = connection.execute(delayed.limit(1)).first() is not None
        silent_s = operators.keeper_silent_s(self.db)
        patience_s = operators.keeper_patience_s(self.settings.keeper_interval_s)
        return SystemRecord(
            workers=tuple(self.workers()), paused=tuple(operators.paused(self.db)), ready=waiting,
            any_delayed=any_delayed, keeper_silent_s=silent_s,
            keeper_alive=silent_s is not None and silent_s <= patience_s,
        )  # fmt: skip

    def why(self, job_id: str) -> str:
        """See `producer.why`."""
        return why(self.db, self.queue, self.job(job_id), self.system(), idle_look_s=self.settings.idle_look_s)

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

    def queues(self) -> list[str]:
        """Of jobs and of workers."""
        return operators.known_queues(self.db)

    def pause(self, queue: str, reason: str | None = None) -> PausedQueue:
        """Claims, looks and rings pass it by."""
        return operators.pause(self.db, queue, reason)

    def resume(self, queue: str) -> Resumed:
        """Rings; where Redis does not answer, workers and keepers look by themselves."""
        was_paused = operators.resume(self.db, queue)
        try:
            self.queue.ring(self.db, [queue])
        except Unavailable as error:
            return Resumed(queue, was_paused, (f"workers hear of it when they look by themselves: {error}",))
        return Resumed(queue, was_paused)

    def drain(self, worker: str) -> list[Drain]:
        """The worker reads it with its lease."""
        if not _storable(worker):
            raise NotFound(f"there is no worker {worker!r}")
        return operators.drain(self.db, worker)

    def drained(self, drains: Sequence[Drain]) -> list[Drain]:
        """By session."""
        return operators.drained(self.db, drains)


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
