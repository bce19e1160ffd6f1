"""A submission is read and validated as a whole before the database hears of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from aigc import Client, InvalidJobs, RequestError, Unavailable
from producer.sources import Defaults, Item, from_objects
from producer.spool import KEPT_PROBLEMS, Spool, fill_spool
from shared.errors import Problem
from shared.jobs import Lane, NewJob
from shared.settings import Settings


def echo(message: Any = "hi", **keys: Any) -> dict[str, Any]:
    return {"task": "echo", "params": {"message": message}, **keys}


def items(*jobs: dict[str, Any]) -> list[Item]:
    return list(enumerate(jobs, 1))


def fill(source: Iterable[Item], folder: Path, **options: Any) -> Spool:
    return fill_spool(source, folder / "spool", **options)


def rows(spool: Spool) -> list[NewJob]:
    return list(chain.from_iterable(spool.blocks(list(range(len(spool.lanes))), max_attempts=3, expires_at=None)))


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_spooled_comes_out_as_rows_in_order(tmp_path: Path) -> None:
    text = {"task": "text-generation", "model": "gpt2", "params": {"prompt": "line\nbreak \u2028 é😀"}}
    jobs = [echo(custom_id="a", seed=7, priority=5, metadata={"k": 1}, timeout_s=9, max_attempts=1), text]
    with fill(items(*jobs), tmp_path) as spool:
        first, second = rows(spool)
        assert spool.lanes == [Lane("cpu", "echo", ""), Lane("gpu", "text-generation", "gpt2")]
        assert spool.ready == {(0, 5): 1, (1, 0): 1}
        assert rows(spool) == [first, second], "it can be read again"
    assert first == first._replace(line=1, custom_id="a", seed=7, priority=5, max_attempts=1, timeout_s=9.0)
    assert first.metadata_json == '{"k":1}'
    assert (second.custom_id, second.lane_id, second.max_attempts) == ("2", 1, 3)
    assert "line\\nbreak" in second.params_json
    assert 0 <= second.seed < 2**32
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "ids",
    [["a", "a"], [None, "1"], ["2", None], ["x", None, "é", "x"], ["😀"] * 2, ["3", "2", None]],
    ids=["given twice", "implied, then given", "given, then implied", "far apart", "emoji", "given before its line"],
)
def test_a_custom_id_stands_once_given_or_implied(tmp_path: Path, ids: list[str | None]) -> None:
    jobs = [echo() if custom_id is None else echo(custom_id=custom_id) for custom_id in ids]
    with pytest.raises(InvalidJobs) as caught:
        fill(items(*jobs), tmp_path)
    repeated = ids[-1] or str(len(ids))
    assert [str(problem) for problem in caught.value.problems] == [
        f"line {len(ids)}: custom_id: {repeated!r} stands in an earlier line too: each job needs its own"
    ]


@pytest.mark.parametrize("ids", [["01", None], [None, "3", "02"], ["a", "A"], ["²", None, "٢"], ["9" * 256, None]])
def test_what_only_looks_alike_is_no_repetition(tmp_path: Path, ids: list[str | None]) -> None:
    jobs = [echo() if custom_id is None else echo(custom_id=custom_id) for custom_id in ids]
    with fill(items(*jobs), tmp_path) as spool:
        assert [row.custom_id for row in rows(spool)] == [
            custom_id or str(line) for line, custom_id in enumerate(ids, 1)
        ]


def test_one_bad_line_and_nothing_is_stored_and_all_are_listed(tmp_path: Path) -> None:
    report = tmp_path / "problems" / "all.txt"
    bad = [echo(seed=-line) for line in range(1, KEPT_PROBLEMS + 51)]
    with pytest.raises(InvalidJobs) as caught:
        fill(items(echo(), *bad), tmp_path, report=report)
    error = caught.value
    assert (error.count, len(error.problems), error.report) == (150, KEPT_PROBLEMS, str(report))
    shown = str(error).splitlines()
    assert shown[0] == "nothing was stored; 150 problem(s) in the input:"
    assert shown[1] == "line 2: seed: must be at least 0, got -1"
    assert len(shown) == 1 + 20 + 1
    assert shown[-1] == "… and 130 more"
    listed = report.read_text(encoding="utf-8").splitlines()
    assert (len(listed), listed[-1]) == (150, "line 151: seed: must be at least 0, got -150")
    assert left_behind(tmp_path) == [report]


def test_a_report_is_written_only_where_there_is_something_to_say(tmp_path: Path) -> None:
    with fill(items(echo()), tmp_path, report=tmp_path / "report.txt"):
        assert not (tmp_path / "report.txt").exists()


def test_the_good_lines_are_taken_where_that_is_wished(tmp_path: Path) -> None:
    jobs = [echo(), echo(seed=-1, custom_id="a"), echo(custom_id="a"), echo(custom_id="a")]
    report = tmp_path / "report.txt"
    with fill(items(*jobs), tmp_path, skip_invalid=True, report=report) as spool:
        assert [(row.line, row.custom_id) for row in rows(spool)] == [(1, "1"), (3, "a")]
        assert (spool.total, spool.problem_count) == (2, 2)
    assert len(report.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("source", "why"),
    [([], "the input holds no jobs"), ([(1, Problem(1, "", "bad"))], "no line of the input is valid")],
)
def test_nothing_at_all_is_refused(tmp_path: Path, source: list[Item], why: str) -> None:
    with pytest.raises(RequestError, match=why):
        fill(source, tmp_path, skip_invalid=True)
    assert left_behind(tmp_path) == []


def test_the_digest_is_of_the_request_and_not_of_drawn_seeds(tmp_path: Path) -> None:
    def digest(*jobs: dict[str, Any]) -> str:
        with fill(items(*jobs), tmp_path) as spool:
            return spool.digest

    same = digest(echo("a"), echo("b"))
    assert digest(echo("a"), echo("b")) == same
    others = [
        digest(echo("b"), echo("a")),
        digest(echo("a")),
        digest(echo("a"), echo("b", seed=1)),
        digest(echo("a"), echo("b", queue="other")),
        digest(echo("a"), echo("b", metadata={})),
    ]
    assert len({same, *others}) == 6


def test_a_source_that_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken() -> Iterator[Any]:
        yield echo()
        raise ConnectionError("the other end is gone")

    client = Client(Settings(_env_file=None, data_dir=tmp_path))
    with pytest.raises(ConnectionError, match="the other end"):
        client.submit(broken())
    assert client.batches() == []
    assert left_behind(tmp_path / "spool") == []


def test_a_source_that_stalls_holds_nobody_up(tmp_path: Path) -> None:
    """Given one submission stuck in the middle of its source, another goes through; then the first does too."""
    client = Client(Settings(_env_file=None, data_dir=tmp_path))
    stalled, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[Any]:
        yield echo("first half")
        stalled.set()
        assert go_on.wait(timeout=60)
        yield echo("second half")

    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(client.submit(slow())))
    thread.start()
    assert stalled.wait(timeout=60)
    other = client.submit([echo()])
    assert [batch.id for batch in client.batches()] == [other.id]
    assert not done
    go_on.set()
    thread.join(timeout=60)
    assert done[0].status().total == 2


def test_a_spool_that_cannot_be_made_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file stands where the folder should")
    with pytest.raises(Unavailable, match=r"data folder at .*spool: cannot be written: .*AIGC_DATA_DIR"):
        fill(items(echo()), tmp_path)


_FULL_DISK = """
import resource, sys
from pathlib import Path
from aigc import Unavailable
from producer.spool import fill_spool
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
jobs = ((n, {"task": "echo", "params": {"message": "x" * MESSAGE}}) for n in range(1, 1 + TOTAL))
try:
    fill_spool(jobs, Path(sys.argv[1]))
except Unavailable as error:
    print(error)
"""


@pytest.mark.parametrize(("message", "total"), [(1000, 1000), (4_000, 26)], ids=["in the middle", "at the end"])
def test_a_disk_that_fills_up_is_said_in_a_sentence(tmp_path: Path, message: int, total: int) -> None:
    code = _FULL_DISK.replace("MESSAGE", str(message)).replace("TOTAL", str(total))
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert "cannot be written: File too large. free some space" in done.stdout
    assert left_behind(tmp_path) == []


def test_memory_does_not_grow_with_what_objects_yield(tmp_path: Path) -> None:
    """The source is read as it comes: by the time the last job is made, the first is no longer held."""
    import gc
    import weakref

    class Message(str):
        __slots__ = ("__weakref__",)

    seen: list[weakref.ref[Message]] = []

    def many() -> Iterator[Any]:
        for number in range(100):
            message = Message(f"message {number}")
            seen.append(weakref.ref(message))
            yield message

    with fill(from_objects(many(), Defaults({"task": "echo"})), tmp_path):
        gc.collect()
        assert sum(ref() is not None for ref in seen) <= 1
