"""Room two of a job's life: claim a window of one lane → have its model → run it → hand it over, until nothing is left.

One `Worker` lives in one process and owns its device. `drain` is called by the Celery task, and by the idle look of a
worker that nobody woke; it returns when nothing is left to claim, or when told to stop. Trouble with a part of the
system ends no process: claims rest, for longer each time, until the part answers.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil

from shared import jobs
from shared.database import Database
from shared.errors import AigcError, JobFailed, Unavailable
from shared.jobs import ClaimedJob, SessionLost
from shared.settings import Settings
from shared.storage import Storage, open_storage
from workers.ahead import Ahead
from workers.ceilings import Ceilings
from workers.claims import Claims, Taken
from workers.costs import Costs
from workers.depot import Depot
from workers.finisher import Finisher, FinisherBroken
from workers.footprint import capacity
from workers.generators import Device, NotNow
from workers.inputs import Inputs
from workers.memory import Growth
from workers.operator_models import OperatorModels, leave_word
from workers.pinned import pinned_device
from workers.pulse import Pulse
from workers.residency import Residency, SetAside
from workers.rest import Rest
from workers.session import Session, Stopping
from workers.steps import Surroundings
from workers.window import DeviceBroken, Window

log = logging.getLogger("aigc.worker")

#: seconds after which a worker that leaves jobs alone for a while looks at them again
LOOK_AGAIN_S = 0.25
#: exit status of a process whose device does nothing more for it
DEVICE_BROKEN_STATUS = 70


class Worker:
    """Runs the jobs of its queues on one device."""

    def __init__(
        self,
        settings: Settings,
        *,
        device: str,
        queues: Sequence[str],
        on_drain: Callable[[], None] | None = None,
        abort: Callable[[int], None] = os._exit,
    ) -> None:
        """Connects to nothing yet: a part that is away when a worker starts is waited for like any other time.

        `on_drain` is called when an operator wants this worker to end (default: it asks itself to stop); `abort` ends
        the process at once, with a status, when nothing good can come of it any more. Raises `RequestError` if the
        operator's `models.toml` is wrong.
        """
        self._settings = settings
        self._device_label = device
        self._queues = list(queues)
        self._on_drain = on_drain or self.ask_to_stop
        self._abort = abort
        self._db = Database(settings)
        self._pulse = Pulse(settings.pulse_file) if settings.pulse_file else Pulse.private()
        self._pulse.begin()
        self._busy = threading.Lock()
        self._stop_at: float | None = None
        self._unserved_since: float | None = None
        # The storage has a rest of its own: only a result that was stored shows that it is well.
        self._rest, self._storage_rest = Rest(settings.idle_look_s), Rest(settings.idle_look_s)
        self._depot = Depot(self._open_storage, pause_s=settings.idle_look_s)
        self._session: Session | None = None
        self._finisher: Finisher | None = None
        self._ahead: Ahead | None = None
        #: whether trouble may have left something in our hands that nobody works on
        self._untidy = False
        self._device: Device | None = None
        self._inputs = Inputs(settings, self._db, self._depot)
        self._models = OperatorModels(settings)
        self._residency = Residency(settings, self._pinned, self._models)
        self._ceilings, self._costs = Ceilings(), Costs()
        self._claims = Claims(self._db, settings, queues, self._costs.seconds)
        self._growth = Growth(settings.memory_growth_mb * 2**20)
        #: whether this process should end in good order for a new one to take its place
        self.worn_out = False

    @property
    def session_id(self) -> str | None:
        """Id of the session in force, if there is one."""
        return self._session.id if self._session else None

    # --- from outside ---

    def drain(self) -> int:
        """Run everything that can be claimed; returns how many jobs were taken. One caller at a time, others wait."""
        taken = 0
        with self._busy:
            self._claims.begin()
            while not self._ending and not self._resting:
                try:
                    claimed = self._claim(*self._ready())
                    self._rest.end()
                    if claimed is None:
                        if not self._claims.leaves_some:
                            break
                        time.sleep(LOOK_AGAIN_S)
                        continue
                    taken += len(claimed)
                    continue
                except SessionLost:
                    log.warning("what was in hand belongs to others now; this worker begins anew")
                except Unavailable as error:
                    self._failed(error)
                except AigcError as error:
                    log.error("%s", error)
                    self._rest.begin()
                except DeviceBroken as error:
                    log.critical("the device is broken for this process, a new one is needed: %s", error)
                    self._abort(DEVICE_BROKEN_STATUS)
                    self.worn_out = True
                except FinisherBroken:
                    log.exception("a defect of ours; what was in hand goes back, and this worker begins anew")
                    self._rest.begin()
                except BaseException:
                    self._untidy = True
                    raise
                self._untidy = True
            self._settle()
        return taken

    def idle_look(self) -> None:
        """Drain, unless that is going on already: finds work whose message was lost, and parts that are back."""
        if self._busy.locked() or self._ending:
            return
        with self._busy:
            self._show_itself()
        taken = 0
        try:
            taken = self.drain()
        finally:
            self._notice_if_stuck(taken)
        if self._session is not None:
            leave_word(self._session, self._residency, self._models)

    def sit_out_rest(self) -> None:
        """Return once claims do not rest any more, or this worker is to end."""
        while self._resting and not self._ending:
            time.sleep(0.1)

    def ask_to_stop(self, within_s: float | None = None) -> None:
        """Claim nothing more; finish or give back what is held within so many seconds (default: the grace period)."""
        grace = self._settings.grace_s if within_s is None else within_s
        if self._stop_at is None:
            # The finisher and the parent need a moment of the grace period for themselves.
            self._stop_at = time.monotonic() + max(0.0, grace - 3.0 if grace > 6 else grace / 2)
        self._tell_session_to_stop()

    def _tell_session_to_stop(self) -> None:
        if self._session is not None and self._stop_at is not None:
            self._session.ask_to_stop(max(0.0, self._stop_at - time.monotonic()))

    @property
    def busy(self) -> bool:
        """Whether a drain is going on."""
        return self._busy.locked()

    @property
    def _ending(self) -> bool:
        return self._stop_at is not None or self.worn_out

    @property
    def _resting(self) -> bool:
        return self._rest.going_on or self._storage_rest.going_on

    def _notice_if_stuck(self, taken: int) -> None:
        """Whoever sees ready jobs and claims none, for minutes and for no reason that it knows of, needs a restart."""
        try:
            waits = self._claims.sees_work(self._residency)
        except Unavailable:
            waits = False
        if taken or not waits or self._resting:
            self._unserved_since = None
            return
        clock = time.monotonic()
        self._unserved_since = self._unserved_since or clock
        if clock - self._unserved_since > self._settings.stuck_s:
            log.critical("jobs are ready and none was claimed for %g s: this process ends", self._settings.stuck_s)
            self.worn_out = True

    def close(self) -> None:
        """End the session in good order, after the drain that may be going on has used its grace."""
        self._stop_at = self._stop_at if self._stop_at is not None else time.monotonic()
        drained = self._busy.acquire(timeout=max(0.0, self._stop_at - time.monotonic()) + 1.0)
        self._end_session()
        self._inputs.close()
        if drained:
            self._residency.clear()
            self._busy.release()
        self._db.dispose()

    # --- having all that is needed ---

    def _ready(self) -> tuple[Session, Finisher]:
        """A session that is ours, a storage that answered last time. Raises `AigcError` if one cannot be had."""
        self._depot.get()
        if self._session is None or self._finisher is None or self._session.lost or self._finisher.broken:
            self._end_session()
            self._pinned()
            self._session = Session(
                self._settings,
                self._db,
                device=self._device_label,
                queues=self._queues,
                pulse=self._pulse,
                on_drain=self._on_drain,
            )
            self._tell_session_to_stop()  # should that have been wanted meanwhile
            self._finisher = Finisher(
                self._session, self._db, self._depot, self._pulse,
                on_trouble=self._failed, on_stored=self._stored, retry_after_s=self._settings.idle_look_s,
                patience_s=min(30.0, self._settings.lease_s / 2), stall_s=self._settings.stall_s,
                buffer_mb=self._settings.buffer_mb,
            )  # fmt: skip
            self._ahead = Ahead(
                self._db, self._claims, self._residency, self._session, self._inputs,
                refused=self._models.refused, ending=lambda: self._ending or self._resting,
            )  # fmt: skip
            device = self._pinned()
            self._session.say("memory", {"bytes": capacity(self._settings, device), "dtype": device.dtype})
            leave_word(self._session, self._residency, self._models)
        elif self._untidy:
            self._return_leftovers()
        self._untidy = False
        return self._session, self._finisher

    def _return_leftovers(self) -> None:
        """A transition that could not be told to the database may have left something in our hands."""
        if self._session is not None and self._finisher is not None and not self._session.lost:
            if self._ahead is not None:
                with suppress(Unavailable, SessionLost):
                    self._ahead.unused()  # it is among what goes back
            held = self._session.all_held()
            settling = self._finisher.pending(id_ for id_, _ in held) if not self._finisher.broken else ()
            left = [(id_, epoch) for id_, epoch in held if id_ not in settling]
            self._give_back(self._session, left, "left over when the database did not answer", counted=False)

    def _settle(self) -> None:
        """Before claims cease: nothing that was claimed ahead stays in our hands, and what is done is stored."""
        if self._finisher is None or self._session is None or self._ahead is None:
            return
        try:
            claimed = self._ahead.unused()
            held = self._session.held(job.id for job in claimed)
            self._give_back(self._session, held, "claimed ahead, and not begun", counted=False)
        except (Unavailable, SessionLost) as error:
            log.error("what was claimed ahead goes back later: %s", error)
            self._untidy = True
        try:
            self._finisher.flush()
        except FinisherBroken:
            log.exception("a defect of ours; what was in hand goes back, and this worker begins anew")
            self._untidy = True
            self._rest.begin()

    def _show_itself(self) -> None:
        """Have a session before there is work, so that the cluster knows of this worker; keep nothing while at rest."""
        try:
            if self._resting and self._session is not None:
                self._return_leftovers()
            elif self._session is None or self._session.lost:
                self._ready()
        except Unavailable as error:
            self._failed(error)
        except AigcError as error:
            log.error("%s", error)

    def _end_session(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        if self._finisher is not None:
            self._finisher.close()
        if self._session is not None:
            self._session.close()
        self._finisher = self._session = self._ahead = None

    def _open_storage(self) -> Storage:
        storage = open_storage(self._settings, create=jobs.nothing_stored_yet(self._db))
        storage.check()
        return storage

    def _pinned(self) -> Device:
        if self._device is None:
            self._device = pinned_device(self._settings)
        return self._device

    # --- one window ---

    def _claim(self, session: Session, finisher: Finisher) -> Sequence[ClaimedJob] | None:
        """Claim a window and run it; None if nothing waits, empty if nothing was left of what was announced."""
        assert self._ahead is not None  # noqa: S101 - made with the session
        taken = self._ahead.next()
        if taken is None:
            if not self._resting:
                session.say("storage", None)  # it was proved, should it have failed; nothing else will tell
            return None
        if taken.jobs:
            self._unserved_since = None
            self._run(session, finisher, self._ahead, taken)
        return taken.jobs

    def _run(self, session: Session, finisher: Finisher, ahead: Ahead, taken: Taken) -> None:
        """Take a window through its model; whatever ends it early, what has no outcome does not stay in our hands."""
        reason = "the worker stopped, or the job was no longer wanted"
        delay_s, code, counted = 0.0, None, True
        first, window = taken.jobs[0], None
        left = [job.id for job in taken.jobs]
        try:
            self._pulse.wait(time.monotonic(), self._settings.load_s)
            resident = self._residency.get(first.task, first.model)
            beside = self._residency.beside(first.task, first.model, first.adapters)
            self._pulse.rest()
            session.say("models", sorted(self._residency.models))
            around = Surroundings(
                self._db, session, finisher, self._pulse, self._ceilings, self._costs, ahead,
                self._inputs, self._depot.get,
                self._notice_growth, lambda: self._resting, self._settings.microbatch, self._settings.stall_s,
            )  # fmt: skip
            window = Window(around, resident, resident.device, beside)
            window.run(taken)
        except SetAside as error:
            reason, code = error.message, error.code
            # A worker with more memory need not wait for this one, and no job fails for want of such a worker.
            delay_s, counted = (error.for_s, True) if error.need is None else (0.0, False)
        except NotNow as error:
            later = self._residency.put_aside(first.task, first.model, error)
            reason, delay_s, code, counted = later.message, later.for_s, later.code, False
        except JobFailed as error:
            failures = [
                jobs.Failure(job.id, job.epoch, error.code, error.message, error.retryable) for job in taken.jobs
            ]
            jobs.fail(self._db, session.id, failures)
            session.release(left)
        except Stopping:
            log.info("stopping: giving back what is not finished")
        except DeviceBroken:
            finisher.flush()
            left, window = [], None  # what is in the model goes the way of a crash, and is charged like one
            raise
        except AigcError as error:
            reason, counted = str(error), False
            raise
        finally:
            self._pulse.rest()
            leave_word(session, self._residency, self._models)
            held = session.held(left if window is None else window.unfinished())
            self._give_back(session, held, reason, delay_s=delay_s, code=code, counted=counted)
            self._inputs.keep_only(id_ for id_, _ in session.all_held())

    def _notice_growth(self) -> bool:
        """Between two microbatches: whether this process has gathered so much that it should end."""
        models = self._residency.models
        if not self.worn_out and self._growth.too_much(models, psutil.Process().memory_info().rss):
            mb = self._settings.memory_growth_mb
            log.error("memory grew by more than %d MB with the same models loaded: this process ends", mb)
            self.worn_out = True
        return self.worn_out

    def _give_back(
        self,
        session: Session,
        held: Sequence[tuple[str, int]],
        reason: str,
        *,
        delay_s: float = 0.0,
        code: str | None = None,
        counted: bool = True,
    ) -> None:
        if held and not session.lost:
            jobs.give_back(self._db, session.id, held, reason, delay_s=delay_s, code=code, counted=counted)
        session.release(id_ for id_, _ in held)

    # --- trouble ---

    def _failed(self, error: Unavailable) -> None:
        """A part does not answer: say so, and claim nothing for a while."""
        rest = self._storage_rest if error.part == "storage" else self._rest
        log.error("%s; nothing is claimed for %.3g s", error, rest.begin())
        if error.part == "storage":
            self._depot.failed(error)
            if self._session is not None:
                self._session.say("storage", str(error))

    def _stored(self) -> None:
        """Something was stored and committed: all is well."""
        self._depot.worked()
        self._storage_rest.end()
        if self._session is not None:
            self._session.say("storage", None)
