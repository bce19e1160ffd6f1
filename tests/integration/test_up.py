"""`aigc up`: one command starts everything, safe to call twice, and nothing outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import BRISK, until

pytestmark = pytest.mark.timeout(180)


class Home:
    """A data folder and the command line on it; whatever still runs at the end is ended."""

    def __init__(self, folder: Path) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AIGC_")}
        self.environment = {**clean, **BRISK, "AIGC_DATA_DIR": str(folder)}
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def aigc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "producer.cli", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)

    def up(self) -> subprocess.Popen[str]:
        """In the foreground of a process group of its own, as in a terminal; returns once it says that it is up."""
        command = [sys.executable, "-m", "producer.cli", "up", "--devices", "cpu"]
        process = subprocess.Popen(
            command, env=self.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "aigc is up" in line:
                return process
        raise AssertionError("it ended without being up")

    def submit(self, *lines: dict[str, object]) -> str:
        path = self.folder.parent / "jobs.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        submitted = self.aigc("submit", str(path), "--json")
        assert submitted.returncode == 0, submitted.stderr
        return str(json.loads(submitted.stdout)["batch_id"])

    def status(self, batch_id: str) -> dict[str, object]:
        return dict(json.loads(self.aigc("status", batch_id, "--json").stdout))


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "data")
    yield made
    for process in made.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        if process.stderr:
            process.stderr.close()


SLOW = {"task": "echo", "params": {"message": "slow", "steps": 4000, "step_s": 0.05}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_leaves_no_process_behind_and_the_next_one_carries_on(
    home: Home, number: signal.Signals
) -> None:
    first = home.up()
    batch = home.submit(SLOW)
    until(lambda: home.status(batch)["counts"]["running"], what="running")  # type: ignore[index]
    ours = family(first)
    assert len(ours) >= 4, "Redis, the keeper of workers, Celery and its child"

    first.send_signal(number)
    assert first.wait(timeout=40) == 0
    until(lambda: gone(ours), what="everything gone")
    assert home.status(batch)["counts"]["queued"] == 1  # type: ignore[index]
    assert not (home.folder / "run" / "redis.json").exists()

    home.up()
    until(lambda: home.status(batch)["counts"]["running"] == 1, what="carrying on")  # type: ignore[index]
    assert home.aigc("cancel", batch).returncode == 0


def test_starting_it_twice_says_that_it_is_running(home: Home) -> None:
    first = home.up()
    second = home.aigc("up")
    detached = home.aigc("up", "--detach")
    assert (second.returncode, detached.returncode) == (0, 0)
    assert f"already running on {home.folder} (process {first.pid})" in second.stderr
    assert "already running" in detached.stderr


def test_after_a_kill_nothing_keeps_working_and_the_next_one_clears_up(home: Home) -> None:
    first = home.up()
    ours = family(first)
    first.kill()
    first.wait()
    workers = [p for p in ours if "redis" not in p.name()]
    until(lambda: gone(workers), what="the workers noticing")

    home.up()
    assert gone(ours), "the old Redis was ended"
    batch = home.submit({"task": "echo", "params": {"message": "after"}})
    until(lambda: home.status(batch)["status"] == "done", what="the job")


def test_a_redis_that_dies_is_started_again(home: Home) -> None:
    first = home.up()
    redis = next(p for p in family(first) if "redis" in p.name())
    redis.kill()
    until(lambda: [p for p in family(first) if "redis" in p.name() and p.pid != redis.pid], what="a new Redis")
    batch = home.submit({"task": "echo", "params": {"message": "after"}})
    until(lambda: home.status(batch)["status"] == "done", what="the job")


def test_the_password_of_its_redis_stands_in_no_command_line_and_in_no_file_for_others(home: Home) -> None:
    first = home.up()
    record = home.folder / "run" / "redis.json"
    password = json.loads(record.read_text(encoding="utf-8"))["url"].split(":")[2].split("@")[0]
    assert record.stat().st_mode & 0o077 == 0
    assert not [p for p in [psutil.Process(first.pid), *family(first)] if password in " ".join(p.cmdline())]
    assert password not in (home.folder / "run" / "worker.log").read_text(encoding="utf-8")


def test_down_stops_what_runs_in_the_background(home: Home) -> None:
    assert home.aigc("up", "--detach", "--devices", "cpu").returncode == 0
    assert home.aigc("doctor").returncode == 0
    assert "stopped" in home.aigc("down").stderr
    assert "nothing was running" in home.aigc("down").stderr
    assert home.aigc("doctor").returncode == 3
