"""In words, why a job is not done."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import and_, func, or_, select

from producer.records import JobRecord, WorkerRecord
from shared.database import Database
from shared.tables import backlog, batches, jobs, lanes


def why(db: Database, job: JobRecord, workers: Sequence[WorkerRecord]) -> str:
    """One or two sentences; for a finished job, how it ended."""
    ended = {
        "succeeded": "It is done.",
        "cancelled": "It was cancelled.",
        "failed": f"It failed: {job.error['message']}" if job.error else "It failed.",
    }
    if job.status in ended:
        return ended[job.status]
    if job.status == "waiting":
        return "It waits for another job."
    if job.status == "running":
        return f"It is running{f', {job.progress:.0%} of its steps are done' if job.progress else ''}."
    return _why_queued(db, job, workers)


def _why_queued(db: Database, job: JobRecord, workers: Sequence[WorkerRecord]) -> str:
    with db.read() as connection:
        batch = connection.execute(
            select(batches.c.state, batches.c.cancelled_at).where(batches.c.id == job.batch_id)
        ).one()
    if batch.state == "loading":
        return "Its batch is still being submitted."
    if batch.cancelled_at is not None:
        return "Its batch is being cancelled."
    clock = db.clock()
    available_at = job.timings.get("available_at")
    if available_at and available_at > clock:
        again = f" after: {job.error['message']}" if job.error else ""
        return f"It waits for its next try in {available_at - clock:.0f} s{again}."
    serving = [worker for worker in workers if job.queue in worker.queues]
    if not serving:
        others = f"; the {len(workers)} alive serve other queues" if workers else ""
        return f"No worker serves queue {job.queue!r}{others}: start one with `aigc up` or `aigc worker`."
    key = f"{job.model} for {job.task}"
    set_aside = [reason for worker in serving if (reason := (worker.condition.get("set_aside") or {}).get(key))]
    if len(set_aside) == len(serving):
        return f"Its model could not be loaded lately: {set_aside[0]}"
    troubled = [trouble for worker in serving if (trouble := worker.condition.get("storage"))]
    if len(troubled) == len(serving):
        return f"The workers cannot store results: {troubled[0]}"
    ahead = _ahead(db, job)
    running = sum(worker.running for worker in serving)
    return (
        f"{ahead} job(s) stand before it in queue {job.queue!r}, {running} are running on {len(serving)} worker(s)."
        if ahead or running
        else f"It is next; {len(serving)} worker(s) serve queue {job.queue!r}."
    )


def _ahead(db: Database, job: JobRecord) -> int:
    """Ready jobs of higher priority, of the same in batches opened earlier, and the lines before its own."""
    with db.read() as connection:
        opened_at = connection.scalar(select(batches.c.opened_at).where(batches.c.id == job.batch_id)) or time.time()
        others = connection.scalar(
            select(func.coalesce(func.sum(backlog.c.ready), 0))
            .join(lanes, lanes.c.id == backlog.c.lane_id)
            .join(batches, batches.c.id == backlog.c.batch_id)
            .where(
                batches.c.cancelled_at.is_(None),
                lanes.c.queue == job.queue,
                backlog.c.batch_id != job.batch_id,
                or_(
                    backlog.c.priority > job.priority,
                    and_(backlog.c.priority == job.priority, backlog.c.opened_at < opened_at),
                ),
            )
        )
        own = connection.scalar(
            select(func.coalesce(func.sum(backlog.c.ready), 0)).where(
                backlog.c.batch_id == job.batch_id, backlog.c.priority > job.priority
            )
        )
        first = connection.scalar(
            select(jobs.c.line)
            .where(
                jobs.c.batch_id == job.batch_id,
                jobs.c.priority == job.priority,
                jobs.c.state == "queued",
                jobs.c.available_at.is_(None),
            )
            .order_by(jobs.c.line)
            .limit(1)
        )
    return int(others or 0) + int(own or 0) + max(0, job.line - (first or job.line))
