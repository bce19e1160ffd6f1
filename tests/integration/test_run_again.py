"""`aigc run` and `aigc results --follow` with everything running: grids, outputs made again, a folder that fills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import BRISK, until
from PIL import Image, ImageChops

pytestmark = [pytest.mark.timeout(300), pytest.mark.torch]


class Desk:
    """Somebody's working folder."""

    def __init__(self, folder: Path) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AIGC_")}
        self.folder = folder
        self.environment = {**clean, **BRISK, "AIGC_DATA_DIR": str(folder / "data"), "HF_HUB_OFFLINE": "1"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "producer.cli", *arguments]

    def aigc(self, *arguments: str) -> str:
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str) -> str:
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        return done.stderr

    def run(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.aigc("run", *arguments, "--json").splitlines()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("desk"))
    desk.aigc("up", "--devices", "cpu", "--detach")
    yield desk
    desk.aigc("down")


def test_a_grid_has_the_same_seeds_everywhere(desk: Desk) -> None:
    made = desk.run("echo", "message=hi", "--vary", "steps=1,2", "--vary", "signed=true,false", "--n", "2")

    assert [(job["params"]["steps"], job["params"]["signed"]) for job in made[::2]] == [
        (1, True), (1, False), (2, True), (2, False),
    ]  # fmt: skip
    first = made[0]["seed"]
    assert [job["seed"] for job in made] == [first, first + 1] * 4


def test_files_that_could_not_be_put_anywhere_are_not_made(desk: Desk) -> None:
    (desk.folder / "notes.txt").write_text("mine")
    before = desk.aigc("list")

    for out in ("notes.txt", "notes.txt/deeper"):
        assert "notes.txt is a file: name a folder" in desk.refused("run", "echo", "message=hi", "--out", out)
    assert desk.aigc("list") == before


def test_a_job_is_made_again_by_its_id(desk: Desk) -> None:
    [job] = desk.run("echo", "message=hello", "steps=3", "seed=12")
    [again] = desk.run("--from", job["job_id"])
    [other] = desk.run("--from", job["job_id"], "message=other", "seed=13")

    assert (again["text"], again["seed"], again["params"]) == (job["text"], 12, job["params"])
    assert (other["params"]["message"], other["seed"], other["params"]["steps"]) == ("other", 13, 3)


# Within what company may change, and what a lossy format makes of that.
@pytest.mark.parametrize(("format_", "within"), [("png", 2), ("webp", 24)])
def test_a_picture_is_made_again_and_a_little_different(desk: Desk, format_: str, within: int) -> None:
    [job] = desk.run(
        "text-to-image", "--model", "starter/shapes", "prompt=a red circle, on blue", "num_inference_steps=2",
        "num_images=2", "seed=5", f"format={format_}", "--out", "first",
    )  # fmt: skip
    [first] = (desk.folder / "first").glob(f"{job['job_id'].partition('-')[0]}/*-1.{format_}")

    [again] = desk.run("--from", str(first), "--out", "again")
    [steps] = desk.run("--from", str(first), "num_inference_steps=3", "--out", "again")

    assert (again["seed"], again["model"], again["params"]["num_images"]) == (6, "starter/shapes", 1)
    [found] = (desk.folder / "again" / again["job_id"].partition("-")[0]).glob(f"*.{format_}")
    with Image.open(first) as one, Image.open(found) as other:
        furthest = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getextrema()
    assert max(most for _, most in furthest) <= within
    assert steps["params"] == {**again["params"], "num_inference_steps": 3}


def test_a_folder_fills_while_the_batch_runs(desk: Desk) -> None:
    slow = {"task": "echo", "params": {"message": "x", "steps": 4, "step_s": 0.4}}
    (desk.folder / "slow.jsonl").write_text((json.dumps(slow) + "\n") * 8)
    batch = desk.aigc("submit", "slow.jsonl").strip()
    out = desk.folder / "out"
    following = subprocess.Popen(
        desk.command("results", batch, "--out", "out", "--follow"), cwd=desk.folder, env=desk.environment
    )
    try:
        until((out / "index.live" / "now.js").is_file)
        assert not (out / "results.jsonl").exists()
        until(lambda: "<article" in (out / "index.html").read_text())
        assert following.wait(timeout=120) == 0
    finally:
        following.kill()
        following.wait()
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "results.jsonl"]
    assert (out / "index.html").read_text().count("<article") == 8
