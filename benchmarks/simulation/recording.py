"""What a database remembers, as a scenario: who asked for what and when, and how long it took on which workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, select

from shared.database import Database
from shared.settings import load_settings
from shared.tables import attempts, events, jobs, lanes, worker_sessions

#: what is assumed of a worker and of a model, for events tell neither: room for four models, and ten seconds a load
ROOM, MODEL_MB, LOAD_S = 4, 1000.0, 10.0


def record() -> Iterator[dict[str, Any]]:
    """Rows for `demand.recorded`, of every batch that events still tell of."""
    db = Database(load_settings())
    with db.read() as connection:
        for row in connection.execute(select(worker_sessions.c.worker, worker_sessions.c.queues).distinct()):
            yield {
                "what": "device", "kind": row.worker, "room_mb": ROOM * MODEL_MB, "queues": row.queues.split(","),
            }  # fmt: skip
        for row in connection.execute(select(lanes.c.queue, lanes.c.model)):
            load_s = LOAD_S if row.model else 0.0
            size_mb = MODEL_MB if row.model else 0.0
            yield {"what": "model", "model": row.model, "queue": row.queue, "size_mb": size_mb, "load_s": load_s}
        measured = (
            select(attempts.c.job_id, func.sum(attempts.c.device_s).label("device_s"))
            .group_by(attempts.c.job_id)
            .subquery()
        )
        submitted = (
            select(
                events.c.at, events.c.tenant_id, lanes.c.queue, lanes.c.model, jobs.c.priority,
                func.count().label("n"), func.avg(jobs.c.cost).label("cost"),
                func.avg(measured.c.device_s).label("device_s"),
            )
            .join(jobs, jobs.c.batch_id == events.c.batch_id)
            .join(lanes, lanes.c.id == jobs.c.lane_id)
            .join(measured, measured.c.job_id == jobs.c.id)
            .where(events.c.kind == "submitted")
            .group_by(events.c.id, events.c.at, events.c.tenant_id, lanes.c.queue, lanes.c.model, jobs.c.priority)
            .order_by(events.c.id)
        )  # fmt: skip
        for row in connection.execute(submitted):
            yield {
                "what": "jobs", "at": row.at, "tenant": row.tenant_id, "queue": row.queue, "model": row.model,
                "priority": row.priority, "jobs": row.n, "estimated_s": float(row.cost),
                "real_s": float(row.device_s or 0.0),
            }  # fmt: skip
