"""A child that is stuck or dead: its parent ends it, and nobody waits for a lease to lapse (it is a minute here)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, until
from servers import PostgresServer, RedisServer

from aigc import Batch

pytestmark = pytest.mark.timeout(120)

PLUGIN = Path(__file__).resolve().parent.parent / "chaos" / "plugin"
BOTH = pytest.mark.parametrize("cluster", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer) -> Iterator[Cluster]:
    environment = {
        "AIGC_DATA_DIR": str(tmp_path / "data"),
        "AIGC_STORE_URL": (tmp_path / "store").as_uri(),
        "AIGC_REDIS_URL": redis_server.url,
        "AIGC_REDIS_PREFIX": tmp_path.name,
        "AIGC_LEASE_S": "60",
        "AIGC_STALL_S": "2",
    }
    if getattr(request, "param", "sqlite") == "postgres":
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        environment["AIGC_DATABASE_URL"] = postgres.new_database()
    with Cluster(environment, tmp_path / "worker.log") as made:
        yield made


def echo(message: str, *, steps: int = 1, step_s: float = 0.0, **more: object) -> dict[str, object]:
    return {"task": "echo", "params": {"message": message, "steps": steps, "step_s": step_s}, **more}


def running(batch: Batch, n: int = 1) -> None:
    until(lambda: batch.status().counts["running"] == n, what="running")


def celery_parent(cluster: Cluster, worker: subprocess.Popen[bytes]) -> psutil.Process:
    parent = cluster.child(worker).parent()
    assert parent is not None
    return parent


@BOTH
def test_a_step_that_hangs_is_ended_although_the_lease_is_renewed(cluster: Cluster) -> None:
    cluster.start_worker()
    hung = cluster.client.submit([echo("hangs", step_s=600, max_attempts=1)])
    running(hung)
    after = cluster.client.submit([echo("next")])

    result = cluster.done(hung, within_s=30)["1"]
    assert (result["status"], result["error"]["code"], result["attempts"]) == ("failed", "stalled", 1)
    assert "nothing moved for 2 s" in result["error"]["message"]
    assert cluster.done(after, within_s=30)["1"]["text"] == "next", "the worker has a new child"


def test_a_job_whose_time_is_up_in_the_middle_of_a_step_is_ended_at_its_deadline(cluster: Cluster) -> None:
    cluster.start_worker()
    batch = cluster.client.submit([echo("slow", steps=3, step_s=1.9, timeout_s=2.5, max_attempts=1)])
    result = cluster.done(batch, within_s=30)["1"]
    assert (result["status"], result["error"]["code"]) == ("failed", "timed_out")


def test_the_neighbours_of_a_hung_job_succeed_uncharged(cluster: Cluster) -> None:
    cluster.start_worker()
    hung = [echo("hangs", step_s=600, max_attempts=1)]
    batch = cluster.client.submit([*(echo(f"m{n}") for n in range(12)), *hung, *(echo(f"n{n}") for n in range(12))])

    results = cluster.done(batch, within_s=60)
    assert {name for name, result in results.items() if result["status"] == "failed"} == {"13"}
    assert all(result["attempts"] == 1 for result in results.values())


@BOTH
def test_the_jobs_of_a_child_that_is_killed_run_again_at_once(cluster: Cluster) -> None:
    worker = cluster.start_worker()
    batch = cluster.client.submit([echo("slow", steps=20, step_s=0.1), echo("other", steps=20, step_s=0.1)])
    running(batch, 2)

    cluster.child(worker).kill()
    killed = time.monotonic()
    until(lambda: "lost" in {event.kind for event in batch.events()}, within_s=10, what="taken back")
    assert time.monotonic() - killed < 5, "long before the lease"
    results = cluster.done(batch, within_s=30)
    assert [results[n]["status"] for n in "12"] == ["succeeded"] * 2


@BOTH
def test_a_worker_told_to_stop_in_the_middle_of_a_long_step_is_gone_within_its_grace(cluster: Cluster) -> None:
    cluster.environment["AIGC_STALL_S"] = "600"
    worker = cluster.start_worker()
    batch = cluster.client.submit([echo("long", step_s=600)])
    running(batch)

    worker.send_signal(signal.SIGTERM)
    told = time.monotonic()
    worker.wait(timeout=15)
    assert time.monotonic() - told <= 5.5, "the grace is 5 s"
    job = cluster.client.job(f"{batch.id}-1")
    assert (job.status, job.attempt, job.error) == ("queued", 0, None)
    assert cluster.client.workers() == []


def test_a_job_of_a_stopping_worker_is_in_other_hands_within_five_seconds(cluster: Cluster) -> None:
    cluster.start_keeper()
    first = cluster.start_worker()
    batch = cluster.client.submit([echo("long", steps=4000, step_s=0.05)])
    running(batch)
    cluster.start_worker()
    [before] = [w.session for w in cluster.client.workers() if w.running]

    first.send_signal(signal.SIGTERM)
    first.wait(timeout=6)
    gone = time.monotonic()
    until(lambda: any(w.running and w.session != before for w in cluster.client.workers()), what="other hands")
    assert time.monotonic() - gone < 5
    batch.cancel()
    cluster.done(batch)


@BOTH
def test_a_worker_whose_parent_is_killed_leaves_the_device_and_its_jobs_to_the_next(cluster: Cluster) -> None:
    cluster.start_keeper()
    worker = cluster.start_worker()
    child, parent = cluster.child(worker), celery_parent(cluster, worker)
    batch = cluster.client.submit([echo("long", steps=400, step_s=0.05)])
    running(batch)

    parent.kill()
    child.wait(timeout=8)
    until(lambda: "lost" in {event.kind for event in batch.events()}, within_s=10, what="taken back")
    until(lambda: batch.status().counts["running"] == 1, within_s=30, what="running again, in a new worker")
    batch.cancel()
    cluster.done(batch)


@BOTH
def test_a_drained_worker_finishes_what_it_can_and_ends_for_good(cluster: Cluster) -> None:
    cluster.environment["AIGC_GRACE_S"] = "20"
    worker = cluster.start_worker()
    [record] = cluster.client.workers()
    batch = cluster.client.submit([echo("short", steps=30, step_s=0.1)])
    until(lambda: (cluster.client.job(f"{batch.id}-1").progress or 0) > 0, what="in the model")
    later = cluster.client.submit([echo("later")])

    cluster.client.drain(record.worker)
    assert worker.wait(timeout=30) == 0
    assert cluster.client.job(f"{batch.id}-1").status == "succeeded"
    assert cluster.client.job(f"{later.id}-1").status == "queued"
    assert cluster.client.workers() == []


def test_a_frozen_parent_does_not_keep_its_jobs_from_the_others(cluster: Cluster) -> None:
    cluster.environment["AIGC_LEASE_S"] = "3"
    cluster.settings = cluster._settings()
    cluster.start_keeper()
    worker = cluster.start_worker()
    batch = cluster.client.submit([echo("slow", steps=60, step_s=0.05)])
    running(batch)
    everybody = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for process in everybody:
        process.suspend()
    try:
        cluster.start_worker(wait=False)
        assert cluster.done(batch, within_s=40)["1"]["text"] == "slow"
    finally:
        for process in everybody:
            process.resume()
    [event] = [event for event in batch.events() if event.kind == "succeeded"]
    [lost] = [event for event in batch.events() if event.kind == "lost"]
    assert event.worker_session != lost.worker_session


def test_a_job_that_crashes_the_model_ends_alone_and_its_31_neighbours_succeed_uncharged(
    cluster: Cluster, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    cluster.environment |= {"PYTHONPATH": str(PLUGIN), "CHAOS_WORK": str(work)}
    cluster.start_keeper()
    lines = [
        {"task": "chaos", "params": {"message": str(n), "poison": "segfault" if n == 13 else "none"}, "max_attempts": 1}
        for n in range(32)
    ]
    given = "\n".join(json.dumps(line) for line in lines).encode()
    submitted = cluster.aigc("submit", "-", "--json", stdin=given)
    batch = cluster.client.batch(json.loads(submitted.stdout)["batch_id"])
    cluster.start_worker()

    results = cluster.done(batch, within_s=60)
    assert {name for name, result in results.items() if result["status"] == "failed"} == {"14"}
    assert results["14"]["error"]["code"] == "worker_died"
    assert all(result["attempts"] == 1 for result in results.values()), "the neighbours are not charged"
    entered = [int(line) for line in work.read_text().split()]
    assert entered[0] == 32
    assert sum(entered) <= 3 * 32, "at most three times the work of the model"


def test_a_celery_worker_with_several_children_is_refused(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-Q", "cpu", "-c", "2"]
    refused = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "start it without --concurrency" in refused.stderr
