"""The first promise under fire: no accepted job is lost, and at most one result of a job is ever visible.

One run per database, with a fixed seed; `make chaos` runs for any length with any seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "database",
    [
        pytest.param("sqlite", marks=pytest.mark.xdist_group("sqlite")),
        pytest.param("postgres", marks=pytest.mark.xdist_group("postgres")),
    ],
)
def test_whatever_is_done_to_the_parts_nothing_is_lost_doubled_or_stuck(database: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [
        sys.executable, str(HERE / "run.py"), "--database", database, "--seed", "20", "--minutes", "0.6",
        "--jobs", "405", "--density", "1.6", "--report", str(report),
    ]  # fmt: skip
    path = os.pathsep.join(str(folder) for folder in (ROOT, HERE.parent, HERE))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True, timeout=290,
        check=False,
    )  # fmt: skip
    print(done.stdout)

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    found = json.loads(report.read_text())
    assert sum(found["jobs"].values()) >= 400
    assert sum(found["faults"].values()) >= 50
