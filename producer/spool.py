"""The spool: a submission, read and validated as a whole before the database hears of it.

A source that is slow, stalls, or turns out to be wrong in its last line holds no transaction and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from pydantic_core import from_json, to_json

from producer.requests import Invalid, ValidJob, draw_seed, validate
from producer.sources import Item
from shared.errors import InvalidJobs, Problem, RequestError, Unavailable
from shared.ids import job_id
from shared.jobs import Lane
from shared.settings import make_private

#: problems kept in memory; all of them go to the report
KEPT_PROBLEMS = 100


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

    def rows(
        self, batch_id: str, tenant: str, lane_ids: list[int], defaults: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """The jobs as rows for the table, in order."""
        self.file.seek(0)
        for raw in self.file:
            seed, _, row = raw.partition(b" ")
            line, custom_id, lane, priority, params, _, metadata, cost, timeout_s, max_attempts = from_json(row)
            yield {
                "id": job_id(batch_id, line), "batch_id": batch_id, "tenant_id": tenant, "line": line,
                "custom_id": custom_id, "lane_id": lane_ids[lane], "priority": priority, "params_json": params,
                "seed": int(seed), "metadata_json": metadata, "cost": cost, "timeout_s": timeout_s,
                "max_attempts": max_attempts or defaults["max_attempts"], "expires_at": defaults["expires_at"],
            }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


class _CustomIds:
    """Which custom ids were there before, in a few bytes each: a missing one is its line number."""

    def __init__(self) -> None:
        self._given: set[int] = set()
        self._implied = bytearray()

    def taken(self, line: int, custom_id: str | None) -> bool:
        """Note an id; True if another job has it."""
        if custom_id is None:
            byte, bit = line >> 3, 1 << (line & 7)
            if byte >= len(self._implied):
                self._implied.extend(bytes(byte - len(self._implied) + 1))
            self._implied[byte] |= bit
            return self._hash(str(line)) in self._given
        hashed = self._hash(custom_id)
        if hashed in self._given or self._is_implied(custom_id):
            return True
        self._given.add(hashed)
        return False

    def _is_implied(self, custom_id: str) -> bool:
        if not (
            custom_id.isascii() and custom_id.isdigit() and str(int(custom_id)) == custom_id and len(custom_id) < 18
        ):
            return False
        line = int(custom_id)
        return line >> 3 < len(self._implied) and bool(self._implied[line >> 3] & 1 << (line & 7))

    @staticmethod
    def _hash(custom_id: str) -> int:
        return int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=8).digest())


def fill_spool(
    source: Iterable[Item], folder: Path, *, skip_invalid: bool = False, report: Path | None = None
) -> Spool:
    """Read a source to its end. Raises `InvalidJobs` if anything is wrong with it, unless `skip_invalid`.

    Every problem is written to `report`, if there are any.
    """
    try:
        for path in (folder.parent, folder):  # the data folder, and the spool in it
            make_private(path)
        spool = Spool(tempfile.TemporaryFile("w+b", dir=folder, prefix="spool-"))  # noqa: SIM115 - the spool owns it
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        _fill(spool, source, folder, report)
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


def _fill(spool: Spool, source: Iterable[Item], folder: Path, report: Path | None) -> None:
    digest = hashlib.sha256()
    ids = _CustomIds()
    lanes: dict[Lane, int] = {}
    with _Report(report) as write:
        for line, item in source:
            found = _checked(line, item, ids)
            if isinstance(found, list):
                spool.problem_count += len(found)
                spool.problems += found[: max(0, KEPT_PROBLEMS - len(spool.problems))]
                write(found)
                continue
            number = lanes.setdefault(found.lane, len(lanes))
            row = to_json(
                [
                    found.line, found.custom_id or str(line), number, found.priority, found.params_json, found.seed,
                    found.metadata_json, found.cost, found.timeout_s, found.max_attempts,
                ]
            )  # fmt: skip
            digest.update(row)
            # A drawn seed is no part of the request: the same request again has the same digest.
            line_of_spool = b"%d %s\n" % (draw_seed() if found.seed is None else found.seed, row)
            try:
                spool.file.write(line_of_spool)
            except OSError as error:
                raise _unwritable(folder, error) from None
            spool.total += 1
            spool.cost += found.cost
            spool.ready[number, found.priority] += 1
    try:
        spool.file.flush()
    except OSError as error:
        raise _unwritable(folder, error) from None
    digest.update(repr(lanes).encode())
    spool.lanes = list(lanes)
    spool.digest = digest.hexdigest()


def _checked(line: int, item: dict[str, Any] | Problem, ids: _CustomIds) -> ValidJob | list[Problem]:
    if isinstance(item, Problem):
        return [item]
    try:
        job = validate(line, item)
    except Invalid as invalid:
        return invalid.problems
    if ids.taken(line, job.custom_id):
        shown = job.custom_id or str(line)
        return [Problem(line, "custom_id", f"{shown!r} stands in an earlier line too: each job needs its own")]
    return job


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
