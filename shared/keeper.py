"""The keeper: rings, reaps, releases what is due, expires, clears away. Any number may run at once.

Its duties run in threads of their own, so that one which is slow, or whose part is away, holds up no other. A worker
that dies has its jobs queued again within a lease and two keeper intervals.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection, select, update

from shared import jobs
from shared.audit import Auditor
from shared.counters import upsert
from shared.database import Database, moment, now
from shared.errors import AigcError, Unavailable
from shared.files import forget_unused
from shared.garbage import collect, collect_strays
from shared.queue import SOCKET_TIMEOUT_S, Queue
from shared.settings import Settings
from shared.storage import Storage, open_storage
from shared.tables import duties, objects

log = logging.getLogger("aigc.keeper")

#: seconds between two rounds of the duties that need not be prompt
SLOW_ROUND_S = 60.0
#: seconds between two looks for batches that were kept long enough
RETENTION_EVERY_S = 3600.0
#: seconds between two walks through the whole storage, and the age from which on something there is left behind
DAY_S = 86_400.0
#: most objects that one step of the collector covers
COLLECTED_AT_ONCE = 10_000


class Keeper:
    """Threads of duties; each duty is a transition of `shared.jobs`, a ring, or a clean-up."""

    def __init__(self, settings: Settings, db: Database) -> None:
        """Nothing runs before `run`; each duty may also be done once, by its method."""
        self._settings = settings
        self._db = db
        self._queue = Queue(settings)
        self._auditor = Auditor(db)
        self._storage: Storage | None = None
        self._stop = threading.Event()
        self._beaten_at = 0.0
        self._trouble: dict[str, str | None] = {}

    def run(self, stop: threading.Event) -> None:
        """Do rounds until told to stop; whatever fails is said once and tried again."""
        self._stop = stop
        often = self._settings.keeper_interval_s
        threads = [
            threading.Thread(target=self._repeat, args=(stop, name, duty, pause_s), name=name, daemon=True)
            for name, duty, pause_s in (
                ("ringing", self.ring, often),
                ("pulse", self._beat_while_reaping, often),
                ("clock", self.look_at_the_clock, often),
                ("housekeeping", self.keep_house, SLOW_ROUND_S),
            )
        ]
        for thread in threads:
            thread.start()
        self._repeat(stop, "reaping", self.reap, often)
        patience = time.monotonic() + SOCKET_TIMEOUT_S + 1
        for thread in threads:
            thread.join(timeout=max(0.0, patience - time.monotonic()))

    def _repeat(self, stop: threading.Event, name: str, duty: Callable[[], None], pause_s: float) -> None:
        while not stop.is_set():
            try:
                duty()
                self._say(name, None, pause_s)
            except AigcError as error:
                self._say(name, str(error), pause_s)
            except Exception:
                log.exception("%s failed; a defect of ours, tried again in %g s", name, pause_s)
            stop.wait(pause_s)

    def ring(self) -> None:
        """Top the queues up. Raises `Unavailable` if SQL or Redis does not answer."""
        self._queue.ring(self._db)

    # --- the dead ---

    def reap(self) -> None:
        """Take the jobs of dead workers back; after a time without the database, first give all of them that time."""
        if self._beat().first:
            return
        for session in jobs.reap(self._db):
            log.warning("worker session %s lost its lease; its jobs were taken back", session)

    def _beat(self) -> jobs.Beat:
        lease_s = self._settings.lease_s
        pulse = jobs.beat(self._db, lease_s=lease_s, interval_s=self._settings.keeper_interval_s)
        self._beaten_at = time.monotonic()
        if pulse.extended:
            log.error(
                "for %.1f s no keeper had reached the database: %s longer to show signs of life, "
                "so that none is taken for dead because of it",
                pulse.gap_s,
                "a worker has" if pulse.extended == 1 else f"{pulse.extended} workers have",
            )
        return pulse

    def _beat_while_reaping(self) -> None:
        """A round of reaping that waits for locks must not read like a database that was away."""
        if self._beaten_at and time.monotonic() - self._beaten_at > 1.5 * self._settings.keeper_interval_s:
            self._beat()

    # --- the clock ---

    def look_at_the_clock(self) -> None:
        """Let go what is due or has waited for nothing, and end what is late. Raises `Unavailable` if SQL is away."""
        jobs.release_due(self._db)
        jobs.expire(self._db)
        overdue = jobs.reap_overdue(self._db, self._settings.lease_s)
        if overdue:
            taken = "a job was" if overdue == 1 else f"{overdue} jobs were"
            log.warning("%s taken from workers that did not end them in their time", taken)
        jobs.settle(self._db)

    # --- the house ---

    def keep_house(self) -> None:
        """Every duty that need not be prompt, once. Raises `Unavailable` if SQL does not answer."""
        for name, duty in (
            ("finishing cancelled batches", lambda: jobs.finish_cancelled(self._db)),
            ("clearing dead submissions away", lambda: jobs.abandon_silent_batches(self._db)),
            ("sweeping the backlog", lambda: jobs.sweep_backlog(self._db)),
            ("auditing", self._auditor.walk),
            ("retention", self._retire),
            ("collecting", self._collect),
        ):
            if self._stop.is_set():
                return
            try:
                duty()
                self._say(name, None, SLOW_ROUND_S)
            except AigcError as error:
                if isinstance(error, Unavailable) and error.part == "database":
                    raise  # it would be the same for all of them
                self._say(name, str(error), SLOW_ROUND_S)
            except Exception:
                log.exception("%s failed; a defect of ours, tried again in %g s", name, SLOW_ROUND_S)

    def _retire(self) -> None:
        days = self._settings.retention_days
        if days is None:
            return
        retired = self._in_turn("retention", RETENTION_EVERY_S, lambda: jobs.retire_batches(self._db, days * DAY_S))
        self._in_turn("files", RETENTION_EVERY_S, lambda: forget_unused(self._db, days * DAY_S))
        if retired:
            what = "a batch" if retired == 1 else f"{retired} batches"
            log.info("deleted %s that ended more than %g days ago", what, days)

    def _collect(self) -> None:
        """The duties that need the storage; where it cannot be reached from here, another keeper may do them."""
        with self._db.read() as connection:
            if connection.scalar(select(objects.c.key).limit(1)) is None:
                return  # nothing was ever to be stored: the storage need not be there yet
        try:
            if self._storage is None:
                self._storage = open_storage(self._settings, create=False)
            storage = self._storage
            while collect(self._db, storage, limit=COLLECTED_AT_ONCE) >= COLLECTED_AT_ONCE:
                if self._stop.is_set():
                    return
            self._in_turn("collect_strays", DAY_S, lambda: collect_strays(self._db, storage, older_than_s=DAY_S))
            # Last: it needs a right that not every access key has.
            self._in_turn("clear_unfinished", DAY_S, lambda: storage.clear_unfinished(DAY_S))
        except Unavailable as error:
            if error.part == "storage":
                self._storage = None  # afresh the next time: a disk may have come back elsewhere
            raise

    def _in_turn(self, name: str, every_s: float, duty: Callable[[], int]) -> int:
        """Do a duty that one keeper does at a time, if it is due; one that fails is due again at once."""
        if not take_turn(self._db, name, every_s):
            return 0
        try:
            return duty()
        except BaseException:
            with suppress(Unavailable):
                give_turn_back(self._db, name)
            raise

    def _say(self, name: str, trouble: str | None, pause_s: float) -> None:
        before = self._trouble.get(name)
        if trouble == before:
            return
        if trouble:
            log.error("%s: %s; trying again every %g s", name, trouble, pause_s)
        else:
            log.info("%s: all answers again", name)
        self._trouble[name] = trouble


def take_turn(db: Database, name: str, every_s: float) -> bool:
    """Whether this duty is due, and ours: from now on it is nobody's for so many seconds. Raises `Unavailable`."""
    d = duties.c
    due = d.done_at <= moment() - every_s
    with db.read() as connection:
        known = connection.execute(select(due.label("due")).where(d.name == name)).first()
    if known is not None and not known.due:
        return False

    def work(connection: Connection) -> bool:
        never = upsert(connection)(duties).values(name=name, done_at=0.0).on_conflict_do_nothing()
        connection.execute(never)
        return connection.execute(update(duties).where(d.name == name, due).values(done_at=now())).rowcount == 1

    return db.write(work)


def give_turn_back(db: Database, name: str) -> None:
    """The duty was not done: it is due again. Raises `Unavailable`."""
    again = update(duties).where(duties.c.name == name).values(done_at=0.0)
    db.write(lambda connection: connection.execute(again))
