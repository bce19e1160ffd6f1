"""A window of claimed jobs on its way through the model: cut into microbatches, generate, hand over.

Whatever one job does, its neighbours are unharmed: a microbatch that breaks is cut in halves until it is known which
job breaks it, and each job has its own clock.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Hashable, Sequence
from typing import Any

from pydantic import ValidationError

from shared import jobs
from shared.errors import JobFailed, Unavailable
from shared.jobs import ClaimedJob, SessionLost
from shared.tasks import get_task
from workers.checkpoints import with_checkpoints
from workers.finisher import Finished, FinisherBroken
from workers.generators import Device, Failed, Outcome, Work
from workers.pinned import free_cached, out_of_memory
from workers.residency import Resident
from workers.session import Stopping, Unwanted
from workers.steps import Steps, Surroundings

log = logging.getLogger("aigc.worker")


class DeviceBroken(Exception):
    """The device does nothing more for this process, whatever is asked of it: only a new process helps."""


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

    def __init__(self, around: Surroundings, resident: Resident, device: Device) -> None:
        """`device` is where the model computes, for the record."""
        self._around = around
        self._session = around.session
        self._resident = resident
        self._device = device
        self._maker: dict[str, Any] = {
            "generator": type(resident.generator).__qualname__,
            "generator_version": resident.generator.version,
        }
        if resident.files:
            self._maker |= {"model": resident.files.ref, "revision": resident.files.revision, "dtype": device.dtype}
        self._record = {**self._maker, "device": device.name}
        self._by_id: dict[str, ClaimedJob] = {}

    def run(self, claimed: Sequence[ClaimedJob], microbatch: int) -> None:
        """Take every job through the model, unless told to stop; what has no outcome stays in the session's hands."""
        self._by_id = {job.id: job for job in claimed}
        for works in self._microbatches(self._works(claimed), microbatch):
            if self._session.stopping or self._around.worn_out():
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
                for part in self._resident.generator.cut(by_company[company], company):
                    cut += self._fitting(part)
            except Exception:
                log.exception("%s cannot be cut into microbatches; each job runs alone", self._record["generator"])
                cut += [[work] for work in by_company[company]]
        return cut

    def _fitting(self, works: Sequence[Work]) -> list[list[Work]]:
        """The same microbatch in parts that are known to fit into memory."""
        most = self._around.ceilings.limit(self._kind(works), len(works))
        return [list(works[start : start + most]) for start in range(0, len(works), most)]

    def _kind(self, works: Sequence[Work]) -> Hashable:
        """What decides, beside their number, how much memory these jobs take."""
        try:
            shape = self._resident.generator.shape(works)
        except Exception:
            log.exception("%s cannot tell the shape of a microbatch", self._record["generator"])
            shape = ()
        return (works[0].task, self._record.get("model"), shape)

    def _microbatch(self, works: Sequence[Work]) -> None:
        around = self._around
        if self._resident.generator.resumes:
            works = with_checkpoints(works, around, self._maker)
        held = self._session.held([work.job_id for work in works])
        ours = jobs.enter(around.db, self._session.id, held, len(works))
        left = {work.job_id: work for work in works if work.job_id in ours and self._session.wanted(work.job_id)}
        if not left:
            return
        meter = _Meter(len(left))
        steps = Steps(around, left, self._by_id, self._maker)
        together = list(left.values())
        broken: Exception | None = None
        fitted = True
        steps.begin()
        try:
            for outcome in self._resident.generator.generate(together, steps):
                del left[outcome.job_id]
                self._hand_over(outcome, meter.share())
                steps.settled(outcome.job_id)
        except Unwanted:
            fitted = False
        except (Stopping, SessionLost, Unavailable, FinisherBroken):
            raise
        except Exception as error:  # noqa: BLE001 - a generator's defect is the job's failure, with its traceback
            broken = error
        finally:
            around.pulse.rest()
        if broken is None:
            if fitted:
                around.ceilings.fitted(self._kind(together), len(together))
        else:
            self._broken(broken, [work for id_, work in left.items() if id_ not in steps.late], together, meter)
        for id_ in sorted(steps.late & set(left)):
            message = f"it was not done {self._by_id[id_].timeout_s:g} s after it began (timeout_s)"
            self._hand_over(Failed(id_, JobFailed("timed_out", message, retryable=True)), meter.share())

    def _broken(self, error: Exception, rest: list[Work], together: Sequence[Work], meter: _Meter) -> None:
        """Nobody knows which job it was, unless there was but one."""
        if _device_is_broken(error):
            raise DeviceBroken(str(error)) from error
        if len(together) == 1:
            for work in rest:
                self._hand_over(Failed(work.job_id, _explained(error)), meter.share())
            return
        log.warning("a microbatch of %d failed (%s); trying the %d left in halves", len(together), error, len(rest))
        if out_of_memory(error):
            self._around.ceilings.ran_out(self._kind(together), len(together))
        # The frames of the failure hold what it had in memory, and the halves need the room.
        traceback.clear_frames(error.__traceback__)
        free_cached(self._device.name)
        half = (len(rest) + 1) // 2
        for part in (rest[:half], rest[half:]):
            if part:
                self._microbatch(part)

    def _hand_over(self, outcome: Outcome, device_s: float) -> None:
        self._around.finisher.put(Finished(self._by_id[outcome.job_id], outcome, device_s, self._record))


def _device_is_broken(error: Exception) -> bool:
    """After an error of this kind CUDA refuses every call of the process (CUDA's "sticky" errors)."""
    return str(error).startswith(("CUDA error:", "HIP error:")) and not out_of_memory(error)


def _explained(error: Exception) -> JobFailed:
    """A generator's exception as the end of an attempt; the traceback goes to the log."""
    if isinstance(error, JobFailed):
        return error
    if out_of_memory(error):
        return JobFailed("out_of_memory", f"not even alone does this job fit into memory: {error}", retryable=True)
    log.error("a generator failed:\n%s", "".join(traceback.format_exception(error)))
    return JobFailed("generator_error", f"{type(error).__name__}: {error}", retryable=True)
