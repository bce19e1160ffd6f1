"""The worker's loop: claim a window of one lane → have its model → cut microbatches → generate → hand over.

One `Worker` lives in one process and owns its device. `drain` is called by the Celery task, and by the idle look of a
worker that nobody woke; it returns when nothing is left to claim, or when told to stop.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, select

from shared import jobs
from shared.database import Database, now
from shared.errors import JobFailed, RequestError, Unavailable
from shared.jobs import ClaimedJob, SessionLost
from shared.scheduling import Waiting, choose, window
from shared.settings import Settings
from shared.storage import open_storage
from shared.tables import backlog, batches, lanes, worker_sessions
from shared.tasks import get_task
from workers.finisher import Finished, Finisher, FinisherBroken
from workers.generators import Device, Failed, Outcome, Work
from workers.residency import Residency, Resident
from workers.session import Session, Stopping, Unwanted

log = logging.getLogger("aigc.worker")

#: a lane whose model is in memory is preferred until something else has waited this long
AGE_BOUND_S = 30.0
#: estimated seconds of work that one claim takes at most
WINDOW_S = 600.0
#: claims in a row that may find nothing although work was announced, before the loop rests
EMPTY_CLAIMS = 3


class Worker:
    """Runs the jobs of its queues on one device."""

    def __init__(self, settings: Settings, *, device: str, queues: Sequence[str]) -> None:
        """Opens a session at once, so that the cluster knows of this worker. Raises `Unavailable`."""
        self._settings = settings
        self._device_label = device
        self._queues = list(queues)
        self._db = Database(settings)
        self._storage = open_storage(settings)
        self._residency = Residency(settings, lambda: pinned_device(settings))
        self._busy = threading.Lock()
        self._stop_within: float | None = None
        self._hold_until = 0.0
        self._session = self._new_session()
        self._finisher = self._new_finisher()

    def _new_session(self) -> Session:
        return Session(self._settings, self._db, device=self._device_label, queues=self._queues)

    def _new_finisher(self) -> Finisher:
        return Finisher(
            self._session,
            self._db,
            lambda: self._storage,
            self._storage_failed,
            retry_after_s=self._settings.idle_look_s,
        )

    @property
    def session_id(self) -> str:
        """Id of the session in force."""
        return self._session.id

    # --- from outside ---

    def drain(self) -> int:
        """Run everything that can be claimed; returns how many jobs were taken. One caller at a time, others wait."""
        taken = 0
        with self._busy:
            empty = 0
            while not self._session.stopping and time.monotonic() >= self._hold_until and empty < EMPTY_CLAIMS:
                try:
                    self._give_back(self._session.all_held(), "left over when the database did not answer")
                    claimed = self._claim()
                    if claimed is None:
                        break
                    empty = 0 if claimed else empty + 1
                    taken += len(claimed)
                    self._run(claimed)
                except SessionLost:
                    self._begin_anew()
                except Unavailable as error:
                    log.error("%s; nothing is claimed until it answers", error)
                    self._hold_until = time.monotonic() + self._settings.idle_look_s
                except FinisherBroken:
                    log.exception("a defect of ours; what was in hand goes back, and this worker begins anew")
                    self._begin_anew()
        return taken

    def idle_look(self) -> None:
        """Drain, unless that is going on already: finds work whose message was lost, and a storage that is back."""
        if self._busy.locked() or self._stop_within is not None:
            return
        if self._session.lost:
            with self._busy:
                self._begin_anew()
        if self._hold_until and time.monotonic() >= self._hold_until:
            try:
                self._storage = open_storage(self._settings)  # afresh: a disk may have come back elsewhere
                self._storage.check()
            except Unavailable as error:
                self._storage_failed(error)
                return
            self._hold_until = 0.0
            self._session.say("storage", None)
        self.drain()

    def ask_to_stop(self, within_s: float | None = None) -> None:
        """Claim nothing more; finish or give back what is held within so many seconds (default: the grace period)."""
        self._stop_within = self._settings.grace_s if within_s is None else within_s
        # The finisher and the parent need a moment of the grace period for themselves.
        self._session.ask_to_stop(max(0.0, self._stop_within - 2.0) if self._stop_within > 4 else self._stop_within / 2)

    def close(self) -> None:
        """End the session in good order."""
        self._finisher.close()
        self._session.close()
        self._residency.clear()
        self._db.dispose()

    # --- one window ---

    def _claim(self) -> list[ClaimedJob] | None:
        """The next window of jobs; None if nothing waits, empty if others were faster."""
        waiting, workers, clock = self._look()
        lane = choose(waiting, self._residency.models, clock, age_bound_s=AGE_BOUND_S)
        if lane is None:
            return None
        claimed = jobs.claim(
            self._db,
            session=self._session.id,
            lane_id=lane.lane_id,
            priority=lane.priority,
            limit=window(lane.ready, workers, self._settings.microbatch),
            window_s=WINDOW_S,
        )
        self._session.hold(claimed)
        return claimed

    def _look(self) -> tuple[list[Waiting], int, float]:
        """What waits in our queues, how many workers are alive, and what time it is."""
        statement = (
            select(
                backlog.c.lane_id,
                lanes.c.task,
                lanes.c.model,
                backlog.c.priority,
                func.min(backlog.c.opened_at).label("oldest"),
                func.sum(backlog.c.ready).label("ready"),
            )
            .join(lanes, lanes.c.id == backlog.c.lane_id)
            .join(batches, batches.c.id == backlog.c.batch_id)
            .where(backlog.c.ready > 0, batches.c.cancelled_at.is_(None), lanes.c.queue.in_(self._queues))
            .group_by(backlog.c.lane_id, lanes.c.task, lanes.c.model, backlog.c.priority)
        )
        alive = select(func.count()).where(
            worker_sessions.c.ended_at.is_(None), worker_sessions.c.lease_expires_at > now()
        )
        with self._db.read() as connection:
            clock, workers = connection.execute(select(now(), alive.scalar_subquery())).one()
            waiting = [
                Waiting(row.lane_id, row.task, row.model, row.priority, row.oldest, int(row.ready))
                for row in connection.execute(statement)
            ]
        return waiting, int(workers), float(clock)

    def _run(self, claimed: Sequence[ClaimedJob]) -> None:
        """Take a window through the model; whatever ends it early, nothing of it stays in our hands."""
        if not claimed:
            return
        try:
            resident = self._residency.get(claimed[0].task, claimed[0].model)
            self._session.say("models", sorted(self._residency.models))
            works = self._works(claimed, resident)
            by_id = {job.id: job for job in claimed}
            for microbatch in _microbatches(resident, works, by_id, self._settings.microbatch):
                if self._session.stopping:
                    break
                self._microbatch(resident, microbatch, by_id)
        except JobFailed as error:
            self._session.say("set_aside", self._residency.set_aside or None)
            self._fail(claimed, error)
        except Stopping:
            log.info("stopping: giving back what is not finished")
        finally:
            self._finisher.flush()
            held = self._session.held([job.id for job in claimed])
            self._give_back(held, "the worker stopped, or the job was no longer wanted")

    def _works(self, claimed: Sequence[ClaimedJob], resident: Resident) -> list[Work]:
        params = get_task(claimed[0].task).params
        works = []
        for job in claimed:
            try:
                parsed = params.model_validate_json(job.params_json)
            except ValidationError as error:
                message = f"its params are not understood by this version of the worker: {error}"
                self._hand_over(job, Failed(job.id, JobFailed("params_invalid", message)), 0.0, resident)
                continue
            works.append(Work(job.id, job.task, parsed, job.seed, job.custom_id))
        return works

    def _microbatch(self, resident: Resident, works: Sequence[Work], by_id: dict[str, ClaimedJob]) -> None:
        """Run one microbatch; one that breaks is cut in halves until it is known which job breaks it."""
        ours = jobs.enter(self._db, self._session.id, self._session.held([work.job_id for work in works]), len(works))
        works = [work for work in works if work.job_id in ours and self._session.wanted(work.job_id)]
        if not works:
            return
        left = {work.job_id: work for work in works}
        started = time.monotonic()
        steps = _Steps(self._session, {work.job_id: by_id[work.job_id].timeout_s for work in works}, started)
        try:
            for outcome in resident.generator.generate(works, steps):
                job = by_id[outcome.job_id]
                del left[outcome.job_id]
                self._hand_over(job, outcome, (time.monotonic() - started) / len(works), resident)
        except Unwanted:
            pass
        except (Stopping, SessionLost, Unavailable, FinisherBroken):
            raise
        except Exception as error:  # noqa: BLE001 - a generator's defect is the job's failure, with its traceback
            rest = list(left.values())
            if len(works) == 1:
                self._hand_over(
                    by_id[works[0].job_id],
                    Failed(works[0].job_id, _explained(error)),
                    time.monotonic() - started,
                    resident,
                )
                return
            log.warning("a microbatch of %d failed (%s); trying its %d jobs in halves", len(works), error, len(rest))
            half = max(1, (len(rest) + 1) // 2)
            for part in (rest[:half], rest[half:]):
                if part:
                    self._microbatch(resident, part, by_id)
        for id_ in steps.late & set(left):
            message = f"it was not done {by_id[id_].timeout_s:g} s after it began (timeout_s)"
            late = JobFailed("timed_out", message, retryable=True)
            self._hand_over(by_id[id_], Failed(id_, late), time.monotonic() - started, resident)

    def _hand_over(self, job: ClaimedJob, outcome: Outcome, device_s: float, resident: Resident) -> None:
        device = pinned_device(self._settings) if resident.files else Device("cpu", "float32")
        record: dict[str, Any] = {
            "generator": type(resident.generator).__qualname__,
            "generator_version": resident.generator.version,
            "device": device.name,
        }
        if resident.files:
            record |= {"model": resident.files.ref, "revision": resident.files.revision, "dtype": device.dtype}
        self._finisher.put(Finished(job, outcome, device_s, record))

    def _fail(self, claimed: Sequence[ClaimedJob], error: JobFailed) -> None:
        failures = [jobs.Failure(job.id, job.epoch, error.code, error.message, error.retryable) for job in claimed]
        jobs.fail(self._db, self._session.id, failures)
        self._session.release(job.id for job in claimed)

    def _give_back(self, held: Sequence[tuple[str, int]], reason: str) -> None:
        if held and not self._session.lost:
            jobs.give_back(self._db, self._session.id, held, reason)
        self._session.release(id_ for id_, _ in held)

    # --- trouble ---

    def _storage_failed(self, error: Unavailable) -> None:
        self._session.say("storage", str(error))
        self._hold_until = time.monotonic() + self._settings.idle_look_s

    def _begin_anew(self) -> None:
        self._session.close()
        self._finisher.close()
        self._session = self._new_session()
        self._finisher = self._new_finisher()
        if self._stop_within is not None:
            self._session.ask_to_stop(0.0)


@dataclass(slots=True)
class _Steps:
    """What a generator sees of the engine: the port `Run`."""

    session: Session
    #: seconds that each job may take in the model, if it has a limit
    limits: dict[str, float | None]
    started: float
    #: jobs that took longer
    late: set[str] = field(default_factory=set)

    def step(self, job_ids: Sequence[str], done: int, total: int) -> None:
        self.session.progressed(job_ids, min(1.0, done / max(1, total)))
        spent = time.monotonic() - self.started
        self.late.update(id_ for id_, limit in self.limits.items() if limit is not None and spent > limit)
        self.session.check([id_ for id_ in job_ids if id_ not in self.late])

    def wanted(self, job_id: str) -> bool:
        return job_id not in self.late and self.session.wanted(job_id)


def _microbatches(
    resident: Resident, works: Sequence[Work], by_id: dict[str, ClaimedJob], limit: int
) -> list[list[Work]]:
    """Jobs that were in a microbatch when a worker died may meet only so many others: first the rest, then they."""
    by_company: dict[int, list[Work]] = {}
    for work in works:
        allowed = by_id[work.job_id].max_company
        by_company.setdefault(limit if allowed is None else min(limit, allowed), []).append(work)
    return [
        microbatch
        for company in sorted(by_company, reverse=True)
        for microbatch in resident.generator.cut(by_company[company], company)
    ]


def _explained(error: Exception) -> JobFailed:
    """A generator's exception as the end of an attempt; the traceback goes to the log."""
    if isinstance(error, JobFailed):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return JobFailed("out_of_memory", f"not even alone does this job fit into memory: {error}", retryable=True)
    log.error("a generator failed:\n%s", "".join(traceback.format_exception(error)))
    return JobFailed("generator_error", f"{type(error).__name__}: {error}", retryable=True)


def pinned_device(settings: Settings) -> Device:
    """The device of this process. Imports torch; raises `RequestError` if CUDA was asked for and is not there."""
    if settings.device == "cpu":
        return Device("cpu", "float32")
    import torch

    if torch.cuda.is_available():
        return Device("cuda:0", settings.dtype)
    if settings.device == "cuda":
        raise RequestError("AIGC_DEVICE=cuda, and torch sees no GPU: install a CUDA build of torch, or set it to cpu")
    return Device("cpu", "float32")
