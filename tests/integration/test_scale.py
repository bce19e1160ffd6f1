"""What is asked of a batch costs the same however large it is, and going through all of it takes no more memory."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from large_batches import echo, finished
from sqlalchemy import event, update

from aigc import Client
from producer.gateway import DirectGateway
from producer.records import JobRecord
from producer.results import PAGE
from shared import jobs as transitions
from shared.database import Database
from shared.ids import new_session_id
from shared.settings import Settings
from shared.tables import jobs

#: tables that grow with what was submitted
LARGE = ("jobs", "artifacts", "attempts", "events", "objects", "batches", "batch_counters")


@contextmanager
def every_statement(db: Database, look: Callable[[Any, str, Any], None]) -> Iterator[None]:
    """Look at every statement that goes to the driver meanwhile."""

    def listen(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        look(cursor, statement, parameters)

    event.listen(db.engine, "before_cursor_execute", listen)
    yield
    event.remove(db.engine, "before_cursor_execute", listen)


def worker(db: Database) -> str:
    """The session of a worker that serves the queue of the jobs."""
    session = new_session_id()
    about = {"id": session, "worker": "w", "host": "h", "pid": 1, "device": "cpu", "queues": "cpu", "versions": {}}
    transitions.open_session(db, {**about, "condition": {}}, 600.0)
    return session


# --- a poll costs the same for ten jobs or ten million ---


@pytest.fixture
def asked(settings: Settings) -> dict[str, Callable[[], Any]]:
    """Everything that is asked of a batch and its jobs, of which some wait, one runs and one has failed."""
    client = Client(settings)
    gateway = client.gateway
    batch = client.submit(echo(20), name="spring")
    db = Database(settings)
    session = worker(db)
    lane = gateway.job(f"{batch.id}-1")
    number = transitions.lane_ids(db, [transitions.Lane("cpu", lane.task, "")]).popitem()[1]
    first, _ = transitions.claim(db, session=session, lane_id=number, priority=0, limit=2, window_s=1e9)
    transitions.fail(db, session, [transitions.Failure(first.id, first.epoch, "broken", "it broke", retryable=False)])
    db.dispose()
    record = gateway.batch(batch.id)
    return {
        "status by id": lambda: gateway.batch(batch.id),
        "status by name": lambda: gateway.batch("spring"),
        "list": lambda: gateway.batches(limit=20),
        "the next page of the list": lambda: gateway.batches(limit=20, before=(record.created_at, record.id)),
        "status of a job": lambda: gateway.job(f"{batch.id}-1"),
        "a page of jobs": lambda: gateway.jobs(batch.id, after=5),
        "events": lambda: gateway.events(batch.id, after=1),
        "events of a job": lambda: gateway.events(batch.id, line=1),
        "why it failed": lambda: gateway.why(f"{batch.id}-1"),
        "why it runs": lambda: gateway.why(f"{batch.id}-2"),
        "why it waits": lambda: gateway.why(f"{batch.id}-9"),
        "overview": gateway.system,
        "gateway": lambda: gateway,
    }


def test_nothing_that_is_asked_reads_a_large_table_from_end_to_end(
    settings: Settings, asked: dict[str, Callable[[], Any]]
) -> None:
    """By the plan: every large table is searched by an index, and only what was found is sorted."""
    gateway = asked.pop("gateway")()
    assert isinstance(gateway, DirectGateway)
    bad: list[str] = []

    def sqlite(cursor: Any, statement: str, parameters: Any) -> None:
        steps = [row[3] for row in cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        bad.extend(f"{what}: {step}" for step in steps if re.match(rf"SCAN ({'|'.join(LARGE)})\b", step))
        # To sort all jobs or events of a batch would be as bad; of the few that were looked up by id it is not.
        walked = any(re.match(r"SEARCH (jobs|events) .*\(batch_id=\?\)", step) for step in steps)
        bad.extend(f"{what}: {step}" for step in steps if walked)

    def postgres(cursor: Any, statement: str, parameters: Any) -> None:
        if not statement.startswith("SELECT"):
            return
        with cursor.connection.cursor() as asking:
            asking.execute("SET enable_seqscan = off")  # the tables are small here
            asking.execute(f"EXPLAIN {statement}", parameters)
            steps = [row[0] for row in asking.fetchall()]
            asking.execute("RESET enable_seqscan")
        bad.extend(f"{what}: {step}" for step in steps if re.search(rf"Seq Scan on ({'|'.join(LARGE)})\b", step))

    with every_statement(gateway.db, sqlite if gateway.db.is_sqlite else postgres):
        for what, act in asked.items():  # noqa: B007 - both looks name it
            act()
    assert not bad


def test_the_work_of_a_poll_does_not_grow_with_the_batch(sqlite_settings: Settings) -> None:
    """SQLite counts the steps of its machine: as many for 20,000 jobs as for 20, whatever became of them."""
    client = Client(sqlite_settings)
    gateway = client.gateway
    assert isinstance(gateway, DirectGateway)
    worker(gateway.db)
    steps: dict[str, list[int]] = {}
    for total in (20, 20_000):
        batch = client.submit(echo(total))
        with_all_but_some_done = update(jobs).where(jobs.c.batch_id == batch.id, jobs.c.line <= total - 10)
        gateway.db.write(lambda c, done=with_all_but_some_done: c.execute(done.values(state="succeeded")))  # type: ignore[misc]
        last = f"{batch.id}-{total}"
        for what, act in {
            "status": lambda batch=batch: batch.status(),
            "job": lambda last=last: gateway.job(last),
            "why": lambda last=last: gateway.why(last),
            "list": lambda: gateway.batches(limit=20),
            "page": lambda batch=batch, total=total: gateway.jobs(batch.id, after=total // 2, limit=5),
            "events": lambda batch=batch: gateway.events(batch.id),
        }.items():
            steps.setdefault(what, []).append(_steps(gateway.db, act))
    for what, (small, large) in steps.items():
        assert large <= 1.5 * small + 300, (what, steps)


def _steps(db: Database, act: Callable[[], Any]) -> int:
    """Instructions of SQLite's machine."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    with every_statement(db, lambda cursor, *_: cursor.connection.set_progress_handler(tick, 1)):
        act()
    return count


# --- a million lines stream in, and out ---

_SUBMIT = """
import json, resource, sys
from aigc import Client, Settings
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
client = Client(Settings(_env_file=None, data_dir=sys.argv[1]))
client.submit([{"task": "echo", "params": {"message": "warm"}}] * 5000)
before = peak()
batch = client.submit_file(sys.argv[2])
print(json.dumps({"grown": peak() - before, "counts": batch.status().counts["queued"]}))
"""


def test_a_hundred_thousand_lines_are_stored_in_little_memory(sqlite_settings: Settings) -> None:
    """Held in memory they would be 60 MB and more."""
    file = sqlite_settings.data_dir / "jobs.jsonl"
    with file.open("w") as lines:
        for number in range(100_000):
            job = {"custom_id": f"job-{number}", "task": "echo", "params": {"message": f"message {number}"}}
            lines.write(json.dumps(job) + "\n")
    command = [sys.executable, "-c", _SUBMIT, str(sqlite_settings.data_dir), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=170)
    told = json.loads(done.stdout)
    assert told["counts"] == 100_000
    assert told["grown"] < 30, f"it grew by {told['grown']} MB"


def test_results_hold_a_page_at_a_time_and_read_every_pack_once(
    sqlite_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 4 * PAGE
    db = Database(sqlite_settings)
    batch = Client(sqlite_settings).batch(finished(sqlite_settings, db, total))
    gateway = Client(sqlite_settings).gateway
    assert isinstance(gateway, DirectGateway)
    opened, statements, alive = [0], [0], []
    open_ = gateway.storage.open

    def counted(*args: Any, **options: Any) -> Any:
        opened[0] += 1
        return open_(*args, **options)

    monkeypatch.setattr(gateway.storage, "open", counted)

    def more(*_: Any) -> None:
        statements[0] += 1

    def on_job(job: JobRecord) -> None:
        if job.line % 300 == 0:
            alive.append(sum(type(thing) is JobRecord for thing in gc.get_objects()))

    from producer.results import download

    with every_statement(gateway.db, more):
        done = download(gateway, gateway.batch(batch.id), tmp_path / "out", on_job=on_job)
    assert done.jobs == total
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [f"message {n}" for n in range(1, total + 1)]
    assert opened[0] == total // 500
    assert statements[0] <= 8 * (total // PAGE + 2)
    assert max(alive) <= 2 * PAGE
