"""`aigc why` gives every reason that holds, from a real database, and where it is cheap from real workers."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, until
from servers import RedisServer, free_port
from sqlalchemy import update

from producer.client import Client
from shared import jobs
from shared.database import Database, now
from shared.ids import new_batch_id, new_session_id
from shared.jobs import ClaimedJob, Failure, Publication, StoredArtifact
from shared.settings import Settings
from shared.tables import batches, duties, objects, worker_sessions
from shared.tables import jobs as jobs_table

CLOCK = r"(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d"


@pytest.fixture
def client(settings: Settings, redis_server: RedisServer, tmp_path: Path, db: Database) -> Client:
    """Over a Redis that answers, with a keeper that was seen just now."""
    beat(db)
    url = Settings(_env_file=None, redis_url=redis_server.url).redis_url
    return Client(settings.model_copy(update={"redis_url": url, "redis_prefix": tmp_path.name}))


def beat(db: Database) -> None:
    jobs.beat(db, lease_s=60, interval_s=2)


def worker(db: Database, name: str = "host:cpu", *, queues: str = "cpu", **condition: Any) -> str:
    """A worker session that is alive."""
    id_ = new_session_id()
    about = {"id": id_, "worker": name, "host": "host", "pid": 1, "device": "cpu", "queues": queues, "versions": {}}
    jobs.open_session(db, {**about, "condition": condition}, 60)
    return id_


def change(db: Database, session: str, **values: Any) -> None:
    db.write(lambda c: c.execute(update(worker_sessions).where(worker_sessions.c.id == session).values(**values)))


def change_job(db: Database, job_id: str, **values: Any) -> None:
    db.write(lambda c: c.execute(update(jobs_table).where(jobs_table.c.id == job_id).values(**values)))


def submitted(client: Client, n: int = 1, **more: Any) -> str:
    """The id of a batch of echoes."""
    return client.submit([{"params": {"message": k}} for k in range(n)], task="echo", **more).id


def claim(db: Database, session: str, limit: int = 1, queue: str = "cpu") -> list[ClaimedJob]:
    lane = jobs.lane_ids(db, [jobs.Lane(queue, "echo", "")]).popitem()[1]
    return jobs.claim(db, session=session, lane_id=lane, priority=0, limit=limit, window_s=600)


def fail(db: Database, session: str, job: ClaimedJob, code: str, message: str, *, retryable: bool = True) -> None:
    jobs.fail(db, session, [Failure(job.id, job.epoch, code, message, retryable=retryable)])


# --- it waits ---


def test_no_worker_for_its_queue(client: Client, db: Database) -> None:
    batch = submitted(client)
    assert client.why(f"{batch}-1").startswith("No worker serves queue 'cpu': start one with `aigc up`")
    worker(db, queues="gpu")
    assert client.why(f"{batch}-1").startswith(
        "No worker serves queue 'cpu'; the one that is alive serves other queues:"
    )
    worker(db, queues="gpu")
    assert "; the 2 that are alive serve other queues:" in client.why(f"{batch}-1")


def test_it_is_next(client: Client, db: Database) -> None:
    worker(db)
    batch = submitted(client)
    assert client.why(f"{batch}-1") == "It is next; 1 worker serves queue 'cpu'."
    worker(db, "other:cpu")
    assert client.why(f"{batch}-1") == "It is next; 2 workers serve queue 'cpu'."


def test_others_stand_before_it(client: Client, db: Database) -> None:
    session = worker(db)
    submitted(client, 5)
    submitted(client, 7, queue="gpu")
    batch = submitted(client, 4)
    submitted(client, 2, priority=3)
    submitted(client, 9)
    claim(db, session, 2)
    said = client.why(f"{batch}-4")
    assert said == "8 jobs stand before it in queue 'cpu', 2 are running on 1 worker."  # 3 + 3 + 2


def test_a_redis_that_is_away_is_no_reason_but_is_told_where_nothing_runs(
    client: Client, db: Database, settings: Settings
) -> None:
    session = worker(db)
    batch = submitted(client, 2)
    without = Client(settings.model_copy(update={"redis_url": None}))
    said = without.why(f"{batch}-2")
    assert said.startswith("1 job stands before it in queue 'cpu', 0 are running on 1 worker. Redis does not wake")
    assert said.endswith("they look by themselves every 10 s.")
    claim(db, session)
    assert "Redis" not in without.why(f"{batch}-2")


def test_its_queue_is_paused(client: Client, db: Database) -> None:
    worker(db)
    batch = submitted(client)
    client.pause("cpu", reason="new driver")
    said = client.why(f"{batch}-1")
    assert re.fullmatch(rf"Queue 'cpu' is paused since {CLOCK}: new driver\. `aigc resume cpu` lets it go on\.", said)
    client.resume("cpu")
    assert client.why(f"{batch}-1").startswith("It is next")


@pytest.mark.parametrize("both_shapes", [False, True])
def test_its_model_cannot_be_loaded(client: Client, db: Database, both_shapes: bool) -> None:
    since = db.clock() - 60
    told = {"reason": "no such file", "since": since, "again_at": since + 90} if both_shapes else "no such file"
    job = {"task": "text-generation", "model": "org/gone", "params": {"prompt": "x"}, "queue": "cpu"}
    batch = client.submit([job]).id
    worker(db, set_aside={"org/gone for text-generation": told, "org/other for text-generation": "something else"})
    said = client.why(f"{batch}-1")
    when = rf"since {CLOCK}: no such file; it tries again at {CLOCK}" if both_shapes else "lately: no such file"
    assert re.fullmatch(rf"No worker can take it now: host:cpu could not load org/gone {when}\.", said), said
    # Another one may have it.
    worker(db, "other:cpu")
    said = client.why(f"{batch}-1")
    assert said.startswith("1 of 2 workers cannot take it: host:cpu could not load org/gone")
    assert "It is next" in said
    assert "something else" not in said


GB = 2**30


def sized(db: Database, name: str, memory: float, need: float | None = None, *, dtype: str = "bfloat16") -> str:
    """A worker with so many GB; with `need`, it has looked at the model, which takes so many."""
    known = {"bytes": int((need or 0) * GB), "has": int(memory * GB), "dtype": dtype, "on_host": False}
    needs = {} if need is None else {"needs": {"org/big for text-generation": known}}
    return worker(db, name, memory={"bytes": int(memory * GB), "dtype": dtype}, **needs)


def test_its_model_is_too_big_for_every_device(client: Client, db: Database) -> None:
    job = {"task": "text-generation", "model": "org/big", "params": {"prompt": "x"}, "queue": "cpu"}
    batch = client.submit([job]).id
    sized(db, "a:0", 24, 40)
    assert client.why(f"{batch}-1") == (
        "It is too big for every device: org/big needs about 40 GB of memory; the largest device of queue 'cpu' has "
        "24 GB (a:0). It waits for a worker with more memory. A smaller model would do, or one whose operator sets "
        "`quantization` or `offload` for it in models.toml."
    )
    # One that has not looked yet is known by its memory, if it computes in the same numbers.
    sized(db, "b:0", 32)
    assert "the largest device of queue 'cpu' has 32 GB (b:0)" in client.why(f"{batch}-1")
    other = sized(db, "c:cpu", 16, dtype="float32")
    said = client.why(f"{batch}-1")
    assert said.startswith("2 of 3 workers cannot take it: a:0 has 24 GB of memory, and org/big needs about 40 GB; b:0")
    assert "It is next" in said
    jobs.close_session(db, other)
    sized(db, "d:0", 80)
    assert client.why(f"{batch}-1").startswith("2 of 3 workers cannot take it: ")
    # Jobs of other models are none of it.
    small = client.submit([{**job, "model": "org/small"}]).id
    assert client.why(f"{small}-1").startswith("1 job stands before it")


def test_workers_that_drain_are_silent_or_cannot_store(client: Client, db: Database) -> None:
    batch = submitted(client)
    draining, silent = worker(db, "a:cpu"), worker(db, "b:cpu")
    worker(db, "c:cpu", storage="disk full")
    client.drain("a:cpu")
    change(db, silent, lease_expires_at=now() + 60 * 0.4)
    said = client.why(f"{batch}-1")
    assert said.startswith("No worker can take it now: ")
    assert re.search(rf"a:cpu is draining since {CLOCK}", said)
    assert re.search(r"b:cpu has not been heard of for 3[67] s", said)
    assert "c:cpu cannot store results: disk full" in said
    change(db, silent, lease_expires_at=now() + 60 * 0.6)
    assert "2 of 3 workers cannot take it" in client.why(f"{batch}-1")
    assert draining in {one.session for one in client.workers() if one.draining_since}


def test_of_many_workers_in_trouble_a_few_are_named(client: Client, db: Database) -> None:
    batch = submitted(client)
    for n in range(7):
        worker(db, f"w{n}:cpu", storage="disk full")
    said = client.why(f"{batch}-1")
    assert said.endswith("w0:cpu, w1:cpu, w2:cpu, w3:cpu and 3 more cannot store results: disk full.")


def test_it_waits_for_its_next_try(client: Client, db: Database) -> None:
    session = worker(db)
    batch = submitted(client)
    fail(db, session, claim(db, session)[0], "generator_error", "it broke")
    said = client.why(f"{batch}-1")
    pattern = rf"It waits for its next try at {CLOCK} \(in \d s\), attempt 2 of 3, after generator_error: it broke\."
    assert re.fullmatch(pattern, said), said


def test_a_try_that_is_due_needs_a_keeper(client: Client, db: Database) -> None:
    session = worker(db)
    batch = submitted(client)
    fail(db, session, claim(db, session)[0], "generator_error", "it broke")
    change_job(db, f"{batch}-1", available_at=now() - 5)
    assert re.match(rf"Its next try was due at {CLOCK}; a keeper lets it go", client.why(f"{batch}-1"))
    assert "no keeper" not in client.why(f"{batch}-1").lower()
    db.write(lambda c: c.execute(update(duties).values(done_at=now() - 40)))
    assert "No keeper has been seen for 40 s" in client.why(f"{batch}-1")
    jobs.release_due(db)
    assert client.why(f"{batch}-1") == "It is next; 1 worker serves queue 'cpu'."


def test_it_is_too_big_for_every_device(client: Client, db: Database) -> None:
    first, second = worker(db, "a:cuda0"), worker(db, "b:cuda0")
    batch = client.submit([{"params": {"message": 1}, "max_attempts": 2}], task="echo").id
    fail(db, first, claim(db, first)[0], "out_of_memory", "not even alone does this job fit into memory")
    waiting = client.why(f"{batch}-1")
    assert "It did not fit on a:cuda0." in waiting
    assert "aigc retry" not in waiting
    change_job(db, f"{batch}-1", available_at=now() - 1)
    jobs.release_due(db)
    fail(db, second, claim(db, second)[0], "out_of_memory", "not even alone does this job fit into memory")
    said = client.why(f"{batch}-1")
    assert said.startswith("It failed: not even alone does this job fit into memory. It was tried 2 times.")
    assert "It did not fit on a:cuda0, b:cuda0." in said
    assert f"start a worker with more memory, then `aigc retry {batch}-1`" in said


def test_its_batch_is_loading_or_being_cancelled(client: Client, db: Database) -> None:
    batch = jobs.NewBatch(new_batch_id(), "default", None, 1, None, "digest")
    jobs.begin_batch(db, batch)
    lane = jobs.lane_ids(db, [jobs.Lane("cpu", "echo", "")]).popitem()[1]
    row = jobs.NewJob(
        line=1, custom_id="1", lane_id=lane, priority=0, params_json="{}", seed=1, metadata_json=None, cost=1.0,
        timeout_s=None, max_attempts=3, expires_at=None,
    )  # fmt: skip
    jobs.add_jobs(db, batch.id, [row])
    assert client.why(f"{batch.id}-1") == "Its batch is still being submitted."

    opened = submitted(client)
    db.write(lambda c: c.execute(update(batches).where(batches.c.id == opened).values(cancelled_at=now())))
    assert client.why(f"{opened}-1") == "Its batch is being cancelled."
    jobs.finish_cancelled(db)
    assert client.why(f"{opened}-1") == "It was cancelled."


def test_its_time_to_be_started_is_over(client: Client, db: Database) -> None:
    worker(db)
    batch = client.submit([{"params": {"message": 1}}], task="echo", expires_s=0.01).id
    time.sleep(0.02)
    assert re.match(
        rf"It was not started before {CLOCK}, as it had to be, and a keeper fails it\.", client.why(f"{batch}-1")
    )


def test_it_goes_alone_because_its_microbatch_killed_a_worker(client: Client, db: Database) -> None:
    session = worker(db)
    batch = submitted(client, 2)
    taken = claim(db, session, 2)
    jobs.enter(db, session, [(job.id, job.epoch) for job in taken], 2)
    change(db, session, lease_expires_at=now() - 1)
    beat(db)
    jobs.reap(db)
    assert "It runs alone, because a worker died while it ran beside others." in client.why(f"{batch}-1")
    change_job(db, f"{batch}-1", max_company=8)
    assert "It runs beside at most 7 others, because a worker died" in client.why(f"{batch}-1")


def test_what_it_was_given_back_for(client: Client, db: Database) -> None:
    session = worker(db)
    batch = submitted(client)
    [job] = claim(db, session)
    jobs.give_back(db, session, [(job.id, job.epoch)], "the worker stopped")
    said = client.why(f"{batch}-1")
    assert said.endswith("It was given back 1 time, which does not count as a try; last: the worker stopped.")


# --- it runs ---


def test_where_since_when_and_which_attempt(client: Client, db: Database) -> None:
    session = worker(db, "host:cuda3")
    batch = submitted(client, 2)
    taken = claim(db, session, 2)
    said = client.why(f"{batch}-1")
    assert re.fullmatch(rf"It is running on host:cuda3 since {CLOCK} \(\d s\), attempt 1 of 3: claimed, and .*\.", said)
    jobs.enter(db, session, [(job.id, job.epoch) for job in taken], 2)
    change_job(db, f"{batch}-1", progress=0.4)
    said = client.why(f"{batch}-1")
    assert "attempt 1 of 3, together with 1 other job, 40% of its steps are done." in said
    client.cancel([f"{batch}-1"])
    assert client.why(f"{batch}-1").startswith("It is marked for cancel, and ends at its next step.")
    client.drain(session)
    assert "That worker is draining since" in client.why(f"{batch}-2")
    change(db, session, lease_expires_at=now() - 1)
    assert "That worker's lease is over" in client.why(f"{batch}-2")


def checkpoint(db: Database, session: str, job: ClaimedJob, *, position: int = 0, step: int = 300) -> None:
    key = f"default/{job.id}/{job.epoch}-{step}"
    jobs.intend(db, session, "default", [key])
    file = StoredArtifact(key, 2, "checkpoint", position, 0, 2, "application/octet-stream", "0" * 64, {"step": step})
    assert jobs.publish(db, session, [Publication(job.id, job.epoch, file)]) == {job.id}


def test_the_checkpoint_that_it_goes_on_from(client: Client, db: Database) -> None:
    session = worker(db)
    batch = submitted(client)
    [job] = claim(db, session)
    checkpoint(db, session, job)
    assert re.search(rf"Another attempt would go on from its checkpoint of {CLOCK} \(step 300\)\.", client.why(job.id))
    jobs.give_back(db, session, [(job.id, job.epoch)], "the worker stopped")
    assert re.search(rf"Its next attempt goes on from its checkpoint of {CLOCK} \(step 300\)\.", client.why(job.id))
    claim(db, session)
    said = client.why(f"{batch}-1")
    assert re.search(rf"It goes on from the checkpoint of {CLOCK} \(step 300\) of an earlier attempt\.", said), said
    assert client.job(job.id).artifacts == (), "a checkpoint is nobody's result"


def test_the_newest_checkpoint_is_meant_whatever_its_position_and_why_names_the_same(
    client: Client, db: Database
) -> None:
    session = worker(db)
    submitted(client)
    [job] = claim(db, session)
    for position, step in ((2, 100), (0, 200), (1, 300), (0, 400)):
        checkpoint(db, session, job, position=position, step=step)
        assert jobs.checkpoints(db, [job.id])[job.id].facts == {"step": step}
        assert f"(step {step})" in client.why(job.id)
    # Of several that were made at one moment, the last to be named.
    db.write(lambda c: c.execute(update(objects).values(created_at=1.0)))
    newest = jobs.checkpoints(db, [job.id])[job.id].facts["step"]
    assert f"(step {newest})" in client.why(job.id)


# --- from real workers ---


@pytest.fixture
def cluster(tmp_path: Path, redis_server: RedisServer) -> Iterator[Cluster]:
    environment = {
        "AIGC_DATA_DIR": str(tmp_path / "data"), "AIGC_STORE_URL": (tmp_path / "store").as_uri(),
        "AIGC_REDIS_URL": redis_server.url, "AIGC_REDIS_PREFIX": tmp_path.name, "AIGC_LEASE_S": "6",
        # A hub that does not answer: that may pass.
        "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "HF_HOME": str(tmp_path / "hub"),
    }  # fmt: skip
    with Cluster(environment, tmp_path / "worker.log") as made:
        yield made


def test_real_workers_tell_of_a_hub_that_is_away_of_progress_and_of_silence(cluster: Cluster) -> None:
    cluster.start_keeper()
    running = cluster.start_worker()
    client = cluster.client
    job = {"task": "text-generation", "model": "org/somewhere", "params": {"prompt": "x"}, "queue": "cpu"}
    gone = client.submit([job]).id
    until(lambda: "could not load org/somewhere" in client.why(f"{gone}-1"), what="the model being told")
    assert re.search(rf"since {CLOCK}", client.why(f"{gone}-1"))

    slow = client.submit([{"params": {"message": 1, "steps": 4000, "step_s": 0.02}}], task="echo").id
    until(lambda: "of its steps are done" in client.why(f"{slow}-1"), what="progress")
    assert re.match(rf"It is running on \S+:\S+ since {CLOCK}", client.why(f"{slow}-1"))

    child = cluster.child(running)
    child.send_signal(signal.SIGSTOP)
    try:
        until(lambda: "That worker has not been heard of for" in client.why(f"{slow}-1"), what="silence being told")
    finally:
        child.send_signal(signal.SIGCONT)
        client.batch(slow).cancel()
