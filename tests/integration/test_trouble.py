"""What happens when a part fails: the job is kept, the operator is told, and it heals by itself."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, until
from redis import Redis
from servers import PostgresServer, RedisServer

pytestmark = pytest.mark.timeout(180)


BOTH = pytest.mark.parametrize("cluster", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> Iterator[Cluster]:
    environment = {
        "AIGC_DATA_DIR": str(tmp_path / "data"),
        "AIGC_STORE_URL": (tmp_path / "store").as_uri(),
        "AIGC_REDIS_URL": redis_server.url,
        "AIGC_REDIS_PREFIX": tmp_path.name,
    }
    if getattr(request, "param", "sqlite") == "postgres":
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        environment["AIGC_DATABASE_URL"] = postgres.new_database()
    with Cluster(environment, tmp_path / "worker.log") as made:
        yield made


def slow(n: int = 1, *, steps: int = 400, step_s: float = 0.05) -> list[dict[str, object]]:
    return [{"task": "echo", "params": {"message": f"slow {k}", "steps": steps, "step_s": step_s}} for k in range(n)]


@BOTH
def test_a_worker_killed_in_the_middle_costs_nobody_a_job(cluster: Cluster) -> None:
    cluster.start_keeper()
    first = cluster.start_worker()
    batch = cluster.client.submit(slow(3, steps=30))
    until(lambda: batch.status().counts["running"] == 3, what="running")

    processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    cluster.start_worker()
    results = cluster.done(batch, within_s=60)

    assert [results[str(n + 1)]["text"] for n in range(3)] == ["slow 0", "slow 1", "slow 2"]
    assert "lost" in {event.kind for event in batch.events()}


def test_a_child_that_dies_is_replaced_and_its_jobs_run_again(cluster: Cluster) -> None:
    cluster.start_keeper()
    worker = cluster.start_worker()
    batch = cluster.client.submit(slow(2, steps=40))
    until(lambda: batch.status().counts["running"] == 2, what="running")

    cluster.child(worker).kill()
    results = cluster.done(batch, within_s=60)

    assert {result["status"] for result in results.values()} == {"succeeded"}


@BOTH
def test_a_worker_told_to_stop_gives_a_long_job_back_within_its_grace(cluster: Cluster) -> None:
    worker = cluster.start_worker()
    batch = cluster.client.submit(slow(1, steps=4000))
    until(lambda: (cluster.client.job(f"{batch.id}-1").progress or 0) > 0, what="progress")

    worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=12)

    job = cluster.client.job(f"{batch.id}-1")
    assert (job.status, job.attempt) == ("queued", 0)
    assert cluster.client.workers() == []
    assert "given_back" in {event.kind for event in batch.events()}
    assert "No worker serves" in cluster.client.why(job.id)


def test_jobs_submitted_while_redis_is_away_run_when_somebody_looks(cluster: Cluster) -> None:
    cluster.start_worker()
    nobody = "redis://:x@127.0.0.1:9/0"
    submitted = cluster.aigc(
        "submit", "-", "--json", stdin=b'{"task":"echo","params":{"message":"hi"}}\n', AIGC_REDIS_URL=nobody
    )

    assert submitted.returncode == 0
    assert "the jobs are stored" in submitted.stderr
    batch = cluster.client.batch(json.loads(submitted.stdout)["batch_id"])
    assert cluster.done(batch)["1"]["text"] == "hi"


def test_a_flushed_redis_loses_nothing(cluster: Cluster, redis_server: RedisServer) -> None:
    batch = cluster.client.submit([f"m{n}" for n in range(2000)], task="echo")
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()
    cluster.start_keeper()
    cluster.start_worker()
    assert batch.wait(90).counts["succeeded"] == 2000


def test_a_storage_that_cannot_be_written_gives_jobs_back_and_says_so_until_it_heals(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.start_keeper()
    cluster.start_worker()
    store = tmp_path / "store"
    assert cluster.done(cluster.client.submit(["before"], task="echo"))["1"]["text"] == "before"
    shutil.rmtree(store)
    store.write_text("this is no folder")

    batch = cluster.client.submit(["kept"], task="echo")
    until(lambda: any(w.condition.get("storage") for w in cluster.client.workers()), what="the operator being told")
    job = cluster.client.job(f"{batch.id}-1")
    assert job.status in ("queued", "running")
    assert job.artifacts == ()
    told = cluster.aigc("doctor")
    assert told.returncode == 3
    assert "cannot store results" in told.stdout or "storage" in told.stdout

    store.unlink()
    store.mkdir()
    result = cluster.done(batch, within_s=60)["1"]
    assert (result["text"], result["attempts"]) == ("kept", 1)
    until(lambda: not any(w.condition.get("storage") for w in cluster.client.workers()), what="the all-clear")


@BOTH
def test_two_workers_never_show_two_results_of_a_job(cluster: Cluster) -> None:
    cluster.start_keeper()
    cluster.start_worker()
    cluster.start_worker()
    batch = cluster.client.submit([{"task": "echo", "params": {"message": n, "step_s": 0.002}} for n in range(400)])
    results = cluster.done(batch, within_s=90)

    assert [results[str(n + 1)]["data"] for n in range(400)] == list(range(400))
    assert all(len(result["artifacts"]) == 1 for result in results.values())
    sessions = {event.worker_session for event in batch.events() if event.kind == "succeeded"}
    assert len(sessions) == 2, "both had a share"


def test_a_plain_celery_worker_is_the_same_thing(cluster: Cluster, tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "workers.app",
        "worker",
        "-Q",
        "cpu",
        "--without-mingle",
        "--without-gossip",
    ]
    with (tmp_path / "celery.log").open("wb") as output:
        cluster.workers.append(
            subprocess.Popen(command, env=cluster.environment, stdout=output, stderr=output, start_new_session=True)
        )
    batch = cluster.client.submit(["plain"], task="echo")
    assert cluster.done(batch, within_s=60)["1"]["text"] == "plain"
    assert cluster.client.workers()[0].queues == ("cpu",)
