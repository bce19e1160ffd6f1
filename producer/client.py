"""The SDK: submit from Python, wait, read results. What `aigc` (the package) exports."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from producer.aliases import Aliases
from producer.gateway import DirectGateway, Gateway
from producer.inputs import Inputs
from producer.records import BatchRecord, EventRecord, JobRecord, Resumed, SystemRecord, WorkerRecord
from producer.results import download, result_lines
from producer.results import follow as go_on
from producer.sources import Defaults, Format, Item, from_objects, from_stream, guess_format
from producer.spool import Spool, fill_spool
from shared.errors import AigcError, RequestError
from shared.ids import batch_of, new_batch_id
from shared.operators import Drain, PausedQueue
from shared.settings import Settings, load_settings

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class Job:
    """One request for content. Only `task` and `params` are required, and `model` unless the task needs none."""

    task: str
    params: Mapping[str, Any]
    model: str | None = None
    #: yours, unique in its batch; default: its position, from 1
    custom_id: str | None = None
    #: default: drawn and stored; the same seed gives the same output
    seed: int | None = None
    priority: int | None = None
    queue: str | None = None
    timeout_s: float | None = None
    max_attempts: int | None = None
    #: given back with the result
    metadata: Mapping[str, Any] | None = None
    #: do identical work once: take what was made already, or is being made, for the same request and seed
    cache: bool | None = None


@contextmanager
def open_source(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """A file to read jobs from, or a stream that is open already. Raises `RequestError` if it cannot be read."""
    if not isinstance(source, (str, Path)):
        yield source
        return
    try:
        stream = Path(source).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise RequestError(f"{source} cannot be read: {error.strerror}") from None
    with stream:
        yield stream


class WaitTimeout(AigcError):
    """The batch was not done in time; it goes on."""


class Client:
    """Submits batches and finds them again, from any process.

        client = Client()
        batch = client.submit(["New shoes:"], task="text-generation", model="starter/ads-gpt2")
        batch.wait()

    Every method may raise `Unavailable` (a part does not answer) and `RequestError` (the message says what to change).
    """

    def __init__(self, settings: Settings | None = None, *, gateway: Gateway | None = None) -> None:
        """Settings come from `AIGC_*` and `.env` unless given."""
        self.settings = settings or load_settings()
        self._gateway = gateway or DirectGateway(self.settings)

    @property
    def gateway(self) -> Gateway:
        """The records behind this client."""
        return self._gateway

    def submit(
        self,
        jobs: Iterable[Any],
        *,
        task: str | None = None,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        cache: bool | None = None,
        name: str | None = None,
        idempotency_key: str | None = None,
        expires_s: float | None = None,
        skip_invalid: bool = False,
    ) -> Batch:
        """Submit strings, dicts, `Job`s or a DataFrame as one batch; any iterable, also a slow or a huge one.

        `task`, `model`, `params`, `queue`, `priority` and `cache` fill in what a job leaves out. The same
        `idempotency_key` with the same jobs gives the batch that came first. `expires_s` fails what has not started in
        so many seconds. With `cache`, which needs a seed, a job that asks for what was made already, or is being made,
        gets the same files. Raises `InvalidJobs` if any job is wrong; then nothing was stored (`skip_invalid` takes the
        good ones).
        """
        if isinstance(jobs, (str, bytes, Mapping)):
            jobs = [jobs]
        defaults = self.defaults(task=task, model=model, params=params, queue=queue, priority=priority, cache=cache)
        items = from_objects(jobs, defaults)
        with self._spooled(items, skip_invalid=skip_invalid) as spool:
            return self.submit_spool(spool, name=name, idempotency_key=idempotency_key, expires_s=expires_s)

    def submit_file(
        self,
        source: str | Path | BinaryIO,
        *,
        format: Format | None = None,  # noqa: A002 - the word its users know
        task: str | None = None,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        cache: bool | None = None,
        name: str | None = None,
        idempotency_key: str | None = None,
        expires_s: float | None = None,
        skip_invalid: bool = False,
    ) -> Batch:
        """The same for a file of JSON Lines, CSV (`.csv`) or one text a line (`.txt`), or an open binary stream."""
        defaults = self.defaults(task=task, model=model, params=params, queue=queue, priority=priority, cache=cache)
        kind = format or (guess_format(str(source)) if isinstance(source, (str, Path)) else "jsonl")
        with open_source(source) as stream:
            items = from_stream(stream, kind, defaults)
            with self._spooled(items, skip_invalid=skip_invalid) as spool:
                return self.submit_spool(spool, name=name, idempotency_key=idempotency_key, expires_s=expires_s)

    def _spooled(self, items: Iterable[Item], *, skip_invalid: bool) -> Spool:
        inputs = Inputs(lambda: self._gateway)
        aliases = Aliases(self.settings, self._gateway.aliases)
        return fill_spool(items, self.settings.spool_dir, inputs=inputs, aliases=aliases, skip_invalid=skip_invalid)

    def upload(self, path: str | Path) -> str:
        """Store a file once, for any number of jobs: returns `file:<id>`, which a param that takes a file understands.

        The same content again gives the same id. A path in a job is uploaded by `submit` itself.
        """
        return f"file:{self._gateway.upload(Path(path).expanduser()).id}"

    def submit_spool(
        self,
        spool: Spool,
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
        expires_s: float | None = None,
    ) -> Batch:
        """Store jobs that are validated already."""
        submitted = self._gateway.submit(
            spool, batch_id=new_batch_id(), name=name, idempotency_key=idempotency_key, expires_s=expires_s
        )
        return Batch(self, submitted.batch_id, warnings=submitted.warnings)

    @staticmethod
    def defaults(
        *,
        task: str | None,
        model: str | None,
        params: Mapping[str, Any] | None,
        queue: str | None = None,
        priority: int | None = None,
        cache: bool | None = None,
    ) -> Defaults:
        """What the jobs of a submission have in common."""
        keys = {"task": task, "model": model, "queue": queue, "priority": priority, "cache": cache}
        return Defaults({key: value for key, value in keys.items() if value is not None}, dict(params or {}))

    def batch(self, reference: str) -> Batch:
        """A batch by id, by the beginning of its id, or by name (the newest of that name). Raises `NotFound`."""
        return Batch(self, self._gateway.batch(reference).id)

    def batches(self, limit: int = 20) -> list[BatchRecord]:
        """The newest batches."""
        return self._gateway.batches(limit=limit)

    def job(self, job_id: str) -> JobRecord:
        """A job by its id, `<batch>-<line>`. Raises `NotFound`."""
        return self._gateway.job(job_id)

    def workers(self) -> list[WorkerRecord]:
        """Workers that are alive."""
        return self._gateway.workers()

    def system(self) -> SystemRecord:
        """Workers, paused queues, ready jobs by queue, and whether a keeper is alive."""
        return self._gateway.system()

    def why(self, job_id: str) -> str:
        """In words, why a job is not done."""
        return self._gateway.why(job_id)

    def pause(self, queue: str, *, reason: str | None = None) -> PausedQueue:
        """Claim nothing of a queue any more, whoever's jobs it holds; what runs goes on, and nothing is lost.

        Harmless when it is paused already. A queue that nobody knows yet can be paused, too.
        """
        return self._gateway.pause(queue, reason)

    def resume(self, queue: str) -> Resumed:
        """Let a queue go on, and wake its workers. Harmless when it is not paused."""
        return self._gateway.resume(queue)

    def paused(self) -> list[PausedQueue]:
        """The queues that are paused."""
        return list(self._gateway.system().paused)

    def drain(self, worker: str, *, wait_s: float | None = None) -> list[Drain]:
        """Ask a worker to finish or give back what it holds, and to end; it is not started again.

        `worker` is its name as `workers()` has it, the id of a session, or the unique beginning of either. With
        `wait_s`, waits so long for it to be gone; what is returned says how far it is then. Raises `NotFound`.
        """
        drains = self._gateway.drain(worker)
        deadline = time.monotonic() + (wait_s or 0.0)
        while any(drain.ended_at is None for drain in drains) and time.monotonic() < deadline:
            time.sleep(min(0.3, max(0.0, deadline - time.monotonic())))
            drains = self._gateway.drained(drains)
        return drains

    def cancel(self, job_ids: Iterable[str]) -> int:
        """Cancel single jobs; returns how many that concerned."""
        return self._gateway.cancel_jobs(list(job_ids))

    def retry(self, job_ids: Iterable[str]) -> int:
        """Put failed or cancelled jobs back; returns how many."""
        by_batch: dict[str, list[str]] = {}
        for id_ in job_ids:
            by_batch.setdefault(batch_of(id_), []).append(id_)
        return sum(self._gateway.retry(batch_id, ids) for batch_id, ids in by_batch.items())


class Batch:
    """A batch as its owner sees it; holds no state but its id."""

    def __init__(self, client: Client, batch_id: str, *, warnings: tuple[str, ...] = ()) -> None:
        self._client = client
        self._gateway = client.gateway
        self.id = batch_id
        #: what did not go well at submit but harms nothing, such as a Redis that did not answer
        self.warnings = warnings

    def status(self) -> BatchRecord:
        """Its counters, rate, time left and errors, as of now."""
        return self._gateway.batch(self.id)

    def wait(self, timeout_s: float | None = None, *, progress: bool = False) -> BatchRecord:
        """Wait until every job is finished. Raises `WaitTimeout`; the batch goes on."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        from producer.watch import watch

        record = watch(
            self._gateway,
            self.id,
            quiet=not (progress and sys.stderr.isatty()),
            stop=None if deadline is None else lambda: time.monotonic() > deadline,
        )
        if record.status != "done":
            raise WaitTimeout(
                f"batch {self.id} is not done after {timeout_s} s: {record.finished} of {record.total} jobs"
            )
        return record

    def jobs(self, states: Iterable[str] | None = None) -> Iterator[JobRecord]:
        """Its jobs by line, page by page."""
        after = 0
        wanted = None if states is None else list(states)
        while page := self._gateway.jobs(self.id, after=after, states=wanted):
            yield from page
            after = page[-1].line

    def results(self) -> Iterator[dict[str, Any]]:
        """One dict per job by line, as in `results.jsonl`, streamed; texts and small JSON are inline."""
        return result_lines(self._gateway, self.id)

    def download(self, out: str | Path, *, text_files: bool = False, follow: bool = False) -> Path:
        """Write the files, `results.jsonl` and the contact sheet `index.html`; can be repeated. Returns the folder.

        With `follow`, go on with what comes until the batch is done; a page that is open in a browser grows.
        """
        folder = Path(out)
        if follow:
            go_on(self._gateway, self.status(), folder, text_files=text_files, quiet=True)
        else:
            download(self._gateway, self.status(), folder, text_files=text_files)
        return folder

    def to_pandas(self) -> pandas.DataFrame:
        """The results as a DataFrame (needs pandas)."""
        import pandas

        return pandas.DataFrame(list(self.results()))

    def events(self, after: int = 0, *, follow: bool = False) -> Iterator[EventRecord]:
        """Every change of state so far, from a cursor on: the `id` of the last event that was seen.

        With `follow`, also those that come, until the batch is done.
        """
        from producer import happenings

        return (happenings.follow if follow else happenings.happened)(self._gateway, self.id, after=after)

    def cancel(self) -> int:
        """Cancel what is not finished; returns how many jobs that concerned."""
        return self._gateway.cancel_batch(self.id)

    def retry(self) -> int:
        """Put failed and cancelled jobs back with a fresh allowance; returns how many."""
        return self._gateway.retry(self.id)

    def __repr__(self) -> str:
        return f"Batch({self.id!r})"
