"""A window of claimed jobs on its way through the model: cut into microbatches, generate, hand over.

Whatever one job does, its neighbours are unharmed: a microbatch that breaks is cut in halves until it is known which
job breaks it, and each job has its own clock.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from shared import jobs
from shared.database import Database
from shared.errors import JobFailed, Unavailable
from shared.jobs import ClaimedJob, SessionLost
from shared.tasks import get_task
from workers.finisher import Finished, Finisher, FinisherBroken
from workers.generators import Device, Failed, Outcome, Work
from workers.residency import Resident
from workers.session import Session, Stopping, Unwanted

log = logging.getLogger("aigc.worker")


@dataclass(slots=True)
class Steps:
    """What a running generator sees of the engine: the port `Run`."""

    session: Session
    #: jobs of the microbatch that have no outcome yet
    left: dict[str, Work]
    #: seconds that each job may take in the model, if it has a limit
    limits: Mapping[str, float | None]
    #: when each job was first heard of
    begun: dict[str, float] = field(default_factory=dict)
    #: jobs that took too long
    late: set[str] = field(default_factory=set)

    def step(self, job_ids: Sequence[str], done: int, total: int) -> None:
        """Note progress; raises if nothing of the microbatch is wanted any more."""
        self.session.progressed(job_ids, min(1.0, done / max(1, total)))
        clock = time.monotonic()
        for id_ in job_ids:
            begun = self.begun.setdefault(id_, clock)
            limit = self.limits.get(id_)
            if limit is not None and clock - begun > limit:
                self.late.add(id_)
        self.session.check([id_ for id_ in self.left if id_ not in self.late])

    def wanted(self, job_id: str) -> bool:
        """Whether an outcome of this job is of use."""
        return job_id not in self.late and self.session.wanted(job_id)


class _Meter:
    """Shares the time on the device out among the jobs of a microbatch, so that the sum is what was spent."""

    def __init__(self, n: int) -> None:
        self._left, self._pool, self._since = n, 0.0, time.monotonic()

    def share(self) -> float:
        """Seconds for one more job that is done."""
        clock = time.monotonic()
        self._pool += clock - self._since
        self._since = clock
        share = self._pool / max(1, self._left)
        self._pool -= share
        self._left -= 1
        return share


class Window:
    """The jobs of one claim, and the model that runs them."""

    def __init__(self, db: Database, session: Session, finisher: Finisher, resident: Resident, device: Device) -> None:
        """`device` is where the model computes, for the record."""
        self._db = db
        self._session = session
        self._finisher = finisher
        self._resident = resident
        self._record: dict[str, Any] = {
            "generator": type(resident.generator).__qualname__,
            "generator_version": resident.generator.version,
            "device": device.name,
        }
        if resident.files:
            self._record |= {"model": resident.files.ref, "revision": resident.files.revision, "dtype": device.dtype}
        self._by_id: dict[str, ClaimedJob] = {}

    def run(self, claimed: Sequence[ClaimedJob], microbatch: int) -> None:
        """Take every job through the model, unless told to stop; what has no outcome stays in the session's hands."""
        self._by_id = {job.id: job for job in claimed}
        for works in self._microbatches(self._works(claimed), microbatch):
            if self._session.stopping:
                return
            self._microbatch(works)

    def _works(self, claimed: Sequence[ClaimedJob]) -> list[Work]:
        params = get_task(claimed[0].task).params
        works = []
        for job in claimed:
            try:
                parsed = params.model_validate_json(job.params_json)
            except ValidationError as error:
                message = f"its params are not understood by this version of the worker: {error}"
                self._hand_over(Failed(job.id, JobFailed("params_invalid", message)), 0.0)
                continue
            works.append(Work(job.id, job.task, parsed, job.seed, job.custom_id))
        return works

    def _microbatches(self, works: Sequence[Work], limit: int) -> list[list[Work]]:
        """Jobs that were in a microbatch when a worker died may meet only so many others: first the rest, then they."""
        by_company: dict[int, list[Work]] = {}
        for work in works:
            allowed = self._by_id[work.job_id].max_company
            by_company.setdefault(limit if allowed is None else min(limit, allowed), []).append(work)
        cut: list[list[Work]] = []
        for company in sorted(by_company, reverse=True):
            try:
                cut += self._resident.generator.cut(by_company[company], company)
            except Exception:
                log.exception("%s cannot be cut into microbatches; each job runs alone", self._record["generator"])
                cut += [[work] for work in by_company[company]]
        return cut

    def _microbatch(self, works: Sequence[Work]) -> None:
        ours = jobs.enter(self._db, self._session.id, self._session.held([work.job_id for work in works]), len(works))
        left = {work.job_id: work for work in works if work.job_id in ours and self._session.wanted(work.job_id)}
        if not left:
            return
        meter = _Meter(len(left))
        steps = Steps(self._session, left, {id_: self._by_id[id_].timeout_s for id_ in left})
        together = len(left)
        try:
            for outcome in self._resident.generator.generate(list(left.values()), steps):
                del left[outcome.job_id]
                self._hand_over(outcome, meter.share())
        except Unwanted:
            pass
        except (Stopping, SessionLost, Unavailable, FinisherBroken):
            raise
        except Exception as error:  # noqa: BLE001 - a generator's defect is the job's failure, with its traceback
            self._broken(error, [work for id_, work in left.items() if id_ not in steps.late], together, meter)
        for id_ in sorted(steps.late & set(left)):
            message = f"it was not done {self._by_id[id_].timeout_s:g} s after it began (timeout_s)"
            self._hand_over(Failed(id_, JobFailed("timed_out", message, retryable=True)), meter.share())

    def _broken(self, error: Exception, rest: list[Work], together: int, meter: _Meter) -> None:
        """Nobody knows which job it was, unless there was but one."""
        if together == 1:
            for work in rest:
                self._hand_over(Failed(work.job_id, _explained(error)), meter.share())
            return
        log.warning("a microbatch of %d failed (%s); trying the %d left in halves", together, error, len(rest))
        half = (len(rest) + 1) // 2
        for part in (rest[:half], rest[half:]):
            if part:
                self._microbatch(part)

    def _hand_over(self, outcome: Outcome, device_s: float) -> None:
        self._finisher.put(Finished(self._by_id[outcome.job_id], outcome, device_s, self._record))


def _explained(error: Exception) -> JobFailed:
    """A generator's exception as the end of an attempt; the traceback goes to the log."""
    if isinstance(error, JobFailed):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return JobFailed("out_of_memory", f"not even alone does this job fit into memory: {error}", retryable=True)
    log.error("a generator failed:\n%s", "".join(traceback.format_exception(error)))
    return JobFailed("generator_error", f"{type(error).__name__}: {error}", retryable=True)
