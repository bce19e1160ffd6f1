"""From finished jobs to a folder on the caller's machine: `aigc results`, `batch.download()`, `batch.results()`.

Everything streams, page by page: memory does not grow with the batch. Texts and small JSON stand inside the lines;
every other output becomes a file beside them. A file is only ever seen whole, and with the checksum that the worker
recorded.
"""

from __future__ import annotations

import hashlib
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from producer.contact_sheet import ContactSheet
from producer.lines import csv_lines, json_lines, line_of
from producer.local_files import drop_abandoned, explained, replacing
from producer.outputs import (
    Contents,
    DamagedOutput,
    check,
    file_name,
    inline_as,
    insist,
    opened,
    outputs,
)
from producer.records import ArtifactRecord, BatchRecord, JobRecord
from shared.errors import AigcError, Unavailable

if TYPE_CHECKING:
    from producer.gateway import Gateway

#: jobs that are asked for at once
PAGE = 500
#: files that are fetched at the same time
FETCHERS = 8
#: a file that is there already is read and compared up to this size; a larger one is known by its size
COMPARE_MOST = 64 << 20
#: a page that is followed is brought up to date after so many seconds at least, for this share of the time at most
GROW_LEAST_S, GROW_SHARE = 1.5, 0.1

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download did."""

    #: the folder
    folder: Path
    #: `results.jsonl` or `results.csv` in it
    results: Path
    #: `index.html`, if one was written
    page: Path | None
    #: lines in the results file: every job of the batch
    jobs: int
    #: files that were written now
    written: int
    #: files that were there already
    skipped: int
    #: jobs that failed or were cancelled
    failed: int
    #: jobs that were still loading, waiting, queued or running
    unfinished: int


def result_lines(gateway: Gateway, batch_id: str) -> Iterator[dict[str, Any]]:
    """One dict per job in the order of the input, in the shape of a line of `results.jsonl`; nothing is written.

    Texts and small JSON are inline: `text` (with `texts` if the job has several) or `data` (`datas`); media stand under
    `artifacts` without a path. Raises `NotFound` and `Unavailable`, and `DamagedOutput` after the last line if some
    outputs could not be had: the line of such a job says so under `problem` of the artifact.
    """
    damaged = _Damaged()
    contents = Contents(gateway)
    for page in _pages(gateway, batch_id):
        contents.expect(page)
        for job in page:
            inline: list[tuple[ArtifactRecord, bytes]] = []
            problems: dict[int, str] = {}
            for artifact in outputs(job):
                if inline_as(artifact):
                    try:
                        inline.append((artifact, contents.read(job, artifact)))
                    except DamagedOutput as error:
                        problems[artifact.id] = damaged.note(error)
            yield line_of(job, inline, {}, problems)
    if damaged.count:
        raise DamagedOutput(damaged.told("every other line is whole"))


def download(
    gateway: Gateway,
    batch: BatchRecord,
    out: Path,
    *,
    text_files: bool = False,
    format: Literal["jsonl", "csv"] = "jsonl",  # noqa: A002 - the name of the option
    on_job: Callable[[JobRecord], None] | None = None,
    contact_sheet: bool = True,
) -> Downloaded:
    """Write the outputs of a batch into the folder `out`, and one line per job into `results.jsonl` (or `.csv`).

    Only files with the role `output` of jobs that have succeeded are fetched; their previews and metrics are listed.
    Run it again to go on after an interruption, or while the batch is still running: files that are there are kept if
    their size and, up to 64 MiB, their SHA-256 are right; the results file is replaced as a whole at the end. `on_job`
    is called for every job once its files are there. Needs a gateway whose `open` may be called from several threads.

    A CSV holds the first text of a job only. A cell that a spreadsheet would take for a formula (it begins with one of
    `= + - @`, a tab or a line break) gets a `'` in front.

    With `contact_sheet`, `index.html` shows the first 5,000 jobs that have begun (see `producer.contact_sheet`).

    Raises `RequestError` if `out` cannot be written, `Unavailable` if the disk is full or a part of the system does not
    answer, and `DamagedOutput` at the end if some outputs could not be had; all others have been written by then, and
    the line of such a job says so under `problem` of the artifact.
    """
    sheet = ContactSheet(batch) if contact_sheet else None
    return _Download(gateway, batch.id, out, text_files=text_files, on_job=on_job).run(format, sheet)


def follow(
    gateway: Gateway,
    batch: BatchRecord,
    out: Path,
    *,
    text_files: bool = False,
    format: Literal["jsonl", "csv"] = "jsonl",  # noqa: A002 - the name of the option
    quiet: bool | None = None,
    hint: Callable[[], str | None] | None = None,
    on_trouble: Callable[[AigcError], None] | None = None,
) -> Downloaded:
    """The same while the batch runs: the files and the page come as the jobs finish, the rest once all are.

    A page that is open in a browser shows what is new by itself. What is not on it, because it shows 5,000 jobs at
    most, comes at the end. `quiet` and `hint` are those of `producer.watch.watch`, which raises what that raises; where
    files cannot be had in between, `on_trouble` is told once and it is tried again. Interrupted, it leaves the files,
    and the page as it is then.
    """
    from producer.watch import watch

    work = _Download(gateway, batch.id, out, text_files=text_files)
    growth = _Growth(work, ContactSheet(batch), on_trouble)
    try:
        growth.look()
        watch(gateway, batch.id, quiet=quiet, hint=hint, stop=growth.look)
        return work.run(format, ContactSheet(gateway.batch(batch.id)))
    except DamagedOutput:
        raise  # all the same, the page is complete
    except BaseException:
        growth.end()
        raise


class _Growth:
    """Brings a page up to date from time to time."""

    def __init__(self, work: _Download, sheet: ContactSheet, on_trouble: Callable[[AigcError], None] | None) -> None:
        self._work = work
        self._sheet = sheet
        self._on_trouble = on_trouble
        self._shown: Mapping[str, int] = {}
        self._next = 0.0

    def look(self) -> bool:
        """Show what is new, if it is time for that; never a reason to stop watching."""
        began = time.monotonic()
        if began < self._next:
            return False
        try:
            batch = self._work.batch()
            if self._shown != batch.counts:
                self._sheet.batch = batch
                self._work.grow(self._sheet)
                self._shown = dict(batch.counts)
            else:
                self._sheet.beat(self._work.out)
        except Unavailable as error:
            if self._on_trouble is not None:
                self._on_trouble(error)
                self._on_trouble = None
        took = time.monotonic() - began
        self._next = time.monotonic() + max(GROW_LEAST_S, took / GROW_SHARE)
        return False

    def end(self) -> None:
        """What there is stays, and is not followed any more."""
        with suppress(AigcError):
            self._sheet.write(self._work.out)


class _Damaged:
    """Outputs that could not be had: how many, and what the first of them said."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def note(self, error: DamagedOutput) -> str:
        """Count one; returns what it said."""
        self.count += 1
        if len(self._first) < 20:
            self._first.append(str(error))
        return str(error)

    def told(self, otherwise: str) -> str:
        more = self.count - len(self._first)
        lines = "\n".join(self._first)
        return f"{self.count} output(s) could not be had; {otherwise}:\n{lines}" + (
            f"\n… and {more} more" if more else ""
        )


class _Download:
    """Brings over what a batch has made."""

    def __init__(
        self, gateway: Gateway, batch_id: str, out: Path, *,
        text_files: bool, on_job: Callable[[JobRecord], None] | None = None,
    ) -> None:  # fmt: skip
        self.out = out
        self._gateway = gateway
        self._batch_id = batch_id
        self._text_files = text_files
        self._on_job = on_job
        self._contents = Contents(gateway)
        self._stop = threading.Event()
        self._written = self._skipped = 0
        self._damaged = _Damaged()
        #: artifacts whose files this process has seen to be right
        self._seen: set[int] = set()

    def batch(self) -> BatchRecord:
        return self._gateway.batch(self._batch_id)

    def run(self, format_: Literal["jsonl", "csv"], sheet: ContactSheet | None) -> Downloaded:
        """Everything that is there."""
        self._begin()
        results = self.out / f"results.{format_}"
        jobs = failed = unfinished = 0
        with replacing(results) as append, self._fetchers() as pool:
            write = csv_lines(append) if format_ == "csv" else json_lines(append)
            for page in _pages(self._gateway, self._batch_id):
                for job, line in self._lines(page, pool):
                    write(line)
                    if sheet is not None:
                        sheet.add(line)
                    jobs += 1
                    failed += job.status in ("failed", "cancelled")
                    unfinished += job.status not in ("succeeded", "failed", "cancelled")
                    if self._on_job is not None:
                        self._on_job(job)
        page_ = sheet.write(self.out) if sheet is not None else None
        done = Downloaded(
            folder=self.out, results=results, page=page_, jobs=jobs, written=self._written, skipped=self._skipped,
            failed=failed, unfinished=unfinished,
        )  # fmt: skip
        if self._damaged.count:
            raise DamagedOutput(self._damaged.told(f"everything else is in {self.out}"), done)
        return done

    def grow(self, sheet: ContactSheet) -> None:
        """What the page does not show yet, as far as it has room; open pages are told."""
        self._begin()
        with self._fetchers() as pool:
            for page in _pages(self._gateway, self._batch_id):
                for job, line in self._lines([job for job in page if not sheet.succeeded(job.line)], pool):
                    sheet.add(line)
                    self._seen.update(a.id for a in outputs(job))
                if sheet.full:
                    break
        sheet.write(self.out, live=True)

    def _begin(self) -> None:
        with explained(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            drop_abandoned(self.out)
        self._written = self._skipped = 0
        self._damaged = _Damaged()

    @contextmanager
    def _fetchers(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        self._stop.clear()
        try:
            yield pool
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _lines(self, page: Sequence[JobRecord], pool: ThreadPoolExecutor) -> Iterator[tuple[JobRecord, dict[str, Any]]]:
        self._contents.expect(page)
        fetched: dict[int, Future[bool]] = {
            artifact.id: pool.submit(self._fetch, job, artifact)
            for job in page
            for artifact in outputs(job)
            if not inline_as(artifact)
        }
        for job in page:
            inline: list[tuple[ArtifactRecord, bytes]] = []
            paths: dict[int, str] = {}
            problems: dict[int, str] = {}
            for artifact in outputs(job):
                try:
                    if artifact.id in fetched:
                        self._count(fetched[artifact.id].result())
                        paths[artifact.id] = file_name(job, artifact)
                        continue
                    body = self._contents.read(job, artifact)
                except DamagedOutput as error:
                    problems[artifact.id] = self._damaged.note(error)
                    continue
                inline.append((artifact, body))
                if self._text_files and inline_as(artifact) == "text":
                    name = file_name(job, artifact)
                    self._count(self._keep(artifact, body, self.out / name))
                    paths[artifact.id] = name
            yield job, line_of(job, inline, paths, problems)

    def _count(self, was_written: bool) -> None:
        self._written += was_written
        self._skipped += not was_written

    def _keep(self, artifact: ArtifactRecord, body: bytes, target: Path) -> bool:
        if _is_there(target, artifact):
            return False
        with replacing(target) as append:
            append(body)
        return True

    def _fetch(self, job: JobRecord, artifact: ArtifactRecord) -> bool:
        """Bring one file over, in a thread of the pool. Whether it had to be written."""
        target = self.out / file_name(job, artifact)
        if _is_there(target, artifact, compare=artifact.id not in self._seen):
            return False
        insist(lambda: self._copy(job, artifact, target))
        return True

    def _copy(self, job: JobRecord, artifact: ArtifactRecord, target: Path) -> None:
        digest, size = hashlib.sha256(), 0
        with opened(self._gateway, job, artifact) as stream, replacing(target) as append:
            while chunk := stream.read(_CHUNK):
                if self._stop.is_set():
                    raise Unavailable("download", str(target), "was interrupted")
                append(chunk)
                digest.update(chunk)
                size += len(chunk)
            check(job, artifact, size, digest.hexdigest())


def _pages(gateway: Gateway, batch_id: str) -> Iterator[list[JobRecord]]:
    after = 0
    while page := gateway.jobs(batch_id, after=after, limit=PAGE):
        yield page
        after = page[-1].line


def _is_there(path: Path, artifact: ArtifactRecord, *, compare: bool = True) -> bool:
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size != artifact.bytes:
            return False
        if artifact.bytes > COMPARE_MOST or not compare:
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256
    except OSError:
        return False
