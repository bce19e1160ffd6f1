"""Events in words, and as they happen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from producer.records import EventRecord
from producer.words import several
from shared.errors import Unavailable
from shared.tables import FINAL_STATES

if TYPE_CHECKING:
    from producer.gateway import Gateway

#: seconds between two polls
POLL_S = 0.5
#: so long the database may be silent
PATIENCE_S = 60.0
#: runs of lines that are written out
_RUNS = 4

#: what happened to jobs, by kind of event
_WORDS = {
    "submitted": "submitted",
    "claimed": "claimed by {worker}",
    "succeeded": "succeeded on {worker}",
    "failed": "failed for good{on}",
    "retried": "failed{on}, to be tried again later",
    "given_back": "given back by {worker}, which does not count as a try",
    "lost": "taken back, because {worker} was not heard of any more",
    "released": "due again: the wait before the next try is over",
    "cancelled": "cancelled",
    "cancel_requested": "marked for cancel while running",
    "retry_requested": "put back by the owner, with all its tries again",
    "expired": "failed: not started within the time that was set for it (--expires)",
    "served": "given the files of an identical job, which was made before",
    "joined": "put behind an identical job that is being made",
    "let_go": "queued, because the identical job that was waited for came to nothing",
    "published": "showed a preview, a metric or a checkpoint from {worker}",
}


def in_words(event: EventRecord, *, of_one_job: bool) -> str:
    """`3 jobs (lines 1-2, 7) failed for good on host:cpu: out_of_memory`; of one job, without saying of which."""
    worker = event.worker or event.worker_session or "a worker"
    on = f" on {worker}" if event.worker_session else ""
    said = _WORDS.get(event.kind, event.kind.replace("_", " ") + "{on}").format(worker=worker, on=on)
    details = []
    if event.error is not None:
        details.append(": ".join(part for part in (event.error["code"], event.error["message"]) if part))
    data = dict(event.data or {})
    known = {event.error[key] for key in ("code", "message")} if event.error is not None else set()
    details += [f"{key} {value}" for key, value in data.items() if key != "code" and value not in known]
    if not of_one_job:
        said = f"{several(event.count, 'job')}{_lines(event)} {said}"
    elif not event.jobs:
        said = f"{said} with its batch"
    return f"{said} ({'; '.join(details)})" if details else said


def _lines(event: EventRecord) -> str:
    if not event.jobs:
        return ""
    runs = [str(first) if first == last else f"{first}-{last}" for first, last in event.jobs[:_RUNS]]
    more = ", …" if len(event.jobs) > _RUNS else ""
    return f" (line{'' if event.count == 1 else 's'} {', '.join(runs)}{more})"


def happened(gateway: Gateway, batch_id: str, *, after: int = 0, line: int | None = None) -> Iterator[EventRecord]:
    """Everything from a cursor on that has happened to a batch, or to one line of it, page by page."""
    while True:
        page, reached = gateway.events(batch_id, after=after, line=line)
        yield from page
        if reached == after:
            return
        after = reached


def follow(
    gateway: Gateway,
    batch_id: str,
    *,
    after: int = 0,
    line: int | None = None,
    on_silence: Callable[[Unavailable], None] | None = None,
) -> Iterator[EventRecord]:
    """The same and what comes, until the batch (or the job of that line) is done.

    A database that falls silent is told to `on_silence` once, and tried again for 60 s before `Unavailable` is raised.
    """
    silent_since: float | None = None
    while True:
        try:
            # First whether it is over, then the events: so the last one is not missed.
            over = _over(gateway, batch_id, line)
            while True:
                page, reached = gateway.events(batch_id, after=after, line=line)
                yield from page
                if reached == after:
                    break
                after = reached
            silent_since = None
        except Unavailable as error:
            clock = time.monotonic()
            if silent_since is None:
                silent_since = clock
                if on_silence is not None:
                    on_silence(error)
            elif clock - silent_since > PATIENCE_S:
                raise
            over = False
        if over:
            return
        time.sleep(POLL_S)


def _over(gateway: Gateway, batch_id: str, line: int | None) -> bool:
    if line is None:
        return gateway.batch(batch_id).status == "done"
    found = gateway.jobs(batch_id, after=line - 1, limit=1)
    return not found or found[0].status in FINAL_STATES
