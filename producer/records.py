"""Plain records: what the gateway gives, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.operators import PausedQueue


@dataclass(frozen=True, slots=True)
class ErrorSum:
    """How often a batch failed in one way."""

    code: str
    count: int
    #: the message of one of them
    example: str


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch, read from its counters: costs the same for ten jobs or ten million."""

    id: str
    name: str | None
    #: loading, queued, running or done
    status: str
    total: int
    #: jobs per state: waiting, queued, running, succeeded, failed, cancelled
    counts: Mapping[str, int]
    #: finished jobs per second, measured lately; None before the first one
    rate_per_s: float | None
    #: seconds until the last job is finished at that rate; None if unknown, 0 when done
    eta_s: float | None
    errors: tuple[ErrorSum, ...]
    #: seconds since 1970
    created_at: float
    cancelled: bool

    @property
    def finished(self) -> int:
        """Jobs in a final state."""
        return self.counts["succeeded"] + self.counts["failed"] + self.counts["cancelled"]

    def to_json(self) -> dict[str, Any]:
        """The shape of `aigc status BATCH --json`."""
        return {
            "id": self.id, "name": self.name, "status": self.status, "total": self.total, "counts": dict(self.counts),
            "rate_per_s": self.rate_per_s, "eta_s": self.eta_s, "created_at": self.created_at,
            "cancelled": self.cancelled,
            "errors": [{"code": e.code, "count": e.count, "example": e.example} for e in self.errors],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """A stored file of a job: `bytes` from `start` of the object `key`."""

    id: int
    role: str
    position: int
    key: str
    start: int
    bytes: int
    media_type: str
    sha256: str
    #: width, height, seed, finish_reason, …
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """With its facts beside the fixed keys."""
        return {
            **self.facts, "id": self.id, "role": self.role, "key": self.key, "media_type": self.media_type,
            "bytes": self.bytes, "sha256": self.sha256,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job and what it shows: once it has succeeded, its artifacts; before that, previews and metrics alone."""

    id: str
    batch_id: str
    #: 1-based line of the input
    line: int
    custom_id: str
    status: str
    task: str
    #: model reference; None for tasks without a model
    model: str | None
    queue: str
    priority: int
    params: Mapping[str, Any]
    seed: int
    metadata: Mapping[str, Any] | None
    #: share of its steps that are done, 0..1
    progress: float | None
    #: charged attempts, the running one included
    attempt: int
    #: code and message of the last attempt that failed
    error: Mapping[str, str] | None
    artifacts: tuple[ArtifactRecord, ...]
    #: seconds since 1970 under created_at, claimed_at, entered_at, finished_at, available_at (None where not yet);
    #: seconds under device_s
    timings: Mapping[str, float | None]
    #: model revision, dtype, generator, versions: enough to make it again
    record: Mapping[str, Any] | None
    #: with `cache`: the job whose files it was given, or that it waits for, because that one asks for the same
    identical_to: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The shape of `aigc status JOB --json`."""
        return {
            "id": self.id, "batch_id": self.batch_id, "index": self.line, "custom_id": self.custom_id,
            "status": self.status, "task": self.task, "model": self.model, "queue": self.queue,
            "priority": self.priority, "params": dict(self.params), "seed": self.seed, "metadata": self.metadata,
            "progress": self.progress, "attempt": self.attempt, "error": self.error,
            "artifacts": [artifact.to_json() for artifact in self.artifacts], "timings": dict(self.timings),
            "record": self.record, "identical_to": self.identical_to,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened to a batch, or to some of its jobs at once."""

    #: the cursor: ask for what came after it
    id: int
    #: seconds since 1970
    at: float
    batch_id: str
    kind: str
    #: lines as [first, last] runs; empty if it concerns the batch as a whole
    jobs: tuple[tuple[int, int], ...]
    count: int
    worker_session: str | None
    data: Mapping[str, Any] | None
    #: host and device of the session
    worker: str | None = None
    #: where one job was asked for: the epoch of the attempt that began or ended so
    epoch: int | None = None
    #: code and message of what ended it; where one job was asked for, else the code alone
    error: Mapping[str, str | None] | None = None

    def to_json(self) -> dict[str, Any]:
        """The shape of `aigc events --json`."""
        return {
            "id": self.id, "at": self.at, "batch_id": self.batch_id, "kind": self.kind,
            "jobs": [list(run) for run in self.jobs], "count": self.count, "worker_session": self.worker_session,
            "worker": self.worker, "epoch": self.epoch, "error": self.error, "data": self.data,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class SetAside:
    """A model that a worker could not load, and leaves alone for a while."""

    model: str
    task: str
    reason: str
    #: seconds since 1970: when it failed first, and when it is tried again; None where the worker does not say
    since: float | None = None
    again_at: float | None = None


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """What a model takes on a worker, by its files or as it was measured."""

    bytes: int
    #: what that worker has for it
    has: int
    #: number type that it was told for
    dtype: str
    #: whether the worker counts the memory of its host, too
    on_host: bool


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker that is alive, by its lease."""

    session: str
    worker: str
    device: str
    queues: tuple[str, ...]
    started_at: float
    #: seconds since it last renewed
    silent_s: float
    #: jobs it runs now
    running: int
    #: models in memory, trouble with the storage, models set aside
    condition: Mapping[str, Any]
    #: whether it has not renewed for longer than half its lease: it is frozen, very busy, or cut off
    silent: bool = False
    #: when it was asked to end, in seconds since 1970
    draining_since: float | None = None

    @property
    def storage_trouble(self) -> str | None:
        """Why it cannot store results, if it cannot."""
        return self.condition.get("storage") or None

    @property
    def models_file_trouble(self) -> str | None:
        """What is wrong with its `models.toml`, if that has become wrong."""
        return self.condition.get("models_file") or None

    @property
    def memory(self) -> tuple[int, str] | None:
        """Bytes that models may take on its device, and the number type it computes in; None where it does not say."""
        about = self.condition.get("memory")
        return (int(about["bytes"]), str(about["dtype"])) if about else None

    def need(self, model: str, task: str) -> ModelNeed | None:
        """What it says that a model takes."""
        about = (self.condition.get("needs") or {}).get(f"{model} for {task}")
        return ModelNeed(about["bytes"], about["has"], about["dtype"], about["on_host"]) if about else None

    @property
    def set_aside(self) -> tuple[SetAside, ...]:
        """Models that it could not load lately."""
        found = []
        for name, told in (self.condition.get("set_aside") or {}).items():
            model, _, task = name.rpartition(" for ")
            about = told if isinstance(told, Mapping) else {"reason": told}
            reason, since, again_at = (about.get(key) for key in ("reason", "since", "again_at"))
            found.append(SetAside(model, task, str(reason), since, again_at))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "session": self.session, "worker": self.worker, "device": self.device, "queues": list(self.queues),
            "started_at": self.started_at, "silent_s": self.silent_s, "silent": self.silent,
            "draining_since": self.draining_since, "running": self.running, "condition": dict(self.condition),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class SystemRecord:
    """What serves the batches: workers, keepers, queues."""

    workers: tuple[WorkerRecord, ...]
    paused: tuple[PausedQueue, ...]
    #: jobs that could be claimed now, by queue; paused queues included
    ready: Mapping[str, int]
    #: whether jobs wait for the time of their next try, which a keeper has to see
    any_delayed: bool
    #: seconds since a keeper did a round; None if none ever has
    keeper_silent_s: float | None
    #: whether that is recent enough
    keeper_alive: bool

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "workers": [worker.to_json() for worker in self.workers],
            "paused": [queue.to_json() for queue in self.paused],
            "ready": dict(self.ready),
            "keeper": {"alive": self.keeper_alive, "silent_s": self.keeper_silent_s},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resumed:
    """A queue that goes on."""

    queue: str
    was_paused: bool
    #: what harms nothing, such as a Redis that did not answer
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {"queue": self.queue, "was_paused": self.was_paused}
