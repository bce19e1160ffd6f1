"""What operators and owners steer and see: paused queues, drained workers, events as they come, honest rates."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, until
from redis import Redis
from servers import RedisServer
from sqlalchemy import select, text, update

from producer.client import Client
from producer.happenings import in_words
from producer.records import EventRecord
from shared import jobs
from shared.counters import moved
from shared.database import Database, now
from shared.errors import NotFound, RequestError, Unavailable
from shared.ids import new_session_id
from shared.jobs import ClaimedJob, Failure, Publication, StoredArtifact, Success
from shared.queue import Queue
from shared.settings import Settings
from shared.tables import batch_counters, worker_sessions
from shared.tables import jobs as jobs_table
from workers.look import look


@pytest.fixture
def client(settings: Settings, redis_server: RedisServer, tmp_path: Path) -> Client:
    url = Settings(_env_file=None, redis_url=redis_server.url).redis_url
    return Client(settings.model_copy(update={"redis_url": url, "redis_prefix": tmp_path.name}))


def worker(db: Database, name: str = "host:cpu", queues: str = "cpu") -> str:
    """A worker session that is alive."""
    id_ = new_session_id()
    about = {"id": id_, "worker": name, "host": "host", "pid": 1, "device": "cpu", "queues": queues, "versions": {}}
    jobs.open_session(db, {**about, "condition": {}}, 60)
    return id_


def submitted(client: Client, n: int = 1, **more: Any) -> str:
    return client.submit([{"params": {"message": k}} for k in range(n)], task="echo", **more).id


def claim(db: Database, session: str, limit: int = 100, queue: str = "cpu") -> list[ClaimedJob]:
    lane = jobs.lane_ids(db, [jobs.Lane(queue, "echo", "")]).popitem()[1]
    return jobs.claim(db, session=session, lane_id=lane, priority=0, limit=limit, window_s=600)


def succeed(db: Database, session: str, *done: ClaimedJob) -> None:
    assert jobs.succeed(db, session, [Success(job.id, job.epoch, [], 0.1) for job in done]) == {j.id for j in done}


def anything(*_lane: object) -> bool:
    """What a worker could take that has set no model aside."""
    return True


def made(db: Database, session: str, job: ClaimedJob, *media: str) -> None:
    """A job that has succeeded, with an output of each kind of media."""
    keys = [f"default/{job.id}/{position}" for position in range(len(media))]
    jobs.intend(db, session, "default", keys)
    files = [
        StoredArtifact(key, 1, "output", position, 0, 1, kind, "0" * 64, {})
        for position, (key, kind) in enumerate(zip(keys, media, strict=True))
    ]
    assert jobs.succeed(db, session, [Success(job.id, job.epoch, files, 0.1)]) == {job.id}


def test_the_outputs_of_a_batch_are_those_that_fit_of_jobs_that_succeeded(client: Client, db: Database) -> None:
    session = worker(db)
    batch, other = submitted(client, 4), submitted(client, 1)
    claimed = {job.id: job for job in claim(db, session)}
    made(db, session, claimed[f"{batch}-3"], "image/png", "text/plain", "image/webp")
    made(db, session, claimed[f"{batch}-1"], "text/plain", "imagex/png")
    made(db, session, claimed[f"{other}-1"], "image/png")
    jobs.fail(db, session, [Failure(f"{batch}-2", claimed[f"{batch}-2"].epoch, "broken", "it broke", False)])
    outputs = client.gateway.outputs

    assert outputs(batch, "image/", limit=9) == [(f"{batch}-3", 0), (f"{batch}-3", 2)]
    assert outputs(batch, "text/plain", limit=9) == [(f"{batch}-1", 0), (f"{batch}-3", 1)]
    assert outputs(batch, "", limit=3) == [(f"{batch}-1", 0), (f"{batch}-1", 1), (f"{batch}-3", 0)]
    assert outputs(batch, "audio/", limit=9) == []
    elsewhere = Client(client.settings.model_copy(update={"tenant": "other"})).gateway
    assert elsewhere.outputs(batch, "image/", limit=9) == []


# --- pause and resume ---


def test_nothing_of_a_paused_queue_is_claimed_seen_or_rung_for_until_it_is_resumed(
    client: Client, db: Database, redis_server: RedisServer
) -> None:
    session = worker(db, queues="cpu,gpu")
    client.pause("cpu", reason="new driver")
    batch = submitted(client, 3)
    submitted(client, 2, queue="gpu")
    queue = Queue(client.settings)
    with Redis.from_url(redis_server.url) as redis:
        redis.delete(*[client.settings.redis_prefix + name for name in ("cpu", "gpu")])

    assert claim(db, session) == []
    assert [(lane.task, lane.ready) for lane in look(db, ["cpu", "gpu"], anything).waiting] == [("echo", 2)]
    assert queue.ring(db) == 1
    assert queue.lengths(["cpu", "gpu"]) == {"cpu": 0, "gpu": 1}
    assert client.batch(batch).status().counts["queued"] == 3
    assert client.system().ready == {"cpu": 3, "gpu": 2}

    assert client.resume("cpu").was_paused
    assert queue.lengths(["cpu"]) == {"cpu": 1}, "resuming rings"
    assert len(look(db, ["cpu", "gpu"], anything).waiting) == 2
    assert len(claim(db, session)) == 3


def test_pausing_twice_keeps_the_moment_and_takes_the_new_reason(client: Client, db: Database) -> None:
    first = client.pause("cpu", reason="new driver")
    again, changed = client.pause("cpu"), client.pause("cpu", reason="new disk")
    assert (again, changed.since, changed.reason) == (first, first.since, "new disk")
    assert client.paused() == [changed]
    assert client.resume("cpu").was_paused
    assert not client.resume("cpu").was_paused
    assert client.paused() == []


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "a\x00b", "ü"])
def test_what_can_be_no_queue_is_refused(client: Client, name: str) -> None:
    with pytest.raises(RequestError, match="can be no queue's name"):
        client.pause(name)
    with pytest.raises(RequestError, match="Unicode"):
        client.pause("cpu", reason="\ud800")
    assert client.paused() == []


def test_resuming_without_redis_is_a_warning(settings: Settings, db: Database) -> None:
    client = Client(settings)
    client.pause("cpu")
    resumed = client.resume("cpu")
    assert resumed.was_paused
    assert "look by themselves: redis at the embedded server" in resumed.warnings[0]
    assert client.paused() == []


# --- drain ---


def test_a_worker_is_asked_to_end_by_its_name_its_session_or_a_beginning(client: Client, db: Database) -> None:
    one, two, other = worker(db, "gpu-host-1:0"), worker(db, "gpu-host-1:0"), worker(db, "gpu-host-2:0")
    assert {drain.session for drain in client.drain("gpu-host-1:0")} == {one, two}
    asked = {worker.session for worker in client.workers() if worker.draining_since is not None}
    assert asked == {one, two}
    [first] = client.drain("gpu-host-2")
    assert (first.session, first.worker, first.ended_at) == (other, "gpu-host-2:0", None)
    assert client.drain(other) == [first], "asked again, the first time stands"
    assert client.drain(other[:14]) == [first]


def test_a_worker_that_is_not_there_or_not_clear_is_refused_with_the_names(client: Client, db: Database) -> None:
    with pytest.raises(NotFound, match=r"there is no worker 'x': none is alive"):
        client.drain("x")
    worker(db, "gpu-host-1:0")
    gone = worker(db, "gpu-host-2:0")
    with pytest.raises(RequestError, match=r"several workers \(gpu-host-1:0, gpu-host-2:0\)"):
        client.drain("gpu-host")
    jobs.close_session(db, gone)
    for name in ("x", "", "gpu-host-2:0", gone, "\ud800", "%"):
        with pytest.raises(NotFound):
            client.drain(name)
    with pytest.raises(NotFound, match="alive are gpu-host-1:0"):
        client.drain("nobody")
    assert len(client.drain("gpu-host")) == 1


def test_a_worker_that_was_asked_to_end_claims_nothing_and_counts_for_no_share(client: Client, db: Database) -> None:
    session, other = worker(db), worker(db)
    submitted(client, 4)
    assert look(db, ["cpu"], anything).workers == {"cpu": 2}
    client.drain(session)
    assert claim(db, session) == []
    assert look(db, ["cpu"], anything).workers == {"cpu": 1}
    assert len(claim(db, other)) == 4


def test_what_became_of_a_drained_worker_and_its_jobs_is_told(client: Client, db: Database) -> None:
    session = worker(db)
    submitted(client, 3)
    done, back, stays = claim(db, session)
    [drain] = client.drain(session)
    assert drain.outcomes == {"running": 3}
    succeed(db, session, done)
    jobs.give_back(db, session, [(back.id, back.epoch)], "the worker stopped")
    [drain] = client.gateway.drained([drain])
    assert (drain.ended_at, drain.outcomes) == (None, {"succeeded": 1, "given_back": 1, "running": 1})
    succeed(db, session, stays)
    jobs.close_session(db, session)
    [drain] = client.gateway.drained([drain])
    assert (drain.end, drain.outcomes) == ("stopped", {"succeeded": 2, "given_back": 1})
    assert drain.ended_at is not None


# --- events ---


def test_a_cursor_goes_on_where_the_last_call_ended(client: Client, db: Database) -> None:
    session = worker(db)
    batch = client.batch(submitted(client, 2))
    seen = list(batch.events())
    assert [event.kind for event in seen] == ["submitted"]
    first, second = claim(db, session)
    succeed(db, session, first)
    more = list(batch.events(after=seen[-1].id))
    assert [event.kind for event in more] == ["claimed", "succeeded"]
    succeed(db, session, second)
    assert [event.kind for event in batch.events(after=more[-1].id)] == ["succeeded"]
    assert list(batch.events()) == [*seen, *more, *batch.events(after=more[-1].id)]
    ids = [event.id for event in batch.events()]
    assert ids == sorted(set(ids))


def test_the_events_of_a_job_are_its_own_with_worker_epoch_and_error(client: Client, db: Database) -> None:
    session = worker(db, "host:cuda0")
    batch = submitted(client, 2)
    first, second = claim(db, session)
    jobs.fail(db, session, [Failure(first.id, first.epoch, "generator_error", "it broke", retryable=True)])
    jobs.give_back(db, session, [(second.id, second.epoch)], "the worker stopped")
    [second] = claim(db, session)
    succeed(db, session, second)

    own, _ = client.gateway.events(batch, line=1)
    assert [(e.kind, e.worker, e.epoch) for e in own] == [
        ("submitted", None, None), ("claimed", "host:cuda0", 1), ("retried", "host:cuda0", 1),
    ]  # fmt: skip
    assert own[-1].error == {"code": "generator_error", "message": "it broke"}
    other, _ = client.gateway.events(batch, line=2)
    assert [(e.kind, e.epoch) for e in other] == [
        ("submitted", None), ("claimed", 1), ("given_back", 1), ("claimed", 2), ("succeeded", 2),
    ]  # fmt: skip
    said = [in_words(event, of_one_job=True) for event in [*own, *other]]
    assert said[2] == "failed on host:cuda0, to be tried again later (generator_error: it broke)"
    assert said[5] == "given back by host:cuda0, which does not count as a try (the worker stopped)"
    assert "epoch" not in " ".join(said)
    assert own[-1].to_json()["epoch"] == 1, "machines are told"
    everything = [in_words(event, of_one_job=False) for event in client.batch(batch).events()]
    assert everything[:3] == [
        "2 jobs submitted", "2 jobs (lines 1-2) claimed by host:cuda0",
        "1 job (line 1) failed on host:cuda0, to be tried again later (generator_error)",
    ]  # fmt: skip


def test_whoever_follows_sees_every_event_once_and_ends_with_the_batch(client: Client, db: Database) -> None:
    session = worker(db)
    batch = client.batch(submitted(client, 2))
    seen: list[EventRecord] = []
    of_one: list[EventRecord] = []

    def follow_one() -> None:
        from producer.happenings import follow

        of_one.extend(follow(client.gateway, batch.id, line=1))

    threads = [
        threading.Thread(target=lambda: seen.extend(batch.events(follow=True)), daemon=True),
        threading.Thread(target=follow_one, daemon=True),
    ]
    for thread in threads:
        thread.start()
    first, second = claim(db, session)
    succeed(db, session, first)
    threads[1].join(20)
    assert [event.kind for event in of_one] == ["submitted", "claimed", "succeeded"]
    assert threads[0].is_alive(), "the batch is not done"
    succeed(db, session, second)
    threads[0].join(20)
    assert [event.kind for event in seen] == ["submitted", "claimed", "succeeded", "succeeded"]


def test_whoever_follows_outlasts_a_database_that_falls_silent(client: Client, db: Database) -> None:
    from producer.happenings import follow

    batch = submitted(client)
    client.cancel([f"{batch}-1"])
    silent = [Unavailable("database", "there", "does not answer")] * 2
    told: list[Unavailable] = []

    class Hiccups:
        def __getattr__(self, name: str) -> Any:
            if silent and name == "events":
                raise silent.pop()
            return getattr(client.gateway, name)

    kinds = [event.kind for event in follow(Hiccups(), batch, on_silence=told.append)]  # type: ignore[arg-type]
    assert kinds == ["submitted", "cancelled"]
    assert len(told) == 1


def test_events_of_a_batch_become_visible_in_the_order_of_their_cursor(postgres_settings: Settings) -> None:
    db, client = Database(postgres_settings), Client(postgres_settings)
    session = worker(db)
    batch = client.batch(submitted(client, 2))
    first, second = claim(db, session)
    jobs.give_back(db, session, [(first.id, first.epoch)], "later", delay_s=60)
    cursor = list(batch.events())[-1].id

    thread = threading.Thread(target=succeed, args=(db, session, second), daemon=True)
    with db.engine.begin() as connection:
        rows = connection.execute(select(jobs_table).where(jobs_table.c.id == first.id)).all()
        moved(connection, rows, "queued", "queued", "released")
        thread.start()
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND state = 'active'")

        def waits() -> bool:
            with db.read() as reader:
                return bool(reader.scalar(waiting))

        until(waits, within_s=15, what="the later one waiting for the earlier one")
        assert list(batch.events(after=cursor)) == []
    thread.join(15)
    assert [event.kind for event in batch.events(after=cursor)] == ["released", "succeeded"]
    db.dispose()


# --- previews ---


def test_a_running_job_shows_previews_and_metrics_and_never_outputs(client: Client, db: Database) -> None:
    session = worker(db)
    batch = client.batch(submitted(client))
    [job] = claim(db, session)
    for role in ("preview", "metric", "checkpoint"):
        key = f"default/{role}"
        jobs.intend(db, session, "default", [key])
        file = StoredArtifact(key, 2, role, 0, 0, 2, "image/png", "0" * 64, {})
        jobs.publish(db, session, [Publication(job.id, job.epoch, file)])
    assert {a.role for a in client.job(job.id).artifacts} == {"preview", "metric"}
    assert [line["artifacts"] for line in batch.results()] == [[]], "none of it is a result"
    jobs.give_back(db, session, [(job.id, job.epoch)], "the worker stopped")
    assert {a.role for a in client.job(job.id).artifacts} == {"preview", "metric"}

    [job] = claim(db, session)
    jobs.intend(db, session, "default", ["default/output"])
    output = StoredArtifact("default/output", 2, "output", 0, 0, 2, "image/png", "0" * 64, {})
    jobs.succeed(db, session, [Success(job.id, job.epoch, [output], 0.1)])
    roles = {a.role for a in client.job(job.id).artifacts}
    assert "output" in roles
    assert "checkpoint" not in roles


# --- how fast, how long ---


def measured(db: Database, batch: str, **ago: float) -> None:
    """Set the batch's clockwork: `…_at` in seconds before now, the rest as it is."""
    values = {name: now() - value if name.endswith("_at") else value for name, value in ago.items()}
    db.write(lambda c: c.execute(update(batch_counters).where(batch_counters.c.batch_id == batch).values(**values)))


@pytest.fixture
def half(client: Client, db: Database) -> str:
    """A batch of 200 jobs of which 100 are done, 10 run and 90 wait."""
    session = worker(db)
    batch = submitted(client, 200)
    taken = claim(db, session, 110)
    succeed(db, session, *taken[:100])
    return batch


def test_the_rate_is_that_of_the_last_window(client: Client, db: Database, half: str) -> None:
    measured(db, half, started_at=1000, window_started_at=15, window_finished=30, last_rate=2.0, finished_at=1)
    status = client.batch(half).status()
    assert status.rate_per_s == pytest.approx(2.0, rel=0.1)
    assert status.eta_s == pytest.approx(50, rel=0.1)


def test_a_rate_from_before_a_long_pause_is_not_shown_as_todays(client: Client, db: Database, half: str) -> None:
    measured(db, half, started_at=4000, window_started_at=3600, window_finished=36, last_rate=5.0, finished_at=3590)
    status = client.batch(half).status()
    assert status.rate_per_s == pytest.approx(0.01, rel=0.1), "36 jobs in an hour"
    assert status.eta_s == pytest.approx(10_000, rel=0.1)


def test_nobody_claims_to_know_when_a_batch_ends_that_stands_still(client: Client, db: Database, half: str) -> None:
    db.write(lambda c: c.execute(update(worker_sessions).values(lease_expires_at=0)))
    jobs.beat(db, lease_s=60, interval_s=2)
    jobs.reap(db)
    measured(db, half, started_at=4000, window_started_at=3600, window_finished=36, last_rate=5.0, finished_at=3590)
    status = client.batch(half).status()
    assert status.counts["running"] == 0
    assert status.eta_s is None
    measured(db, half, finished_at=10)
    assert client.batch(half).status().eta_s is not None


def test_after_a_pause_the_rate_finds_back_within_a_window(client: Client, db: Database, half: str) -> None:
    # The first finish after the pause has closed the window that lasted an hour.
    measured(db, half, started_at=8000, window_started_at=0.5, window_finished=5, last_rate=0.01, finished_at=0.5)
    assert client.batch(half).status().rate_per_s == pytest.approx(0.01, rel=0.1)
    measured(db, half, window_started_at=10, window_finished=50, finished_at=0.5)
    assert client.batch(half).status().rate_per_s == pytest.approx(2.5, rel=0.1)
    measured(db, half, window_started_at=19.9, window_finished=100, finished_at=0.5)
    assert client.batch(half).status().rate_per_s == pytest.approx(5.0, rel=0.1)


def test_jobs_that_take_minutes_do_not_look_fast_right_after_one_has_finished(
    client: Client, db: Database, half: str
) -> None:
    measured(db, half, started_at=6000, window_started_at=12, window_finished=1, last_rate=1 / 600, finished_at=12)
    assert client.batch(half).status().rate_per_s == pytest.approx(1 / 600, rel=0.1)
    measured(db, half, window_started_at=1200, finished_at=1200)
    assert client.batch(half).status().rate_per_s == pytest.approx(1 / 1200, rel=0.1)
    measured(db, half, started_at=1000, window_started_at=5, finished_at=5, last_rate=0.0)
    assert client.batch(half).status().rate_per_s == pytest.approx(0.1, rel=0.1), "100 jobs in 1,000 s"


# --- with real workers ---


@pytest.fixture
def cluster(tmp_path: Path, redis_server: RedisServer) -> Iterator[Cluster]:
    environment = {
        "AIGC_DATA_DIR": str(tmp_path / "data"), "AIGC_STORE_URL": (tmp_path / "store").as_uri(),
        "AIGC_REDIS_URL": redis_server.url, "AIGC_REDIS_PREFIX": tmp_path.name,
    }  # fmt: skip
    with Cluster(environment, tmp_path / "worker.log") as made:
        yield made


def test_a_pause_stops_claims_and_not_what_runs_and_a_resume_brings_the_rest(cluster: Cluster) -> None:
    cluster.start_keeper()
    cluster.start_worker()
    client = cluster.client
    first = client.submit([{"params": {"message": 1, "steps": 60, "step_s": 0.05}}], task="echo")
    until(lambda: first.status().counts["running"] == 1, what="running")
    paused = cluster.aigc("pause", "cpu", "--reason", "new driver", "--json")
    assert json.loads(paused.stdout)["known"] is True
    second = client.submit(["later"], task="echo")

    assert first.wait(30).counts["succeeded"] == 1
    # What the worker takes from another queue shows that it has looked, and passed this one by.
    assert client.submit(["elsewhere"], task="echo", queue="gpu").wait(30).counts["succeeded"] == 1
    assert second.status().counts == {**dict.fromkeys(second.status().counts, 0), "queued": 1}
    assert "Queue 'cpu' is paused since" in client.why(f"{second.id}-1")
    assert "queue 'cpu' is paused since" in cluster.aigc("status").stdout

    assert cluster.aigc("resume", "cpu").stdout == "queue 'cpu' goes on\n"
    assert second.wait(30).counts["succeeded"] == 1


def test_a_drained_worker_gives_back_what_it_cannot_finish_and_is_gone(cluster: Cluster) -> None:
    cluster.start_keeper()
    process = cluster.start_worker()
    client = cluster.client
    batch = client.submit([{"params": {"message": 1, "steps": 4000, "step_s": 0.05}}], task="echo")
    until(lambda: (client.job(f"{batch.id}-1").progress or 0) > 0, what="progress")
    name = client.workers()[0].worker

    done = cluster.aigc("drain", name, "--wait", "--timeout", "60", "--json")

    assert done.returncode == 0, done.stderr
    [session] = json.loads(done.stdout)["sessions"]
    assert (session["worker"], session["end"], session["outcomes"]) == (name, "stopped", {"given_back": 1})
    assert client.workers() == []
    assert process.wait(timeout=30) == 0, "it is not started again"
    job = client.job(f"{batch.id}-1")
    assert (job.status, job.attempt) == ("queued", 0)
    batch.cancel()


def test_follow_prints_json_as_things_happen_and_ends_with_the_batch(cluster: Cluster) -> None:
    cluster.start_keeper()
    batch = cluster.client.submit(["hi", "there"], task="echo")
    follower = subprocess.Popen(
        [sys.executable, "-m", "producer.cli", "events", batch.id, "--follow", "--json"],
        env=cluster.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follower.stdout is not None
    assert json.loads(follower.stdout.readline())["kind"] == "submitted", "said at once, though nothing runs"
    cluster.start_worker()
    rest = [json.loads(line) for line in follower.stdout]
    assert follower.wait(timeout=30) == 0
    assert {"claimed", "succeeded"} <= {event["kind"] for event in rest}
    assert all(event["worker"] for event in rest)
    assert batch.status().status == "done"


def test_the_overview_tells_of_workers_queues_and_keepers(cluster: Cluster) -> None:
    cluster.start_keeper()
    cluster.start_worker()
    cluster.client.submit(["x"], task="echo", queue="night")
    cluster.client.pause("night", reason="cheap power")
    until(lambda: cluster.client.system().keeper_alive, what="the keeper's pulse")
    told = json.loads(cluster.aigc("status", "--json").stdout)
    assert {"batches", "workers", "paused", "ready", "keeper"} <= told.keys()
    assert told["ready"] == {"night": 1}
    assert told["keeper"]["alive"] is True
    assert told["paused"][0]["reason"] == "cheap power"
    said = cluster.aigc("status").stdout
    assert "queue 'night': 1 ready" in said
    assert "keeper: alive" in said
