"""Where jobs come from: a stream of JSON Lines, CSV or plain texts, or Python objects; one at a time.

Each source yields (line number, job as a dict) or (line number, `Problem`), so that one bad line is one problem.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic_core import from_json

from producer.requests import JOB_KEYS, from_text, main_param, printable
from shared.errors import Problem, RequestError

#: longest line of a job file, in bytes
MAX_LINE = 8 * 1024 * 1024

Format = Literal["jsonl", "csv", "text"]
Item = tuple[int, "dict[str, Any] | Problem"]

_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return made


_STRICT = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_repeats)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the jobs of a submission have in common; a job's own word goes first."""

    #: job keys: task, model, queue, priority, …
    keys: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)

    def filled(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The job with what it left out."""
        if type(job) is dict and "params" in job and not self.keys and not self.params:
            return job
        merged = {**self.keys, **job}
        params = merged.get("params", {})
        if self.params and isinstance(params, Mapping):
            merged["params"] = {**self.params, **params}
        else:
            merged["params"] = params
        return merged


def guess_format(path: str) -> Format:
    """By the file's name: `.csv`, `.txt` (one text a line), anything else is JSON Lines."""
    suffix = Path(path).suffix.lower()
    return "csv" if suffix == ".csv" else "text" if suffix == ".txt" else "jsonl"


def from_stream(stream: BinaryIO, format_: Format, defaults: Defaults) -> Iterator[Item]:
    """Jobs of a file or pipe."""
    if format_ == "csv":
        yield from _from_csv(stream, defaults)
        return
    for line, raw in _lines(stream):
        if isinstance(raw, Problem):
            yield line, raw
        elif format_ == "jsonl" and (job := _quickly_parsed(raw)) is not None:
            yield line, defaults.filled(job)
        else:
            yield line, _from_line(line, raw, format_, defaults)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | Problem]]:
    """Lines that are not blank; a byte order mark is taken off."""
    line = 0
    while raw := stream.readline(MAX_LINE + 1):
        line += 1
        if line == 1:
            if raw.startswith(_OTHER_BOMS):
                yield line, Problem(line, "", "the file is UTF-16: save it as UTF-8")
                return
            raw = raw.removeprefix(_BOM)
        if len(raw) > MAX_LINE:
            while not raw.endswith(b"\n") and (raw := stream.readline(MAX_LINE)):
                pass
            yield line, Problem(line, "", f"is longer than {MAX_LINE // 1024 // 1024} MB")
        elif raw and not raw.isspace():
            yield line, raw


def _quickly_parsed(raw: bytes) -> dict[str, Any] | None:
    """A line that is a JSON object to the letter, several times faster than `_parsed`; None where that has to look.

    pydantic's parser takes the last of several equal keys without a word. So they are counted: a colon between key and
    value stands behind a quotation mark or white space, and where there are no more such colons than keys were read,
    no key was lost.
    """
    try:
        job = from_json(raw, allow_inf_nan=False)
    except ValueError:
        return None
    if type(job) is not dict:
        return None
    colons = raw.count(b'":') + raw.count(b" :") + raw.count(b"\t:") + raw.count(b"\r:")
    return job if _keys_in(job) == colons else None


def _keys_in(value: dict[str, Any] | list[Any]) -> int:
    """How many keys stand in all the objects of a parsed value."""
    named = type(value) is dict
    parts: Iterable[Any] = value.values() if named else value  # type: ignore[union-attr]
    keys = len(value) if named else 0
    for part in parts:
        if (kind := type(part)) is dict or kind is list:
            keys += _keys_in(part)
    return keys


def _from_line(line: int, raw: bytes, format_: Format, defaults: Defaults) -> dict[str, Any] | Problem:
    try:
        text = raw.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        return Problem(line, "", f"is not UTF-8 (byte {error.start + 1}): save the file as UTF-8")
    return _from_text_line(text, defaults) if format_ == "text" else _from_json_line(line, text, defaults)


def _from_json_line(line: int, raw: str, defaults: Defaults) -> dict[str, Any] | Problem:
    try:
        job = _parsed(raw)
    except json.JSONDecodeError as error:
        return Problem(line, "", f"is not JSON: {error.msg} at column {error.colno}")
    except ValueError as error:
        return Problem(line, "", f"is not JSON: {error}")
    if isinstance(job, str) and "task" in defaults.keys:
        return _from_text_line(job, defaults)
    if not isinstance(job, dict):
        return Problem(line, "", f'must be a JSON object such as {{"task": …, "params": …}}, got {printable(raw[:40])}')
    return defaults.filled(job)


def _parsed(raw: str) -> Any:
    """JSON to the letter. Raises `ValueError`."""
    try:
        return _STRICT.decode(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _from_text_line(text: str, defaults: Defaults) -> dict[str, Any]:
    task = defaults.keys.get("task")
    if task is None:
        raise RequestError("plain texts need to know what for: give a task (--task text-generation --model …)")
    return defaults.filled({"params": {main_param(str(task)): text}})


def _from_csv(stream: BinaryIO, defaults: Defaults) -> Iterator[Item]:
    """Columns named like job keys are those, every other column is a param; an empty cell says nothing."""
    # What is not UTF-8 comes through as surrogates, so that it spoils its own row only.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(text, strict=True)
    try:
        header: list[str] | None = None
        for line, row in _rows(reader):
            if isinstance(row, Problem):
                if header is None:
                    raise RequestError(f"the first line of a CSV file names its columns, and it {row.message}")
                yield line, row
            elif header is None:
                header = _columns(row)
            elif len(row) != len(header):
                yield line, Problem(line, "", f"has {len(row)} cells, and the first line names {len(header)} columns")
            else:
                cells = {name: cell for name, cell in zip(header, row, strict=True) if cell}
                yield line, _from_row(line, cells, defaults)
    finally:
        if not text.closed:
            text.detach()


def _rows(reader: Any) -> Iterator[tuple[int, list[str] | Problem]]:
    """Rows that are not empty, each under the number of its last line."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield reader.line_num, Problem(reader.line_num, "", f"is not CSV: {error}")
            continue
        line = reader.line_num
        if row is None:
            return
        if any("\udc80" <= c <= "\udcff" for cell in row if not cell.isascii() for c in cell):
            yield line, Problem(line, "", "is not UTF-8: save the file as UTF-8")
        elif any(row):
            yield line, row


def _columns(row: list[str]) -> list[str]:
    header = [name.strip() for name in row]
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise RequestError(f"the columns of a CSV file stand between commas, not {word}: save it with commas")
    if len(set(header)) != len(header) or "" in header:
        raise RequestError("the first line of a CSV file names its columns: each once, none empty")
    return header


def _from_row(line: int, cells: Mapping[str, Any], defaults: Defaults) -> dict[str, Any] | Problem:
    job: dict[str, Any] = {name: value for name, value in cells.items() if name in JOB_KEYS}
    task = str(job.get("task", defaults.keys.get("task", "")))
    for name in ("params", "metadata"):
        if isinstance(job.get(name), str):
            try:
                job[name] = _parsed(job[name])
            except ValueError as error:
                return Problem(line, name, f"must be a JSON object: {error}")
    params = job.get("params", {})
    if not isinstance(params, Mapping):
        return Problem(line, "params", "must be a JSON object")
    params = dict(params)
    for name, value in cells.items():
        if name not in JOB_KEYS:
            params[name] = from_text(task, name, value) if isinstance(value, str) else value
    return defaults.filled({**job, "params": params})


def from_objects(things: Iterable[Any], defaults: Defaults) -> Iterator[Item]:
    """Texts, dicts, `Job`s, or the rows of a DataFrame."""
    if hasattr(things, "itertuples") and hasattr(things, "columns"):
        names = [str(name) for name in things.columns]
        rows: Iterable[Any] = (
            {n: _plain(v) for n, v in zip(names, row, strict=True)} for row in things.itertuples(index=False)
        )
        for line, row in enumerate(rows, 1):
            yield line, _from_row(line, {name: value for name, value in row.items() if value is not None}, defaults)
        return
    for line, thing in enumerate(things, 1):
        if isinstance(thing, str):
            yield line, _from_text_line(thing, defaults)
        elif isinstance(thing, Mapping):
            named = thing if type(thing) is dict and all(type(key) is str for key in thing) else None
            yield line, defaults.filled({str(key): value for key, value in thing.items()} if named is None else named)
        elif is_dataclass(thing) and not isinstance(thing, type):
            said = {field.name: getattr(thing, field.name) for field in fields(thing)}
            yield line, defaults.filled({key: value for key, value in said.items() if value is not None})
        else:
            yield line, Problem(line, "", f"must be a text, a dict or a Job, got {type(thing).__name__}")


def _plain(value: Any) -> Any:
    """A DataFrame's cell as Python has it; missing values are None."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # numpy's numbers and arrays
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value)):
        return None
    return value
