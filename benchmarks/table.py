"""What is kept of a run: a file of results, the table on the terminal, and the block in the documentation."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.goals import GOALS, Goal
from benchmarks.measure import Measured, Plan
from benchmarks.models import ROOT

FOLDER = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


class Results:
    """One run's results, written after each family, so that a run can go on where it stopped."""

    def __init__(self, path: Path, *, quick: bool) -> None:
        self.path = path
        self.record: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"), "quick": quick, "plan": Plan(quick).words,
            "machine": machine.described(), "rows": {}, "missing": {},
        }  # fmt: skip
        if path.exists():
            self.record = json.loads(path.read_text(encoding="utf-8"))

    @classmethod
    def new(cls, *, quick: bool, resume: bool) -> Results:
        """An empty one; with `resume` the newest of this kind of machine, whatever day it began."""
        ending = f"-{machine.kind()}{'-quick' if quick else ''}.json"
        earlier = sorted(FOLDER.glob(f"????-??-??{ending}"))
        if resume and earlier:
            return cls(earlier[-1], quick=quick)
        path = FOLDER / (time.strftime("%Y-%m-%d") + ending)
        path.unlink(missing_ok=True)
        return cls(path, quick=quick)

    def has(self, row: str) -> bool:
        """Whether a row has been measured."""
        return row in self.record["rows"]

    def note(self, measured: Measured) -> None:
        """Keep a row."""
        goal = GOALS[measured.row]
        kept = asdict(measured) | {"met": goal.met(measured.ratio), "at": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.record["rows"][measured.row] = _short(kept)
        self.record["missing"].pop(measured.row, None)
        self.save()

    def miss(self, row: str, reason: str) -> None:
        """Keep why a row has no figure."""
        self.record["missing"][row] = reason
        self.save()

    def save(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    """Figures to five digits: the rest is noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value]
    return value


def show(results: Results) -> None:
    """The table on the terminal."""
    table = Table("what", "goal", "beyond", "measured", "ratio", "spread", "", title=results.path.stem)
    for row, goal in GOALS.items():
        table.add_row(*_cells(results.record, row, goal), style=None if _met(results.record, row) else "yellow")
    Console(stderr=False, width=None if Console().is_terminal else 180).print(table)


def _met(record: dict[str, Any], row: str) -> bool:
    return bool(record["rows"].get(row, {}).get("met"))


def _cells(record: dict[str, Any], row: str, goal: Goal) -> tuple[str, ...]:
    named = (goal.what, goal.written(goal.goal), goal.written(goal.beyond))
    found = record["rows"].get(row)
    if found is None:
        return *named, record["missing"].get(row, "not measured yet"), "", "", "–"
    low, high = found["spread"]
    verdict = "beyond" if goal.surpassed(found["ratio"]) else "met" if found["met"] else "not met"
    return *named, found["figures"], f"{found['ratio']:.3g}", f"{low:.3g} to {high:.3g}", verdict


def newest() -> list[Path]:
    """The newest results of each kind of machine; a quick run only where there is no full one."""
    found: dict[str, Path] = {}
    for path in sorted(
        FOLDER.glob("????-??-??-*.json"), key=lambda path: (not path.stem.endswith("-quick"), path.name)
    ):
        found[path.stem[11:].removesuffix("-quick")] = path
    return list(found.values())


def write_docs() -> None:
    """Put the newest results into the documentation, between its two marks."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    blocks = [_block(_completed(path), path) for path in newest()]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(blocks) + f"\n\n{END}{after}", encoding="utf-8")


def _completed(path: Path) -> dict[str, Any]:
    """A run's results; rows that a full run has yet to measure are those of the newest quick one, and say so."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    quick = sorted(FOLDER.glob(f"????-??-??-{path.stem[11:]}-quick.json"))
    if not record["quick"] and quick:
        for row, found in json.loads(quick[-1].read_text(encoding="utf-8"))["rows"].items():
            marked = {"figures": f"{found['figures']} (quick)", "how": f"a quick run: {found['how']}"}
            record["rows"].setdefault(row, found | marked)
    return record


def _block(record: dict[str, Any], path: Path) -> str:
    about = record["machine"]
    versions = about["versions"]
    names = ("torch", "transformers", "diffusers", "celery", "SQLAlchemy")
    lines = [
        f"### {record['date']}: {_hardware(about)}",
        "",
        f"A {'quick' if record['quick'] else 'full'} run ({record['plan']}), Python {about['python']}, "
        + ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
        + f"; all figures: [`{path.name}`](../benchmarks/results/{path.name}).",
        "",
        "| what | goal | beyond | measured | ratio | spread | |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = {row: goal for row, goal in GOALS.items() if row in record["rows"] or not row.startswith("gpu_")}
    lines += ["| " + " | ".join(_cells(record, row, goal)) + " |" for row, goal in rows.items()]
    lines += ["", "How each was measured:", ""]
    for row, goal in rows.items():
        if row in record["rows"]:
            load = record["rows"][row]["details"].get("load", {})
            others = load.get("others_share_of_cpu")
            busy = "" if others is None else f" Others used {100 * others:.0f} % of the machine meanwhile."
            lines.append(f"* **{goal.what}**: {record['rows'][row]['how']}.{busy}")
    return "\n".join(lines)


def _hardware(about: dict[str, Any]) -> str:
    cores = f"{about['cores']} cores ({about['processor']})"
    return f"{about['gpus'][0]}, {cores}" if about["gpus"] else f"{cores}, {about['memory_gib']} GiB, no GPU"
