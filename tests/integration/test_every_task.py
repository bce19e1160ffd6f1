"""Every task at once, in one job file, on real parts: each output is what the task promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from cluster import Cluster
from servers import RedisServer

from shared.tasks import all_tasks

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("every-task")
    environment = {
        "AIGC_DATA_DIR": str(folder / "data"), "AIGC_REDIS_URL": redis_server.url, "AIGC_REDIS_PREFIX": folder.name,
    }  # fmt: skip
    with Cluster(environment, folder / "worker.log") as made:
        made.start_keeper()
        made.start_worker()
        yield made


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """At least one of each task; those of one task differ in kind of model or in what comes out."""
    root = tmp_path_factory.mktemp("models")
    asked: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("message", "echo", None, {"message": "hello"}),
        ("continued", "text-generation", tiny_models.gpt2, {"prompt": "new shoes", "max_new_tokens": 6}),
        ("answered", "text-generation", tiny_models.t5, {"prompt": "new shoes", "max_new_tokens": 6}),
        ("summary", "summarization", tiny_models.bart, {"text": "new shoes " * 9, "max_new_tokens": 8}),
        ("chatted", "summarization", tiny_models.gpt2_chat, {"text": "a hat", "max_new_tokens": 4,
                                                             "long_text": "fail"}),
        ("translated", "translation", tiny_models.t5, {"text": "new shoes", "source_language": "en",
                                                       "target_language": "de", "max_new_tokens": 8}),
        ("classes", "text-classification", tiny_models.classifier, {"text": "new shoes"}),
        ("own labels", "zero-shot-classification", tiny_models.nli, {"text": ["a", "b"],
                                                                     "candidate_labels": ["x", "y"]}),
        ("vectors", "feature-extraction", tiny_models.classifier, {"text": ["new shoes", "old hats"]}),
        ("picture", "text-to-image", tiny_models.stable_diffusion, {"prompt": "a hat", "num_inference_steps": 2}),
    ]  # fmt: skip
    return [
        {"custom_id": id_, "task": task, "params": params} | ({"model": str(model(root))} if model else {})
        for id_, task, model, params in asked
    ]


def test_one_job_file_holds_every_task(cluster: Cluster, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    assert {job["task"] for job in jobs} == set(all_tasks())
    file = tmp_path / "everything.jsonl"
    file.write_text("".join(json.dumps(job) + "\n" for job in jobs))

    results = cluster.done(cluster.client.submit_file(file))
    assert {id_: result["error"] for id_, result in results.items() if result["error"]} == {}

    for id_ in ("continued", "answered", "summary", "chatted", "translated"):
        assert isinstance(results[id_]["text"], str)
        assert results[id_]["artifacts"][0]["completion_tokens"] >= 1
    assert results["message"]["text"] == "hello"
    classes = results["classes"]["data"]
    assert sum(each["score"] for each in classes) == pytest.approx(1, abs=1e-4)
    assert results["classes"]["artifacts"][0]["label"] == classes[0]["label"]
    assert [sorted(each["label"] for each in found) for found in results["own labels"]["data"]] == [["x", "y"]] * 2


def test_vectors_are_an_array_that_numpy_reads(cluster: Cluster, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    batch = cluster.client.submit([job for job in jobs if job["custom_id"] == "vectors"])
    cluster.done(batch)
    out = batch.download(tmp_path / "out")
    [line] = (out / "results.jsonl").read_text().splitlines()
    [artifact] = json.loads(line)["artifacts"]
    assert artifact["path"].endswith(".npy")
    vectors = np.load(out / artifact["path"])
    assert vectors.dtype == np.float32
    assert vectors.shape == (2, artifact["dimensions"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
