"""The benchmarks hold together: every goal is measured, baselines stand alone, figures mean what they say."""

from __future__ import annotations

import importlib
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import table
from benchmarks.goals import GOALS
from benchmarks.measure import Bench, Measured, Plan, Sample
from benchmarks.modality_models import GROWN
from benchmarks.models import ROOT
from benchmarks.rows import FAMILIES
from benchmarks.rows.modalities import MODALITIES
from benchmarks.work import DEAL, no_ops, pictures
from shared.tasks import get_task

BASELINES = sorted(path.stem for path in (ROOT / "benchmarks" / "baselines").glob("[!_]*.py"))


def test_every_goal_is_measured_by_exactly_one_family() -> None:
    measured = Counter(row for family in FAMILIES.values() for row in family.rows)

    assert measured == dict.fromkeys(GOALS, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_its_file_and_function(name: str) -> None:
    assert callable(FAMILIES[name].load())


@pytest.mark.torch
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_imports_and_stands_without_this_project(name: str) -> None:
    importlib.import_module(f"benchmarks.baselines.{name}")
    source = (ROOT / "benchmarks" / "baselines" / f"{name}.py").read_text(encoding="utf-8")

    assert not re.search(r"^\s*(from|import) (aigc|producer|workers|shared)\b", source, re.MULTILINE)


def test_a_goal_that_is_not_reached_reads_as_not_met() -> None:
    assert GOALS["text_b0"].met(0.90)
    assert not GOALS["text_b0"].met(0.89)
    assert GOALS["status"].met(2.0)
    assert not GOALS["status"].met(2.01)


@pytest.mark.parametrize("row", MODALITIES)
def test_the_jobs_of_every_modality_are_such_that_its_task_takes(row: str) -> None:
    modality = MODALITIES[row]
    rng = random.Random(1)

    for _ in range(20):
        get_task(modality.task).params.model_validate(modality.params(rng, Path("inputs")))


@pytest.mark.torch
def test_every_modality_has_a_row_a_model_and_a_baseline() -> None:
    from benchmarks.baselines.b0_modalities import MODELS

    assert FAMILIES["modalities"].rows == tuple(MODALITIES)
    assert {modality.model for modality in MODALITIES.values()} == set(GROWN)
    assert {modality.task for modality in MODALITIES.values()} == set(MODELS)


def test_outputs_that_are_not_equal_are_not_measured(tmp_path: Path) -> None:
    text = tmp_path / "0.txt"
    text.write_bytes(b"new shoes")
    compare = MODALITIES["captions_b0"].compare

    assert compare([b"new shoes"], [text]) == "1 of 1 texts equal"
    with pytest.raises(RuntimeError, match="only 0 of 1 texts are equal"):
        compare([b"old hats"], [text])


def test_a_row_of_many_may_have_a_share_of_the_seconds() -> None:
    assert Plan(quick=True, share=0.5).seconds == Plan(quick=True).seconds / 2


def test_arms_run_in_turn_until_each_has_its_rounds_and_its_seconds(tmp_path: Path) -> None:
    order: list[str] = []

    def arm(name: str, units: float, seconds: float) -> Sample:
        order.append(name)
        return Sample(units, seconds)

    bench = Bench(Plan(quick=True), tmp_path)
    rounds = bench.interleave({"a": lambda: arm("a", 40, 4), "b": lambda: arm("b", 10, 2)})

    assert order == ["a", "b"] * (len(order) // 2)
    assert sum(sample.seconds for sample in rounds.taken["b"]) >= 0.85 * bench.plan.seconds
    measured = rounds.measured("tiny_b1", "a", "b", unit="jobs/s", how="")
    assert measured.ratio == pytest.approx(2.0)


def test_each_deal_of_pictures_holds_the_same_mix() -> None:
    jobs = pictures(Path("model"), 24)
    mixes = [
        Counter((job["params"]["width"], job["params"]["num_inference_steps"]) for job in jobs[start : start + 6])
        for start in range(0, 24, 6)
    ]

    assert all(mix == mixes[0] for mix in mixes)
    assert len({job["seed"] for job in jobs}) == 24
    assert DEAL == 8
    assert len(no_ops(3)) == 3


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of figures, beside results of the test's own."""
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "DOCUMENT", document)
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    return document


def test_the_page_shows_a_row_that_has_no_figure_with_its_reason(page: Path, tmp_path: Path) -> None:
    results = table.Results(tmp_path / "2026-01-01-some-machine.json", quick=False)
    results.miss("idle", "broke: no disk")

    table.write_docs()

    text = page.read_text(encoding="utf-8")
    assert "broke: no disk" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_what_a_full_run_has_yet_to_measure_is_taken_from_a_quick_one_and_says_so(page: Path, tmp_path: Path) -> None:
    for quick, measured in ((True, {"idle": "20 ms", "tiny_b1": "3 jobs/s"}), (False, {"idle": "25 ms"})):
        ending = "-quick" if quick else ""
        results = table.Results(tmp_path / f"2026-01-01-some-machine{ending}.json", quick=quick)
        for row, figures in measured.items():
            results.note(Measured(row, 6.0, (5.0, 7.0), figures, "so"))

    table.write_docs()

    text = page.read_text(encoding="utf-8")
    assert "| 25 ms |" in text
    assert "20 ms" not in text
    assert "| 3 jobs/s (quick) |" in text
    assert "a quick run: so" in text
    assert "A full run (5 rounds or more and about 60 s of work of each arm" in text


def test_recorded_results_belong_to_goals_that_still_stand() -> None:
    for path in table.FOLDER.glob("????-??-??-*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert set(record["rows"]) <= set(GOALS), path.name
        for row, kept in record["rows"].items():
            assert kept["met"] == GOALS[row].met(kept["ratio"]), (path.name, row)
