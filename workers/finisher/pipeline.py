"""The finisher: everything handed over comes to its end here, in groups, and in the right order."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from shared import jobs
from shared.database import Database
from shared.errors import AigcError, Unavailable
from shared.jobs import Failure, Publication, SessionLost, Success
from workers.depot import Depot
from workers.finisher.chains import Chains
from workers.finisher.encode import Encoders, encode, is_light, sizes
from workers.finisher.parcel import Finished, Parcel, Published, parcel
from workers.finisher.place import Places, Upload
from workers.finisher.uploads import Uploads
from workers.pulse import Pulse
from workers.session import Session

R = TypeVar("R")

log = logging.getLogger("aigc.worker")

#: outcomes that may be under way before the device has to wait
MAX_UNDER_WAY = 4096
#: seconds that are given to what comes next while the model works on
GATHER_S = 0.5
#: most jobs that are committed together
GROUP = 1024


class FinisherBroken(Exception):
    """The finisher ended on an error that it does not know; its cause is chained."""


class Finisher:
    """Encodes, stores and commits for one worker session."""

    def __init__(
        self,
        session: Session,
        db: Database,
        depot: Depot,
        pulse: Pulse,
        *,
        on_trouble: Callable[[Unavailable], None],
        on_stored: Callable[[], None],
        retry_after_s: float,
        patience_s: float,
        stall_s: float,
        buffer_mb: int = 512,
    ) -> None:
        """`on_trouble` hears of a storage that fails, `on_stored` of one that does not.

        What could not be stored is tried again every `retry_after_s` seconds; once the storage has been in trouble for
        `patience_s`, the jobs go back instead, uncharged. An output may take `stall_s` to encode. At most `buffer_mb`
        megabytes of outputs are under way, and one output that is larger than that.
        """
        self._session = session
        self._db = db
        self._pulse = pulse
        self._on_stored = on_stored
        self._retry_after_s = retry_after_s
        self._stall_s = stall_s
        self._most_bytes = buffer_mb << 20
        self._places = Places(session.id)
        #: guards all of the following, and says when any of it has changed
        self._changed = threading.Condition()
        self._chains = Chains()
        self._pending: set[str] = set()
        self._under_way = 0
        #: those of them that may wait a moment
        self._calm = 0
        self._bytes = 0
        self._ready: deque[Parcel] = deque()
        self._over: deque[Parcel] = deque()
        self._closing = False
        self._broken: BaseException | None = None
        self._encoders = Encoders(self._encoded, on_defect=self._break)
        self._uploads = Uploads(
            session, depot, self._uploaded, on_trouble=on_trouble, on_defect=self._break,
            retry_after_s=retry_after_s, patience_s=patience_s,
        )  # fmt: skip
        self._books = threading.Thread(target=self._keep_books, name="finisher", daemon=True)
        self._books.start()

    # --- from outside ---

    @property
    def broken(self) -> bool:
        """Whether it has ended on an error that it does not know."""
        return self._broken is not None

    def put(self, item: Finished | Published) -> None:
        """Hand an outcome or a publication over; waits while too much is under way.

        From then on it is settled here: committed, failed, or given back. Raises what broke the finisher, if anything
        did.
        """
        self.put_many((item,))

    def put_many(self, items: Iterable[Finished | Published]) -> None:
        """The same for several, in their order."""
        with self._changed:
            for item in items:
                made = parcel(item)
                while self._broken is None and not self._has_room_for(made):
                    self._show_what_we_wait_for()
                    self._changed.notify_all()
                    self._changed.wait(0.5)
                if self._broken is not None:
                    raise FinisherBroken from self._broken
                self._admit(made)
            self._changed.notify_all()

    def pending(self, ids: Iterable[str]) -> set[str]:
        """Those of these jobs whose outcome was handed over and is not settled yet."""
        with self._changed:
            return self._pending.intersection(ids)

    def flush(self) -> None:
        """Wait until everything handed over is settled. Raises what broke the finisher, if anything did."""
        with self._changed:
            while self._under_way and self._broken is None:
                self._show_what_we_wait_for()
                self._changed.wait(0.5)
            self._pulse.rest()
            if self._broken is not None:
                raise FinisherBroken from self._broken

    def close(self) -> None:
        """Settle everything and end the threads; harmless to repeat."""
        with self._changed:
            while self._under_way and self._broken is None:
                self._changed.wait(0.5)
            self._closing = True
            self._changed.notify_all()
        self._books.join()
        self._encoders.close(abandon=self.broken)
        self._uploads.close(abandon=self.broken)

    def _show_what_we_wait_for(self) -> None:
        """The model stands still because of us. An output may take too long to encode; storage and SQL may not."""
        since = self._encoders.since()
        if since:
            self._pulse.wait(since, self._stall_s)
        else:
            self._pulse.rest()

    # --- on the way; the condition is held ---

    def _has_room_for(self, made: Parcel) -> bool:
        if not self._under_way:
            return True
        return self._under_way < MAX_UNDER_WAY and self._bytes + made.size <= self._most_bytes

    def _admit(self, made: Parcel) -> None:
        self._under_way += 1
        self._calm += made.calm
        self._bytes += made.size
        if isinstance(made.item, Finished):
            self._pending.add(made.job.id)
        at_once, replaced = self._chains.enter(made)
        if replaced is not None:
            self._discharge(replaced)
        if at_once:
            self._begin(made)

    def _begin(self, made: Parcel) -> None:
        if made.error is not None:
            self._over.append(made)
        elif is_light(made):
            self._ready.append(made)
        else:
            self._encoders.put(made)

    def _discharge(self, made: Parcel) -> None:
        self._under_way -= 1
        self._calm -= made.calm
        self._bytes -= made.size
        if isinstance(made.item, Finished):
            self._pending.discard(made.job.id)

    # --- what the pools say ---

    def _encoded(self, made: Parcel) -> None:
        with self._changed:
            if made.files is not None:
                size = sizes(made.files)
                self._bytes += size - made.size
                made.size = size
            self._ready.append(made)
            self._changed.notify_all()

    def _uploaded(self, upload: Upload, trouble: Unavailable | None) -> None:
        with self._changed:
            for made in upload.parcels:
                made.uploads -= 1
                made.trouble = made.trouble or trouble
                if not made.uploads:
                    self._over.append(made)
            self._changed.notify_all()

    def _break(self, error: BaseException) -> None:
        with self._changed:
            first = self._broken is None
            self._broken = self._broken or error
            self._changed.notify_all()
        if first and not isinstance(error, (AigcError, SessionLost)):  # nobody may be left to raise it to
            log.error("a defect of ours: this finisher settles nothing more", exc_info=error)

    # --- the books, in a thread of their own ---

    def _keep_books(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._ready or self._over or self._closing or self._broken):
                        self._changed.wait()
                    if self._broken is not None or not (self._ready or self._over):
                        return
                    self._gather()
                    ready, over = _some(self._ready), _some(self._over)
                self._send(ready)
                self._settle(over)
        except BaseException as error:  # noqa: BLE001 - kept, and raised again in the worker's own thread
            self._break(error)

    def _gather(self) -> None:
        """While the model works on, a moment for what comes next: a transaction takes time from its processor.

        Outcomes alone are worth waiting for: of publications the newest counts. And not those of jobs that were in the
        model when a worker died: whatever is not committed would be made a third time.
        """
        until = time.monotonic() + GATHER_S
        while len(self._ready) + len(self._over) < GROUP and self._calm == self._under_way:
            left = until - time.monotonic()
            at_work = self._session.holding > len(self._pending)
            if left <= 0 or not at_work or self._closing or self._broken is not None:
                return
            self._changed.wait(left)

    def _send(self, ready: Sequence[Parcel]) -> None:
        """Give files their places, announce the objects, and have them uploaded."""
        for made in ready:
            if made.files is None and made.error is None:
                encode(made)
        wanted = [made for made in ready if made.error is None and self._is_wanted(made)]
        uploads = self._places.place(wanted)
        if uploads:
            keys = [(upload.key, upload.tenant_id) for upload in uploads]
            # A row of intent stands before the object does, so that what nobody comes to refer to is collected.
            self._insist(lambda: jobs.announce(self._db, self._session.id, keys))
        for upload in uploads:
            self._uploads.put(upload)
        sent = {id(made) for made in wanted if made.artifacts}
        with self._changed:
            self._over.extend(made for made in ready if id(made) not in sent)

    def _is_wanted(self, made: Parcel) -> bool:
        """A result is committed if it is still ours, whatever was wished meanwhile; a publication is not."""
        return isinstance(made.item, Finished) or self._session.wanted(made.job.id)

    def _settle(self, over: Sequence[Parcel]) -> None:
        if not over:
            return
        self._publish(
            [made for made in over if isinstance(made.item, Published) and made.artifacts and not made.trouble]
        )
        outcomes = [made for made in over if isinstance(made.item, Finished)]
        self._fail([made for made in outcomes if made.error is not None])
        self._give_back([made for made in outcomes if made.trouble is not None])
        self._commit([made for made in outcomes if made.error is None and made.trouble is None])
        # Not before: what breaks on the way stays in the session's hands, and goes back when that ends.
        self._session.release(made.job.id for made in outcomes)
        with self._changed:
            for made in over:
                self._discharge(made)
                if isinstance(made.item, Published):
                    for following in self._chains.over(made):
                        self._begin(following)
            self._changed.notify_all()

    def _publish(self, stored: Sequence[Parcel]) -> None:
        """Show what jobs leave behind on their way; what cannot be shown is dropped."""
        if not stored:
            return
        self._on_stored()
        publications = [Publication(made.job.id, made.job.epoch, made.artifacts[0]) for made in stored]
        try:
            jobs.publish(self._db, self._session.id, publications)
        except Unavailable as error:
            log.warning("%d file(s) of running jobs were not shown: %s", len(stored), error)
        except Exception as defect:  # noqa: BLE001 - the jobs go on
            trace = "".join(traceback.format_exception(defect))
            log.error("%d file(s) of running jobs could not be shown:\n%s", len(stored), trace)

    def _fail(self, failed: Sequence[Parcel]) -> None:
        """T6; one whose owner has cancelled it meanwhile ends so."""
        failures = [
            Failure(job.id, job.epoch, error.code, error.message, error.retryable, made.item.device_s)
            for made in failed
            if isinstance(made.item, Finished) and (error := made.error) is not None and (job := made.job)
        ]
        if failures:
            self._insist(lambda: jobs.fail(self._db, self._session.id, failures))

    def _give_back(self, unstored: Sequence[Parcel]) -> None:
        by_reason: dict[str, list[tuple[str, int]]] = {}
        for made in unstored:
            by_reason.setdefault(str(made.trouble), []).append((made.job.id, made.job.epoch))
        for reason, held in by_reason.items():
            self._insist(
                lambda held=held, reason=reason: jobs.give_back(  # type: ignore[misc]
                    self._db, self._session.id, held, reason, delay_s=self._retry_after_s, counted=False
                )
            )

    def _commit(self, stored: Sequence[Parcel]) -> None:
        results = [
            Success(made.job.id, made.job.epoch, made.artifacts, made.item.device_s, made.item.record)
            for made in stored
            if isinstance(made.item, Finished)
        ]
        if not results:
            return
        standing = self._insist(lambda: jobs.succeed(self._db, self._session.id, results))
        fenced = {result.id for result in results} - standing
        if fenced:
            log.warning("%d result(s) were dropped: their jobs belong to others now", len(fenced))
        if any(made.artifacts for made in stored):
            self._on_stored()

    def _insist(self, transition: Callable[[], R]) -> R:
        """Try a transition until the database answers: finished work is not thrown away for a restart of PostgreSQL."""
        pause = 0.2
        while True:
            try:
                return transition()
            except Unavailable as error:
                if error.part != "database" or self._session.lost or self._session.out_of_time:
                    raise
                log.error("%s; trying again in %.1f s", error, pause)
                time.sleep(pause)
                pause = min(pause * 2, 5.0)


def _some(waiting: deque[Parcel]) -> list[Parcel]:
    return [waiting.popleft() for _ in range(min(GROUP, len(waiting)))]
