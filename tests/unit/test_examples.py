"""The job files of `examples/` are such as are accepted, and there is one for each task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models

from producer.requests import validate
from shared.tasks import all_tasks

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.rglob("*.jsonl"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_each_line_is_accepted(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines
    for number, line in enumerate(lines, start=1):
        assert validate(number, json.loads(line)).params_json


@pytest.mark.parametrize("task", sorted(all_tasks()))
def test_each_task_has_an_example_with_a_model_of_the_hub_and_one_with_a_tiny_model(task: str) -> None:
    for folder in (EXAMPLES, EXAMPLES / "tiny"):
        if folder == EXAMPLES and task == "echo":
            continue
        jobs = [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]
        assert jobs
        assert {job["task"] for job in jobs} == {task}


def test_every_tiny_model_that_is_named_can_be_made() -> None:
    named = {
        part
        for file in FILES
        for part in file.read_text().split('"')
        if part.startswith("./examples/tiny/models/")
    }  # fmt: skip
    assert named
    assert {name.split("/")[4].replace("-", "_") for name in named} <= set(tiny_models.__all__)
