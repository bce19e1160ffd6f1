"""The parent's eye on its child: ends one that is stuck, and lets nobody wait for the lease of one that is dead.

Runs in a thread of the parent, which never imports torch and so is never stuck in a kernel itself.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from shared import jobs
from shared.database import Database
from shared.errors import Unavailable
from workers.pulse import NOTHING, Pulse, Reading, alive

log = logging.getLogger("aigc.watchdog")

#: seconds between two looks
LOOK_S = 0.25
#: seconds that a job may be over its time before its worker is ended: between two steps the worker ends it by itself
OVERTIME_S = 1.0


@dataclass(frozen=True, slots=True)
class Death:
    """What is to be said of the jobs of a child that is gone."""

    session: str
    code: str = "worker_died"
    message: str | None = None
    #: whether a job that was alone in the model is charged an attempt
    charged: bool = True


class Watchdog:
    """Looks at the pulse of the child; what it finds is told to the database until that answers."""

    def __init__(self, db: Database, pulse: Pulse, *, on_stopped: Callable[[], None]) -> None:
        """`on_stopped` is called once the child had to be ended after `stop_within`, and its jobs are back."""
        self._db = db
        self._pulse = pulse
        self._on_stopped = on_stopped
        self._before = NOTHING
        self._dead = (0, 0)
        self._suspect: str | None = None
        self._sentence: Death | None = None
        self._graves: list[Death] = []
        self._stop_at: float | None = None
        self._forced = False

    def start(self) -> None:
        """Watch from now on, in a thread."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop_within(self, seconds: float) -> None:
        """The worker was told to stop: a child that is still there after so many seconds is ended, nobody charged."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + seconds

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.look(time.monotonic())
            except Exception:
                log.exception("the watchdog failed; a defect of ours")
            pause.wait(LOOK_S)

    def look(self, clock: float) -> None:
        """One look, at this moment by `time.monotonic`."""
        before, reading = self._before, self._pulse.read()
        if self._dead == (reading.pid, reading.started):
            reading = NOTHING  # it says what a child said that is long buried
        self._before = reading
        same = (before.pid, before.started) == (reading.pid, reading.started)
        if before.pid and not (same and alive(before)):
            # What the child said last; between two looks nobody begins a session and dies.
            self._note_death(reading if same else before)
            self._dead = (before.pid, before.started)
            self._before = NOTHING if same else reading
        elif before.pid:
            self._judge(reading, clock)
        self._bury()
        if self._forced and not self._graves and not self._before.pid:
            self._forced = False
            self._on_stopped()

    def _judge(self, reading: Reading, clock: float) -> None:
        """End the child if it is stuck: seen twice, for what is read may be half written."""
        sentence = self._sentence_for(reading, clock)
        if sentence is None:
            self._suspect = None
            return
        if self._suspect != sentence.code:
            self._suspect = sentence.code
            return
        log.error("ending process %d: %s", reading.pid, sentence.message)
        self._sentence, self._suspect = sentence, None
        self._forced = self._forced or sentence.code == "stopped"
        with suppress(ProcessLookupError):
            os.kill(reading.pid, signal.SIGKILL)

    def _sentence_for(self, reading: Reading, clock: float) -> Death | None:
        session, patience_s = reading.session, reading.patience_s
        if self._stop_at is not None and clock > self._stop_at:
            return Death(session, "stopped", "the worker stopped before it was done", charged=False)
        if not reading.stepped_at:
            return None
        if reading.deadline and clock > reading.deadline + OVERTIME_S:
            message = "its time was up (timeout_s) in the middle of a step of the model; its worker was ended"
            return Death(session, "timed_out", message)
        if clock - reading.stepped_at > patience_s:
            message = f"nothing moved for {patience_s:g} s (a step, or encoding an output, may take AIGC_STALL_S, "
            message += "loading AIGC_LOAD_S); its worker was ended"
            return Death(session, "stalled", message)
        return None

    def _note_death(self, last: Reading) -> None:
        sentence, self._sentence, self._suspect = self._sentence, None, None
        if not last.session:
            return
        if sentence is None or sentence.session != last.session:
            log.error("process %d died; its jobs are taken back", last.pid)
            sentence = Death(last.session)
        self._graves.append(sentence)

    def _bury(self) -> None:
        while self._graves:
            death = self._graves[0]
            try:
                jobs.bury(self._db, death.session, code=death.code, message=death.message, charged=death.charged)
            except Unavailable as error:
                log.error("the jobs of a dead process could not be taken back yet: %s", error)
                return
            self._graves.pop(0)
