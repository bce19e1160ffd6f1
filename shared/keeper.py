"""The keeper: rings, reaps, releases what is due, expires, clears away. Any number may run at once."""

from __future__ import annotations

import logging
import threading
import time

from shared import jobs
from shared.database import Database
from shared.errors import Unavailable
from shared.queue import Queue
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
        self._trouble: str | None = None

    def run(self, stop: threading.Event) -> None:
        """Do rounds until told to stop; a part that does not answer is said once and tried again."""
        while not stop.is_set():
            try:
                self.round()
                self._say(None)
            except Unavailable as error:
                self._say(str(error))
            stop.wait(self._settings.keeper_interval_s)

    def round(self) -> None:
        """Every duty once. Raises `Unavailable` if SQL or Redis does not answer."""
        for session in jobs.reap(self._db):
            log.warning("worker session %s lost its lease; its jobs were taken back", session)
        jobs.release_due(self._db)
        jobs.expire(self._db)
        if time.monotonic() >= self._slow_round_at:
            jobs.abandon_silent_batches(self._db)
            jobs.finish_cancelled(self._db)
            self._slow_round_at = time.monotonic() + SLOW_ROUND_S
        self._queue.ring(self._db)

    def _say(self, trouble: str | None) -> None:
        if trouble == self._trouble:
            return
        if trouble:
            log.error("%s; trying again every %g s", trouble, self._settings.keeper_interval_s)
        else:
            log.info("everything answers again")
        self._trouble = trouble
