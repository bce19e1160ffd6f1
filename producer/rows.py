"""Rows of the database as the plain records that the gateway gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Row

from producer.records import ArtifactRecord, BatchRecord, ErrorSum, EventRecord, JobRecord, WorkerRecord
from shared.counters import RATE_WINDOW_S
from shared.tables import JOB_STATES

#: seconds without a finished job, and with none running, after which nobody knows when a batch ends
STILL_S = 3 * RATE_WINDOW_S


def batch_record(row: Row[Any], errors: tuple[ErrorSum, ...]) -> BatchRecord:
    """A batch with its counters and the database's clock in `now`."""
    counts = {state: getattr(row, state) or 0 for state in JOB_STATES}
    finished = counts["succeeded"] + counts["failed"] + counts["cancelled"]
    if row.state == "loading":
        status = "loading"
    elif finished == row.total:
        status = "done"
    else:
        status = "running" if counts["running"] or finished else "queued"
    done = status == "done"
    rate = _rate(row, counts["succeeded"] + counts["failed"], done=done)
    # Nothing runs and nothing has finished for long: paused, or no worker. Nobody can say when it ends.
    stands_still = not counts["running"] and row.finished_at and row.now - row.finished_at > STILL_S
    eta = 0.0 if done else (row.total - finished) / rate if rate and not stands_still else None
    return BatchRecord(
        id=row.id, name=row.name, status=status, total=row.total, counts=counts, rate_per_s=rate, eta_s=eta,
        errors=errors, created_at=row.created_at, cancelled=row.cancelled_at is not None,
    )  # fmt: skip


def _rate(row: Row[Any], finished: int, *, done: bool) -> float | None:
    """Finished jobs per second, as measured; time in which nothing finished counts.

    Over the whole time when done, and as long as no window has been filled; then over the last window's length, of
    which the part before the running window went at the rate of the one before.
    """
    if not finished or row.started_at is None or row.finished_at is None:
        return None
    if done:
        return float(finished / max(1e-3, row.finished_at - row.started_at))
    if not row.last_rate or row.window_started_at is None:
        return float(finished / max(1e-3, row.now - row.started_at))
    in_window = max(1e-3, row.now - row.window_started_at)
    measured = float(row.window_finished / in_window)
    if row.finished_at - row.window_started_at < 0.01:
        # Only what ended the window before has finished: of this one it gives an upper bound.
        return min(float(row.last_rate), measured)
    if in_window < RATE_WINDOW_S:
        return float((row.last_rate * (RATE_WINDOW_S - in_window) + row.window_finished) / RATE_WINDOW_S)
    return measured


def artifact_record(row: Row[Any]) -> ArtifactRecord:
    """An artifact as it stands in its table."""
    return ArtifactRecord(
        id=row.id, role=row.role, position=row.position, key=row.object_key, start=row.start, bytes=row.bytes,
        media_type=row.media_type, sha256=row.sha256, facts=row.facts,
    )  # fmt: skip


def job_record(
    row: Row[Any],
    files: Sequence[ArtifactRecord],
    made: Row[Any] | None,
    versions: Mapping[str, Any],
    awaited: str | None = None,
) -> JobRecord:
    """A job with its lane; `made` is the attempt that succeeded, `versions` those of its worker by session.

    `awaited` is the identical job that it waits for.
    """
    error = {"code": row.error_code, "message": row.error_message or ""} if row.error_code else None
    timings = {
        name: getattr(row, name) for name in ("created_at", "available_at", "claimed_at", "entered_at", "finished_at")
    }
    return JobRecord(
        id=row.id, batch_id=row.batch_id, line=row.line, custom_id=row.custom_id, status=row.state, task=row.task,
        model=row.model or None, queue=row.queue, priority=row.priority, params=from_json(row.params_json),
        seed=row.seed, metadata=from_json(row.metadata_json) if row.metadata_json else None, progress=row.progress,
        attempt=row.attempts + (row.state == "running" or (row.state == "succeeded" and row.same_as is None)),
        error=error, identical_to=row.same_as or awaited,
        artifacts=tuple(files), timings={**timings, "device_s": made.device_s if made else None},
        # What was made by another worker than the one that found it says itself by which versions.
        record={"versions": versions.get(made.worker_session), **(made.record or {})} if made else None,
    )  # fmt: skip


def event_record(row: Row[Any]) -> EventRecord:
    """An event, with the name of its worker in `worker` and its code, if it has one, in `error`."""
    m = row._mapping  # noqa: SLF001 - `count` is a tuple's method
    code = (m["data"] or {}).get("code")
    return EventRecord(
        id=m["id"], at=m["at"], batch_id=m["batch_id"], kind=m["kind"], count=m["count"],
        jobs=tuple((first, last) for first, last in m["jobs"] or ()), worker_session=m["worker_session"],
        data=m["data"], worker=m["worker"], error={"code": code, "message": None} if code else None,
    )  # fmt: skip


def with_attempts(found: Sequence[EventRecord], attempts: Sequence[Row[Any]]) -> list[EventRecord]:
    """Events of one job, with the epoch and the error of the attempt that began or ended in each.

    `attempts` are rows of that table; the one that still runs has no `ended_at`. An attempt is known by its session
    and, of several, by the nearest moment.
    """

    def told(event: EventRecord) -> EventRecord:
        began = event.kind == "claimed"
        fitting = [
            (abs((attempt.claimed_at if began else attempt.ended_at) - event.at), attempt)
            for attempt in attempts
            if attempt.worker_session == event.worker_session
            and (attempt.claimed_at is not None if began else attempt.outcome == event.kind)
        ]
        if event.worker_session is None or not fitting:
            return event
        attempt = min(fitting, key=lambda pair: pair[0])[1]
        code, message = attempt.error_code or (event.error or {}).get("code"), attempt.error_message
        error = {"code": code, "message": message} if (code or message) and not began else None
        return replace(event, epoch=attempt.epoch, error=error)

    return [told(event) for event in found]


def worker_record(row: Row[Any], lease_s: float) -> WorkerRecord:
    """A worker session, with the number of jobs in `running` and the database's clock in `now`.

    `lease_s` is the setting of whoever asks: it has to be the same everywhere, or silence is misjudged.
    """
    silent_s = max(0.0, row.now - (row.lease_expires_at - lease_s))
    return WorkerRecord(
        session=row.id, worker=row.worker, device=row.device, queues=tuple(row.queues.split(",")),
        started_at=row.started_at, running=row.running, condition=row.condition, silent_s=silent_s,
        silent=silent_s > lease_s / 2, draining_since=row.drain_requested_at,
    )  # fmt: skip
