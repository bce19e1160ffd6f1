"""The main job, end to end, on real parts: a list of prompts goes in, files come out.

Every test runs against SQLite + folder and against PostgreSQL + a real S3 server, with a real Redis.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken_models
import numpy
import pytest
import tiny_models
from cluster import Cluster, until
from PIL import Image
from servers import PostgresServer, RedisServer
from swift_server import SwiftServer

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

PROFILES = ("sqlite-folder", "postgres-s3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    made = {
        "text": tiny_models.gpt2,
        "chat": tiny_models.gpt2_chat,
        "pictures": tiny_models.stable_diffusion,
        "headless": broken_models.headless,
        "pickle": broken_models.pickle_only,
        "remote code": broken_models.remote_code,
    }
    return {name: str(make(root)) for name, make in made.items()}


@pytest.fixture(scope="module", params=PROFILES)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp(request.param)
    redis: RedisServer = request.getfixturevalue("redis_server")
    environment = {"AIGC_DATA_DIR": str(folder / "data"), "AIGC_REDIS_URL": redis.url, "AIGC_REDIS_PREFIX": folder.name}
    if request.param == "postgres-s3":
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        swift: SwiftServer = request.getfixturevalue("swift_server")
        environment |= {
            "AIGC_DATABASE_URL": postgres.new_database(),
            "AIGC_STORE_URL": f"s3://{swift.new_bucket()}/aigc",
            "AIGC_S3_ENDPOINT_URL": swift.endpoint_url,
            "AIGC_S3_ACCESS_KEY_ID": swift.access_key,
            "AIGC_S3_SECRET_ACCESS_KEY": swift.secret_key,
        }
    with Cluster(environment, folder / "worker.log") as made:
        made.start_keeper()
        made.start_worker()
        yield made


def mixed_jobs(models: dict[str, str]) -> list[dict[str, Any]]:
    """Beams, sampling with several sequences, greedy, chat, and pictures of two sizes: one file."""
    text, pictures = models["text"], models["pictures"]
    beams = {"num_beams": 4, "no_repeat_ngram_size": 2, "early_stopping": True}
    sampled = {"temperature": 0.9, "top_k": 20, "num_return_sequences": 3}
    chat = [{"role": "user", "content": "hello"}]
    asked = {
        "beams": (text, {"prompt": "the quick brown", "max_new_tokens": 8, **beams}),
        "sampled": (text, {"prompt": "a small", "max_new_tokens": 8, **sampled}),
        "greedy": (text, {"prompt": "once", "max_new_tokens": 5}),
        "chat": (models["chat"], {"messages": chat, "max_new_tokens": 5, "temperature": 1.0}),
    }
    jobs: list[dict[str, Any]] = [
        {"custom_id": id_, "task": "text-generation", "model": model, "seed": seed, "params": params}
        for seed, (id_, (model, params)) in enumerate(asked.items(), 1)
    ]
    for n, (width, height) in enumerate([(32, 32), (64, 32), (32, 32), (64, 32)]):
        jobs.append({
            "custom_id": f"picture {n}", "task": "text-to-image", "model": pictures, "seed": 10 + n,
            "params": {"prompt": f"a picture of {n}", "width": width, "height": height, "num_inference_steps": 2,
                       "guidance_scale": 3.0, "num_images": 1 + (n == 0)},
        })  # fmt: skip
    return jobs


def pixels(cluster: Cluster, result: dict[str, Any]) -> list[numpy.ndarray[Any, Any]]:
    """The pictures of a job, decoded."""
    gateway = cluster.client.gateway
    pictures = []
    for artifact in cluster.client.job(result["job_id"]).artifacts:
        with gateway.open(artifact) as stream:
            pictures.append(numpy.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB"), dtype=int))
    return pictures


def test_mixed_jobs_come_back_under_their_own_ids(cluster: Cluster, models: dict[str, str], tmp_path: Path) -> None:
    batch = cluster.client.submit(mixed_jobs(models))
    results = cluster.done(batch)

    assert {id_: result["error"] for id_, result in results.items() if result["error"]} == {}
    assert len(results["sampled"]["texts"]) == 3
    assert len(results["beams"]["artifacts"]) == 1
    for artifact in results["sampled"]["artifacts"]:
        assert artifact["completion_tokens"] <= 8
        assert artifact["finish_reason"] in ("stop", "length")
    sizes = {id_: [(a["width"], a["height"]) for a in r["artifacts"]] for id_, r in results.items() if "picture" in id_}
    assert sizes == {
        "picture 0": [(32, 32)] * 2,
        "picture 1": [(64, 32)],
        "picture 2": [(32, 32)],
        "picture 3": [(64, 32)],
    }

    out = batch.download(tmp_path / "out")
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["custom_id"] for line in lines] == [job["custom_id"] for job in mixed_jobs(models)]
    files = [artifact["path"] for line in lines for artifact in line["artifacts"] if "path" in artifact]
    assert len(set(files)) == 5
    for line in lines:
        for artifact in line["artifacts"]:
            if "path" in artifact:
                with Image.open(out / artifact["path"]) as picture:
                    assert picture.size == (artifact["width"], artifact["height"])
                    assert f"Seed: {artifact['seed']}" in picture.text["parameters"]  # type: ignore[attr-defined]
    assert (out / "index.html").stat().st_size > 1000


def test_the_same_seeds_give_the_same_outputs_in_another_order(cluster: Cluster, models: dict[str, str]) -> None:
    first = cluster.done(cluster.client.submit(mixed_jobs(models)))
    again = cluster.done(cluster.client.submit(list(reversed(mixed_jobs(models)))))
    alone = cluster.done(cluster.client.submit([job for job in mixed_jobs(models) if job["custom_id"] == "picture 3"]))

    for id_, result in first.items():
        assert again[id_].get("texts") == result.get("texts")
        assert again[id_].get("text") == result.get("text")
        if "picture" in id_:
            for one, other in zip(pixels(cluster, result), pixels(cluster, again[id_]), strict=True):
                assert numpy.abs(one - other).max() <= 2
    assert numpy.abs(pixels(cluster, first["picture 3"])[0] - pixels(cluster, alone["picture 3"])[0]).max() <= 2
    assert numpy.abs(pixels(cluster, first["picture 1"])[0] - pixels(cluster, first["picture 3"])[0]).max() > 2


def test_a_job_says_all_that_is_needed_to_make_it_again(cluster: Cluster, models: dict[str, str]) -> None:
    batch = cluster.client.submit(
        ["once upon"], task="text-generation", model=models["text"], params={"temperature": 1.0, "max_new_tokens": 4}
    )
    result = cluster.done(batch)["1"]
    job = cluster.client.job(result["job_id"])

    assert job.record is not None
    assert job.record["revision"].startswith("sha256:")
    assert job.record["dtype"] == "float32"
    assert {"aigc", "torch", "transformers"} <= set(job.record["versions"])
    again = cluster.done(
        cluster.client.submit(
            [{"task": job.task, "model": job.model, "params": dict(job.params), "seed": job.seed, "custom_id": "again"}]
        )
    )
    assert again["again"]["text"] == result["text"]


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("headless", "model_wrong_task"),
        ("pictures", "model_wrong_task"),
        ("pickle", "model_pickle_only"),
        ("remote code", "model_needs_remote_code"),
        ("/nowhere/at/all", "model_not_found"),
        ("starter/no-such-thing", "model_not_found"),
    ],
)
def test_a_model_that_cannot_serve_fails_its_jobs_at_once_and_nobody_elses(
    cluster: Cluster, models: dict[str, str], model: str, code: str
) -> None:
    bad = {"task": "text-generation", "model": models.get(model, model), "params": {"prompt": "x"}, "custom_id": "bad"}
    good = {
        "task": "text-generation",
        "model": models["text"],
        "params": {"prompt": "x", "max_new_tokens": 2},
        "custom_id": "good",
    }
    batch = cluster.client.submit([bad, good])
    results = cluster.done(batch)

    assert results["good"]["status"] == "succeeded"
    assert results["bad"]["status"] == "failed"
    assert results["bad"]["error"]["code"] == code
    assert results["bad"]["attempts"] == 1, "it was not retried"
    assert [(error.code, error.count) for error in batch.status().errors] == [(code, 1)]


def test_a_prompt_longer_than_the_model_takes_fails_or_is_cut_as_the_job_says(
    cluster: Cluster, models: dict[str, str]
) -> None:
    long = "word " * 500
    batch = cluster.client.submit(
        [
            {"custom_id": "fail", "params": {"prompt": long, "max_new_tokens": 4}},
            {"custom_id": "truncate", "params": {"prompt": long, "max_new_tokens": 4, "long_prompt": "truncate"}},
        ],
        task="text-generation",
        model=models["text"],
    )
    results = cluster.done(batch)
    assert results["fail"]["error"]["code"] == "prompt_too_long"
    assert sum(part.strip(".,;").isdigit() for part in results["fail"]["error"]["message"].split()) >= 2
    assert results["truncate"]["status"] == "succeeded"


def test_hostile_custom_ids_stay_inside_the_folder_and_one_to_one(
    cluster: Cluster, models: dict[str, str], tmp_path: Path
) -> None:
    hostile = ["../../etc/passwd", "a/b", "CON", "a_b", "🦊", "x" * 250, "..", "A/B", "<script>alert(1)</script>"]
    params = {"prompt": "p", "width": 32, "height": 32, "num_inference_steps": 1}
    jobs = [{"custom_id": id_, "params": params, "seed": n} for n, id_ in enumerate(hostile)]
    batch = cluster.client.submit(jobs, task="text-to-image", model=models["pictures"])
    cluster.done(batch)
    out = batch.download(tmp_path / "deep" / "out")

    lines = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["custom_id"] for line in lines] == hostile
    paths = [(out / line["artifacts"][0]["path"]).resolve() for line in lines]
    assert len(set(paths)) == len(hostile)
    assert all(path.is_file() and path.parent == out.resolve() for path in paths)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert "<script>alert" not in (out / "index.html").read_text(encoding="utf-8")


def test_progress_of_a_running_job_is_seen_and_cancel_ends_it_between_two_steps(cluster: Cluster) -> None:
    batch = cluster.client.submit([{"task": "echo", "params": {"message": "slow", "steps": 2000, "step_s": 0.05}}])
    id_ = f"{batch.id}-1"
    until(lambda: (cluster.client.job(id_).progress or 0) > 0, within_s=30, what="progress")
    assert cluster.client.job(id_).status == "running"
    assert "running" in cluster.client.why(id_)

    assert batch.cancel() == 1
    record = batch.wait(30)

    assert record.counts["cancelled"] == 1
    assert cluster.client.job(id_).artifacts == ()


def test_small_texts_share_an_object_and_a_link_never_shows_the_neighbours(
    cluster: Cluster, models: dict[str, str]
) -> None:
    batch = cluster.client.submit([f"text {n}" for n in range(20)], task="echo")
    results = cluster.done(batch)
    artifacts = [cluster.client.job(result["job_id"]).artifacts[0] for result in results.values()]

    assert [results[str(n + 1)]["text"] for n in range(20)] == [f"text {n}" for n in range(20)]
    assert len({artifact.key for artifact in artifacts}) < 20
    with pytest.raises(Exception, match="one object with others"):
        cluster.client.gateway.link(artifacts[0])
