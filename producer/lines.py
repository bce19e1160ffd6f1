"""The lines of `results.jsonl` and `results.csv`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from producer.outputs import inline_as, result_artifacts
from producer.records import ArtifactRecord, JobRecord

CSV_COLUMNS = (
    "index", "custom_id", "status", "task", "model", "text", "paths", "error_code", "error_message", "seed", "params",
)  # fmt: skip
#: where some readers end a line, and the same in JSON
_LINE_ENDS = tuple((mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\x85\u2028\u2029")
#: what makes a spreadsheet take a cell for a formula, full-width forms included
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def line_of(
    job: JobRecord,
    inline: Sequence[tuple[ArtifactRecord, bytes]],
    paths: Mapping[int, str],
    problems: Mapping[int, str],
) -> dict[str, Any]:
    """A job as a line; contents of outputs that stand inside it, paths and problems of the others by their ids."""
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


def json_lines(append: Callable[[bytes], None]) -> Callable[[Mapping[str, Any]], None]:
    """A way to write lines as JSON, whatever stands in them."""

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


def csv_lines(append: Callable[[bytes], None]) -> Callable[[Mapping[str, Any]], None]:
    """The same as CSV, its head first; what a spreadsheet would take for a formula is made harmless."""
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
