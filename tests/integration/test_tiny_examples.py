"""The job files of `examples/tiny`, as somebody without a network runs them: each line becomes what it asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from cluster import Cluster
from servers import RedisServer
from tiny_models.input_pictures import write_pictures
from tiny_models.input_sounds import write_sounds

pytestmark = [pytest.mark.torch, pytest.mark.models, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples" / "tiny").glob("*.jsonl"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `examples/make_tiny_models.py` leaves in `examples/tiny`, as far as the files name it."""
    made = tmp_path_factory.mktemp("tiny")
    named = "".join(file.read_text() for file in FILES)
    for name in tiny_models.__all__:
        if f"/tiny/models/{name.replace('_', '-')}" in named:
            getattr(tiny_models, name)(made / "models")
    write_pictures(made / "inputs")
    write_sounds(made / "inputs")
    return made


@pytest.fixture(scope="module")
def results(
    root: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, Any]]]:
    """All of them in one batch, by file and line."""
    folder = tmp_path_factory.mktemp("tiny-examples")
    environment = {
        "AIGC_DATA_DIR": str(folder / "data"), "AIGC_REDIS_URL": redis_server.url, "AIGC_REDIS_PREFIX": folder.name,
    }  # fmt: skip
    jobs = []
    for file in FILES:
        text = file.read_text().replace("./examples/tiny/", f"{root}/").replace("examples/tiny/", f"{root}/")
        text = text.replace("./docs/", f"{ROOT}/docs/").replace('"docs/', f'"{ROOT}/docs/')
        jobs += [json.loads(line) | {"custom_id": f"{file.stem}:{n}"} for n, line in enumerate(text.splitlines())]
    with Cluster(environment, folder / "worker.log") as cluster:
        cluster.start_keeper()
        cluster.start_worker()
        yield cluster.done(cluster.client.submit(jobs), within_s=500)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_line_becomes_what_it_asks(file: Path, results: dict[str, dict[str, Any]]) -> None:
    lines = file.read_text().splitlines()
    ended = [results[f"{file.stem}:{number}"] for number in range(len(lines))]
    assert [(result["status"], result["error"]) for result in ended] == [("succeeded", None)] * len(lines)
    assert all(result["artifacts"] for result in ended)
    for artifact in (artifact for result in ended for artifact in result["artifacts"]):
        # A model of random weights may end a text before it has begun.
        assert artifact["bytes"] or artifact["media_type"].startswith("text/"), artifact
