"""Every change of a job's state, one file for each part of its life: T1 to T15 of docs/job-states.md.

Each transition is one guarded statement; counters, backlog and events move with it in the same transaction
(`shared.counters`). The guard of a worker's transition is G: its session, its epoch, state `running`. A row that does
not pass the guard is left alone and never disturbs its neighbours: whoever lost a job learns it from the ids that come
back. Nothing outside this package writes to the table of jobs.
"""

from shared.jobs.bulk import NewJob
from shared.jobs.claim import ClaimedJob, claim, enter
from shared.jobs.clock import expire, release_due
from shared.jobs.deadline import reap_overdue
from shared.jobs.identical import Shared, awaited_by, match_batch, settle, sift
from shared.jobs.lease import Held, Progress, Renewed, SessionLost, close_session, open_session, renew
from shared.jobs.makers import fingerprint, known_makers, made_with, maker_of
from shared.jobs.outcome import Failure, Success, announce, fail, give_back, intend, nothing_stored_yet, succeed
from shared.jobs.owner import cancel_batch, cancel_jobs, finish_cancelled, retry
from shared.jobs.publish import (
    BY_AGE,
    PUBLISHED_ROLES,
    Publication,
    StoredArtifact,
    StoredCheckpoint,
    checkpoints,
    publish,
)
from shared.jobs.reap import Beat, beat, bury, reap
from shared.jobs.retention import retire_batches
from shared.jobs.submission import (
    Lane,
    NewBatch,
    abandon_batch,
    abandon_silent_batches,
    add_jobs,
    begin_batch,
    lane_ids,
    open_batch,
    store_batch,
)
from shared.jobs.sweep import sweep_backlog

__all__ = [
    "BY_AGE", "PUBLISHED_ROLES", "Beat", "ClaimedJob", "Failure", "Held", "Lane", "NewBatch", "NewJob", "Progress",
    "Publication", "Renewed", "SessionLost", "Shared", "StoredArtifact", "StoredCheckpoint", "Success", "abandon_batch",
    "abandon_silent_batches", "add_jobs", "announce", "awaited_by", "beat", "begin_batch", "bury", "cancel_batch",
    "cancel_jobs", "checkpoints", "claim", "close_session", "enter", "expire", "fail", "fingerprint",
    "finish_cancelled", "give_back", "intend", "known_makers", "lane_ids", "made_with", "maker_of", "match_batch",
    "nothing_stored_yet", "open_batch", "open_session", "publish", "reap", "reap_overdue", "release_due", "renew",
    "retire_batches", "retry", "settle", "sift", "store_batch", "succeed", "sweep_backlog",
]  # fmt: skip
