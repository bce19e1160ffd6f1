"""From outcome to visible result, beside the device: encode → pack → store → commit, in groups.

What a generator yields goes into a bounded queue; one thread takes out all that is there, so that groups form by
themselves while the one before is being stored.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from shared import jobs
from shared.database import Database
from shared.errors import JobFailed, Unavailable
from shared.jobs import ClaimedJob, Failure, Publication, StoredArtifact, Success
from workers.depot import Depot
from workers.generators import Done, Failed, Outcome, Output
from workers.pulse import Pulse
from workers.session import Session

R = TypeVar("R")

log = logging.getLogger("aigc.worker")

#: outcomes that may wait for the finisher before the device has to
MAX_WAITING = 64
#: most jobs that are committed together
GROUP = 64
#: outputs up to this many bytes share one object with their neighbours of the batch
PACK_BELOW = 64 * 1024
#: longest media type, as the table of artifacts has it
MAX_MEDIA_TYPE = 100

_PACKED_TYPES = ("text/", "application/json")
_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "text/plain": "txt",
    "application/json": "json",
}


class FinisherBroken(Exception):
    """The finisher ended on an error that it does not know; its cause is chained."""


@dataclass(frozen=True, slots=True)
class Finished:
    """An outcome on its way out."""

    job: ClaimedJob
    outcome: Outcome
    device_s: float
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Published:
    """A preview, metric or checkpoint of a job that goes on."""

    job: ClaimedJob
    output: Output
    position: int


@dataclass(frozen=True, slots=True)
class _File:
    """An encoded output."""

    output: Output
    body: bytes


@dataclass(frozen=True, slots=True)
class _Upload:
    """An object on its way to the storage."""

    tenant_id: str
    body: bytes
    media_type: str


class Finisher:
    """The thread that stores and commits for one worker session."""

    def __init__(
        self,
        session: Session,
        db: Database,
        depot: Depot,
        pulse: Pulse,
        *,
        on_trouble: Callable[[Unavailable], None],
        on_stored: Callable[[], None],
        retry_after_s: float,
        patience_s: float,
        stall_s: float,
    ) -> None:
        """`on_trouble` hears of a storage that fails, `on_stored` of one that does not.

        What could not be stored is tried again every `retry_after_s` seconds; once the storage has been in trouble for
        `patience_s`, the jobs go back instead, uncharged. An output may take `stall_s` to encode.
        """
        self._session = session
        self._db = db
        self._depot = depot
        self._pulse = pulse
        self._patience_s = patience_s
        self._stall_s = stall_s
        self._encoding_since = 0.0
        self._on_trouble = on_trouble
        self._on_stored = on_stored
        self._retry_after_s = retry_after_s
        self._waiting: queue.Queue[Finished | Published | None] = queue.Queue(MAX_WAITING)
        self._packs = itertools.count(1)
        self._publications = itertools.count(1)
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="finisher", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> bool:
        """Whether it has ended on an error that it does not know."""
        return self._broken is not None

    def put(self, finished: Finished | Published) -> None:
        """Hand an outcome or a publication over; waits while too many are under way.

        Raises what broke the finisher, if anything did.
        """
        while True:
            if self._broken is not None:
                raise FinisherBroken from self._broken
            try:
                self._waiting.put(finished, timeout=0.5)
            except queue.Full:
                self._show_what_we_wait_for()
                continue
            return

    def _show_what_we_wait_for(self) -> None:
        """The model stands still because of us. An output may take too long to encode; storage and SQL may not."""
        since = self._encoding_since
        if since:
            self._pulse.wait(since, self._stall_s)
        else:
            self._pulse.rest()

    def flush(self) -> None:
        """Wait until everything handed over is settled."""
        while self._waiting.unfinished_tasks and self._broken is None:
            self._show_what_we_wait_for()
            time.sleep(0.005)
        self._pulse.rest()
        if self._broken is not None:
            raise FinisherBroken from self._broken

    def close(self) -> None:
        """Settle everything and end the thread; harmless to repeat."""
        while self._thread.is_alive():
            with suppress(queue.Full):
                self._waiting.put(None, timeout=0.2)
                self._thread.join()

    def _run(self) -> None:
        while True:
            group: list[Finished | Published | None] = [self._waiting.get()]
            while len(group) < GROUP and not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            try:
                self._publish([item for item in group if isinstance(item, Published)])
                self._settle([item for item in group if isinstance(item, Finished)])
            except BaseException as error:  # noqa: BLE001 - kept, and raised again in the worker's own thread
                self._broken = error
                return
            finally:
                for _ in group:
                    self._waiting.task_done()
            if None in group:
                return

    def _publish(self, group: Sequence[Published]) -> None:
        """Store what jobs leave behind on their way, the newest of each place; what cannot be stored is dropped."""
        newest = {(item.job.id, item.output.role, item.position): item for item in group}
        for item in newest.values():
            if not self._session.wanted(item.job.id):
                continue
            try:
                self._publish_one(item)
            except Unavailable as error:
                if error.part == "storage":
                    self._on_trouble(error)
                log.warning("a %s of job %s was not stored: %s", item.output.role, item.job.id, error)
            except Exception as defect:  # noqa: BLE001 - encoding is a part of the generator, and the job goes on
                trace = "".join(traceback.format_exception(defect))
                log.error("a %s of job %s could not be made:\n%s", item.output.role, item.job.id, trace)

    def _publish_one(self, item: Published) -> None:
        [file] = self._encoded([item.output])
        storage = self._depot.get()
        extension = _EXTENSIONS.get(item.output.media_type, "bin")
        key = f"{self._folder(item.job)}/p{next(self._publications)}.{extension}"
        jobs.intend(self._db, self._session.id, item.job.tenant_id, [key])
        storage.put(key, file.body, media_type=item.output.media_type)
        self._on_stored()
        artifact = _artifact(key, len(file.body), item.position, 0, file)
        jobs.publish(self._db, self._session.id, [Publication(item.job.id, item.job.epoch, artifact)])

    def _settle(self, group: Sequence[Finished]) -> None:
        group = [item for item in group if self._session.wanted(item.job.id) or isinstance(item.outcome, Done)]
        done: list[tuple[Finished, list[_File]]] = []
        failed: list[Failure] = []
        for item in group:
            error = item.outcome.error if isinstance(item.outcome, Failed) else None
            if isinstance(item.outcome, Done):
                try:
                    done.append((item, self._encoded(item.outcome.outputs)))
                except Exception as defect:  # noqa: BLE001 - encoding is a part of the generator
                    log.error("an output could not be encoded:\n%s", "".join(traceback.format_exception(defect)))
                    error = JobFailed("encoding_failed", f"{type(defect).__name__}: {defect}", retryable=True)
            if error is not None:
                failed.append(
                    Failure(item.job.id, item.job.epoch, error.code, error.message, error.retryable, item.device_s)
                )
        if failed:
            self._insist(lambda: jobs.fail(self._db, self._session.id, failed))
        if done:
            self._store_or_give_back(done)
        # Not before: what breaks on the way stays in the session's hands, and goes back when that ends.
        self._session.release(item.job.id for item in group)

    def _store_or_give_back(self, done: Sequence[tuple[Finished, list[_File]]]) -> None:
        uploads, placed = self._plan(done)
        try:
            self._intend(uploads)
            self._store(uploads)
        except Unavailable as error:
            if error.part != "storage":
                raise
            reason = str(error)
            held = [(item.job.id, item.job.epoch) for item, _ in done]
            again = {"delay_s": self._retry_after_s, "counted": False}
            self._insist(lambda: jobs.give_back(self._db, self._session.id, held, reason, **again))  # type: ignore[arg-type]
        else:
            self._commit(done, placed)
            self._on_stored()

    def _intend(self, uploads: Mapping[str, _Upload]) -> None:
        by_tenant: dict[str, list[str]] = {}
        for key, upload in uploads.items():
            by_tenant.setdefault(upload.tenant_id, []).append(key)
        for tenant, keys in by_tenant.items():
            self._insist(lambda tenant=tenant, keys=keys: jobs.intend(self._db, self._session.id, tenant, keys))  # type: ignore[misc]

    def _store(self, uploads: Mapping[str, _Upload]) -> None:
        """Upload; what took an hour to make is not thrown away for a storage that is away for a moment."""
        left = dict(uploads)
        while left:
            key, upload = next(iter(left.items()))
            try:
                self._depot.get().put(key, upload.body, media_type=upload.media_type)
            except Unavailable as error:
                if error.part != "storage":
                    raise
                self._on_trouble(error)
                if self._session.lost or self._session.out_of_time or self._depot.troubled_s() > self._patience_s:
                    raise
                time.sleep(min(self._retry_after_s, 1.0))
            else:
                self._depot.worked()
                del left[key]

    def _commit(
        self, done: Sequence[tuple[Finished, list[_File]]], placed: Mapping[str, Sequence[StoredArtifact]]
    ) -> None:
        results = [
            Success(item.job.id, item.job.epoch, placed[item.job.id], item.device_s, item.record) for item, _ in done
        ]
        standing = self._insist(lambda: jobs.succeed(self._db, self._session.id, results))
        fenced = {result.id for result in results} - standing
        if fenced:
            log.warning("%d result(s) were dropped: their jobs belong to others now", len(fenced))

    def _plan(
        self, done: Sequence[tuple[Finished, list[_File]]]
    ) -> tuple[dict[str, _Upload], dict[str, list[StoredArtifact]]]:
        """Objects to upload, by key, and where each job's files lie in them."""
        uploads: dict[str, _Upload] = {}
        placed: dict[str, list[StoredArtifact]] = {item.job.id: [] for item, _ in done}
        packs: dict[tuple[str, str], list[tuple[str, int, _File]]] = {}
        for item, files in done:
            for position, file in enumerate(files):
                if len(file.body) <= PACK_BELOW and file.output.media_type.startswith(_PACKED_TYPES):
                    packs.setdefault((item.job.tenant_id, item.job.batch_id), []).append((item.job.id, position, file))
                    continue
                key = self._own_key(item.job, position, file.output)
                uploads[key] = _Upload(item.job.tenant_id, file.body, file.output.media_type)
                placed[item.job.id].append(_artifact(key, len(file.body), position, 0, file))
        for (tenant, batch_id), members in packs.items():
            key = f"{tenant}/{batch_id}/packs/{self._session.id}-{next(self._packs)}"
            body = b"".join(file.body for _, _, file in members)
            uploads[key] = _Upload(tenant, body, "application/octet-stream")
            start = 0
            for id_, position, file in members:
                placed[id_].append(_artifact(key, len(body), position, start, file))
                start += len(file.body)
        return uploads, placed

    def _own_key(self, job: ClaimedJob, position: int, output: Output) -> str:
        extension = _EXTENSIONS.get(output.media_type, "bin")
        return f"{self._folder(job)}/{position}.{extension}"

    def _folder(self, job: ClaimedJob) -> str:
        """Tenant, batch, job, epoch and session: what a zombie writes never lands on a winner's object."""
        return f"{job.tenant_id}/{job.batch_id}/{job.id}/{job.epoch}-{self._session.id}"

    def _encoded(self, outputs: Sequence[Output]) -> list[_File]:
        """What a generator gave, as bytes; this runs its code."""
        self._encoding_since = time.monotonic()
        try:
            return [_encoded(output) for output in outputs]
        finally:
            self._encoding_since = 0.0

    def _insist(self, transition: Callable[[], R]) -> R:
        """Try a transition until the database answers: finished work is not thrown away for a restart of PostgreSQL."""
        pause = 0.2
        while True:
            try:
                return transition()
            except Unavailable as error:
                if error.part != "database" or self._session.lost or self._session.out_of_time:
                    raise
                log.error("%s; trying again in %.1f s", error, pause)
                time.sleep(pause)
                pause = min(pause * 2, 5.0)


def _encoded(output: Output) -> _File:
    json.dumps(dict(output.facts))  # what SQL cannot take is this job's failure, not its neighbours'
    if len(output.media_type) > MAX_MEDIA_TYPE:
        raise ValueError(f"media type {output.media_type[:40]}… is longer than {MAX_MEDIA_TYPE} characters")
    return _File(output, output.body if isinstance(output.body, bytes) else output.body())


def _artifact(key: str, object_bytes: int, position: int, start: int, file: _File) -> StoredArtifact:
    return StoredArtifact(
        object_key=key,
        object_bytes=object_bytes,
        role=file.output.role,
        position=position,
        start=start,
        bytes=len(file.body),
        media_type=file.output.media_type,
        sha256=hashlib.sha256(file.body).hexdigest(),
        facts=dict(file.output.facts),
    )
