"""Watching: honest about silence, cheap, and quiet where nobody looks."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys
import time as real_time
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from producer import watch as watching
from producer.records import BatchRecord, ErrorSum
from producer.watch import Bar, hms, rate, status_table, summary_line, watch
from producer.words import moment, span
from shared.errors import NotFound, Unavailable

SILENT = Unavailable("database", "postgresql://db", "does not answer")


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class FakeGateway:
    """Gives what it is told to, one after the other, and the last one forever."""

    def __init__(self, *answers: BatchRecord | BaseException) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def batch(self, reference: str) -> BatchRecord:
        self.asked.append(reference)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def batch(status: str = "running", **counts: int) -> BatchRecord:
    states = dict.fromkeys(("waiting", "queued", "running", "succeeded", "failed", "cancelled"), 0) | counts
    return BatchRecord("b1", "spring", status, sum(states.values()), states, None, None, (), 0.0, cancelled=False)


QUEUED, HALF, DONE = batch("queued", queued=4), batch(queued=1, running=1, succeeded=2), batch("done", succeeded=4)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watching, "time", clock)
    return clock


def follow(*answers: BatchRecord | BaseException, **options: Any) -> tuple[BatchRecord, FakeGateway]:
    gateway = FakeGateway(*answers)
    return watch(gateway, "spring", **options), gateway  # type: ignore[arg-type]


def test_two_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    record, gateway = follow(QUEUED, *[HALF] * 100, DONE)

    assert record == DONE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "spring (b1): queued, 4 jobs, 4 queued",
        "spring (b1): done, 4 jobs, 4 succeeded",
    ]
    # the name is looked up once: another batch may get the same one
    assert gateway.asked == ["spring"] + ["b1"] * 101


def test_news_are_a_tenth_of_the_wait_old_at_most(clock: Clock) -> None:
    follow(QUEUED, *[HALF] * 100, DONE)

    assert clock.slept[0] == pytest.approx(0.002)
    assert clock.slept[-1] == pytest.approx(2.0)
    before = [sum(clock.slept[:n]) for n in range(len(clock.slept))]
    assert all(slept <= max(0.002, waited / 10) + 1e-9 for slept, waited in zip(clock.slept, before, strict=True))


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    follow(QUEUED, SILENT, DONE, quiet=True)

    assert capsys.readouterr() == ("", "")


def test_a_batch_that_is_done_is_one_line_and_one_poll(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    follow(DONE)

    assert len(capsys.readouterr().err.splitlines()) == 1
    assert clock.slept == []


def test_the_bar_moves_and_goes(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    follow(QUEUED, *[HALF] * 100, DONE, quiet=False)

    said = capsys.readouterr().err
    assert "━" in said
    assert "0 of 4" in said
    assert said.rstrip().endswith("4 succeeded")
    assert max(clock.slept) == pytest.approx(0.5)


def test_stop_ends_the_wait_early() -> None:
    answers = iter([False, False, True])

    record, _ = follow(QUEUED, HALF, HALF, DONE, stop=lambda: next(answers))

    assert record == HALF


def test_an_interrupt_goes_through_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        follow(QUEUED, KeyboardInterrupt())

    assert capsys.readouterr().err.splitlines()[-1] == "the batch goes on; watch it with `aigc watch b1`"


def test_a_silent_database_is_told_once_and_outlasted(capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = follow(QUEUED, *[SILENT] * 50, HALF, SILENT, DONE)

    assert record == DONE
    said = capsys.readouterr().err.splitlines()
    assert [("does not answer" in line, "answers again" in line) for line in said] == [
        (False, False), (True, False), (False, True), (True, False), (False, True), (False, False),
    ]  # fmt: skip


def test_a_database_that_stays_silent_is_given_up_after_a_minute(clock: Clock) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        follow(QUEUED, SILENT)

    assert 60 < clock.now - 1000 < 65


def test_a_first_poll_that_fails_raises_at_once(clock: Clock) -> None:
    for error in (SILENT, NotFound("there is no batch")):
        with pytest.raises(type(error)):
            follow(error)
    assert clock.slept == []


def test_the_reason_is_asked_only_when_nothing_runs_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []

    def hint() -> str:
        asked.append(1)
        return "no worker serves the queue gpu\x1b[2J"

    follow(HALF, *[HALF] * 100, DONE, hint=hint)
    assert asked == []
    capsys.readouterr()

    follow(QUEUED, *[QUEUED] * 85, DONE, hint=hint)
    said = [line for line in capsys.readouterr().err.splitlines() if "no worker" in line]
    assert said == ["spring: no worker serves the queue gpu\ufffd[2J"]
    assert 2 <= len(asked) <= 5


def test_a_reason_that_cannot_be_had_harms_nothing() -> None:
    def hint() -> str:
        raise SILENT

    assert follow(QUEUED, *[QUEUED] * 85, DONE, hint=hint)[0] == DONE


def rendered(renderable: Any, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(renderable)
    return stream.getvalue()


def test_the_table_says_how_many_how_fast_how_long_and_what_failed() -> None:
    record = dataclasses.replace(
        batch(queued=500, running=64, succeeded=430, failed=6), name="[bold]spring[/bold]\x1b[31m", rate_per_s=12.4,
        eta_s=3725.2, errors=(ErrorSum("prompt_too_long", 6, "1,204 tokens [red]"),),
    )  # fmt: skip

    text = rendered(status_table(record))

    for part in ("[bold]spring[/bold]\ufffd[31m", "436 of 1,000", "43 %", "430 succeeded", "6 failed", "64 running",
                 "12.4/s", "1:02:06 left", "prompt_too_long", "1,204 tokens [red]"):  # fmt: skip
        assert part in text.replace("\n", " "), part
    assert "\x1b" not in text
    assert rendered(status_table(record), width=20)


@pytest.mark.parametrize("cells", [6, 40, 200])
def test_the_bar_is_as_wide_as_the_terminal_and_hides_no_state(cells: int) -> None:
    widths = Bar(batch(succeeded=999_990, failed=1, cancelled=1, running=1, queued=1, waiting=1)).widths(cells)

    assert sum(widths) == cells
    assert all(widths)
    assert sum(Bar(batch("loading")).widths(cells)) == cells


def test_words_for_numbers() -> None:
    assert [hms(s) for s in (0, 0.2, 65, 3725.2, 360_000)] == ["0:00:00", "0:00:01", "0:01:05", "1:02:06", "100:00:00"]
    assert [rate(r) for r in (1234.5, 12.34, 0.4, 0.001)] == ["1,234/s", "12.3/s", "24.0/min", "3.6/h"]
    assert summary_line(dataclasses.replace(batch(succeeded=1), name=None, rate_per_s=2.0, eta_s=9.0)) == (
        "b1: running, 1 job, 1 succeeded, 2.0/s, 0:00:09 left"
    )


def test_words_for_moments_and_spans() -> None:
    assert [span(s) for s in (0.4, 25.2, 99, 100, 3599, 7500, 7200, 200_000)] == [
        "0 s", "25 s", "99 s", "2 min", "1 h", "2 h 5 min", "2 h", "2 d 7 h",
    ]  # fmt: skip
    today = real_time.time()
    assert re.fullmatch(r"\d\d:\d\d:\d\d", moment(today))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", moment(today - 2 * 86_400))


def test_rich_is_loaded_only_for_a_terminal() -> None:
    program = "import sys, producer.watch; raise SystemExit(any(m.split('.')[0] == 'rich' for m in sys.modules))"
    loaded: Iterable[str] = [sys.executable, "-c", program]

    assert subprocess.run(loaded, check=False).returncode == 0
