"""T12: what a running job leaves behind, and how the next attempt goes on from it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

import pytest
from cluster import Cluster, until
from servers import RedisServer
from sqlalchemy import select, update

from aigc import Client
from shared import jobs as transitions
from shared.database import Database
from shared.errors import JobFailed
from shared.ids import new_session_id
from shared.settings import Settings
from shared.storage import open_storage
from shared.tables import artifacts, jobs, objects
from workers import residency
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.worker import Worker


class Counting(Generator):
    """Counts to ten, writes every number down, and stumbles where a test says so."""

    resumes: ClassVar[bool] = True
    stumbles_at: ClassVar[int | None]
    began_at: ClassVar[list[int]]

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        return cls()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        for job in jobs:
            begin = int(job.checkpoint.read()) if job.checkpoint else 0
            self.began_at.append(begin)
            for number in range(begin, 10):
                if number == self.stumbles_at:
                    type(self).stumbles_at = None
                    yield Failed(job.job_id, JobFailed("stumbled", "again", retryable=True))
                    break
                run.step([job.job_id], number + 1, 10)
                run.publish(job.job_id, Output("text/plain", str(number + 1).encode(), role="checkpoint"))
                run.publish(job.job_id, Output("application/json", json.dumps(number).encode(), role="metric"))
            else:
                yield Done(job.job_id, [Output("text/plain", b"ten")])


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    Counting.stumbles_at, Counting.began_at, Counting.version = None, [], 1
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Counting)
    return Counting


@pytest.fixture
def worker(settings: Settings, counting: type[Counting]) -> Iterator[Worker]:
    made = Worker(settings, device="cpu", queues=["cpu"])
    yield made
    made.close()


@pytest.fixture
def client(settings: Settings) -> Client:
    return Client(settings)


def try_again(db: Database) -> None:
    db.write(lambda c: c.execute(update(jobs).where(jobs.c.state == "queued").values(available_at=1.0)))
    transitions.release_due(db)


def kept(db: Database, role: str) -> list[str]:
    with db.read() as connection:
        return list(connection.scalars(select(artifacts.c.object_key).where(artifacts.c.role == role)))


def object_states(db: Database) -> dict[str, str]:
    with db.read() as connection:
        return {row.key: row.state for row in connection.execute(select(objects.c.key, objects.c.state))}


def test_the_next_attempt_goes_on_from_the_newest_checkpoint(
    client: Client, worker: Worker, counting: type[Counting], db: Database
) -> None:
    counting.stumbles_at = 7
    batch = client.submit(["count"], task="echo")
    worker.drain()
    assert len(kept(db, "checkpoint")) == 1, "one takes the place of the other"
    try_again(db)
    worker.drain()

    assert counting.began_at == [0, 7]
    [result] = batch.results()
    assert (result["text"], result["attempts"]) == ("ten", 2)
    assert "published" in {event.kind for event in batch.events()}


def test_a_job_that_is_done_keeps_its_metrics_and_drops_its_checkpoints(
    client: Client, worker: Worker, db: Database
) -> None:
    batch = client.submit(["count"], task="echo")
    worker.drain()

    [metric] = kept(db, "metric")
    [output] = kept(db, "output")
    assert kept(db, "checkpoint") == []
    states = object_states(db)
    assert {key for key, state in states.items() if state == "stored"} == {metric, output}
    assert {state for key, state in states.items() if key not in (metric, output)} == {"dropped"}
    [job] = batch.jobs()
    assert {artifact.role for artifact in job.artifacts} == {"metric", "output"}


@pytest.mark.parametrize("damage", ["missing", "other bytes", "another version"])
def test_a_checkpoint_that_cannot_be_trusted_is_passed_over(
    client: Client, worker: Worker, counting: type[Counting], db: Database, settings: Settings, damage: str
) -> None:
    counting.stumbles_at = 5
    batch = client.submit(["count"], task="echo")
    worker.drain()
    [key] = kept(db, "checkpoint")
    storage = open_storage(settings)
    if damage == "missing":
        storage.delete(key)
    elif damage == "other bytes":
        storage.put(key, b"9", media_type="text/plain")
    else:
        counting.version = 2
    try_again(db)
    worker.drain()

    assert counting.began_at == [0, 0]
    assert batch.status().counts["succeeded"] == 1


def test_a_checkpoint_that_cannot_be_stored_costs_the_job_nothing(
    client: Client, worker: Worker, counting: type[Counting], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.drain()
    batch = client.submit(["count"], task="echo")
    store = settings.data_dir / "store"
    store.mkdir(parents=True, exist_ok=True)
    begun, go_on = threading.Event(), threading.Event()
    step = Counting.generate

    def slow(self: Counting, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        begun.set()
        go_on.wait(20)
        yield from step(self, jobs, run)

    monkeypatch.setattr(Counting, "generate", slow)
    thread = threading.Thread(target=worker.drain)
    thread.start()
    begun.wait(20)
    away = store.with_name("away")
    store.rename(away)
    store.write_text("no folder")
    go_on.set()
    until(lambda: batch.status().counts["running"] == 0, what="given back: the result could not be stored either")
    thread.join(20)
    store.unlink()
    away.rename(store)

    job = client.job(f"{batch.id}-1")
    assert (job.status, job.attempt, job.error) == ("queued", 0, None)


def test_what_is_no_publication_is_refused(client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Counting, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        run.publish(jobs[0].job_id, Output("text/plain", b"", role="output"))
        yield Done(jobs[0].job_id, [])

    monkeypatch.setattr(Counting, "generate", wrong)
    batch = client.submit([{"params": {"message": 1}, "max_attempts": 1}], task="echo")
    worker.drain()
    [job] = batch.jobs()
    assert job.error is not None
    assert "preview, metric, checkpoint, not 'output'" in job.error["message"]


def test_who_lost_a_job_publishes_nothing_of_it(client: Client, db: Database, worker: Worker) -> None:
    batch = client.submit(["count"], task="echo")
    worker.idle_look()
    batch = client.submit([{"params": {"message": 2}}], task="echo")
    sessions = [new_session_id() for _ in range(2)]
    for session in sessions:
        transitions.open_session(
            db,
            {
                "id": session, "worker": "h:cpu", "host": "h", "pid": 1, "device": "cpu", "queues": "cpu",
                "versions": {}, "condition": {},
            },
            60,
        )  # fmt: skip
    with db.read() as connection:
        [job] = connection.execute(select(jobs).where(jobs.c.batch_id == batch.id)).all()
    [claimed] = transitions.claim(db, session=sessions[0], lane_id=job.lane_id, priority=0, limit=1, window_s=60)
    transitions.bury(db, sessions[0])
    [again] = transitions.claim(db, session=sessions[1], lane_id=job.lane_id, priority=0, limit=1, window_s=60)

    def published(session: str, epoch: int) -> set[str]:
        key = f"default/{batch.id}/{job.id}/{epoch}-{session}/p1.txt"
        transitions.intend(db, session, "default", [key])
        artifact = transitions.StoredArtifact(key, 1, "checkpoint", 0, 0, 1, "text/plain", "0" * 64, {})
        return transitions.publish(db, session, [transitions.Publication(job.id, epoch, artifact)])

    assert published(sessions[1], again.epoch) == {job.id}
    assert published(sessions[0], claimed.epoch) == set()
    assert published(sessions[0], again.epoch) == set(), "the epoch alone is not enough"
    assert [key for key in kept(db, "checkpoint") if sessions[1] in key] == kept(db, "checkpoint")


def test_echo_counts_slowly_and_remembers_across_a_kill(tmp_path: Path, redis_server: RedisServer) -> None:
    environment = {
        "AIGC_DATA_DIR": str(tmp_path / "data"),
        "AIGC_REDIS_URL": redis_server.url,
        "AIGC_REDIS_PREFIX": tmp_path.name,
    }
    with Cluster(environment, tmp_path / "worker.log") as cluster:
        cluster.start_keeper()
        worker = cluster.start_worker()
        params = {"message": "hundred", "steps": 100, "step_s": 0.05, "checkpoint_every": 5, "signed": True}
        batch = cluster.client.submit([{"task": "echo", "params": params}])
        until(lambda: (cluster.client.job(f"{batch.id}-1").progress or 0) > 0.3, what="a good part of it")
        [before] = cluster.client.workers()
        cluster.child(worker).kill()

        result = cluster.done(batch, within_s=40)["1"]
    data = result["data"]
    assert data["message"] == "hundred"
    assert 20 <= data["began_at_step"] < 100
    assert data["began_at_step"] % 5 == 0
    assert data["session"] != before.session
