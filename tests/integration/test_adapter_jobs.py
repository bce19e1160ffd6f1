"""Jobs that name models beside their own, on their way through the queue."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from sqlalchemy import select

from aigc import Batch, Client
from shared.database import Database
from shared.settings import Settings
from shared.tables import lanes
from workers import operator_models
from workers.worker import Worker

pytestmark = pytest.mark.torch

PICTURE = {"prompt": "a hat", "num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture
def models(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A worker's folder of models, of this test alone."""
    made = tiny_models.comfyui(tmp_path_factory.getbasetemp() / "tiny")
    return Path(shutil.copytree(made, tmp_path / "models"))


@pytest.fixture
def embedded(sqlite_settings: Settings, models: Path) -> Settings:
    folder = sqlite_settings.data_dir
    return Settings(_env_file=None, data_dir=folder, models_dir=models, redis_url="redis://127.0.0.1:9/0")


@pytest.fixture
def worker(embedded: Settings) -> Iterator[Worker]:
    made = Worker(embedded, device="cpu", queues=["gpu"])
    yield made
    made.close()


def submitted(client: Client, *params: dict[str, Any], **more: Any) -> Batch:
    jobs = [{"custom_id": str(n), "params": PICTURE | said, "seed": 7} for n, said in enumerate(params)]
    return client.submit(jobs, task="text-to-image", model="file:tiny.safetensors", **more)


def told(batch: Batch) -> dict[str, dict[str, Any]]:
    return {result["custom_id"]: result for result in batch.results()}


def test_each_set_of_adapters_is_a_lane_of_its_own(embedded: Settings, worker: Worker) -> None:
    client, lora = Client(embedded), {"model": "file:tiny.safetensors"}
    batch = submitted(client, {}, {"adapters": [lora]}, {"adapters": [lora | {"weight": 0.5}]}, {})
    worker.drain()

    results = told(batch)
    assert {result["status"] for result in results.values()} == {"succeeded"}, results
    sums = [results[str(n)]["artifacts"][0]["sha256"] for n in range(4)]
    assert sums[0] == sums[3]
    assert len(set(sums)) == 3
    with Database(embedded).read() as connection:
        assert sorted(connection.scalars(select(lanes.c.adapters))) == ["", '[["lora","file:tiny.safetensors"]]']
    records = [results[str(n)]["record"] for n in range(4)]
    assert [set(record.get("adapters", ())) for record in records] == [set(), {lora["model"]}, {lora["model"]}, set()]


def test_identical_work_is_that_with_the_same_adapter(embedded: Settings, worker: Worker, models: Path) -> None:
    client, said = Client(embedded), {"adapters": [{"model": "file:tiny.safetensors"}]}
    first = submitted(client, said, cache=True)
    worker.drain()
    again = submitted(client, said, cache=True)
    worker.drain()
    assert told(again)["0"]["record"]["identical_to"] == f"{first.id}-1"

    # Another adapter under the same name: what was made before was made by somebody else.
    from safetensors.torch import load_file, save_file

    path = models / "loras" / "tiny.safetensors"
    save_file({name: 2 * weight for name, weight in load_file(path).items()}, path)
    changed = submitted(client, said, cache=True)
    worker.drain()
    one, other = told(first)["0"], told(changed)["0"]
    assert "identical_to" not in other["record"]
    assert one["artifacts"][0]["sha256"] != other["artifacts"][0]["sha256"]
    assert one["record"]["adapters"] != other["record"]["adapters"]


def test_an_adapter_that_is_not_there_fails_its_jobs_alone(embedded: Settings, worker: Worker) -> None:
    client = Client(embedded)
    batch = submitted(client, {"adapters": [{"model": "file:nowhere.safetensors"}]}, {})
    worker.drain()
    results = told(batch)
    assert results["1"]["status"] == "succeeded"
    assert results["0"]["status"] == "failed"
    assert results["0"]["error"]["code"] == "model_not_found"
    assert "AIGC_MODELS_DIR" in results["0"]["error"]["message"]


@pytest.mark.parametrize("name", ["house", "file:tiny.safetensors", "{models}/loras/tiny.safetensors"])
def test_an_adapter_that_is_kept_for_others_is_loaded_for_nobody_else(
    embedded: Settings, worker: Worker, models: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where jobs are submitted nobody knows of the operator's file: the worker has the last word."""
    monkeypatch.setattr(operator_models, "LOOK_S", 0.0)
    client, said = Client(embedded), {"adapters": [{"model": name.format(models=models)}]}
    batch = submitted(client, said, {})
    text = '[models.house]\nmodel = "file:tiny.safetensors"\nrole = "lora"\ntenants = ["{}"]\n'
    embedded.models_path.write_text(text.format("studio"))
    worker.drain()
    results = told(batch)
    assert results["1"]["status"] == "succeeded"
    assert results["0"]["status"] == "failed"
    assert results["0"]["error"]["code"] == "model_not_allowed"
    assert "tenant 'default' may not use" in results["0"]["error"]["message"]

    embedded.models_path.write_text(text.format("default"))
    batch = submitted(client, said)
    worker.drain()
    [result] = told(batch).values()
    assert result["status"] == "succeeded", result
    assert list(result["record"]["adapters"]) == [said["adapters"][0]["model"]]


def test_a_control_image_is_a_file_like_others(
    embedded: Settings, worker: Worker, models: Path, tmp_path: Path
) -> None:
    from PIL import Image

    net = tiny_models.controlnet(tmp_path.parent / "tiny")
    Image.linear_gradient("L").resize((32, 16)).save(tmp_path / "edges.png")
    client = Client(embedded)
    batch = submitted(client, {"controlnet": {"model": str(net), "image": str(tmp_path / "edges.png"), "scale": 0.5}})
    worker.drain()
    [result] = told(batch).values()
    assert result["status"] == "succeeded", result
    assert (result["artifacts"][0]["width"], result["artifacts"][0]["height"]) == (24, 8)
    assert result["params"]["controlnet"]["image"].startswith("file:")
