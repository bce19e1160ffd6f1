"""What a job asks for, and who makes it: both together tell whether two jobs have the same output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import select

from shared.database import Database, now
from shared.jobs.submission import Lane
from shared.tables import lanes, worker_sessions


def fingerprint(lane: Lane, params_json: str, seed: int) -> str:
    """What a job asks for, as a digest; `params_json` with every default filled in. The queue does not matter."""
    asked = [lane.task, lane.model, lane.adapters, params_json, seed]
    return hashlib.sha256(json.dumps(asked, separators=(",", ":")).encode()).hexdigest()


def maker_of(record: Mapping[str, Any]) -> str:
    """Who makes a job, as a digest of what the record of its attempt says; not on which of several equal devices."""
    known = [record.get(key) for key in ("generator", "generator_version", "revision", "dtype")]
    known += [record[key] for key in ("quantization",) if key in record]
    device = str(record.get("device", "")).partition(":")[0]
    return hashlib.sha256(json.dumps([*known, device], separators=(",", ":")).encode()).hexdigest()


def known_makers(db: Database, lane_ids: Collection[int]) -> dict[int, str]:
    """By whom jobs of these lanes would be made now: where the workers that have the model in memory agree.

    Workers leave word of their makers with their lease. Raises `Unavailable`.
    """
    w = worker_sessions.c
    with db.read() as connection:
        wanted = connection.execute(select(lanes).where(lanes.c.id.in_(list(lane_ids)))).all()
        alive = connection.execute(
            select(w.queues, w.condition).where(
                w.ended_at.is_(None), w.lease_expires_at > now(), w.drain_requested_at.is_(None)
            )
        ).all()
    found: dict[int, str] = {}
    for lane in wanted:
        serving = [row.condition for row in alive if lane.queue in row.queues.split(",")]
        at_hand = [told for told in serving if not lane.model or lane.model in (told.get("models") or ())]
        makers = [(told.get("makers") or {}).get(made_with(lane.task, lane.model)) for told in at_hand]
        said = {maker for maker in makers if maker is not None}
        if len(said) == 1:
            found[lane.id] = said.pop()
    return found


def made_with(task: str, model: str) -> str:
    """The name under which a worker leaves word of its maker for this model and task."""
    return f"{model or 'no model'} for {task}"
