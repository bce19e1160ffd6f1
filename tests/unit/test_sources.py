"""Jobs come in as lines, cells, texts or objects; one bad line is one problem, and its neighbours come through."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest

from aigc import Job
from producer.sources import MAX_LINE, Defaults, from_objects, from_stream, guess_format
from shared.errors import Problem, RequestError

ECHO = Defaults({"task": "echo"})
GOOD = b'{"task": "echo", "params": {"message": 1}}'
GOOD_JOB = {"task": "echo", "params": {"message": 1}}


def read(content: bytes, format_: Any = "jsonl", defaults: Defaults | None = None) -> list[tuple[int, Any]]:
    """Lines with their jobs; a problem as its sentence."""
    items = from_stream(io.BytesIO(content), format_, defaults or Defaults())
    return [(line, str(item) if isinstance(item, Problem) else item) for line, item in items]


# --- JSON Lines ---


@pytest.mark.parametrize(
    "content",
    [
        GOOD + b"\n" + GOOD,
        GOOD + b"\r\n" + GOOD + b"\r\n",
        b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD + b"\n",
        b"  " + GOOD + b"  \n\t" + GOOD + b"\t\n",
    ],
    ids=["no end", "CRLF", "BOM", "white space"],
)
def test_lines_come_through_however_they_are_ended(content: bytes) -> None:
    assert read(content) == [(1, GOOD_JOB), (2, GOOD_JOB)]


def test_blank_lines_are_no_jobs_and_keep_their_numbers() -> None:
    assert read(b"\n\r\n" + GOOD + b"\n   \n" + GOOD + b"\n\n") == [(3, GOOD_JOB), (5, GOOD_JOB)]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n", b" \r\n\t"])
def test_an_empty_file_holds_nothing(content: bytes) -> None:
    assert read(content) == []


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"{", "is not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b"task: echo", "is not JSON: Expecting value at column 1"),
        (b'{"a": NaN}', "is not JSON: NaN is no JSON number"),
        (b'{"a": -Infinity}', "is not JSON: -Infinity is no JSON number"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "is not JSON: 'b' stands there twice"),
        (b"[" * 100_000, "is not JSON: it is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b"[1]", 'must be a JSON object such as {"task": …, "params": …}, got [1]'),
        (b'"text"', 'must be a JSON object such as {"task": …, "params": …}, got "text"'),
        (b"null", 'must be a JSON object such as {"task": …, "params": …}, got null'),
        (b'{"a": "\xff"}', "is not UTF-8 (byte 8): save the file as UTF-8"),
        (b"x" * (10 * 1024 * 1024), "is longer than 8 MB"),
        (b'"\x7f' + b"\xc2\x9b" + b'"', "must be a JSON object such as"),
    ],
)
def test_a_bad_line_is_one_problem_and_its_neighbours_come_through(bad: bytes, problem: str) -> None:
    first, (line, said), last = read(GOOD + b"\n" + bad + b"\n" + GOOD)
    assert (first, last) == ((1, GOOD_JOB), (3, GOOD_JOB))
    assert line == 2
    assert said.startswith(f"line 2: {problem}")
    assert said.isprintable()


def test_many_repeated_keys_are_found_at_once() -> None:
    keys = b",".join(b'"%d": 0' % n for n in range(100_000))
    [(_, said)] = read(b"{" + keys + b', "99999": 1}')
    assert said == "line 1: is not JSON: '99999' stands there twice"


def test_the_longest_line_is_taken_and_one_byte_more_is_not() -> None:
    frame = len(b'{"message": ""}')
    fits = b'{"message": "' + b"x" * (MAX_LINE - frame - 1) + b'"}\n'
    assert len(fits) == MAX_LINE
    assert isinstance(read(fits)[0][1], dict)
    assert read(fits[:-1] + b"  \n") == [(1, "line 1: is longer than 8 MB")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("format_", ["jsonl", "csv", "text"])
def test_another_encoding_is_refused_with_a_clear_line(encoding: str, format_: str) -> None:
    bom = "" if encoding == "utf-16" else "\ufeff"
    content = (bom + "task,message\necho,hé\n").encode(encoding)
    try:
        said = "\n".join(str(item) for _, item in read(content, format_, ECHO))
    except RequestError as error:
        said = str(error)
    assert "UTF-8" in said
    assert "\n" not in said


# --- texts ---


def test_plain_texts_stand_for_the_main_param() -> None:
    defaults = Defaults({"task": "text-generation", "model": "gpt2"}, {"max_new_tokens": 5})
    assert read(b'New shoes:\r\n\nOld, "hats":\n', "text", defaults) == [
        (1, {"task": "text-generation", "model": "gpt2", "params": {"prompt": "New shoes:", "max_new_tokens": 5}}),
        (3, {"task": "text-generation", "model": "gpt2", "params": {"prompt": 'Old, "hats":', "max_new_tokens": 5}}),
    ]


def test_plain_texts_need_a_task_and_a_known_one() -> None:
    with pytest.raises(RequestError, match="give a task"):
        read(b"x", "text")
    with pytest.raises(RequestError, match="did you mean 'echo'"):
        read(b"x", "text", Defaults({"task": "ecko"}))


@pytest.mark.parametrize(
    ("name", "format_"), [("a.csv", "csv"), ("b.TXT", "text"), ("c.jsonl", "jsonl"), ("d", "jsonl")]
)
def test_the_format_is_told_by_the_name(name: str, format_: str) -> None:
    assert guess_format(name) == format_


# --- CSV ---


def test_columns_named_like_job_keys_are_those_and_all_others_are_params() -> None:
    content = b'task,custom_id,seed,message,steps\necho,a,7,"say ""hi"", now",3\n'
    job = {"task": "echo", "custom_id": "a", "seed": "7", "params": {"message": 'say "hi", now', "steps": 3}}
    assert read(content, "csv") == [(2, job)]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_what_a_spreadsheet_saves_is_understood(bom: bytes, end: bytes) -> None:
    content = bom + end.join([b"task,message,fail", b"echo,1,TRUE", b",,", b'echo,"two', b'lines",', b""])
    two = f"two{end.decode()}lines"
    assert read(content, "csv") == [
        (2, {"task": "echo", "params": {"message": 1, "fail": "TRUE"}}),
        (5, {"task": "echo", "params": {"message": two}}),
    ]


def test_params_are_json_where_they_are_no_texts() -> None:
    content = b'prompt,stop,max_new_tokens\n5,"[""a"", ""b""]",40\n'
    params = {"prompt": "5", "stop": ["a", "b"], "max_new_tokens": 40}
    assert read(content, "csv", Defaults({"task": "text-generation"})) == [
        (2, {"task": "text-generation", "params": params})
    ]


def test_params_and_metadata_may_be_cells_of_json() -> None:
    content = b'params,metadata,steps\n"{""message"": 1, ""steps"": 2}","{""a"": null}",9\n'
    job = {"task": "echo", "params": {"message": 1, "steps": 9}, "metadata": {"a": None}}
    assert read(content, "csv", ECHO) == [(2, job)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b"echo,a", "has 2 cells, and the first line names 3 columns"),
        (b"echo,a,,", "has 4 cells, and the first line names 3 columns"),
        (b'echo,"a"b,', "is not CSV: ',' expected after '\"'"),
        (b"echo,\xff,", "is not UTF-8: save the file as UTF-8"),
        (b'echo,a,"[1]"', "params: must be a JSON object"),
        (b"echo,a,5", "params: must be a JSON object"),
        (b"echo,a,{", "params: must be a JSON object: Expecting property name"),
        (b"echo,a," + b"[" * 100_000, "params: must be a JSON object: it is nested too deeply"),
        (b'echo,a,"{""x"": NaN}"', "params: must be a JSON object: NaN is no JSON number"),
    ],
)
def test_a_bad_row_is_one_problem_and_its_neighbours_come_through(row: bytes, problem: str) -> None:
    good = {"task": "echo", "params": {"message": "m"}}
    first, (line, said), last = read(b"task,message,params\necho,m,\n" + row + b"\necho,m,\n", "csv")
    assert (first, last) == ((2, good), (4, good))
    assert line == 3
    assert said.startswith(f"line 3: {problem}")


def test_a_quote_that_is_never_closed_is_a_problem() -> None:
    [(_, said)] = read(b'task,message\necho,"m\necho,m\n', "csv")
    assert "is not CSV: unexpected end of data" in said


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"task;message\necho;hi\n", "not semicolons"),
        (b"task\tmessage\necho\thi\n", "not tabs"),
        (b"task,task\necho,hi\n", "each once, none empty"),
        (b"task,\necho,hi\n", "each once, none empty"),
    ],
)
def test_a_header_that_cannot_be_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        read(content, "csv")


@pytest.mark.parametrize("content", [b"", b"task,message\n", b"\n\n"])
def test_a_csv_without_rows_holds_nothing(content: bytes) -> None:
    assert read(content, "csv") == []


def test_the_stream_stays_open_for_its_owner() -> None:
    stream = io.BytesIO(b"message\n1\n2\n")
    items = from_stream(stream, "csv", ECHO)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert not stream.closed


# --- objects ---


def objects(things: Any, defaults: Defaults | None = None) -> list[tuple[int, Any]]:
    return [(n, str(i) if isinstance(i, Problem) else i) for n, i in from_objects(things, defaults or Defaults())]


def test_texts_dicts_and_jobs_may_stand_side_by_side() -> None:
    things = [
        "hi",
        {"params": {"message": 1}, "seed": 3},
        Job("echo", MappingProxyType({"message": None}), custom_id="a"),
    ]
    assert objects(iter(things), ECHO) == [
        (1, {"task": "echo", "params": {"message": "hi"}}),
        (2, {"task": "echo", "params": {"message": 1}, "seed": 3}),
        (3, {"task": "echo", "params": {"message": None}, "custom_id": "a"}),
    ]


def test_a_jobs_own_word_goes_before_what_all_have_in_common() -> None:
    defaults = Defaults({"task": "echo", "priority": 1}, {"steps": 2, "message": "all"})
    assert objects([{"priority": 5, "params": {"message": "own"}}], defaults) == [
        (1, {"task": "echo", "priority": 5, "params": {"steps": 2, "message": "own"}})
    ]


@pytest.mark.parametrize("thing", [5, None, b"bytes", ["hi"], Job])
def test_anything_else_is_a_problem(thing: Any) -> None:
    [(_, said)] = objects([thing], ECHO)
    assert said == f"line 1: must be a text, a dict or a Job, got {type(thing).__name__}"


def test_a_dataframe_is_rows_of_cells_and_a_missing_cell_says_nothing() -> None:
    import pandas

    frame = pandas.DataFrame(
        {
            "message": ["a", None, "<NA>"],
            "steps": pandas.array([1, None, 3], dtype="Int64"),
            "step_s": [0.5, float("nan"), 0.0],
            "seed": [7, 8, 9],
            "metadata": [{"k": 1}, None, None],
            "when": [pandas.NaT, pandas.NaT, pandas.NaT],
        }
    )
    found = objects(frame, ECHO)
    assert found == [
        (1, {"task": "echo", "seed": 7, "metadata": {"k": 1}, "params": {"message": "a", "steps": 1, "step_s": 0.5}}),
        (2, {"task": "echo", "seed": 8, "params": {}}),
        (3, {"task": "echo", "seed": 9, "params": {"message": "<NA>", "steps": 3, "step_s": 0.0}}),
    ]
    assert type(found[0][1]["seed"]) is int


def test_an_array_in_a_dataframe_is_a_list() -> None:
    import numpy
    import pandas

    frame = pandas.DataFrame({"message": [numpy.array([1, 2]), numpy.float32(0.5)]})
    assert [job["params"] for _, job in objects(frame, ECHO)] == [{"message": [1, 2]}, {"message": 0.5}]


def test_a_source_is_read_one_job_at_a_time() -> None:
    asked: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            asked.append(1)
            yield "hi"

    items = from_objects(endless(), ECHO)
    assert [next(items)[0] for _ in range(3)] == [1, 2, 3]
    assert len(asked) == 3
