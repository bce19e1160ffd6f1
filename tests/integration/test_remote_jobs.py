"""Jobs of remote models from submit to result: on a real database, with a real service that misbehaves."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from cluster import Cluster, until
from PIL import Image
from remote_server import RemoteServer, html, status
from servers import RedisServer
from sqlalchemy import select, update

from aigc import Batch, Client
from producer.doctor import examine
from shared.database import Database
from shared.jobs import release_due
from shared.settings import Settings
from shared.tables import jobs, metadata
from workers.generators import remote as asking
from workers.remote import pace
from workers.worker import Worker

KEY = "sk-not-to-be-seen"


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with RemoteServer(key=KEY) as made:
        yield made


@pytest.fixture
def lab(settings: Settings, server: RemoteServer) -> Settings:
    """The same settings, with a service."""
    services = json.dumps({"lab": {"url": server.url, "key": KEY, "at_a_time": 4, "timeout_s": 20}})
    more = {"services": services, "device": "cpu", "lease_s": 2, "keeper_interval_s": 0.5, "idle_look_s": 0.3}
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return Settings(_env_file=None, **{**given, **more, "grace_s": 3})


@pytest.fixture
def client(lab: Settings) -> Client:
    return Client(lab)


@pytest.fixture
def worker(lab: Settings) -> Iterator[Worker]:
    made = Worker(lab, device="cpu", queues=["cpu"])
    yield made
    made.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is away is not waited for."""
    monkeypatch.setattr(pace, "FIRST_HOLD_S", 2.0)
    monkeypatch.setattr(asking, "PATIENCE_S", 0.3)


def submitted(client: Client, n: int = 1, **more: Any) -> Batch:
    lines = [{"custom_id": f"j{k}", "params": {"prompt": f"text {k}"}, "seed": k} for k in range(n)]
    return client.submit(lines, task="text-generation", model="lab:tiny", **more)


def everything(db: Database) -> str:
    """All that the database holds, as a text."""
    with db.read() as connection:
        return "\n".join(
            str(tuple(row)) for table in metadata.sorted_tables for row in connection.execute(select(table)).all()
        )


def test_jobs_are_asked_for_many_at_once_and_say_who_made_them(
    client: Client, worker: Worker, server: RemoteServer, caplog: pytest.LogCaptureFixture, db: Database
) -> None:
    caplog.set_level(logging.DEBUG)
    server.takes_s = 0.05
    batch = submitted(client, 40)
    worker.drain()
    results = list(batch.results())
    assert {result["status"] for result in results} == {"succeeded"}
    assert 2 <= server.most_at_once <= 4
    assert {job.queue for job in batch.jobs()} == {"cpu"}
    [record] = {json.dumps(result["record"], sort_keys=True) for result in results}
    made = json.loads(record)
    assert (made["generator"], made["model"], made["revision"], made["device"]) == (
        "RemoteChat", "lab:tiny", server.url, "remote",
    )  # fmt: skip
    assert "dtype" not in made
    assert results[3]["artifacts"][0]["model"] == "tiny-2026-11-01"
    assert KEY not in everything(db)
    assert KEY not in caplog.text
    assert KEY not in json.dumps(results)


def test_a_service_that_is_away_charges_nobody_and_keeps_nobody_waiting(
    client: Client, worker: Worker, server: RemoteServer, impatient: None, db: Database, lab: Settings
) -> None:
    server.always = lambda body: html(502)
    batch = submitted(client, 3)
    other = client.submit([{"params": {"message": "hi"}}], task="echo")
    worker.drain()
    assert other.status().counts["succeeded"] == 1, "the worker does something else meanwhile"
    job = client.job(f"{batch.id}-1")
    assert (job.status, job.attempt) == ("queued", 0)
    assert job.error is not None
    assert job.error["code"] == "service_busy"
    with db.read() as connection:
        assert set(connection.scalars(select(jobs.c.give_backs).where(jobs.c.batch_id == batch.id))) == {0}
    told = until(lambda: "could not use lab:tiny" in (why := client.why(job.id)) and why, what="the worker's word")
    assert "lab answers with status 502" in told
    assert KEY not in told

    server.always = lambda body: None

    def done() -> bool:
        release_due(db)
        worker.drain()
        return batch.status().counts["succeeded"] == 3

    until(done, within_s=20)
    assert "could not use" not in client.why(job.id)


@pytest.mark.parametrize("alone", [False, True])
def test_as_long_as_a_service_wants_to_be_left_alone_its_jobs_wait(
    client: Client, worker: Worker, server: RemoteServer, db: Database, alone: bool
) -> None:
    server.lies.append(status(429, "slow down", Retry_After="120"))
    batch = submitted(client)
    if alone:  # as after a crash in company: not in a stream then
        db.write(lambda connection: connection.execute(update(jobs).values(max_company=1)))
    worker.drain()
    job = client.job(f"{batch.id}-1")
    assert (job.status, job.attempt) == ("queued", 0)
    assert job.timings["available_at"] == pytest.approx(time.time() + 120, abs=10)
    later = submitted(client, name="later")
    worker.drain()
    assert later.status().counts["queued"] == 1, "others of the lane do not ask, either"
    assert len(server.asked) == 1
    assert "service_busy: lab answers with status 429: slow down" in client.why(job.id)


def test_a_key_that_is_refused_fails_the_jobs_for_an_operator(
    client: Client, worker: Worker, server: RemoteServer, db: Database
) -> None:
    server.key = "another"
    batch = submitted(client, 30)
    worker.drain()
    [error] = {json.dumps(result["error"]) for result in batch.results()}
    assert json.loads(error)["code"] == "service_key_refused"
    assert "AIGC_SERVICES" in error
    assert len(server.asked) <= 6
    assert KEY not in everything(db)


def test_a_request_that_breaks_is_an_attempt(
    client: Client, worker: Worker, server: RemoteServer, db: Database
) -> None:
    server.lies.append(status(500, "oops"))
    batch = submitted(client)
    worker.drain()
    job = client.job(f"{batch.id}-1")
    assert (job.status, job.attempt) == ("queued", 1)
    until(lambda: (release_due(db), worker.drain(), batch.status().counts["succeeded"] == 1)[-1], within_s=30)


def test_a_job_is_cancelled_while_the_service_thinks(client: Client, worker: Worker, server: RemoteServer) -> None:
    server.gate.clear()
    batch = submitted(client)
    draining = threading.Thread(target=worker.drain)
    draining.start()
    until(lambda: server.asked, what="the request")
    batch.cancel()
    until(lambda: client.job(f"{batch.id}-1").status == "cancelled", within_s=15)
    draining.join(15)
    assert not draining.is_alive()
    assert server.under_way == 1, "nobody waited for the answer"


def test_a_job_that_takes_too_long_fails_in_time(client: Client, worker: Worker, server: RemoteServer) -> None:
    server.gate.clear()
    line = {"params": {"prompt": "a"}, "timeout_s": 0.5, "max_attempts": 1}
    batch = client.submit([line], task="text-generation", model="lab:tiny")
    began = time.monotonic()
    worker.drain()
    assert time.monotonic() - began < 10
    [result] = batch.results()
    assert result["error"]["code"] == "timed_out"


def test_a_stopping_worker_gives_back_what_is_not_answered(client: Client, lab: Settings, server: RemoteServer) -> None:
    server.gate.clear()
    stopping = Worker(lab, device="cpu", queues=["cpu"])
    batch = submitted(client, 6)
    draining = threading.Thread(target=stopping.drain)
    draining.start()
    until(lambda: len(server.asked) == 4, what="the requests")
    stopping.ask_to_stop(0)
    draining.join(15)
    assert not draining.is_alive()
    stopping.close()
    job = client.job(f"{batch.id}-1")
    assert (job.status, job.attempt) == ("queued", 0)
    assert batch.status().counts["queued"] == 6


def test_doctor_asks_the_services(lab: Settings, server: RemoteServer) -> None:
    def check() -> Any:
        return next(check for check in examine(lab) if check.name == "service lab")

    assert check().ok
    server.key = "another"
    refused = check()
    assert not refused.ok
    assert "AIGC_SERVICES" in refused.advice
    server.close()
    assert not check().ok
    assert KEY not in str([check(), refused])


@pytest.fixture
def cluster(redis_server: RedisServer, server: RemoteServer, tmp_path: Path) -> Iterator[Cluster]:
    services = json.dumps({"lab": {"url": server.url, "key": KEY, "image_seed": True}})
    environment = {
        "AIGC_DATA_DIR": str(tmp_path / "data"), "AIGC_REDIS_URL": redis_server.url, "AIGC_REDIS_PREFIX": tmp_path.name,
        "AIGC_SERVICES": services, "AIGC_LOG_LEVEL": "DEBUG",
    }  # fmt: skip
    with Cluster(environment, tmp_path / "worker.log") as made:
        made.start_keeper()
        yield made


@pytest.mark.timeout(240)
def test_every_task_of_a_remote_service_in_one_job_file(cluster: Cluster, server: RemoteServer, tmp_path: Path) -> None:
    cluster.start_worker(queues="cpu")
    asked: list[tuple[str, dict[str, Any]]] = [
        ("text-generation", {"prompt": "new shoes", "temperature": 1.0, "num_return_sequences": 2}),
        ("text-to-image", {"prompt": "a hat", "num_images": 2}),
        ("text-to-speech", {"text": "New shoes for every road.", "speaker": "alloy", "format": "mp3"}),
        ("feature-extraction", {"text": ["new shoes", "old hats"]}),
        ("text-generation", {"prompt": "refuse this"}),
    ]
    file = tmp_path / "remote.jsonl"
    lines = [{"custom_id": str(n), "task": task, "model": "lab:tiny", "params": params, "seed": 7}
             for n, (task, params) in enumerate(asked)]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = cluster.client.submit_file(file)
    results = cluster.done(batch)
    assert {id_: (result["error"] or {}).get("code") for id_, result in results.items()} == {
        "0": None, "1": None, "2": None, "3": None, "4": "content_refused",
    }  # fmt: skip
    out = batch.download(tmp_path / "out")
    files = {line["custom_id"]: [out / each["path"] for each in line["artifacts"] if "path" in each]
             for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}  # fmt: skip
    for path, about in zip(files["1"], results["1"]["artifacts"], strict=True):
        with Image.open(path) as picture:
            assert picture.size == (about["width"], about["height"])
    with av.open(str(files["2"][0])) as container:
        assert container.streams.audio[0].rate == results["2"]["artifacts"][0]["sample_rate"]
    assert np.load(files["3"][0]).shape == (2, results["3"]["artifacts"][0]["dimensions"])
    assert KEY not in cluster.log.read_text()
    assert KEY not in "".join(path.read_text(errors="replace") for path in out.rglob("*") if path.is_file())
