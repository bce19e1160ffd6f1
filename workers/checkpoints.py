"""Where an earlier attempt got to: read back whole, or not at all."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared import jobs
from shared.errors import ObjectMissing
from shared.jobs import StoredCheckpoint
from shared.storage import Storage
from workers.generators import Checkpoint, Work
from workers.steps import MADE_BY, Surroundings

log = logging.getLogger("aigc.worker")


def with_checkpoints(works: Sequence[Work], around: Surroundings, maker: Mapping[str, Any]) -> list[Work]:
    """The same jobs, with the newest checkpoint of each that has one which this generator and model made.

    One that is missing or damaged is passed over: its job begins anew. Raises `Unavailable`.
    """
    found = jobs.checkpoints(around.db, [work.job_id for work in works])
    if not found:
        return list(works)
    storage = around.storage()
    return [
        replace(work, checkpoint=_read(storage, work.job_id, found[work.job_id], maker))
        if work.job_id in found
        else work
        for work in works
    ]


def _read(storage: Storage, job_id: str, stored: StoredCheckpoint, maker: Mapping[str, Any]) -> Checkpoint | None:
    facts = dict(stored.facts)
    if facts.pop(MADE_BY, None) != dict(maker):
        log.warning("job %s begins anew: its checkpoint was made by another version", job_id)
        return None
    try:
        with storage.open(stored.object_key, start=stored.start, length=stored.bytes) as stream:
            body = stream.read()
    except ObjectMissing:
        log.error("job %s begins anew: its checkpoint is missing from the storage", job_id)
        return None
    if hashlib.sha256(body).hexdigest() != stored.sha256:
        log.error("job %s begins anew: its checkpoint is damaged", job_id)
        return None
    log.info("job %s goes on from its checkpoint", job_id)
    return Checkpoint(body, facts)
