"""Files that jobs name, fetched beside the model and looked at before a generator sees them.

Fetching begins with the claim. A file stays on this host as long as a job in hand names it, and after that as long as
there is room: the same picture under a thousand prompts is fetched once.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError
from sqlalchemy import select

from shared import files
from shared.database import Database
from shared.errors import JobFailed, ObjectMissing
from shared.jobs import ClaimedJob
from shared.settings import Settings
from shared.storage import Storage, open_storage
from shared.tables import artifacts, jobs
from shared.tasks import get_task
from shared.tasks.inputs import InputKind, Reference, references, takes_files
from workers.depot import Depot
from workers.inputs.looks import InputFile, Limits, examine
from workers.inputs.web import PIECE, fetch

__all__ = ["InputFile", "Inputs"]

#: files fetched at the same time
AT_ONCE = 4
#: seconds between two looks at whether somebody still waits for them
LOOK_S = 0.5

_Name = tuple[str, str, InputKind]


@dataclass(slots=True)
class _Fetched:
    """A file on its way here, or here."""

    file: Future[InputFile]
    folder: Path
    #: jobs in hand that name it
    jobs: set[str] = field(default_factory=set)


class Inputs:
    """What the jobs in hand read."""

    def __init__(self, settings: Settings, db: Database, depot: Depot) -> None:
        self._settings = settings
        self._db = db
        self._depot = depot
        self._limits = Limits(settings.input_pixels, settings.input_seconds)
        self._guard = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._folder: Path | None = None
        #: by tenant, reference and kind, the one that was asked for last at the end
        self._fetched: OrderedDict[_Name, _Fetched] = OrderedDict()
        self._of_job: dict[str, list[tuple[str, _Name]]] = {}
        #: storages beside the queue's own, by bucket
        self._buckets: dict[str, Storage] = {}

    def begin(self, claimed: Iterable[ClaimedJob]) -> None:
        """Fetch what these jobs name, beside whatever goes on."""
        for job in claimed:
            task = get_task(job.task)
            if not takes_files(task.params):
                continue
            with suppress(ValidationError):  # said where the job is to run
                named = list(references(task.params.model_validate_json(job.params_json)))
                with self._guard:
                    self._of_job[job.id] = [(each.place, self._asked(job, each)) for each in named]

    def of(self, job_id: str, check: Callable[[], None] = lambda: None) -> Mapping[str, InputFile]:
        """The files of a job by their place in its params, once they are here.

        Meanwhile `check` is called now and then, and may raise. Raises `JobFailed` if one cannot be had or is not what
        the job takes it for, `Unavailable` if the storage or the database does not answer.
        """
        with self._guard:
            named = [(place, self._fetched[name].file) for place, name in self._of_job.get(job_id, ())]
        while wait([file for _, file in named], timeout=LOOK_S).not_done:
            check()
        return {place: file.result() for place, file in named}

    def keep_only(self, job_ids: Iterable[str]) -> None:
        """Only these jobs are in our hands: what others named may go when room is needed."""
        if not self._of_job:
            return
        held = set(job_ids)
        with self._guard:
            for job_id in self._of_job.keys() - held:
                for _, name in self._of_job.pop(job_id):
                    if (known := self._fetched.get(name)) is not None:
                        known.jobs.discard(job_id)
            self._make_room()

    def close(self) -> None:
        """Forget everything; nothing is fetched after that."""
        with self._guard:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
            self._fetched.clear()
            self._of_job.clear()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _asked(self, job: ClaimedJob, reference: Reference) -> _Name:
        name = (job.tenant_id, reference.text, reference.kind)
        known = self._fetched.get(name)
        if known is not None and known.file.done() and (known.file.cancelled() or known.file.exception() is not None):
            known = None  # once more
        if known is None:
            folder = self._place(name)
            known = _Fetched(self._threads().submit(self._fetch, job.tenant_id, reference, folder), folder)
            self._fetched[name] = known
        known.jobs.add(job.id)
        self._fetched.move_to_end(name)
        return name

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="inputs")
        return self._pool

    def _place(self, name: _Name) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="aigc-inputs-"))
        return self._folder / hashlib.sha256("\0".join(name).encode()).hexdigest()

    def _make_room(self) -> None:
        """Delete what nobody names any more, longest unused first, until the rest is small enough."""
        most = self._settings.inputs_mb * 2**20
        sizes = {
            name: sum(path.stat().st_size for path in known.folder.glob("*"))
            for name, known in self._fetched.items()
            if known.file.done()
        }
        total = sum(sizes.values())
        for name in list(self._fetched):
            if total <= most:
                return
            known = self._fetched[name]
            if not known.jobs and name in sizes:
                del self._fetched[name]
                shutil.rmtree(known.folder, ignore_errors=True)
                total -= sizes[name]

    # --- in a thread of the pool ---

    def _fetch(self, tenant_id: str, reference: Reference, folder: Path) -> InputFile:
        folder.mkdir(exist_ok=True)
        path, shown = folder / "content", reference.text
        most = self._settings.input_mb * 10**6
        match reference.scheme:
            case "https":
                fetch(reference.text, path, most_bytes=most, private_hosts=self._settings.fetch_hosts)
            case "file":
                file = files.locate(self._db, tenant_id, [reference.text.removeprefix("file:")])
                if not file:
                    raise JobFailed("input_not_found", f"{reference.text} is not there any more: upload it again")
                [found] = file.values()
                shown = f"{found.name} ({reference.text})"
                self._read(self._depot.get(), found.key, 0, found.bytes, shown, path, found.sha256)
            case "artifact":
                self._read_artifact(tenant_id, reference.text, path)
            case "s3":
                self._read_s3(reference.text, path)
            case _:
                raise JobFailed("input_not_found", f"{reference.text}: paths are settled where jobs are submitted")
        return examine(path, reference.kind, shown, self._limits)

    def _read_artifact(self, tenant_id: str, text: str, path: Path) -> None:
        a, j = artifacts.c, jobs.c
        job_id, _, position = text.removeprefix("artifact:").partition("/")
        query = (
            select(a.object_key, a.start, a.bytes, a.sha256)
            .join(jobs, j.id == a.job_id)
            .where(j.id == job_id, j.tenant_id == tenant_id, j.state == "succeeded")
            .where(a.role == "output", a.position == int(position or 0))
        )
        with self._db.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise JobFailed("input_not_found", f"{text} is not there (any more)")
        self._read(self._depot.get(), row.object_key, row.start, row.bytes, text, path, row.sha256)

    def _read_s3(self, text: str, path: Path) -> None:
        """An object of a bucket that the store's key opens, where the operator lets jobs read it."""
        allowed = self._settings.s3_inputs
        if not any(fnmatchcase(text, pattern) for pattern in allowed):
            raise JobFailed(
                "input_refused",
                f"{text} may not be read here; allowed: {', '.join(allowed) or 'nothing'} (AIGC_S3_INPUTS)",
            )
        parts = urlsplit(text)
        if parts.netloc not in self._buckets:
            elsewhere = self._settings.model_copy(update={"store_url": f"s3://{parts.netloc}"})
            self._buckets[parts.netloc] = open_storage(elsewhere, create=False)
        self._read(self._buckets[parts.netloc], parts.path.lstrip("/"), 0, None, text, path)

    def _read(
        self,
        storage: Storage,
        key: str,
        start: int,
        length: int | None,
        shown: str,
        path: Path,
        sha256: str | None = None,
    ) -> None:
        """Copy an object of a storage into a file, and see that it is whole."""
        most, total, digest = self._settings.input_mb * 10**6, 0, hashlib.sha256()
        try:
            with storage.open(key, start=start, length=length) as source, path.open("wb") as file:
                while piece := source.read(PIECE):
                    total += len(piece)
                    if total > most:
                        message = f"{shown} has more than {self._settings.input_mb:,} MB (AIGC_INPUT_MB)"
                        raise JobFailed("input_too_big", message)
                    digest.update(piece)
                    file.write(piece)
        except (ObjectMissing, ValueError):
            raise JobFailed("input_not_found", f"{shown} is not in the storage") from None
        if sha256 is not None and digest.hexdigest() != sha256:
            raise JobFailed(
                "input_unreadable", f"{shown} is not what was stored: the storage gave other bytes", retryable=True
            )
