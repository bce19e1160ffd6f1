"""Redis fails in every way it can while jobs run and come in: it only wakes, so all it can cost is a moment."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psutil
import pytest
from cluster import BRISK, Cluster, until
from redis import Redis
from redis.exceptions import OutOfMemoryError
from servers import RedisServer
from sqlalchemy import select

from aigc import Batch
from shared.database import Database
from shared.queue import TASK_NAME, make_celery
from shared.tables import worker_sessions

pytestmark = pytest.mark.timeout(180)

#: what happens to a job that nothing went wrong with
WELL = {"submitted", "claimed", "succeeded"}


def echo(n: int = 1, *, steps: int = 1, step_s: float = 0.05, **more: Any) -> list[dict[str, Any]]:
    """Jobs that tell which worker session made them."""
    params = {"steps": steps, "step_s": step_s, "signed": True}
    return [{"task": "echo", "params": {**params, "message": k}, **more} for k in range(n)]


def running(batch: Batch, n: int = 1) -> None:
    until(lambda: batch.status().counts["running"] >= n, what="running")


def all_well(
    cluster: Cluster, batch: Batch, *, within_s: float = 60, also: frozenset[str] = frozenset()
) -> Mapping[str, dict[str, Any]]:
    """Every job has succeeded at its first attempt with one result, and but for `also` nothing else befell it."""
    results = cluster.done(batch, within_s=within_s)
    assert [result["data"]["message"] for result in results.values()] == list(range(len(results)))
    assert {(result["status"], result["attempts"], len(result["artifacts"])) for result in results.values()} == {
        ("succeeded", 1, 1)
    }
    assert {event.kind for event in batch.events()} <= WELL | also
    assert sum(event.count for event in batch.events() if event.kind == "succeeded") == len(results)
    return results


def lost_sessions(database: Database) -> set[str]:
    """Worker sessions that were taken for dead."""
    with database.read() as connection:
        return set(connection.scalars(select(worker_sessions.c.id).where(worker_sessions.c.end == "lost")))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(maxmemory="16mb") as made:
        yield made


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, server: RedisServer) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("redis")
    environment = {
        "AIGC_DATA_DIR": str(folder / "data"),
        "AIGC_STORE_URL": (folder / "store").as_uri(),
        "AIGC_REDIS_URL": server.url,
    }
    with Cluster(environment, folder / "worker.log") as made:
        made.start_keeper()
        made.start_worker()
        yield made


@pytest.fixture
def cluster(everything: Cluster, server: RedisServer) -> Iterator[Cluster]:
    """A keeper and a worker; after the test Redis is well, and nobody who lived was taken for dead."""
    yield everything
    if server.pids:
        server.thaw()
    else:
        server.start()
    with Redis.from_url(server.url) as redis:
        redis.flushall()
    assert not lost_sessions(everything._database)


def submit(cluster: Cluster, jobs: list[dict[str, Any]]) -> tuple[Batch, str]:
    """By the command line: accepted, whatever Redis does; returns the batch, and what was said beside it."""
    lines = "\n".join(json.dumps(job) for job in jobs).encode()
    submitted = cluster.aigc("submit", "-", "--json", stdin=lines)
    assert submitted.returncode == 0, submitted.stderr
    return cluster.client.batch(json.loads(submitted.stdout)["batch_id"]), submitted.stderr


def doctor(cluster: Cluster) -> Mapping[str, Any]:
    """What it says of Redis; the exit status is 3 if that is bad."""
    told = cluster.aigc("doctor", "--json")
    [check] = [check for check in json.loads(told.stdout)["checks"] if check["name"] == "redis"]
    assert check["ok"] or told.returncode == 3
    found: Mapping[str, Any] = check
    return found


def listens(cluster: Cluster, server: RedisServer) -> None:
    """The worker takes messages again: one that names no job at all is gone soon."""
    app = make_celery(cluster.settings)
    with app.connection_for_write() as connection:
        app.send_task(TASK_NAME, args=["cpu", "nobody", []], queue="cpu", connection=connection)
    with Redis.from_url(server.url) as redis:
        until(lambda: redis.llen("cpu") == 0, what="a message being taken")


def test_a_frozen_redis_holds_up_neither_what_runs_nor_what_comes_in(cluster: Cluster, server: RedisServer) -> None:
    before = cluster.client.submit(echo(3, steps=20))
    running(before, 3)
    server.freeze()
    all_well(cluster, before)  # from here on nobody is awake
    with ThreadPoolExecutor() as pool:
        checked = pool.submit(doctor, cluster)
        later, said = submit(cluster, echo(5))
        all_well(cluster, later)
        check = checked.result()

    assert "the jobs are stored; they start when Redis answers" in said
    assert (check["ok"], check["advice"]) == (False, "start Redis, or correct AIGC_REDIS_URL")
    assert "Timeout" in check["detail"]
    server.thaw()
    listens(cluster, server)
    assert doctor(cluster)["ok"]


def test_a_worker_told_to_stop_while_redis_is_frozen_is_gone_within_its_grace(
    cluster: Cluster, server: RedisServer
) -> None:
    worker = cluster.start_worker(queues="other")
    batch = cluster.client.submit(echo(1, steps=4000, queue="other"))
    running(batch)
    server.freeze()

    worker.send_signal(signal.SIGTERM)
    told = time.monotonic()
    worker.wait(timeout=20)
    took = time.monotonic() - told

    job = cluster.client.job(f"{batch.id}-1")
    assert (job.status, job.attempt) == ("queued", 0)
    assert took <= float(BRISK["AIGC_GRACE_S"]) + 0.5, f"{took:.2f} s; 0.5 s are ours, for looking"
    batch.cancel()


def test_a_redis_that_is_killed_and_started_again_is_found_again(cluster: Cluster, server: RedisServer) -> None:
    before = cluster.client.submit(echo(3, steps=20))
    running(before, 3)
    server.kill()
    later, said = submit(cluster, echo(5))
    all_well(cluster, before)
    all_well(cluster, later)

    assert "the jobs are stored; they start when Redis answers" in said
    assert not doctor(cluster)["ok"]
    server.start()
    listens(cluster, server)


def test_ten_thousand_queued_jobs_outlive_a_flush_and_complete_with_nobody_s_help(
    cluster: Cluster, server: RedisServer
) -> None:
    with Database(cluster.settings).read() as connection:
        pid = connection.execute(select(worker_sessions.c.pid).where(worker_sessions.c.ended_at.is_(None))).scalar_one()
    worker = psutil.Process(pid)
    worker.suspend()  # or most of them would be done before the flush
    try:
        batch = cluster.client.submit(echo(10_000, step_s=0.0))
        with Redis.from_url(server.url) as redis:
            redis.flushall()
        assert batch.status().counts["queued"] == 10_000
    finally:
        worker.resume()

    assert batch.wait(90).counts["succeeded"] == 10_000
    assert {event.kind for event in batch.events()} <= WELL
    assert sum(event.count for event in batch.events() if event.kind == "succeeded") == 10_000


def test_a_full_redis_refuses_messages_and_the_jobs_run_all_the_same(cluster: Cluster, server: RedisServer) -> None:
    with Redis.from_url(server.url) as redis:
        said = ""
        for _ in range(5):  # whoever leaves gives Redis a little memory back, which may suffice for a message
            fill(redis)
            batch, said = submit(cluster, echo(5))
            all_well(cluster, batch)
            if said:
                break

        assert "the jobs are stored; they start when Redis answers" in said
        assert "maxmemory" in said
        assert "give it more memory" in said
        check = doctor(cluster)
        assert not check["ok"]
        assert "it refuses messages" in check["detail"]
        assert check["advice"].startswith("give it more memory (maxmemory)")

        redis.flushall()
        assert cluster.client.submit(echo(1)).warnings == ()
    listens(cluster, server)


def fill(redis: Redis) -> None:
    """Until it takes nothing more, however small."""
    for size in (65_536, 1024, 16):
        with suppress(OutOfMemoryError):
            for n in range(100_000):
                redis.set(f"ballast {size} {n}", "x" * size)
