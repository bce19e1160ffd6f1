"""Objects on their way to the storage: several at a time, so that a slow one holds up nobody else."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable

from shared.errors import Unavailable
from workers.depot import Depot
from workers.finisher.parcel import Published
from workers.finisher.place import Upload
from workers.finisher.pool import Pool
from workers.session import Session

log = logging.getLogger("aigc.worker")

#: objects that are uploaded at the same time
UPLOADS = 16


class Uploads:
    """A pool of threads that put objects into the storage, and are patient with it."""

    def __init__(
        self,
        session: Session,
        depot: Depot,
        done: Callable[[Upload, Unavailable | None], None],
        *,
        on_trouble: Callable[[Unavailable], None],
        on_defect: Callable[[BaseException], None],
        retry_after_s: float,
        patience_s: float,
    ) -> None:
        """`done` hears of every upload once: that it is stored, or why it was given up."""
        self._session, self._depot, self._done, self._on_trouble = session, depot, done, on_trouble
        self._pause_s = min(retry_after_s, 1.0)
        self._patience_s = patience_s
        self._pool = Pool("upload", UPLOADS, self._upload, on_defect=on_defect)

    def put(self, upload: Upload) -> None:
        """Have it stored."""
        self._pool.put(upload)

    def close(self, *, abandon: bool) -> None:
        """Store or give up what is there, unless that is to be abandoned, and end."""
        self._pool.close(abandon=abandon)

    def _upload(self, upload: Upload) -> None:
        if isinstance(upload.parcels[0].item, Published):
            trouble = self._publish(upload, upload.parcels[0].item)
        else:
            trouble = self._store(upload)
        upload.body = b""
        self._done(upload, trouble)

    def _store(self, upload: Upload) -> Unavailable | None:
        """Upload; what took an hour to make is not thrown away for a storage that is away for a moment."""
        since = 0.0
        while True:
            try:
                self._depot.get().put(upload.key, upload.body, media_type=upload.media_type)
            except Unavailable as error:  # or the database, which is asked before a storage is opened
                self._on_trouble(error)
                since = since or time.monotonic()
                if self._over(since):
                    return error
                time.sleep(self._pause_s)
            else:
                self._depot.worked()
                return None

    def _over(self, since: float) -> bool:
        """Whether there is no time left to try again: of this object, of the storage, or of this worker."""
        session = self._session
        troubled_s = max(self._depot.troubled_s(), time.monotonic() - since)
        return session.lost or session.out_of_time or troubled_s > self._patience_s

    def _publish(self, upload: Upload, item: Published) -> Unavailable | None:
        """Once: the job goes on, and is no worse off without it."""
        role, job_id = item.output.role, item.job.id
        try:
            self._depot.get().put(upload.key, upload.body, media_type=upload.media_type)
        except Unavailable as error:
            if error.part == "storage":
                self._on_trouble(error)
            log.warning("a %s of job %s was not stored: %s", role, job_id, error)
            return error
        except Exception as defect:  # noqa: BLE001 - as above
            trace = "".join(traceback.format_exception(defect))
            log.error("a %s of job %s could not be stored:\n%s", role, job_id, trace)
            return Unavailable("storage", "the storage", str(defect), "see the log of the worker")
        self._depot.worked()
        return None
