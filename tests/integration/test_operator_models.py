"""The operator's `models.toml` in force: aliases, queues and tenants, through SQL, Redis and real workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, until
from hub_server import Hub
from model_folders import safetensors
from servers import RedisServer

from aigc import Client, InvalidJobs, RequestError
from shared import jobs
from shared.database import Database
from shared.ids import new_session_id
from shared.settings import Settings
from workers import devices
from workers.devices import slots
from workers.look import look

ADS = "starter/ads-gpt2"
PARAMS = {"prompt": "New shoes:", "max_new_tokens": 3}
FILE = f"""
[models.house]
model = "{ADS}"
queue = "big"
tenants = ["studio"]
"""


def environment(folder: Path, redis: RedisServer) -> dict[str, str]:
    database = folder / "shared.db"
    return {
        "AIGC_DATA_DIR": str(folder / "worker"), "AIGC_DATABASE_URL": f"sqlite:///{database}",
        "AIGC_STORE_URL": (folder / "store").as_uri(), "AIGC_REDIS_URL": redis.url, "AIGC_REDIS_PREFIX": folder.name,
        "AIGC_MODELS_FILE": str(folder / "models.toml"), "AIGC_TENANT": "studio",
    }  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path, redis_server: RedisServer) -> Iterator[Cluster]:
    (tmp_path / "models.toml").write_text(FILE)
    (tmp_path / "store").mkdir()
    with Cluster(environment(tmp_path, redis_server), tmp_path / "worker.log") as made:
        made.start_keeper()
        yield made


def elsewhere(cluster: Cluster, folder: Path, **more: Any) -> Client:
    """A client on a host without the file."""
    return Client(cluster.settings.model_copy(update={"models_file": None, "data_dir": folder / "client", **more}))


def text(model: str, **more: Any) -> dict[str, Any]:
    return {"task": "text-generation", "model": model, "params": PARAMS, "seed": 1, **more}


@pytest.mark.torch
def test_an_alias_is_a_model_like_any_other(cluster: Cluster, tmp_path: Path) -> None:
    """Submitted with the file at hand, and without it; the worker decides who may, and where jobs wait."""
    early = elsewhere(cluster, tmp_path, tenant="press").submit([text("house", queue="big"), text(ADS, queue="big")])
    here = cluster.client.submit([text("house"), text("house", seed=2), text(ADS, queue="big", seed=2)])
    assert [job.queue for job in here.jobs()] == ["big", "big", "big"]
    with pytest.raises(InvalidJobs, match="line 1: model: tenant 'press' may not use 'house'"):
        Client(cluster.settings.model_copy(update={"tenant": "press"})).submit([text("house")])

    cluster.start_worker(queues="big")
    done = cluster.done(here)
    assert [result["status"] for result in done.values()] == ["succeeded"] * 3, done
    assert done["2"]["text"] == done["3"]["text"], "it is the same model"
    record = next(iter(here.jobs())).record
    assert record is not None
    assert (record["model"], record["stands_for"]) == ("house", ADS)

    # Nobody knew it when they were submitted: the worker refuses them, and loads nothing for them.
    refused = cluster.done(early)
    assert [result["error"]["code"] for result in refused.values()] == ["model_not_allowed"] * 2
    assert "tenant 'press' may not use 'house' (models.toml)" in refused["1"]["error"]["message"]
    assert [result["attempts"] for result in refused.values()] == [1, 1]

    # With a worker alive the file need not be where jobs are submitted.
    until(cluster.client.gateway.aliases, what="the worker telling of its aliases")
    remote = elsewhere(cluster, tmp_path)
    batch = remote.submit([text("house", seed=3)])
    assert [job.queue for job in batch.jobs()] == ["big"]
    with pytest.raises(InvalidJobs, match=r"tenant 'press' may not use 'house' \(models.toml of the workers\)"):
        elsewhere(cluster, tmp_path, tenant="press").submit([text("house")])
    assert cluster.done(batch)["1"]["status"] == "succeeded"

    # The file changes, and no worker is started anew.
    (tmp_path / "models.toml").write_text(FILE.replace('tenants = ["studio"]', "") + f'[models.new]\nmodel = "{ADS}"\n')
    until(lambda: "new" in cluster.client.gateway.aliases(), what="the worker reading its file again")
    opened = elsewhere(cluster, tmp_path, tenant="press").submit([text("house"), text("new", queue="big")])
    assert [result["status"] for result in cluster.done(opened).values()] == ["succeeded"] * 2

    # It becomes wrong: what it said before holds, and whoever looks is told.
    (tmp_path / "models.toml").write_text("[models.house]\n")
    trouble = until(lambda: cluster.client.workers()[0].models_file_trouble, what="the worker seeing what is wrong")
    assert "line 1: house.model: is missing" in trouble
    doctor = cluster.aigc("doctor")
    assert "FAIL  models file: " in doctor.stdout
    assert "keeps what its models.toml said before" in doctor.stdout
    last = elsewhere(cluster, tmp_path).submit([text("house", seed=9)])
    assert cluster.done(last)["1"]["status"] == "succeeded"


@pytest.mark.torch
def test_a_model_that_is_too_big_is_not_fetched_and_its_jobs_say_so(tmp_path: Path, redis_server: RedisServer) -> None:
    (tmp_path / "models.toml").write_text("")
    (tmp_path / "store").mkdir()
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 16, "n_positions": 8}
    config = json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **shape}).encode()
    with Hub() as hub:
        weights = safetensors({"w": ("BF16", (12 * 2**20,))})  # 24 MiB here, 48 in float32
        hub.repo("org/big").commit({"config.json": config, "model.safetensors": weights})
        own = {
            "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1",
            "AIGC_RESIDENT_MB": "40", "AIGC_TENANT": "default",
        }  # fmt: skip
        with Cluster({**environment(tmp_path, redis_server), **own}, tmp_path / "worker.log") as cluster:
            cluster.start_keeper()
            batch = cluster.client.submit([text("org/big"), text(ADS)])
            cluster.start_worker()

            def too_big() -> str | None:
                said = cluster.client.why(f"{batch.id}-1")
                return said if "too big" in said else None

            said = until(too_big, what="somebody saying that it is too big")
            worker = cluster.client.workers()[0].worker
            assert said.startswith(
                "It is too big for every device: org/big needs about 0.049 GB of memory; the largest device of queue "
                f"'gpu' has 0.039 GB ({worker})."
            )
            assert "model.safetensors" not in hub.fetched
            # Its neighbour is unharmed, and it waits: nobody fails it, for whatever time.
            until(lambda: cluster.client.job(f"{batch.id}-2").status == "succeeded", what="its neighbour")
            waits = cluster.client.job(f"{batch.id}-1")
            assert (waits.status, waits.attempt) == ("queued", 0)
            assert waits.error is not None
            assert waits.error["code"] == "model_too_big"
            # A worker with more memory takes it at once; here it finds that these files are no real model.
            cluster.environment["AIGC_RESIDENT_MB"] = "0"
            cluster.start_worker()
            until(lambda: "model.safetensors" in hub.fetched, what="the other worker fetching it")
            ended = until(
                lambda: (job := cluster.client.job(f"{batch.id}-1")).status == "failed" and job, what="its end"
            )
            assert ended.error is not None
            assert ended.error["code"] in ("model_not_a_model", "model_wrong_task")


def test_what_workers_tell_holds_as_long_as_they_are_alive(settings: Settings, db: Database) -> None:
    about = {"worker": "h:0", "host": "h", "pid": 1, "device": "cuda", "queues": "big", "versions": {}}
    told = {"aliases": {"house": {"queue": "big", "tenants": ["default"]}, "theirs": {"queue": None, "tenants": ["x"]}}}
    session = new_session_id()
    jobs.open_session(db, {"id": session, **about, "condition": told}, 60)
    client = Client(settings)
    assert [job.queue for job in client.submit([text("house"), text("house", queue="mine")]).jobs()] == ["big", "mine"]
    with pytest.raises(InvalidJobs, match="line 2: model: tenant 'default' may not use 'theirs'"):
        client.submit([text("house"), text("theirs")])
    jobs.close_session(db, session)
    assert [job.queue for job in client.submit([text("house"), text("theirs")]).jobs()] == ["gpu", "gpu"]


def test_a_file_that_is_wrong_starts_no_worker_and_accepts_no_jobs(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('[models.a]\nmodel = "org/a"\nqeue = "big"\n')
    with pytest.raises(RequestError, match=r"models\.toml, line 3: a\.qeue: unknown name; did you mean 'queue'\?"):
        cluster.client.submit([text("a")])
    worker = cluster.start_worker(wait=False)
    assert worker.wait(timeout=60) == 2
    assert "line 3: a.qeue: unknown name" in cluster.log.read_text()


# --- queues by device ---


def test_gpus_serve_the_queue_of_gpus_alone_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu_uuids", lambda: ["GPU-a", "GPU-b"])
    assert [(slot.visible, slot.queues) for slot in slots("all")] == [
        ("GPU-a", ("gpu",)), ("GPU-b", ("gpu",)), ("", ("cpu",)),
    ]  # fmt: skip
    assert [slot.queues for slot in slots("0,cpu")] == [("gpu",), ("cpu",)]
    assert [slot.queues for slot in slots("1", ("gpu", "cpu"))] == [("gpu", "cpu")]
    assert [slot.queues for slot in slots("all", ("big",))] == [("big",), ("big",)]
    monkeypatch.setattr(devices, "gpu_uuids", list)
    assert [slot.queues for slot in slots("all")] == [("gpu", "cpu")]


def test_light_jobs_are_not_seen_by_a_worker_of_gpus(settings: Settings, db: Database) -> None:
    client = Client(settings)
    client.submit([{"params": {"message": 1}}], task="echo")
    client.submit([text(ADS)])

    def seen(*queues: str) -> list[str]:
        return [lane.task for lane in look(db, queues, lambda *_: True).waiting]

    assert seen("gpu") == ["text-generation"]
    assert seen("cpu") == ["echo"]
    assert sorted(seen("gpu", "cpu")) == ["echo", "text-generation"]
