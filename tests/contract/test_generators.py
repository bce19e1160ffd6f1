"""What every generator promises, held against each of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from contract import CPU, FakeRun, Kind, Stop, assert_same, bodies, files_of, run_all, work
from kinds import KINDS

from shared.errors import ModelRejected
from workers.generators import Done, Failed, Generator


def params() -> Iterator[Any]:
    """Every kind; of those over one generator, the first is for every day, and the others are families of models."""
    seen = set[str]()
    for kind in KINDS:
        marks = [] if kind.model is None else [pytest.mark.torch]
        yield pytest.param(kind, id=kind.name, marks=[*marks, pytest.mark.models] if kind.path in seen else marks)
        seen.add(kind.path)


@pytest.fixture(params=params())
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


#: what cannot be loaded here, and where it is held to the contract
ELSEWHERE = {"vllm_text:VllmText": "test_text_engines.py"}


def test_every_generator_of_the_catalogue_is_held_against_it() -> None:
    points = entry_points(group="aigc.generators")
    ours = {point.value.removeprefix("workers.generators.") for point in points if point.value.startswith("workers.")}
    assert ours - ELSEWHERE.keys() == {kind.path for kind in KINDS}


@pytest.fixture
def generator(kind: Kind, load: Callable[..., Generator]) -> Generator:
    return load(kind.generator(), kind.model)


def test_each_job_has_one_outcome_however_it_is_cut(kind: Kind, generator: Generator) -> None:
    jobs = [work(kind, params, i) for i, params in enumerate(kind.mixed)]
    assert run_all(generator, jobs, 3).keys() == {job.job_id for job in jobs}


def test_no_microbatch_is_larger_than_asked(kind: Kind, generator: Generator) -> None:
    jobs = [work(kind, params, i) for i, params in enumerate(kind.mixed * 3)]
    cut = generator.cut(jobs, 4)
    assert sorted(job.job_id for microbatch in cut for job in microbatch) == sorted(job.job_id for job in jobs)
    assert all(1 <= len(microbatch) <= 4 for microbatch in cut)
    assert generator.cut([], 4) == []


def test_a_job_gives_the_same_alone_in_company_and_in_any_order(kind: Kind, generator: Generator) -> None:
    jobs = [work(kind, params, i) for i, params in enumerate(kind.mixed)]
    alone = {job.job_id: run_all(generator, [job])[job.job_id] for job in jobs}
    for company in (run_all(generator, jobs), run_all(generator, jobs[::-1], limit=5)):
        assert company.keys() == alone.keys()
        for job in jobs:
            assert_same(company[job.job_id], alone[job.job_id])


def test_a_job_gives_the_same_twice(kind: Kind, generator: Generator) -> None:
    for params in kind.mixed[:4]:
        first, second = (run_all(generator, [work(kind, params, seed=5)])["job-0"] for _ in range(2))
        assert bodies(first) == bodies(second)


def test_output_i_of_several_is_that_of_a_job_with_seed_plus_i(kind: Kind, generator: Generator) -> None:
    if kind.several is None:
        pytest.skip("one output per job")
    params, count = kind.several
    name = next(
        name for name in ("num_images", "num_waveforms", "num_videos", "num_return_sequences") if name in params
    )
    for limit in (32, 2):
        together = run_all(generator, [work(kind, params, seed=40)], limit)["job-0"]
        one = params | {name: 1} | ({"do_sample": True} if name == "num_return_sequences" else {})
        singles = [run_all(generator, [work(kind, one, seed=40 + i)])["job-0"] for i in range(count)]
        assert isinstance(together, Done)
        assert {output.facts["seed"] for output in together.outputs} == {40 + i for i in range(count)}
        for i, single in enumerate(singles):
            share = [output for output in together.outputs if output.facts["seed"] == 40 + i]
            assert_same(Done("job-0", share), single)
    assert len(set(bodies(together))) == len(together.outputs)


def test_what_a_step_raises_passes_through(kind: Kind, generator: Generator) -> None:
    job = work(kind, kind.mixed[0])
    run = FakeRun(stop_at=2)
    with pytest.raises(Stop):
        list(generator.generate([job], run))
    assert [done for _, done, _ in run.steps] == [1, 2]
    assert_same(run_all(generator, [job])["job-0"], run_all(generator, [job])["job-0"])


def test_progress_never_goes_back_and_stays_within_its_total(kind: Kind, generator: Generator) -> None:
    for params in (kind.mixed[0], kind.mixed[-1], *([kind.several[0]] if kind.several else [])):
        run = FakeRun()
        run_all(generator, [work(kind, params)], limit=2, run=run)
        done = [step[1] for step in run.steps]
        assert done == sorted(done)
        assert all(ids == ("job-0",) and 1 <= at <= total for ids, at, total in run.steps)


def test_a_job_that_is_no_longer_wanted_is_dropped_and_its_neighbours_are_not(kind: Kind, generator: Generator) -> None:
    jobs = [work(kind, kind.mixed[0], i) for i in range(3)]
    expected = run_all(generator, [jobs[2]])
    run = FakeRun(unwanted={"job-0"})
    outcomes = run_all(generator, jobs, run=run)
    assert isinstance(outcomes.get("job-0"), Done | None)
    assert_same(outcomes["job-2"], expected["job-2"])
    if kind.model is not None:
        assert outcomes.keys() == {"job-1", "job-2"}
        assert all("job-0" not in ids for ids, _, _ in run.steps)


def test_a_job_that_cannot_be_done_fails_alone_and_says_why(kind: Kind, generator: Generator) -> None:
    good = work(kind, kind.mixed[0], 99)
    bad = [work(kind, params, i) for i, (params, _) in enumerate(kind.bad)]
    jobs = [*bad, good]
    outcomes = run_all(generator, jobs)
    assert isinstance(outcomes["job-99"], Done)
    for job, (_, code) in zip(bad, kind.bad, strict=True):
        outcome = outcomes[job.job_id]
        assert isinstance(outcome, Failed)
        assert (outcome.error.code, outcome.error.retryable) == (code, False), outcome.error


def test_a_model_of_another_kind_is_rejected(kind: Kind, root: Path) -> None:
    for model in kind.wrong:
        files = files_of(model, root)
        with pytest.raises(ModelRejected) as error:
            kind.generator().load(files, CPU)
        assert (error.value.code, error.value.retryable) == ("model_wrong_task", False)
        assert files.ref in error.value.message
        if model not in kind.wrong_inside:
            assert not kind.generator().serves(files)
    if kind.model is not None:
        assert kind.generator().serves(files_of(kind.model, root))


def test_the_tasks_and_the_picture_files_need_no_torch() -> None:
    code = (
        "import sys, shared.tasks.text_generation, shared.tasks.text_to_image, workers.model_files, "
        "workers.generators.picture_files; import json; "
        "print(json.dumps([m for m in ('torch', 'transformers', 'diffusers', 'huggingface_hub') if m in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []
