"""A window of claimed jobs on its way through the model: cut into microbatches, generate, hand over.

Whatever one job does, its neighbours are unharmed: a microbatch that breaks is cut in halves until it is known which
job breaks it, and each job has its own clock.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from shared import jobs
from shared.errors import JobFailed, Unavailable
from shared.jobs import ClaimedJob, SessionLost
from shared.tasks import Params, get_task
from workers.checkpoints import with_checkpoints
from workers.claims import Taken
from workers.finisher import Finished, FinisherBroken
from workers.generators import Device, Done, Failed, Generator, ModelFiles, NotNow, Outcome, Work
from workers.made_before import yet_to_make
from workers.meter import Meter
from workers.pinned import PeakMemory, free_cached, out_of_memory
from workers.pool import Pool
from workers.residency import Resident
from workers.session import Stopping, Unwanted
from workers.steps import Steps, Surroundings, timed_out
from workers.stream import Stream

log = logging.getLogger("aigc.worker")


#: so many microbatches of a lane are gathered before smaller ones are run than could be
AHEAD = 4


class DeviceBroken(Exception):
    """The device does nothing more for this process, whatever is asked of it: only a new process helps."""


class Window:
    """The jobs of one claim, and the model that runs them."""

    def __init__(
        self, around: Surroundings, resident: Resident, device: Device, beside: Mapping[str, ModelFiles] | None = None
    ) -> None:
        """`device` is where the model computes, for the record; `beside` is what the jobs of this lane name with it."""
        self._beside = beside or {}
        self._around = around
        self._session = around.session
        self._resident = resident
        self._generator = resident.generator
        self._device = device
        self._maker: dict[str, Any] = {
            "generator": type(resident.generator).__qualname__,
            "generator_version": resident.generator.version,
        }
        if resident.files:
            self._maker |= {"model": resident.files.ref, "revision": resident.files.revision}
        if resident.files and device.dtype:
            self._maker["dtype"] = resident.files.memory.numbers(device.name, device.dtype)
        if self._beside:
            self._maker["adapters"] = {name: files.revision for name, files in sorted(self._beside.items())}
        self._record = {**self._maker, "device": device.name}
        if resident.files and resident.files.stands_for:
            self._record["stands_for"] = resident.files.stands_for
        self._most = self._generator.microbatch or around.microbatch
        self._may_stream = type(self._generator).streams is not Generator.streams
        #: jobs that have no outcome
        self._by_id: dict[str, ClaimedJob] = {}
        #: a job that entered the model with its claim, and has not been run since
        self._entered = ""

    def unfinished(self) -> list[str]:
        """Jobs of this window, and of those that joined it, that have no outcome."""
        return list(self._by_id)

    def run(self, taken: Taken) -> None:
        """Take every job through the model, unless told to stop; what has no outcome stays in the session's hands.

        Jobs of the same lane that are claimed meanwhile join.
        """
        lane = (taken.lane_id, taken.priority)
        self._entered = next((job.id for job in taken.jobs if job.entered), "")
        works = self._works(taken.jobs)
        together = deque(work for work in works if self._streams(work))
        if len(together) < len(works):
            alone = [work for work in works if not self._streams(work)] if together else works
            self._in_microbatches(alone, lane, more=taken.full and not together)
        while together and not self._ending():
            together, aside = self._in_stream(together, lane)
            self._in_microbatches(aside, lane, more=False)

    def _ending(self) -> bool:
        return self._session.stopping or self._around.worn_out()

    def _works(self, claimed: Sequence[ClaimedJob]) -> list[Work]:
        """What the generator sees of these jobs, which belong to this window from now on."""
        self._by_id.update((job.id, job) for job in claimed)
        works, params = list[Work](), get_task(claimed[0].task).params if claimed else Params
        ours = yet_to_make(self._around.db, self._session, claimed, self._record)
        for id_ in {job.id for job in claimed} - {job.id for job in ours}:
            del self._by_id[id_]
        for job in ours:
            try:
                parsed = params.model_validate_json(job.params_json)
            except ValidationError as error:
                message = f"its params are not understood by this version of the worker: {error}"
                self._hand_over(Failed(job.id, JobFailed("params_invalid", message)), 0.0)
                continue
            try:
                files = self._around.inputs.of(job.id, self._session.check)
            except JobFailed as error:
                self._hand_over(Failed(job.id, error), 0.0)
                continue
            works.append(Work(job.id, job.task, parsed, job.seed, job.custom_id, inputs=files, adapters=self._beside))
        return works

    # --- in a stream ---

    def _streams(self, work: Work) -> bool:
        """Whether this job can be in a stream: with its generator, and in the company that it may have."""
        if not self._may_stream:
            return False
        allowed = self._by_id[work.job_id].max_company
        return (allowed is None or allowed >= self._room()) and self._generator.streams(work)

    def _room(self) -> int:
        room = self._generator.room() or self._most
        return self._around.ceilings.limit(self._stream_kind(), room)

    def _stream_kind(self) -> Hashable:
        return ("stream", self._maker["generator"], self._record.get("model"))

    def _in_stream(self, works: deque[Work], lane: tuple[int, int]) -> tuple[deque[Work], list[Work]]:
        """Run one stream to its end; returns what has yet to go through a stream, and what has to go another way."""
        steps = Steps(self._around, {}, self._by_id, self._maker, streaming=True)
        stream = Stream(
            self._around, steps, works, lane, self._room(), self._works, self._streams, self._hand_over, self._let_go
        )
        broken: Exception | None = None
        try:
            first = stream.take(self._room())
            if first:
                for outcome in self._generator.stream(first, stream, steps):
                    stream.ended(outcome)
        except (Stopping, SessionLost, Unavailable, FinisherBroken, NotNow):
            raise
        except Exception as error:  # noqa: BLE001 - nobody knows whose it was: each goes the other way
            broken = error
        finally:
            self._around.pulse.rest()
            stream.close()
        at_hand, aside = stream.at_hand()
        self._let_go(stream.unwanted)
        if broken is None:
            self._around.ceilings.fitted(self._stream_kind(), stream.most)
            self._too_late(steps)
            self._let_go(steps.left)
            return at_hand, aside
        left = list(steps.left.values())
        self._fell_apart(broken, self._stream_kind(), left, stream.most)
        self._in_halves([work for work in left if work.job_id not in steps.late])
        self._too_late(steps)
        return (at_hand, aside) if stream.settled else (deque(), [*at_hand, *aside])

    # --- in microbatches ---

    def _in_microbatches(self, works: Sequence[Work], lane: tuple[int, int], *, more: bool) -> None:
        """Run the fullest microbatch that can be cut of what is there, while more is claimed for the next one.

        `more`: ready jobs of the lane were left over, and nothing else of this window comes after these. A job that was
        passed over too often is in the next microbatch, however small that is.
        """
        pool, ahead = Pool(works), self._around.ahead
        while pool and not self._ending():
            if self._session.any_unwanted and (unwanted := pool.sort_out(self._session.wanted)):
                self._let_go(unwanted)
                continue
            part, full = pool.fullest(self._cut, self._fitting)
            if more and not full and len(pool) < AHEAD * self._most:
                more = self._join(pool, lane)
                continue
            pool.remove(part)
            if more and not pool.fullest(self._cut, self._fitting)[1]:
                ahead.begin(only=lane if pool else None)
            self._microbatch(part)
            if pool and ahead.going:
                more = self._join(pool, lane)

    def _join(self, pool: Pool, lane: tuple[int, int]) -> bool:
        """Add jobs of the lane if a whole microbatch is ready and it is its turn; whether more of them are left."""
        taken = self._around.ahead.next(only=lane, full=True)
        if taken is None or not taken.jobs:
            return False
        pool.add(self._works(taken.jobs))
        return taken.full

    def _cut(self, works: Sequence[Work]) -> list[list[Work]]:
        """Jobs that were in a microbatch when a worker died may meet only so many others: first the rest, then they."""
        by_company: dict[int, list[Work]] = {}
        for work in works:
            allowed = self._by_id[work.job_id].max_company
            by_company.setdefault(self._most if allowed is None else min(self._most, allowed), []).append(work)
        cut: list[list[Work]] = []
        for company in sorted(by_company, reverse=True):
            try:
                cut += (list(part) for part in self._generator.cut(by_company[company], company))
            except Exception:
                log.exception("%s cannot be cut into microbatches; each job runs alone", self._record["generator"])
                cut += [[work] for work in by_company[company]]
        return cut

    def _fitting(self, works: Sequence[Work]) -> int:
        """How many of these to run together: what fits into memory, and what is worth it."""
        kind = self._kind(works)
        most = min(self._most, *(self._by_id[work.job_id].max_company or self._most for work in works))
        try:
            most = max(1, min(most, self._generator.most(works, most)))
        except Exception:
            log.exception("%s cannot tell how many jobs it puts together", self._record["generator"])
        return min(self._around.ceilings.limit(kind, most), self._around.costs.suggested(kind, self._most), most)

    def _kind(self, works: Sequence[Work]) -> Hashable:
        """What decides, beside their number, how much memory and time these jobs take."""
        try:
            shape = self._generator.shape(works)
        except Exception:
            log.exception("%s cannot tell the shape of a microbatch", self._record["generator"])
            shape = ()
        return (works[0].task, self._record.get("model"), shape)

    def _microbatch(self, works: Sequence[Work]) -> None:
        around, began = self._around, time.monotonic()
        if self._generator.resumes and not self._is_first_run(works):
            works = with_checkpoints(works, around, self._maker)
        ours = self._enter(works)
        left = {work.job_id: work for work in works if work.job_id in ours and self._session.wanted(work.job_id)}
        self._let_go([work.job_id for work in works if work.job_id not in left])
        if not left:
            return
        meter, peak, entered_s = Meter(), PeakMemory(self._device.name), time.monotonic() - began
        meter.join(left)
        steps = Steps(around, left, self._by_id, self._maker)
        first, estimated = self._by_id[works[0].job_id], sum(self._by_id[id_].cost for id_ in left)
        together = list(left.values())
        broken: Exception | None = None
        undisturbed = True
        steps.begin()
        try:
            for outcome in self._generator.generate(together, steps):
                del left[outcome.job_id]
                undisturbed = undisturbed and isinstance(outcome, Done)
                spent = meter.leave(outcome.job_id)
                self._hand_over(outcome, spent)
                meter.go_on()  # it may have had to wait for the finisher
                steps.settled(outcome.job_id)
        except Unwanted:
            undisturbed = False
        except (Stopping, SessionLost, Unavailable, FinisherBroken, NotNow):
            raise
        except Exception as error:  # noqa: BLE001 - a generator's defect is the job's failure, with its traceback
            broken = error
        finally:
            around.pulse.rest()
        if broken is None:
            if undisturbed and not left:
                self._learn(together, entered_s, meter.spent, peak)
                around.costs.spent(first.task, first.model, estimated, meter.spent)
        else:
            self._broken(broken, [work for id_, work in left.items() if id_ not in steps.late], together, meter)
        self._too_late(steps, meter)
        self._let_go([id_ for id_ in left if id_ in self._by_id])

    def _enter(self, works: Sequence[Work]) -> set[str]:
        """Which of these jobs are in the model now, together; the others are not ours any more."""
        entered, self._entered = self._entered, ""
        if len(works) == 1 and works[0].job_id == entered:
            return {entered}
        held = self._session.held([work.job_id for work in works])
        return jobs.enter(self._around.db, self._session.id, held, len(works))

    def _is_first_run(self, works: Sequence[Work]) -> bool:
        """Whether this is one job that entered with the first claim that it ever had: it cannot have a checkpoint."""
        return works[0].job_id == self._entered and self._by_id[self._entered].epoch == 1

    def _let_go(self, ids: Iterable[str]) -> None:
        """Jobs that will have no outcome here go back now: this window may go on for hours."""
        held = self._session.held(id_ for id_ in list(ids) if id_ in self._by_id)
        if held and not self._session.lost:
            reason = "it left the model without an outcome: it was no longer wanted"
            jobs.give_back(self._around.db, self._session.id, held, reason)
        for id_, _ in held:
            del self._by_id[id_]
        self._session.release(id_ for id_, _ in held)

    def _learn(self, together: Sequence[Work], entered_s: float, spent: float, peak: PeakMemory) -> None:
        """What this microbatch took, the way into the model included, decides on the size of those that follow."""
        kind, n = self._kind(together), len(together)
        self._around.ceilings.fitted(kind, n)
        if (measured := peak.measured()) is not None:
            self._around.ceilings.measured(kind, n, *measured)
        self._around.costs.measured(kind, n, entered_s + spent)

    def _too_late(self, steps: Steps, meter: Meter | None = None) -> None:
        for id_ in sorted(steps.late & set(steps.left)):
            self._hand_over(timed_out(self._by_id[id_]), meter.leave(id_) if meter else 0.0)

    # --- trouble ---

    def _broken(self, error: Exception, rest: list[Work], together: Sequence[Work], meter: Meter) -> None:
        """Nobody knows which job it was, unless there was but one."""
        if len(together) == 1 and not _device_is_broken(error):
            for work in rest:
                self._hand_over(Failed(work.job_id, _explained(error)), meter.leave(work.job_id))
            return
        self._fell_apart(error, self._kind(together), rest, len(together))
        self._in_halves(rest)

    def _fell_apart(self, error: Exception, kind: Hashable, rest: Sequence[Work], met: int) -> None:
        """Jobs failed together: note why, and make room for another try. Raises `DeviceBroken` if none is of use."""
        if _device_is_broken(error):
            raise DeviceBroken(str(error)) from error
        log.warning("%d jobs failed together (%s); trying the %d left in halves", met, error, len(rest))
        if out_of_memory(error):
            self._around.ceilings.ran_out(kind, met)
        # The frames of the failure hold what it had in memory, and the halves need the room.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        free_cached(self._device.name)

    def _in_halves(self, rest: Sequence[Work]) -> None:
        half = (len(rest) + 1) // 2
        for part in (rest[:half], rest[half:]):
            if part:
                self._microbatch(part)

    def _hand_over(self, outcome: Outcome, device_s: float) -> None:
        job = self._by_id.pop(outcome.job_id)
        self._around.finisher.put(Finished(job, outcome, device_s, self._record))


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
