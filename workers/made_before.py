"""Work that need not be done: what its owner wants done once, and what was made before or is being made elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from shared import jobs
from shared.database import Database
from shared.errors import Unavailable
from shared.jobs import ClaimedJob
from workers.session import Session

log = logging.getLogger("aigc.worker")


def yet_to_make(
    db: Database, session: Session, claimed: Sequence[ClaimedJob], record: Mapping[str, Any]
) -> Sequence[ClaimedJob]:
    """Those of these jobs that this worker has to make; the others are not in its hands any more.

    `record` says what would make them: generator, revisions of the model and of its adapters, number type, device.
    Costs nothing where no owner wants identical work done once, and one transaction otherwise. A database that does not
    answer is no reason to wait: then all of them are made.
    """
    maker = jobs.maker_of(record)
    if claimed and not claimed[0].adapters:  # for those who submit: what was made before can then be theirs at once
        session.say_of("makers", jobs.made_with(claimed[0].task, claimed[0].model), maker)
    if all(job.fingerprint is None for job in claimed):
        return claimed
    try:
        ours = jobs.sift(db, session.id, claimed, maker)
    except Unavailable as error:
        log.warning("identical work may be done twice: %s", error)
        return claimed
    session.release(job.id for job in claimed if job.id not in ours)
    return [job for job in claimed if job.id in ours]
