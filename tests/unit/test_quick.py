"""What is checked quickly comes out as what is checked thoroughly, job for job and word for word."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from producer import quick, sources
from producer.quick import Validator
from producer.requests import Invalid, ValidJob, validate
from producer.sources import Defaults, from_stream

#: values that a job may have somewhere, right or wrong there
ANY: list[Any] = [
    None, True, False, 0, 1, -1, 5, 5.0, 0.5, 1e300, 2**63, 10**40, float("nan"), float("inf"), "", "a", "5", "\x00",
    "a\u2028b", "\ud800", "é😀", " ", "x" * 257, [], [1], {}, {"a": None}, {"a": [{"b": [None]}]}, {"a": float("inf")},
    {"\ud800": 1}, {1: 2}, ("t",), b"bytes", {"s"}, {"k": "v" * 70_000}, {"k": "é" * 20_000},
]  # fmt: skip
GOOD: list[dict[str, Any]] = [
    {"task": "echo", "params": {"message": "hi"}},
    {"task": "echo", "params": {"message": {"a": [1]}, "steps": 2, "fail": True}, "queue": "q", "priority": 5},
    {
        "task": "echo",
        "params": {"message": 1},
        "seed": 7,
        "custom_id": "a",
        "metadata": {"k": [1, None]},
        "cache": True,
    },
    {"task": "text-generation", "model": "gpt2", "params": {"prompt": "a", "do_sample": True, "top_k": 5}},
    {"task": "text-generation", "model": "./here", "params": {"prompt": "a", "stop": "END"}, "timeout_s": 9},
    {"task": "text-to-image", "model": "m", "params": {"prompt": "a"}, "max_attempts": 2, "timeout_s": 9.5},
]
KEYS = ("task", "params", "model", "custom_id", "seed", "priority", "queue", "timeout_s", "max_attempts", "metadata",
        "cache", "unknown")  # fmt: skip
PARAMS = ("message", "prompt", "steps", "step_s", "signed", "top_k", "do_sample", "temperature", "stop", "width", "no")


def spoilt(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Good jobs and jobs of which one or two values are something else, the good ones of a kind over and over."""
    while True:
        job = dict(chance.choice(GOOD))
        job["params"] = dict(job["params"])
        for _ in range(chance.choice([0, 1, 1, 2])):
            into, names = chance.choice([(job, KEYS), (job["params"], PARAMS)])
            if isinstance(into, dict):
                into[chance.choice(names)] = chance.choice(ANY)
        yield job


def told(check: Any, job: dict[str, Any]) -> Any:
    try:
        return check(3, job)
    except Invalid as invalid:
        return [str(problem) for problem in invalid.problems]


def test_a_job_is_found_what_it_is_found_thoroughly() -> None:
    check, jobs = Validator(), spoilt(random.Random(1))
    good = 0
    for _ in range(8_000):
        job = next(jobs)
        expected = told(validate, job)
        found = told(check, job)
        assert found == expected, job
        if isinstance(expected, ValidJob):
            good += 1
            assert [type(value) for value in found] == [type(value) for value in expected], job
    assert 2_000 < good < 7_000


def test_jobs_that_are_alike_are_checked_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    thoroughly = []
    monkeypatch.setattr(quick, "validate", lambda line, raw: thoroughly.append(line) or validate(line, raw))
    check = Validator()
    for line in range(1, 301):
        job = GOOD[line % 3] | {"custom_id": f"é-{line}", "seed": line}
        job["params"] = {**job["params"], "message": f"message {line}"}
        assert check(line, job) == validate(line, job)
    assert thoroughly == [1, 2]  # the third is of the kind of the first


def test_a_relative_folder_is_never_remembered(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Validator()
    job = {"task": "text-generation", "model": "./m", "params": {"prompt": "a"}}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert check(1, job).lane.model == str(tmp_path / name / "m")


def test_very_many_kinds_take_no_more_memory_than_some() -> None:
    check = Validator()
    for line in range(1, 3000):
        assert check(line, {**GOOD[0], "queue": f"q{line}"}).lane.queue == f"q{line}"
    assert len(check._kinds) <= quick._KINDS


# --- the quick parser ---

LINES = [
    b'{"task": "echo", "params": {"message": 1}}', b'{"a": 1, "a": 2}', b'{"a": {"b": 1, "b": 1}}',
    b'{"a" : 1, "a" :2}', b'{"a"\t: 1, "a"\r: 2}', b'{"a":": ", "b":"\\":"}', b'{"a":[{"b":1},{"b":1,"c":{}}]}',
    b'{"a":[{"b":1,"b":1}]}',
    b'{"a": NaN}', b'{"a": 1e999}', b'{"a": -0}', b'{"a": -0.0}', b'{"a": 1E5}', b'{"a": 01}', b'{"a": "\\ud800"}',
    b'{"a": "\\ud83d\\ude00"}', b'{"a": "\xff"}', b'{"\xc3": 1}', b'{"a": "\x01"}', b'{"a": "\x7f"}', b'{"a": 1,}',
    b'{"a": 1} x', b'{"a": ' + b"9" * 4300 + b"}", b'{"a": ' + b"9" * 4301 + b"}", b'{"": 1}', b'{"a\\u003a": 1}',
    b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", b'{"a": ' + b"[" * 250 + b"]" * 250 + b"}", b"[1]", b"5", b'"a"',
    b'{"a": 0.1e-400, "b": 9007199254740993, "c": 2.2250738585072011e-308, "d": 123456789.123456789e-7}', b"\x0b{}",
    b"{}", b'{"a": tru}', b'{"a": "\\x"}', b'{"\\ud800": 1}', b'{"a": "\\u0000"}', b"\xef\xbb\xbf{}",
]  # fmt: skip


def read(lines: list[bytes]) -> list[str]:
    """Each line as it is understood; by `repr`, which tells -0.0 from 0 and 1 from true."""
    items = from_stream(io.BytesIO(b"\n".join(lines) + b"\n"), "jsonl", Defaults())
    return [f"{line} {item!r}" for line, item in items]


def mixed(chance: random.Random, count: int) -> Iterator[bytes]:
    """Lines, some of them cut, doubled or with a few bytes that are others."""
    for _ in range(count):
        line = bytearray(chance.choice(LINES))
        for _ in range(chance.choice([0, 1, 2, 4])):
            at = chance.randrange(len(line) + 1)
            line[at : at + chance.choice([0, 0, 1, 3])] = chance.choice(
                [b'"', b":", b" :", b'":', b",", b"{", b"}", b"\\", b"0", b"\xc3\xa9", b"\xff", b"\t", b'"a":1,', b"e"]
            )
        yield bytes(line).replace(b"\n", b"")


def test_a_line_is_understood_as_the_strict_parser_understands_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"{}", *LINES, *mixed(random.Random(2), 10_000)]
    quickly = read(lines)
    monkeypatch.setattr(sources, "_quickly_parsed", lambda _raw: None)
    assert quickly == read(lines)


def test_an_ordinary_line_is_parsed_quickly() -> None:
    jobs = [*GOOD, {"task": "echo", "params": {"message": "New shoes: now"}, "metadata": {"a": {"b": [1, {"c": 2}]}}}]
    for job in jobs:
        assert sources._quickly_parsed(json.dumps(job).encode()) == job
        assert sources._quickly_parsed(json.dumps(job, separators=(",", ":")).encode()) == job
