"""`aigc run --from`: what an earlier output says about itself, and what is never taken from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from producer.earlier import Recipe, paths_in, recipe_of
from producer.records import JobRecord
from shared.errors import NotFound, RequestError
from shared.ids import new_batch_id

RECORD = {
    "task": "text-to-image", "model": "starter/shapes", "revision": "sha256:0", "seed": 9, "image": 2,
    "params": {"prompt": "a red circle", "num_images": 4, "guidance_scale": 3.0}, "width": 8, "height": 8,
}  # fmt: skip
ALONE = Recipe("text-to-image", "starter/shapes", {"prompt": "a red circle", "guidance_scale": 3.0}, 9)


def nothing() -> Any:
    raise AssertionError("no database is asked")


def picture(path: Path, record: Any, parameters: str = "\n") -> Path:
    info = PngInfo()
    info.add_text("parameters", parameters)
    info.add_text("aigc", record if isinstance(record, str) else json.dumps(record))
    Image.new("RGB", (8, 8)).save(path, "PNG", pnginfo=info)
    return path


def results(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def spoken(folder: Path, *names: str, **changes: Any) -> dict[str, Any]:
    """The line of a job whose outputs are these files, each of its own name."""
    made = []
    for number, name in enumerate(names):
        (folder / name).write_bytes(name.encode())
        made.append({"role": "output", "path": name, "sha256": sha256(name), "seed": 40 + number})
    line = {
        "task": "text-to-speech", "model": "m", "params": {"text": "hello", "num_waveforms": 2}, "seed": 40,
        "artifacts": [{"role": "metric", "path": names[0]}, *made],
    }  # fmt: skip
    return line | changes


def sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def test_a_picture_gives_the_recipe_of_itself_alone(tmp_path: Path) -> None:
    assert recipe_of(str(picture(tmp_path / "x.png", RECORD)), nothing) == ALONE


def test_a_task_without_a_prompt_gets_none(tmp_path: Path) -> None:
    record = {**RECORD, "task": "unconditional-image-generation", "params": {"num_inference_steps": 3}}
    found = recipe_of(str(picture(tmp_path / "x.png", record, "\nSteps: 3, Seed: 9")), nothing)
    assert found.params == {"num_inference_steps": 3}


@pytest.mark.parametrize("model", [None, ""])
def test_what_was_made_without_a_model_is_made_without_one(tmp_path: Path, model: str | None) -> None:
    assert recipe_of(str(picture(tmp_path / "x.png", {**RECORD, "model": model})), nothing).model is None


@pytest.mark.parametrize(
    "record",
    [
        "", "{", "[]", "[" * 100_000, {**RECORD, "params": None}, {**RECORD, "seed": "9"}, {**RECORD, "seed": True},
        {**RECORD, "task": 7}, {**RECORD, "model": ["m"]},
    ],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(tmp_path: Path, record: Any) -> None:
    with pytest.raises(RequestError, match="does not say how it was made"):
        recipe_of(str(picture(tmp_path / "x.png", record)), nothing)


def test_other_files_are_known_by_the_results_beside_them(tmp_path: Path) -> None:
    results(tmp_path, {"artifacts": 7}, spoken(tmp_path, "a.wav"), spoken(tmp_path, "b-0.wav", "b-1.wav"))

    assert recipe_of(str(tmp_path / "a.wav"), nothing) == Recipe(
        "text-to-speech", "m", {"text": "hello", "num_waveforms": 2}, 40
    )
    assert recipe_of(str(tmp_path / "b-1.wav"), nothing) == Recipe("text-to-speech", "m", {"text": "hello"}, 41)


def test_the_sequences_of_a_beam_search_come_together(tmp_path: Path) -> None:
    params = {"prompt": "x", "num_beams": 4, "num_return_sequences": 2}
    results(tmp_path, spoken(tmp_path, "a-0.txt", "a-1.txt", task="text-generation", params=params))
    assert recipe_of(str(tmp_path / "a-1.txt"), nothing).params == params


def test_a_file_of_another_batch_with_the_same_name_is_not_mistaken(tmp_path: Path) -> None:
    results(tmp_path, spoken(tmp_path, "a.wav"))
    (tmp_path / "a.wav").write_bytes(b"something else")
    with pytest.raises(RequestError, match=r"not the file that results\.jsonl names"):
        recipe_of(str(tmp_path / "a.wav"), nothing)


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("x.png", b"no picture", "cannot be read as a PNG, JPEG, WebP or GIF picture"),
        ("x.wav", b"RIFF", r"no results\.jsonl beside it names this file"),
        ("missing.png", None, "there is no such file, and it is not the id of a job"),
    ],
)
def test_what_says_nothing_is_refused_in_words(tmp_path: Path, name: str, body: bytes | None, said: str) -> None:
    if body is not None:
        (tmp_path / name).write_bytes(body)
    with pytest.raises(RequestError, match=said):
        recipe_of(str(tmp_path / name), nothing)


def test_a_job_is_known_by_its_id() -> None:
    id_ = f"{new_batch_id()}-17"
    fields: dict[str, Any] = dict.fromkeys(JobRecord.__dataclass_fields__)
    job = JobRecord(**{**fields, "id": id_, "task": "echo", "params": {"message": 1}, "seed": 5})

    class Gateway:
        def job(self, job_id: str) -> JobRecord:
            if job_id != id_:
                raise NotFound(f"there is no job {job_id!r}")
            return job

    assert recipe_of(id_, Gateway) == Recipe("echo", None, {"message": 1}, 5)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        recipe_of(f"{new_batch_id()}-1", Gateway)  # type: ignore[arg-type]


def test_paths_of_strangers_are_found_and_ones_own_are_not() -> None:
    job = {"task": "image-to-image", "params": {"prompt": "x", "image": "/home/me/secret.png"}}
    assert paths_in(job, own=["prompt"]) == ["image"]
    assert paths_in(job, own=["image"]) == []
    for stored in ("file:f0000000000000000", "https://example.org/x.png", "s3://bucket/key"):
        assert paths_in({**job, "params": {"prompt": "x", "image": stored}}, own=[]) == []
    assert paths_in({"task": "image-to-image", "params": {"nonsense": 1}}, own=[]) == []
