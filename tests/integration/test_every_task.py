"""Every task at once, in one job file, on real parts: each output is what the task promises."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import tiny_models
from cluster import Cluster
from PIL import Image
from servers import RedisServer
from tiny_models.input_pictures import write_pictures
from tiny_models.input_sounds import write_sounds

from producer.client import Batch
from shared.tasks import all_tasks

pytestmark = [pytest.mark.torch, pytest.mark.timeout(420)]

ROOT = Path(__file__).parents[2]


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
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`examples/everything.jsonl`, with the models and inputs that it names in a folder of this test's own."""
    root = tmp_path_factory.mktemp("tiny")
    text = (ROOT / "examples" / "everything.jsonl").read_text()
    for name in tiny_models.__all__:
        if f"/tiny/models/{name.replace('_', '-')}" in text:
            getattr(tiny_models, name)(root / "models")
    write_pictures(root / "inputs")
    write_sounds(root / "inputs")
    file = root / "everything.jsonl"
    own = text.replace("./examples/tiny/", f"{root}/").replace("examples/tiny/", f"{root}/")
    file.write_text(own.replace("./docs/", f"{ROOT}/docs/").replace('"docs/', f'"{ROOT}/docs/'))
    return file


@pytest.fixture(scope="module")
def batch(cluster: Cluster, file: Path) -> Batch:
    made = cluster.client.submit_file(file)
    cluster.done(made, within_s=300)
    return made


@pytest.fixture(scope="module")
def results(batch: Batch) -> dict[str, Any]:
    return {result["custom_id"]: result for result in batch.results()}


@pytest.fixture(scope="module")
def bodies(cluster: Cluster, batch: Batch) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for job in batch.jobs():
        found[job.custom_id or job.id] = []
        for artifact in job.artifacts:
            with cluster.client.gateway.open(artifact) as stream:
                found[job.custom_id or job.id].append(stream.read())
    return found


def test_one_job_file_holds_every_task(results: dict[str, Any], file: Path) -> None:
    jobs = [json.loads(line) for line in file.read_text().splitlines()]
    assert {job["task"] for job in jobs} == set(all_tasks())
    assert results.keys() == {job["custom_id"] for job in jobs}
    assert {id_: result["error"] for id_, result in results.items() if result["error"]} == {}


def test_texts(results: dict[str, Any]) -> None:
    assert results["message"]["text"] == "hello"
    for id_ in ("continued", "answered", "summary", "chatted", "translated", "caption", "question"):
        assert isinstance(results[id_]["text"], str)
        assert results[id_]["artifacts"][0]["completion_tokens"] >= 1
    boot = json.loads(results["as-json"]["text"])
    assert boot["name"] in ("boot", "sandal")
    assert 36 <= boot["size"] <= 47
    assert results["talk-subtitles"]["artifacts"][0]["media_type"] == "application/x-subrip"


def test_labels_vectors_and_scores(results: dict[str, Any], bodies: dict[str, list[bytes]]) -> None:
    classes = results["classes"]["data"]
    assert sum(each["score"] for each in classes) == pytest.approx(1, abs=1e-4)
    assert results["classes"]["artifacts"][0]["label"] == classes[0]["label"]
    assert [sorted(each["label"] for each in found) for found in results["own-labels"]["data"]] == [["x", "y"]] * 2
    vectors = np.load(io.BytesIO(bodies["vectors"][0]))
    assert vectors.dtype == np.float32
    assert vectors.shape == (2, results["vectors"]["artifacts"][0]["dimensions"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    [wrong, _] = results["transcripts"]["data"]["scores"]
    assert wrong["value"] == pytest.approx(1 / 3)
    [perplexity] = results["fluent"]["data"]["scores"]
    assert perplexity["value"] > 1
    distance = results["alike"]["data"]["scores"][0]
    assert abs(distance["value"]) < 1e-3


@pytest.mark.parametrize(
    ("id_", "size"),
    [("picture", (16, 16)), ("anew", (16, 16)), ("left-half", (16, 16)), ("of-noise", None), ("style", (16, 16)),
     ("guided", None), ("in-tiles", (192, 144)), ("invented", (384, 288))],
)  # fmt: skip
def test_pictures(
    results: dict[str, Any], bodies: dict[str, list[bytes]], id_: str, size: tuple[int, int] | None
) -> None:
    assert bodies[id_]
    for body, artifact in zip(bodies[id_], results[id_]["artifacts"], strict=True):
        with Image.open(io.BytesIO(body)) as picture:
            picture.load()
            assert picture.size == (artifact["width"], artifact["height"])
            assert size in (None, picture.size)


@pytest.mark.parametrize("id_", ["video", "video-of-a-picture"])
def test_videos(results: dict[str, Any], bodies: dict[str, list[bytes]], id_: str) -> None:
    artifacts = results[id_]["artifacts"]
    assert [artifact["part"] for artifact in artifacts] == ["video", "poster", "preview"]
    with av.open(io.BytesIO(bodies[id_][0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = list(container.decode(video=0))
    assert len(frames) == artifacts[0]["frames"]
    assert (frames[0].width, frames[0].height) == (artifacts[0]["width"], artifacts[0]["height"])


@pytest.mark.parametrize("id_", ["ad", "piano-stereo", "waves", "interview"])
def test_sounds(results: dict[str, Any], bodies: dict[str, list[bytes]], id_: str) -> None:
    [body], [artifact] = bodies[id_], results[id_]["artifacts"]
    info = soundfile.info(io.BytesIO(body))
    assert (info.samplerate, info.channels) == (artifact["sample_rate"], artifact["channels"])
    assert info.duration == pytest.approx(artifact["seconds"], abs=0.1)  # mp3 pads its ends


def test_the_contact_sheet_shows_each_job_once(batch: Batch, tmp_path: Path) -> None:
    out = batch.download(tmp_path / "out")
    page = (out / "index.html").read_text()
    assert page.count("<article") == len(list(batch.jobs()))
    assert not (out / "index.live").exists()
