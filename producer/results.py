"""From finished jobs to a folder on the caller's machine: `aigc results`, `batch.download()`, `batch.results()`.

Everything streams, page by page: memory does not grow with the batch. Texts and small JSON stand inside the lines;
every other output becomes a file beside them. A file is only ever seen whole, and with the checksum that the worker
recorded.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import to_json

from producer.contact_sheet import ContactSheet
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
    result_artifacts,
)
from producer.records import ArtifactRecord, BatchRecord, JobRecord
from shared.errors import Unavailable

if TYPE_CHECKING:
    from producer.gateway import Gateway

#: jobs that are asked for at once
PAGE = 500
#: files that are fetched at the same time
FETCHERS = 8
#: a file that is there already is read and compared up to this size; a larger one is known by its size
COMPARE_MOST = 64 << 20

_CHUNK = 1 << 20
CSV_COLUMNS = (
    "index", "custom_id", "status", "task", "model", "text", "paths", "error_code", "error_message", "seed", "params",
)  # fmt: skip
#: where some readers end a line, and the same in JSON
_LINE_ENDS = tuple((mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\x85\u2028\u2029")
#: what makes a spreadsheet take a cell for a formula, full-width forms included
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


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
            yield _line(job, inline, {}, problems)
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

    With `contact_sheet`, `index.html` shows the first 5,000 jobs (see `producer.contact_sheet`).

    Raises `RequestError` if `out` cannot be written, `Unavailable` if the disk is full or a part of the system does not
    answer, and `DamagedOutput` at the end if some outputs could not be had; all others have been written by then, and
    the line of such a job says so under `problem` of the artifact.
    """
    sheet = ContactSheet(batch) if contact_sheet else None
    return _Download(gateway, batch, out, text_files=text_files, on_job=on_job, sheet=sheet).run(format)


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
    """One run of `download`."""

    def __init__(
        self, gateway: Gateway, batch: BatchRecord, out: Path, *,
        text_files: bool, on_job: Callable[[JobRecord], None] | None,
        sheet: ContactSheet | None,
    ) -> None:  # fmt: skip
        self._gateway = gateway
        self._batch = batch
        self._out = out
        self._text_files = text_files
        self._on_job = on_job
        self._sheet = sheet
        self._contents = Contents(gateway)
        self._stop = threading.Event()
        self._written = self._skipped = 0
        self._damaged = _Damaged()

    def run(self, format_: Literal["jsonl", "csv"]) -> Downloaded:
        with explained(self._out):
            self._out.mkdir(parents=True, exist_ok=True)
            drop_abandoned(self._out)
        results = self._out / f"results.{format_}"
        jobs = failed = unfinished = 0
        with replacing(results) as append, self._fetchers() as pool:
            write = _csv_lines(append) if format_ == "csv" else _json_lines(append)
            for page in _pages(self._gateway, self._batch.id):
                for job, line in self._lines(page, pool):
                    write(line)
                    if self._sheet is not None:
                        self._sheet.add(line)
                    jobs += 1
                    failed += job.status in ("failed", "cancelled")
                    unfinished += job.status not in ("succeeded", "failed", "cancelled")
                    if self._on_job is not None:
                        self._on_job(job)
        sheet = self._sheet.write(self._out) if self._sheet is not None else None
        done = Downloaded(
            folder=self._out, results=results, page=sheet, jobs=jobs, written=self._written, skipped=self._skipped,
            failed=failed, unfinished=unfinished,
        )  # fmt: skip
        if self._damaged.count:
            raise DamagedOutput(self._damaged.told(f"everything else is in {self._out}"), done)
        return done

    @contextmanager
    def _fetchers(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
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
                    self._count(self._keep(artifact, body, self._out / name))
                    paths[artifact.id] = name
            yield job, _line(job, inline, paths, problems)

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
        target = self._out / file_name(job, artifact)
        if _is_there(target, artifact):
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


def _line(
    job: JobRecord,
    inline: Sequence[tuple[ArtifactRecord, bytes]],
    paths: Mapping[int, str],
    problems: Mapping[int, str],
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "index": job.line, "custom_id": job.custom_id, "job_id": job.id, "status": job.status, "task": job.task,
        "model": job.model, "params": dict(job.params), "seed": job.seed, "metadata": job.metadata,
    }  # fmt: skip
    for kind, several, decode in (("text", "texts", _text), ("data", "datas", _data)) if inline else ():
        values = [decode(body) for artifact, body in inline if inline_as(artifact) == kind]
        if values:
            line[kind] = values[0]
        if len(values) > 1:
            line[several] = values
    line["artifacts"] = [_artifact(a, paths.get(a.id), problems.get(a.id)) for a in result_artifacts(job)]
    line |= {"error": job.error, "attempts": job.attempt, "timings": dict(job.timings), "record": job.record}
    return line


def _artifact(artifact: ArtifactRecord, path: str | None, problem: str | None) -> dict[str, Any]:
    fixed: dict[str, Any] = {"role": artifact.role}
    if path:
        fixed["path"] = path
    if problem:
        fixed["problem"] = problem
    fixed |= {"media_type": artifact.media_type, "bytes": artifact.bytes, "sha256": artifact.sha256}
    return fixed | {name: value for name, value in artifact.facts.items() if name not in {*fixed, "path"}}


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _data(body: bytes) -> Any:
    """JSON as it is; NaN and infinity, which JSON does not have, become null. What is no JSON stays a text."""
    try:
        return json.loads(body, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return _text(body)


def _json_lines(append: Callable[[bytes], None]) -> Callable[[Mapping[str, Any]], None]:
    def write(line: Mapping[str, Any]) -> None:
        try:
            made = to_json(line, inf_nan_mode="constants")
        except ValueError:  # nested very deeply, or a lone surrogate, which becomes its JSON escape
            text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
            made = text.encode("utf-8", "backslashreplace")
        for separator, escaped in _LINE_ENDS:
            if separator in made:
                made = made.replace(separator, escaped)
        append(made + b"\n")

    return write


def _csv_lines(append: Callable[[bytes], None]) -> Callable[[Mapping[str, Any]], None]:
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer)

    def row(cells: Sequence[object]) -> None:
        table.writerow([_harmless(cell) for cell in cells])
        append(buffer.getvalue().encode("utf-8", "backslashreplace"))
        buffer.seek(0)
        buffer.truncate()

    def write(line: Mapping[str, Any]) -> None:
        error = line["error"] or {}
        row([
            line["index"], line["custom_id"], line["status"], line["task"], line["model"], line.get("text"),
            ";".join(a["path"] for a in line["artifacts"] if "path" in a), error.get("code"), error.get("message"),
            line["seed"], json.dumps(line["params"], ensure_ascii=False),
        ])  # fmt: skip

    row(CSV_COLUMNS)
    return write


def _harmless(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _is_there(path: Path, artifact: ArtifactRecord) -> bool:
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size != artifact.bytes:
            return False
        if artifact.bytes > COMPARE_MOST:
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256
    except OSError:
        return False
