"""What a job may say is checked at submit, in words that say what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from producer.requests import MAX_METADATA, Invalid, ValidJob, draw_seeds, from_text, main_param, validate
from shared.tasks import all_tasks, get_task

TEXT = {"task": "text-generation", "model": "gpt2"}


def echo(message: Any = "hello", **params: Any) -> dict[str, Any]:
    return {"task": "echo", "params": {"message": message, **params}}


def text(**params: Any) -> dict[str, Any]:
    return {**TEXT, "params": {"prompt": "a", **params}}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def problems(job: dict[str, Any], line: int = 17) -> list[str]:
    with pytest.raises(Invalid) as caught:
        validate(line, job)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("job", "problem"),
    [
        (text(max_new_tokens=-3), "params.max_new_tokens: must be at least 1, got -3"),
        (text(top_p=1.5), "params.top_p: must be at most 1.0, got 1.5"),
        (text(top_p=0), "params.top_p: must be more than 0.0, got 0"),
        (text(max_new_tokens="x"), "params.max_new_tokens: must be a whole number, got 'x'"),
        (text(max_new_tokens=1.5), "params.max_new_tokens: must be a whole number, got 1.5"),
        (text(max_new_tokens=True), "params.max_new_tokens: must be a number, got true"),
        (text(temperature=False), "params.temperature: must be a number, got false"),
        ({**TEXT, "params": {"prompt": 5}}, "params.prompt: must be a text, got 5"),
        ({**TEXT, "params": {"prompt": ""}}, "params.prompt: must not be empty"),
        ({**TEXT, "params": {}}, "params: give either `prompt` or `messages`"),
        (text(long_prompt="cut"), "params.long_prompt: must be one of 'fail' or 'truncate', got 'cut'"),
        (text(do_sample="maybe"), "params.do_sample: must be true or false, got 'maybe'"),
        (
            {**TEXT, "params": {"messages": [{"role": "user", "content": ""}]}},
            "params.messages.0.content: must not be empty",
        ),
        (text(max_tokens=3), "params.max_tokens: unknown name; did you mean 'max_new_tokens'?"),
        (
            {"task": "text-to-image", "model": "m", "params": {"prompt": "a", "width": 30, "height": 32}},
            "params.width: must be a multiple of 8, got 30",
        ),
        ({"task": "ecko", "params": {}}, "task: unknown task 'ecko'; did you mean 'echo'?"),
        ({"task": "zzz", "params": {}}, "task: unknown task 'zzz'; known: " + ", ".join(all_tasks())),
        ({**echo(), "meta": {}}, "meta: unknown name; did you mean 'metadata'?"),
        ({"task": "echo"}, "params: is required"),
        ({"task": "echo", "params": [1]}, "params: must be an object, got [1]"),
        (
            {"task": "text-generation", "params": {"prompt": "a"}},
            "model: is required for text-generation, for example 'starter/ads-gpt2'",
        ),
        ({**echo(), "model": "gpt2"}, "model: echo takes no model: leave it out"),
        ({**echo(), "seed": -1}, "seed: must be at least 0, got -1"),
        ({**echo(), "seed": True}, "seed: must be a number, got true"),
        ({**echo(), "priority": False}, "priority: must be a number, got false"),
        ({**echo(), "priority": 10**30}, f"priority: must be at most 1000, got {10**30}"),
        ({**echo(), "timeout_s": 0}, "timeout_s: must be more than 0.0, got 0"),
        ({**echo(), "timeout_s": float("nan")}, "timeout_s: must be a finite number, got nan"),
        ({**echo(), "custom_id": ""}, "custom_id: must not be empty"),
        ({**echo(), "custom_id": "x" * 10_000}, "custom_id: must have at most 256 characters, got 10000"),
        ({**echo(), "custom_id": 5}, "custom_id: must be a text, got 5"),
        ({**echo(), "custom_id": "a\x00b"}, "custom_id: must not contain control characters"),
        ({**echo(), "custom_id": "a\nb"}, "custom_id: must not contain control characters"),
        ({**echo(), "queue": "a b"}, "queue: must be of the form ^[A-Za-z0-9][A-Za-z0-9._-]*$, got 'a b'"),
        ({**echo(), "metadata": [1]}, "metadata: must be an object, got [1]"),
        ({**echo(), "metadata": {"a": float("inf")}}, "metadata.a: must be a finite number, got inf"),
        (echo(float("nan")), "params.message: must be a finite number, got nan"),
    ],
)
def test_what_is_wrong_is_said_with_line_field_bound_and_value(job: dict[str, Any], problem: str) -> None:
    assert problems(job) == [f"line 17: {problem}"]


def test_everything_that_is_wrong_with_a_line_is_said_at_once() -> None:
    job = {"task": "text-generation", "params": {"prompt": 5, "top_k": -1}, "custom_id": "\x07"}
    assert [problem.split(":")[1].strip() for problem in problems(job)] == [
        "model", "custom_id", "params.prompt", "params.top_k",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "job",
    [
        {**TEXT, "params": {"prompt": "\ud800"}},
        echo("\ud800"),
        echo({"\udfff": 1}),
        echo(**{"\ud800": 1}),
        {**echo(), "\ud800": 1},
        {**echo(), "custom_id": "\ud800"},
        {**echo(), "metadata": {"\ud800": 1}},
        {**echo(), "metadata": {"a": ["\ud800"]}},
        {**TEXT, "model": "\ud800", "params": {"prompt": "a"}},
    ],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(job: dict[str, Any]) -> None:
    found = problems(job)
    assert any("is not valid Unicode" in problem for problem in found)
    assert "\n".join(found).encode()  # the report can be written


@pytest.mark.parametrize("field", ["message", "metadata"])
def test_what_a_worker_could_not_read_back_for_depth_is_refused(field: str) -> None:
    for depth in (210, 300, 900):
        deep = echo(nested(depth)) if field == "message" else {**echo(), "metadata": {"a": nested(depth)}}
        assert problems(deep)[0].endswith("is nested too deeply")
        assert len(problems(deep)[0]) < 200
    shallow = echo(nested(150)) if field == "message" else {**echo(), "metadata": {"a": nested(150)}}
    assert validate(1, shallow)


def test_a_name_cannot_steer_the_terminal() -> None:
    [problem] = problems({**echo(), "\x1b[2Jx": 1})
    assert problem.isprintable()
    assert "\\x1b[2Jx" in problem


def test_the_largest_seed_fits_and_the_next_is_refused() -> None:
    most = 2**63 - 4096 - 1
    assert validate(1, {**echo(), "seed": most}).seed == most
    for seed in (most + 1, 2**70):
        assert problems({**echo(), "seed": seed}) == [f"line 17: seed: must be less than {most + 1}, got {seed}"]


@pytest.mark.parametrize("value", [None, {"a": None}, [None], 2**70, "\x00", "é😀", True, 1.5, ""])
def test_what_echo_is_given_is_stored_as_it_is_and_a_worker_reads_it_so(value: Any) -> None:
    stored = validate(1, echo(value)).params_json
    assert json.loads(stored)["message"] == value
    read = get_task("echo").params.model_validate_json(stored)
    assert read.model_dump()["message"] == value


def test_defaults_are_filled_in_and_what_nobody_said_is_left_out() -> None:
    stored = json.loads(validate(1, {**TEXT, "params": {"prompt": "a"}}).params_json)
    assert stored["num_beams"] == 1
    assert "max_new_tokens" not in stored


@pytest.mark.parametrize("custom_id", ["../../etc/passwd", "a/b", "CON", "😀", "x" * 256, " ", "é", "..", "a\u2028b"])
def test_a_custom_id_may_be_nearly_anything(custom_id: str) -> None:
    assert validate(1, {**echo(), "custom_id": custom_id}).custom_id == custom_id


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("not a model", "must be a hub id"),
        ("a/b/c", "must be a hub id"),
        ("models/tiny/gpt2", "or a folder that begins with ./, ~/ or /, got 'models/tiny/gpt2'"),
        ("s3://bucket/model", "not supported yet"),
        ("file:x.ckpt", "is a pickle"),
        ("./" + "a" * 495, "longer than 500 characters"),
        ("~nobody-of-that-name/model", "no such home folder"),
        ("/models/\x00", "control characters"),
        ("x" * 501, "at most 500 characters"),
    ],
)
def test_the_form_of_a_model_is_checked(model: str, why: str) -> None:
    [problem] = problems({"task": "text-generation", "model": model, "params": {"prompt": "a"}})
    assert problem.startswith("line 17: model: ")
    assert why in problem


def test_a_relative_folder_is_settled_where_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job: ValidJob = validate(1, {"task": "text-generation", "model": "./m", "params": {"prompt": "a"}})
    assert job.lane.model == str(tmp_path / "m")


def test_metadata_is_measured_in_bytes() -> None:
    room = MAX_METADATA - len('{"a":""}')
    assert validate(1, {**echo(), "metadata": {"a": "x" * room}}).metadata_json
    for text in ("x" * (room + 1), "é" * room):
        assert "must be at most 65536 bytes" in problems({**echo(), "metadata": {"a": text}})[0]


@pytest.mark.parametrize(
    ("task", "name", "written", "value"),
    [
        ("text-generation", "prompt", "5", "5"),
        ("text-generation", "prompt", '{"a": 1}', '{"a": 1}'),
        ("text-generation", "long_prompt", "fail", "fail"),
        ("text-generation", "max_new_tokens", "5", 5),
        ("text-generation", "messages", '[{"role": "user"}]', [{"role": "user"}]),
        ("text-generation", "stop", "END", "END"),
        ("text-generation", "stop", '["a", "b"]', ["a", "b"]),
        ("text-classification", "text", "5", "5"),
        ("text-classification", "text", '{"a": 1}', '{"a": 1}'),
        ("text-classification", "text", '["a", "b"]', ["a", "b"]),
        ("text-classification", "function_to_apply", "none", "none"),
        ("echo", "message", "5", 5),
        ("echo", "message", "NaN", "NaN"),
        ("echo", "message", "hello", "hello"),
        ("no-task", "x", "5", "5"),
        ("echo", "no_param", "5", "5"),
    ],
)
def test_a_value_that_comes_as_text_is_json_where_the_param_is_no_text(
    task: str, name: str, written: str, value: Any
) -> None:
    assert from_text(task, name, written) == value


def test_a_bare_text_stands_for_the_first_param() -> None:
    assert [main_param(task) for task in ("text-generation", "text-to-image", "echo")] == [
        "prompt",
        "prompt",
        "message",
    ]


def test_drawn_seeds_have_32_bits_and_differ() -> None:
    drawn = draw_seeds(1000)
    assert all(0 <= seed < 2**32 for seed in drawn)
    assert max(drawn) > 2**31
    assert len(set(drawn)) > 990
