"""`aigc run`: which jobs a line stands for, and what is said of one that makes no sense."""

from __future__ import annotations

import re
from typing import Any

import pytest

from producer.earlier import COUNTS
from producer.grids import MOST, Axis, axis, in_words, planned
from producer.requests import validate
from shared.errors import RequestError
from shared.tasks import all_tasks

PICTURE = "text-to-image"


def axes(*said: str, task: str = PICTURE) -> list[Axis]:
    return [axis(each, task) for each in said]


def cells(jobs: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(job["params"][name] for name in names) for job in jobs]


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ("guidance_scale=3,5,7", [3, 5, 7]),
        ("guidance_scale=1.5, 2", [1.5, 2]),
        ("scheduler=ddim,euler_a", ["ddim", "euler_a"]),
        ("prompt=a cat,a dog", ["a cat", "a dog"]),
        ('prompt=["one, two", "three"]', ["one, two", "three"]),
        ("seed=1,2", [1, 2]),
        ("model=starter/shapes,org/name@main", ["starter/shapes", "org/name@main"]),
        ('width=["64"]', ["64"]),
    ],
)
def test_values_are_what_the_param_takes(said: str, values: list[Any]) -> None:
    assert list(axis(said, PICTURE).values) == values


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("guidance_scale", "must be written k=v1,v2,…"),
        ("guidance_scale=", "must be written k=v1,v2,…"),
        ("=3,5", "must be written k=v1,v2,…"),
        ("guidance_scale=3,,5", "a value is empty"),
        ("guidance_scale=3,5,3", "3 stands there twice"),
        ("guidence_scale=3,5", "no such param; did you mean 'guidance_scale'?"),
        ("\x1b[2J=3,5", "--vary \\x1b[2J: "),
        ("prompt=[1, ", "must be a JSON list"),
        ("prompt=[]", "at least one value"),
        ("seed=1,x", "must be whole numbers from 0, got 'x'"),
        ("seed=-1,2", "must be whole numbers from 0, got '-1'"),
    ],
)
def test_what_cannot_be_varied_is_said_in_words(said: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        axis(said, PICTURE)


def test_an_unknown_task_is_named_first() -> None:
    with pytest.raises(RequestError, match="did you mean 'text-to-image'"):
        axis("prompt=a,b", "text-to-imag")


def test_a_grid_has_every_combination_with_the_same_seeds() -> None:
    found = axes("guidance_scale=3,5", "num_inference_steps=10,20,30")
    jobs = planned(PICTURE, {"prompt": "x"}, model="m", axes=found, n=2)

    assert len(jobs) == 12
    assert cells(jobs[::2], "guidance_scale", "num_inference_steps") == [
        (3, 10), (3, 20), (3, 30), (5, 10), (5, 20), (5, 30),
    ]  # fmt: skip
    assert cells(jobs, "prompt") == [("x",)] * 12
    first, second = jobs[0]["seed"], jobs[1]["seed"]
    assert second == first + 1
    assert [job["seed"] for job in jobs] == [first, second] * 6
    assert {job["model"] for job in jobs} == {"m"}
    for number, job in enumerate(jobs, 1):
        validate(number, job)
    assert in_words(found, 2, 12) == "12 jobs: guidance_scale 3, 5 × num_inference_steps 10, 20, 30 × 2 seeds"


def test_without_a_grid_a_seed_that_nobody_gave_is_drawn_for_each_job() -> None:
    assert planned("echo", {"message": 1}, n=3) == [{"task": "echo", "params": {"message": 1}}] * 3
    assert [job["seed"] for job in planned("echo", {"message": 1}, seed=7, n=3)] == [7, 8, 9]


def test_jobs_with_several_outputs_share_no_seed() -> None:
    jobs = planned(PICTURE, {"prompt": "x", "num_images": 4}, seed=7, n=3)
    assert [job["seed"] for job in jobs] == [7, 11, 15]


def test_models_and_seeds_can_be_varied() -> None:
    jobs = planned(PICTURE, {"prompt": "x"}, seed=99, axes=axes("model=a,b", "seed=1,2"))
    assert [(job["model"], job["seed"]) for job in jobs] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert all(job["params"] == {"prompt": "x"} for job in jobs)


@pytest.mark.parametrize(
    ("said", "n", "message"),
    [
        (("seed=1,2",), 2, "--vary seed and --n both say which seeds"),
        (("width=64,128", "width=256"), 1, "--vary width is given twice"),
        ((f"width=[{','.join(map(str, range(100)))}]", f"height=[{','.join(map(str, range(100)))}]"), 1, "10,000 jobs"),
        ((f"width=[{','.join(map(str, range(6)))}]",), 1000, f"6,000 jobs, at most {MOST:,} fit in one run"),
    ],
)
def test_grids_that_make_no_sense_or_are_too_large_are_refused(said: tuple[str, ...], n: int, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        planned(PICTURE, {"prompt": "x"}, axes=axes(*said), n=n)


def test_every_param_that_counts_outputs_is_known() -> None:
    counting = {
        name
        for task in all_tasks().values()
        for name, field in task.params.model_fields.items()
        if "seed + i" in (field.description or "") or name.startswith("num_return")
    }
    assert counting
    assert counting <= COUNTS
