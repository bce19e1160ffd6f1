"""The keeper: rings, reaps, releases what is due, expires, clears away. Any number may run at once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from shared import jobs
from shared.database import Database
from shared.errors import AigcError
from shared.queue import SOCKET_TIMEOUT_S, Queue
from shared.settings import Settings

log = logging.getLogger("aigc.keeper")

#: seconds between two rounds of the duties that need not be prompt
SLOW_ROUND_S = 60.0


class Keeper:
    """One loop of duties; each is a transition of `shared.jobs` or a ring."""

    def __init__(self, settings: Settings, db: Database) -> None:
        """Nothing runs before `run` or `round`."""
        self._settings = settings
        self._db = db
        self._queue = Queue(settings)
        self._slow_round_at = 0.0
        self._trouble: dict[str, str | None] = {}

    def run(self, stop: threading.Event) -> None:
        """Do rounds until told to stop; whatever fails is said once and tried again.

        Ringing has a thread of its own, so that a Redis that is slow or away holds up nothing else.
        """
        ringer = threading.Thread(target=self._repeat, args=(stop, "ringing", self.ring), name="ringer", daemon=True)
        ringer.start()
        self._repeat(stop, "keeping", self.round)
        ringer.join(timeout=SOCKET_TIMEOUT_S + 1)

    def _repeat(self, stop: threading.Event, name: str, duty: Callable[[], None]) -> None:
        while not stop.is_set():
            try:
                duty()
                self._say(name, None)
            except AigcError as error:
                self._say(name, str(error))
            except Exception:
                log.exception(
                    "%s failed; a defect of ours, tried again in %g s", name, self._settings.keeper_interval_s
                )
            stop.wait(self._settings.keeper_interval_s)

    def ring(self) -> None:
        """Top the queues up. Raises `Unavailable` if SQL or Redis does not answer."""
        self._queue.ring(self._db)

    def round(self) -> None:
        """Every duty but ringing, once. Raises `Unavailable` if SQL does not answer."""
        for session in jobs.reap(self._db):
            log.warning("worker session %s lost its lease; its jobs were taken back", session)
        jobs.release_due(self._db)
        jobs.expire(self._db)
        if time.monotonic() >= self._slow_round_at:
            self._slow_round_at = time.monotonic() + SLOW_ROUND_S
            jobs.finish_cancelled(self._db)
            jobs.abandon_silent_batches(self._db)
            jobs.sweep_backlog(self._db)

    def _say(self, name: str, trouble: str | None) -> None:
        before = self._trouble.get(name)
        if trouble == before:
            return
        if trouble:
            log.error("%s: %s; trying again every %g s", name, trouble, self._settings.keeper_interval_s)
        else:
            log.info("%s: all answers again", name)
        self._trouble[name] = trouble
