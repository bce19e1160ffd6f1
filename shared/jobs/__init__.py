"""Every change of a job's state, one file for each part of its life: T1 to T11 of docs/job-states.md.

Each transition is one guarded statement; counters, backlog and events move with it in the same transaction
(`shared.counters`). The guard of a worker's transition is G: its session, its epoch, state `running`. A row that does
not pass the guard is left alone and never disturbs its neighbours: whoever lost a job learns it from the ids that come
back. Nothing outside this package writes to the table of jobs.
"""

from shared.jobs.claim import ClaimedJob, claim, enter
from shared.jobs.clock import expire, release_due
from shared.jobs.lease import Held, SessionLost, close_session, open_session, renew
from shared.jobs.outcome import Failure, StoredArtifact, Success, fail, give_back, intend, nothing_stored_yet, succeed
from shared.jobs.owner import cancel_batch, cancel_jobs, finish_cancelled, retry
from shared.jobs.reap import reap
from shared.jobs.submission import (
    Lane,
    NewBatch,
    abandon_batch,
    abandon_silent_batches,
    add_jobs,
    begin_batch,
    lane_ids,
    open_batch,
)
from shared.jobs.sweep import sweep_backlog

__all__ = [
    "ClaimedJob", "Failure", "Held", "Lane", "NewBatch", "SessionLost", "StoredArtifact", "Success",
    "abandon_batch", "abandon_silent_batches", "add_jobs", "begin_batch", "cancel_batch", "cancel_jobs", "claim",
    "close_session", "enter", "expire", "fail", "finish_cancelled", "give_back", "intend", "lane_ids",
    "nothing_stored_yet", "open_batch", "open_session", "reap", "release_due", "renew", "retry", "succeed",
    "sweep_backlog",
]  # fmt: skip
