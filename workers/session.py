"""A worker session: one life of one worker process, its lease, and what it holds.

A thread renews the lease and brings back what the database says of the jobs in hand: cancelled, or no longer ours.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from shared import jobs
from shared.database import Database
from shared.errors import Unavailable
from shared.ids import new_session_id
from shared.jobs import Progress, SessionLost
from shared.settings import Settings
from workers.pulse import Pulse

log = logging.getLogger("aigc.worker")

#: the lease is renewed this many times before it would lapse
RENEWALS_PER_LEASE = 4
#: seconds between two renewals while jobs run, so that their progress is seen
PROGRESS_EVERY_S = 2.0
#: most seconds between two renewals of an idle worker, so that it soon hears that it is to end
IDLE_RENEWAL_S = 5.0
#: most things of one kind that are told, such as the makers of models
MOST_TOLD = 64

_RECORDED = ("aigc", "torch", "transformers", "diffusers", "tokenizers", "safetensors", "celery")


class Stopping(Exception):
    """The worker is to stop and its time is up: give back what is not finished."""


class Unwanted(Exception):
    """Nobody wants the rest of this microbatch any more."""


class Session:
    """The lease of this process, and the jobs that it holds under it."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        *,
        device: str,
        queues: Sequence[str],
        pulse: Pulse,
        on_drain: Callable[[], None],
    ) -> None:
        """`on_drain` is called once an operator wants this worker to end.

        Raises `Unavailable` if the session cannot be opened.
        """
        self.id = new_session_id()
        self._pulse = pulse
        self._on_drain = on_drain
        self._draining = False
        self._db = db
        self._settings = settings
        self._guard = threading.Lock()
        self._held: dict[str, int] = {}
        self._unwanted: set[str] = set()
        self._strays: set[str] = set()
        self._progress: dict[str, Progress] = {}
        self._condition: dict[str, Any] = {}
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._stop_at: float | None = None
        #: whether the database took this session for dead
        self.lost = False
        host = socket.gethostname()
        jobs.open_session(
            db,
            {
                "id": self.id,
                "worker": f"{host}:{device}",
                "host": host,
                "pid": os.getpid(),
                "device": device,
                "queues": ",".join(queues),
                "versions": _versions(),
                "condition": {},
            },
            settings.lease_s,
        )
        pulse.session(self.id)
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._thread.start()

    # --- what is in hand ---

    def hold(self, claimed: Iterable[jobs.ClaimedJob]) -> None:
        """These jobs are in our hands now."""
        with self._guard:
            was_idle = not self._held
            for job in claimed:
                self._held[job.id] = job.epoch
                self._unwanted.discard(job.id)  # lost once, and ours again
        if was_idle:
            self._wake.set()

    def release(self, ids: Iterable[str]) -> None:
        """These are no longer: finished, given back, or lost."""
        with self._guard:
            for id_ in ids:
                self._held.pop(id_, None)
                self._progress.pop(id_, None)
                self._unwanted.discard(id_)

    def wanted(self, id_: str) -> bool:
        """Whether a job is still ours, and not cancelled."""
        return not self.lost and id_ not in self._unwanted

    def held(self, ids: Iterable[str]) -> list[tuple[str, int]]:
        """(id, epoch) of those that are in our hands."""
        with self._guard:
            return [(id_, self._held[id_]) for id_ in ids if id_ in self._held]

    def all_held(self) -> list[tuple[str, int]]:
        """(id, epoch) of everything in our hands."""
        with self._guard:
            return list(self._held.items())

    @property
    def holding(self) -> int:
        """How many jobs are in our hands."""
        return len(self._held)

    @property
    def holds_any(self) -> bool:
        """Whether anything is in our hands."""
        return bool(self._held)

    def progressed(self, progress: Mapping[str, Progress]) -> None:
        """Note how far jobs are; it is written with the next renewal."""
        with self._guard:
            self._progress.update(progress)

    def settled(self, id_: str) -> None:
        """This one needs no word of its progress any more: what is to be said next is how it ended."""
        with self._guard:
            self._progress.pop(id_, None)

    def say(self, key: str, what: Any) -> None:
        """Leave word for operators, seen in `status` and `doctor`; None takes it back."""
        with self._guard:
            if self._condition.get(key) == what:
                return
            if what is None:
                self._condition.pop(key, None)
            else:
                self._condition[key] = what
        self._wake.set()

    def say_of(self, key: str, name: str, what: Any) -> None:
        """The same of one of several things that are told under a key; the latest `MOST_TOLD` stay."""
        with self._guard:
            told = {**(self._condition.get(key) or {}), name: what}
        self.say(key, dict(list(told.items())[-MOST_TOLD:]))

    # --- its end ---

    def ask_to_stop(self, within_s: float) -> None:
        """From now on nothing is claimed; what is not finished `within_s` seconds from now is given back."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + within_s

    @property
    def out_of_time(self) -> bool:
        """Whether what is not finished has to be given back now."""
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    @property
    def stopping(self) -> bool:
        """Whether nothing new may be claimed."""
        return self._stop_at is not None or self.lost

    def check(self) -> None:
        """Between two steps: raises `SessionLost` or `Stopping` if nothing more is to be done here."""
        if self.lost:
            raise SessionLost
        if self.out_of_time:
            raise Stopping

    @property
    def any_unwanted(self) -> bool:
        """Whether any job in hand is cancelled or no longer ours."""
        return bool(self._unwanted)

    def require_wanted(self, ids: Iterable[str]) -> None:
        """Raises `Unwanted` unless one of these is still wanted."""
        if all(id_ in self._unwanted for id_ in ids):
            raise Unwanted

    def close(self) -> None:
        """End in good order. What is still held goes back first."""
        self._ended.set()
        self._wake.set()
        self._thread.join(timeout=10)
        if self.lost:
            self._pulse.session("")
            return
        try:
            held = self.all_held()
            if held:
                jobs.give_back(self._db, self.id, held, "the worker stopped", counted=False)
            jobs.close_session(self._db, self.id)
            self._pulse.session("")
        except Unavailable as error:
            log.warning("the session could not be closed, its lease will run out: %s", error)

    # --- the lease ---

    def _keep_alive(self) -> None:
        lease = self._settings.lease_s
        while not self._ended.is_set():
            pause = lease / RENEWALS_PER_LEASE
            self._wake.wait(min(pause, PROGRESS_EVERY_S if self._held else IDLE_RENEWAL_S))
            self._wake.clear()
            if self._ended.wait(min(0.2, pause / 4)):  # several wishes, one renewal
                return
            try:
                self._renew()
            except SessionLost:
                log.error("this worker was presumed dead (lease %g s); what it holds belongs to others now", lease)
                self.lost = True
                return
            except Unavailable as error:
                log.error("the lease could not be renewed: %s", error)
            except Exception:
                log.exception("a defect of ours: the lease is renewed no more, so this session counts as lost")
                self.lost = True
                return

    def _renew(self) -> None:
        with self._guard:
            condition = dict(self._condition)
            progress = {id_: self._progress[id_] for id_ in list(self._progress)}
            self._progress.clear()
            before = dict(self._held)
        renewed = jobs.renew(self._db, self.id, self._settings.lease_s, condition, progress)
        ours = renewed.held
        with self._guard:
            for id_, epoch in before.items():
                if self._held.get(id_) != epoch:
                    continue  # given back, and perhaps claimed anew, while we asked
                known = ours.get(id_)
                if known is None or known.epoch != epoch or known.cancel_requested:
                    self._unwanted.add(id_)
            self._unwanted &= set(self._held)
            strays = {id_ for id_ in ours if id_ not in before and id_ not in self._held}
        self._give_strays_back(strays, ours)
        if renewed.drain and not self._draining:
            self._draining = True
            log.info("an operator wants this worker to end: nothing more is claimed")
            self._on_drain()

    def _give_strays_back(self, strays: set[str], ours: Mapping[str, jobs.Held]) -> None:
        """Jobs that a claim gave us without our hearing of it (its answer was lost): twice seen, given back."""
        certain = strays & self._strays
        self._strays = strays - certain
        if certain:
            jobs.give_back(
                self._db,
                self.id,
                [(id_, ours[id_].epoch) for id_ in certain],
                "the claim's answer was lost",
                counted=False,
            )


def _versions() -> dict[str, str]:
    found = {}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
