"""The spool: a submission, read and validated as a whole before the database hears of it.

A source that is slow, stalls, or turns out to be wrong in its last line holds no transaction and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import marshal
import tempfile
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import IO, Self

from pydantic_core import to_json

from producer.aliases import Aliases
from producer.custom_ids import CustomIds
from producer.inputs import Inputs
from producer.quick import Validator
from producer.requests import Invalid, ValidJob, draw_seeds
from producer.sources import Item
from shared.errors import InvalidJobs, Problem, RequestError, Unavailable
from shared.jobs import Lane, NewJob
from shared.settings import make_private

#: problems kept in memory; all of them go to the report
KEPT_PROBLEMS = 100
#: most jobs of a block: it is stored in one transaction, and no other writer is to wait for it for long
BLOCK = 4000
#: characters of params and metadata after which a block ends
BLOCK_SIZE = 4 << 20

#: a job in the spool: a `ValidJob` with its custom id filled in, and the number of its lane among those of the spool
_Row = tuple[int, str, int, int, str, "int | None", "str | None", float, "float | None", "int | None", "str | None"]
_custom_id = itemgetter(1)
_lane_and_priority = itemgetter(2, 3)
_cost = itemgetter(7)
_fingerprint = itemgetter(10)


@dataclass
class Spool:
    """Validated jobs in a temporary file, and what is known of them as a whole. Close it (`with`)."""

    file: IO[bytes]
    total: int = 0
    lanes: list[Lane] = field(default_factory=list)
    #: (index into `lanes`, priority) → jobs
    ready: Counter[tuple[int, int]] = field(default_factory=Counter)
    #: estimated seconds of work
    cost: float = 0.0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    digest: str = ""
    #: jobs whose owner wants identical work done once
    with_cache: int = 0
    #: ids of the uploaded files that the jobs name
    files: list[str] = field(default_factory=list)
    #: where each block ends in the file
    ends: array[int] = field(default_factory=lambda: array("q"))

    def blocks(self, lane_ids: list[int], *, max_attempts: int, expires_at: float | None) -> Iterator[list[NewJob]]:
        """The jobs in order, as many at a time as go into one transaction.

        `lane_ids` are the numbers of `lanes` in the database; `max_attempts` is for jobs that do not say it themselves.
        """
        for number in range(len(self.ends)):
            seeds, rows = self._block(number)
            yield [
                NewJob(
                    line, custom_id, lane_ids[lane], priority, params_json, drawn if seed is None else seed,
                    metadata_json, cost, timeout_s, tries or max_attempts, expires_at, fingerprint,
                )
                for drawn, (
                    line, custom_id, lane, priority, params_json, seed, metadata_json, cost, timeout_s, tries,
                    fingerprint,
                ) in zip(seeds, rows, strict=True)
            ]  # fmt: skip

    def write(self, rows: list[_Row]) -> None:
        """Write a block down, with a seed for each job that has none. Raises `OSError`."""
        block = marshal.dumps((draw_seeds(len(rows)), rows))
        begin = self.ends[-1] if self.ends else 0
        self.file.seek(begin)
        self.file.write(block)
        self.ends.append(begin + len(block))
        self.total += len(rows)
        self.cost += sum(map(_cost, rows))
        self.ready.update(map(_lane_and_priority, rows))
        self.with_cache += len(rows) - list(map(_fingerprint, rows)).count(None)

    def custom_ids(self, number: int) -> frozenset[str]:
        """Those of a block, counted from 0."""
        return frozenset(map(_custom_id, self._block(number)[1]))

    def _block(self, number: int) -> tuple[tuple[int, ...], list[_Row]]:
        begin = self.ends[number - 1] if number else 0
        self.file.seek(begin)
        block = marshal.loads(self.file.read(self.ends[number] - begin))  # noqa: S302 - nobody else writes this file
        seeds, rows = block
        return seeds, rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def fill_spool(
    source: Iterable[Item],
    folder: Path,
    *,
    inputs: Inputs | None = None,
    aliases: Aliases | None = None,
    skip_invalid: bool = False,
    report: Path | None = None,
) -> Spool:
    """Read a source to its end. Raises `InvalidJobs` if anything is wrong with it, unless `skip_invalid`.

    Files that the jobs name are settled by `inputs`, and their models by `aliases`. Every problem is written to
    `report`, if there are any.
    """
    try:
        for path in (folder.parent, folder):  # the data folder, and the spool in it
            make_private(path)
        spool = Spool(tempfile.TemporaryFile("w+b", dir=folder, prefix="spool-"))  # noqa: SIM115 - the spool owns it
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        _fill(spool, source, folder, inputs, aliases, report)
        if spool.problem_count and not skip_invalid:
            raise InvalidJobs(spool.problems, count=spool.problem_count, report=str(report) if report else None)
        if not spool.total:
            empty = "no line of the input is valid" if spool.problem_count else "the input holds no jobs"
            raise RequestError(f"nothing was stored: {empty}")
    except BaseException:
        with suppress(OSError):  # a full disk says so a second time
            spool.file.close()
        raise
    return spool


def _unwritable(path: Path, error: OSError) -> Unavailable:
    advice = "free some space there, or set AIGC_DATA_DIR elsewhere"
    return Unavailable("data folder", str(path), f"cannot be written: {error.strerror}", advice)


def _fill(
    spool: Spool, source: Iterable[Item], folder: Path, inputs: Inputs | None, aliases: Aliases | None,
    report: Path | None,
) -> None:  # fmt: skip
    validate = Validator()
    with _Report(report) as write, _Blocks(spool, folder) as blocks:
        for line, item in source:
            try:
                if isinstance(item, Problem):
                    raise Invalid([item])
                job = validate(line, item)
                if aliases is not None:
                    job = aliases(job, item)
                blocks.add(job if inputs is None else inputs(job))
            except Invalid as invalid:
                found = invalid.problems
                spool.problem_count += len(found)
                spool.problems += found[: max(0, KEPT_PROBLEMS - len(spool.problems))]
                write(found)
    if inputs is not None:
        spool.files = sorted(inputs.files)


class _Blocks:
    """Gathers jobs into blocks of the spool, and tells those whose id another job has."""

    def __init__(self, spool: Spool, folder: Path) -> None:
        self._spool = spool
        self._folder = folder
        #: the block that is being gathered, the ids in it, and its size
        self._rows: list[_Row] = []
        self._here: set[str] = set()
        self._size = 0
        self._lanes: dict[Lane, int] = {}
        self._digest = hashlib.sha256()
        self._ids = CustomIds(self._ids_at)
        #: the block that was looked into last, and the ids in it
        self._seen: tuple[int, frozenset[str]] = (-1, frozenset())

    def add(self, job: ValidJob) -> None:
        """Put a job down. Raises `Invalid` if another job has its id, and `Unavailable` if the disk is full."""
        line, custom_id = job.line, job.custom_id
        if self._ids.taken(line, custom_id, len(self._spool.ends)):
            shown = custom_id or str(line)
            message = f"{shown!r} stands in an earlier line too: each job needs its own"
            raise Invalid([Problem(line, "custom_id", message)])
        number = self._lanes.setdefault(job.lane, len(self._lanes))
        custom_id = custom_id or str(line)
        self._rows.append((line, custom_id, number, *job[3:]))
        self._here.add(custom_id)
        self._size += len(job.params_json) + len(job.metadata_json or "")
        if len(self._rows) >= BLOCK or self._size >= BLOCK_SIZE:
            self._write()

    def _write(self) -> None:
        # A drawn seed is no part of the request: the same request again has the same digest.
        self._digest.update(to_json(self._rows)[1:-1] + b",")
        try:
            self._spool.write(self._rows)
        except OSError as error:
            raise _unwritable(self._folder, error) from None
        self._rows, self._here, self._size = [], set(), 0

    def _ids_at(self, number: int) -> Container[str]:
        if number == len(self._spool.ends):
            return self._here
        if number != self._seen[0]:
            self._seen = number, self._spool.custom_ids(number)
        return self._seen[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        if self._rows:
            self._write()
        try:
            self._spool.file.flush()
        except OSError as error:
            raise _unwritable(self._folder, error) from None
        self._digest.update(repr(self._lanes).encode())
        self._spool.lanes = list(self._lanes)
        self._spool.digest = self._digest.hexdigest()


class _Report:
    """A file that comes into being with the first problem."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, problems: list[Problem]) -> None:
        if self._path is None:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
            self._file.writelines(f"{problem}\n" for problem in problems)
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
