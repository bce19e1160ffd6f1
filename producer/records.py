"""Plain records: what the gateway gives, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    """A job and, once it has succeeded, its artifacts."""

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

    def to_json(self) -> dict[str, Any]:
        """The shape of `aigc status JOB --json`."""
        return {
            "id": self.id, "batch_id": self.batch_id, "index": self.line, "custom_id": self.custom_id,
            "status": self.status, "task": self.task, "model": self.model, "queue": self.queue,
            "priority": self.priority, "params": dict(self.params), "seed": self.seed, "metadata": self.metadata,
            "progress": self.progress, "attempt": self.attempt, "error": self.error,
            "artifacts": [artifact.to_json() for artifact in self.artifacts], "timings": dict(self.timings),
            "record": self.record,
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

    def to_json(self) -> dict[str, Any]:
        """The shape of `aigc events --json`."""
        return {
            "id": self.id, "at": self.at, "batch_id": self.batch_id, "kind": self.kind,
            "jobs": [list(run) for run in self.jobs], "count": self.count, "worker_session": self.worker_session,
            "data": self.data,
        }  # fmt: skip


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

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "session": self.session, "worker": self.worker, "device": self.device, "queues": list(self.queues),
            "started_at": self.started_at, "silent_s": self.silent_s, "running": self.running,
            "condition": dict(self.condition),
        }  # fmt: skip
