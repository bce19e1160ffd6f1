"""A batch that is done is judged by a job of another batch, on real parts: as it was when that one was accepted."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from cluster import Cluster
from input_scores import noise
from PIL import Image
from servers import RedisServer

from producer.gateway import DirectGateway
from shared.errors import InvalidJobs

pytestmark = pytest.mark.timeout(300)

TEXTS = ["the cat sat on the mat", "it rained all day", "nobody came"]


@pytest.fixture(scope="module")
def cluster(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("evaluate")
    environment = {
        "AIGC_DATA_DIR": str(folder / "data"), "AIGC_REDIS_URL": redis_server.url, "AIGC_REDIS_PREFIX": folder.name,
    }  # fmt: skip
    with Cluster(environment, folder / "worker.log") as made:
        made.start_keeper()
        made.start_worker()
        yield made


@pytest.fixture(scope="module")
def spring(cluster: Cluster) -> str:
    """The id of a batch of texts that is done."""
    batch = cluster.client.submit(TEXTS, task="echo", name="spring")
    cluster.done(batch)
    return batch.id


@pytest.fixture(scope="module")
def torn(cluster: Cluster) -> str:
    """The id of a batch in which a job has failed."""
    jobs = [{"task": "echo", "params": {"message": text, "fail": text == TEXTS[1]}} for text in TEXTS]
    batch = cluster.client.submit(jobs)
    batch.wait(60)
    return batch.id


def evaluated(cluster: Cluster, **params: Any) -> dict[str, Any]:
    [result] = cluster.done(cluster.client.submit([{"task": "evaluate", "params": params}])).values()
    assert result["error"] is None, result["error"]
    return result


def refused(cluster: Cluster, **params: Any) -> str:
    with pytest.raises(InvalidJobs) as error:
        cluster.client.submit([{"task": "evaluate", "params": params}])
    return str(error.value)


@pytest.mark.parametrize("by", ["id", "name"])
def test_the_outputs_of_a_batch_are_judged_in_its_order(cluster: Cluster, spring: str, by: str) -> None:
    outputs = f"batch:{spring if by == 'id' else 'spring'}"
    result = evaluated(cluster, metrics=["wer"], outputs=outputs, references=["the cat sat", *TEXTS[1:]])
    table = result["data"]

    assert [row["output"] for row in table["items"]] == [f"artifact:{spring}-{line}/0" for line in (1, 2, 3)]
    assert [row["wer"] for row in table["items"]] == [1, 0, 0]
    assert table["scores"][0]["value"] == pytest.approx(3 / (3 + 4 + 2))
    assert result["params"]["outputs"] == {"text_files": [f"artifact:{spring}-{line}/0" for line in (1, 2, 3)]}
    assert result["artifacts"][0]["scores"] == {"wer": table["scores"][0]["value"]}


def test_counts_that_differ_are_an_error_at_submit(cluster: Cluster, spring: str) -> None:
    said = refused(cluster, metrics=["bleu"], outputs=f"batch:{spring}", references=TEXTS[:2])
    assert "there are 3 outputs and 2 references: each output needs its own" in said


def test_a_batch_with_failures_is_judged_only_if_they_are_left_out(cluster: Cluster, torn: str) -> None:
    said = refused(cluster, metrics=["distinct"], outputs=f"batch:{torn}")
    assert f"1 of the 3 jobs of batch:{torn} did not succeed" in said

    kept = [TEXTS[0], TEXTS[2]]
    result = evaluated(cluster, metrics=["wer"], outputs=f"batch:{torn}/succeeded", references=kept)
    assert result["data"]["scores"][0]["value"] == 0


def test_a_batch_of_somebody_else_is_not_there(cluster: Cluster, spring: str) -> None:
    assert "there is no batch 'bgone'" in refused(cluster, metrics=["distinct"], outputs="batch:bgone")
    other = DirectGateway(cluster.settings.model_copy(update={"tenant": "other"}))
    assert other.outputs(spring, "text/plain", limit=9) == []
    assert len(DirectGateway(cluster.settings).outputs(spring, "text/plain", limit=2)) == 2


def test_a_batch_that_has_nothing_fitting_or_is_not_done_is_refused(cluster: Cluster, spring: str) -> None:
    said = refused(cluster, metrics=["psnr"], outputs=f"batch:{spring}", references=f"batch:{spring}")
    assert "holds nothing that fits: image/… is wanted" in said

    waiting = cluster.client.submit(["late"], task="echo", queue="nobody")
    assert "is not done: 0 of 1 jobs" in refused(cluster, metrics=["distinct"], outputs=f"batch:{waiting.id}")
    waiting.cancel()


@pytest.mark.torch
def test_pictures_of_a_batch_are_judged_by_the_prompts_that_they_carry(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("models")
    drawn = cluster.client.submit(
        ["a red hat", "blue cups"], task="text-to-image", model=str(tiny_models.stable_diffusion(root)),
        params={"num_inference_steps": 2, "num_images": 2},
    )  # fmt: skip
    cluster.done(drawn)
    said = {"metrics": ["clip_score", "kid"], "outputs": f"batch:{drawn.id}", "references": f"batch:{drawn.id}"}
    jobs = [
        {"task": "evaluate", "model": str(tiny_models.clip(root)), "params": said},
        {
            "task": "evaluate",
            "model": str(tiny_models.clip(root)),
            "params": said | {"prompts": ["a red hat", "a red hat", "blue cups", "blue cups"]},
        },
    ]
    carried, given = cluster.done(cluster.client.submit(jobs)).values()

    assert (carried["error"], given["error"]) == (None, None)
    assert carried["data"]["items"] == given["data"]["items"]
    assert [row["output"] for row in carried["data"]["items"]] == [
        f"artifact:{drawn.id}-{line}/{position}" for line in (1, 2) for position in (0, 1)
    ]
    assert carried["data"]["model"]["ref"] == str(tiny_models.clip(root))


def test_folders_are_compared_and_plotted(cluster: Cluster, tmp_path: Path) -> None:
    for side, seed in (("made", 1), ("real", 9)):
        (tmp_path / side).mkdir()
        for number in range(3):
            Path(noise(f"{side}-{number}", seed + number)).rename(tmp_path / side / f"{number}.png")
    batch = cluster.client.submit(
        [
            {
                "task": "evaluate",
                "params": {
                    "metrics": ["ssim"],
                    "outputs": [str(tmp_path / "made")],
                    "references": [str(tmp_path / "real")],
                },
            }
        ]
    )
    cluster.done(batch)
    out = batch.download(tmp_path / "out")
    [line] = [json.loads(each) for each in (out / "results.jsonl").read_text().splitlines()]
    plot = next(each for each in line["artifacts"] if each["media_type"] == "image/png")

    with Image.open(io.BytesIO((out / plot["path"]).read_bytes())) as image:
        assert image.size == (plot["width"], plot["height"])
    assert line["data"]["outputs"] == line["data"]["references"] == 3
