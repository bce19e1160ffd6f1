"""Models beside a model: what they change, and that nothing of them stays behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from contract import PICTURE, FakeRun, bodies, facts, generator, pixels, run_all
from input_adapters import found, made
from input_files import photos
from PIL import Image

from shared.picture_records import read_parameters
from shared.tasks.adapters import models_beside
from shared.tasks.inputs import references
from shared.tasks.text_to_image import TextToImageParams
from workers.generators import Failed, Generator, Outcome, Work
from workers.inputs.looks import Limits, examine

pytestmark = [pytest.mark.torch, pytest.mark.models]

PHOTOS = photos()


@pytest.fixture
def sd(load: Callable[..., Generator]) -> Any:
    return load(generator("diffusers_text_to_image:DiffusersTextToImage"), tiny_models.stable_diffusion)


@pytest.fixture(scope="module")
def lora() -> str:
    return made("lora")


def job(name: str = "job", seed: int = 0, **params: Any) -> Work:
    said = TextToImageParams.model_validate(PICTURE | {"prompt": "a hat"} | params)
    limits = Limits(pixels=10**7, seconds=100.0)
    files = {each.place: examine(Path(each.text), each.kind, each.text, limits) for each in references(said)}
    return Work(name, "text-to-image", said, seed, inputs=files, adapters=found(said))


def paint(sd: Any, seed: int = 0, **params: Any) -> Outcome:
    return run_all(sd, [job(seed=seed, **params)])["job"]


def picture(outcome: Outcome) -> np.ndarray:
    return pixels(bodies(outcome)[0])


def layers(sd: Any) -> set[str]:
    """Every part of the model and of its text encoder, by name and class."""
    return {
        f"{part}.{name} {type(layer).__name__}"
        for part in ("unet", "text_encoder")
        for name, layer in getattr(sd._pipe, part).named_modules()
    }


# --- LoRA ---


def test_a_picture_with_an_adapter_is_that_of_a_direct_call(sd: Any, lora: str) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd._files.folder, safety_checker=None)
    pipe.load_lora_weights(lora, weight_name="pytorch_lora_weights.safetensors", adapter_name="a")
    pipe.set_adapters(["a"], [0.7])
    theirs = pipe("a hat", num_inference_steps=3, guidance_scale=3.0, generator=torch.Generator().manual_seed(9))
    ours = picture(paint(sd, 9, adapters=[{"model": lora, "weight": 0.7}]))
    assert np.abs(ours - np.asarray(theirs.images[0]).astype(int)).max() <= 1
    assert np.abs(ours - picture(paint(sd, 9))).max() > 8


def test_an_adapter_leaves_no_trace(sd: Any, lora: str) -> None:
    before, parts = bodies(paint(sd, 3)), layers(sd)
    for adapters in ([lora], [lora, made("lora_other")], [made("lora_other")]):
        bodies(paint(sd, 3, adapters=[{"model": each} for each in adapters]))
        assert any("lora_A" in name for name in layers(sd))
    assert bodies(paint(sd, 3)) == before
    assert layers(sd) == parts


def test_an_adapter_as_trainers_save_it_is_the_same_adapter(sd: Any, lora: str) -> None:
    ours, theirs = (picture(paint(sd, adapters=[{"model": name}])) for name in (lora, "file:tiny.safetensors"))
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - picture(paint(sd))).max() > 8


def test_an_adapter_of_weight_zero_changes_nothing(sd: Any, lora: str) -> None:
    none = picture(paint(sd, 3, adapters=[{"model": lora, "weight": 0.0}]))
    assert np.abs(none - picture(paint(sd, 3))).max() <= 1
    much, little = (picture(paint(sd, 3, adapters=[{"model": lora, "weight": weight}])) for weight in (1.0, 0.2))
    assert np.abs(much - little).max() > 4


def test_several_adapters_add_up_whatever_their_order(sd: Any, lora: str) -> None:
    one, other = {"model": lora, "weight": 0.4}, {"model": made("lora_other"), "weight": 0.6}
    both = picture(paint(sd, adapters=[one, other]))
    assert np.abs(both - picture(paint(sd, adapters=[other, one]))).max() <= 2
    assert np.abs(both - picture(paint(sd, adapters=[one]))).max() > 2
    assert np.abs(both - picture(paint(sd, adapters=[other]))).max() > 2


def test_only_jobs_with_the_same_adapters_meet(sd: Any, lora: str) -> None:
    one, half = [{"model": lora}], [{"model": lora, "weight": 0.5}]
    jobs = [
        job(str(n), **said)
        for n, said in enumerate(
            [
                {},
                {"adapters": one},
                {"adapters": half},
                {"adapters": one},
                {},
                {"adapters": [*one, {"model": made("lora_other")}]},
            ]
        )
    ]
    assert sorted([each.job_id for each in part] for part in sd.cut(jobs, 32)) == [["0", "4"], ["1", "3"], ["2"], ["5"]]


def test_adapters_that_are_not_used_for_long_leave_memory(sd: Any, lora: str, tmp_path: Path, monkeypatch) -> None:
    import shutil

    from workers.generators import loras

    monkeypatch.setattr(loras, "KEPT", 2)
    several = []
    for n in range(4):
        shutil.copytree(made("lora_other"), tmp_path / str(n))
        several.append(str(tmp_path / str(n)))
    pictures = [bodies(paint(sd, adapters=[{"model": each}])) for each in several]
    assert len(sd._companions._loras._loaded) == 2
    assert sum(len(names) for names in sd._pipe.get_list_adapters().values()) == 2
    # All are the same adapter under another name, so that what stays behind of one would show in the next.
    assert all(np.array_equal(pixels(each[0]), pixels(pictures[0][0])) for each in pictures)


def test_what_does_not_fit_says_so_and_harms_nobody(sd: Any, lora: str) -> None:
    before, parts = bodies(paint(sd)), layers(sd)
    for name in ("lora_xl", "ip_adapter", "controlnet"):
        bodies(paint(sd, adapters=[{"model": lora}]))  # prompts are read with it
        outcome = paint(sd, adapters=[{"model": lora}, {"model": made(name)}])
        assert isinstance(outcome, Failed)
        assert (outcome.error.code, outcome.error.retryable) == ("adapter_unfit", False)
        assert made(name) in outcome.error.message
        assert "made for its kind" in outcome.error.message
        assert layers(sd) == parts
        assert bodies(paint(sd)) == before
    bodies(paint(sd, adapters=[{"model": lora}]))


def test_a_pipeline_without_a_place_for_it_refuses(sd: Any, lora: str, monkeypatch) -> None:
    from workers.generators.controls import Controls
    from workers.generators.likenesses import Likenesses
    from workers.generators.loras import Loras

    class Plain:
        """A pipeline of a kind that nothing can stand beside."""

        def __call__(self) -> None: ...

    monkeypatch.setattr(sd._companions, "_loras", Loras(Plain()))
    monkeypatch.setattr(sd._companions, "_controls", Controls(Plain(), None, "cpu"))
    monkeypatch.setattr(sd._companions, "_likenesses", Likenesses(Plain(), {}))
    for said, word in (
        ({"adapters": [{"model": lora}]}, "`adapters`"),
        ({"controlnet": {"model": made("controlnet"), "image": PHOTOS["square"]}}, "`controlnet`"),
        ({"ip_adapter": {"model": made("ip_adapter"), "images": [PHOTOS["square"]]}}, "`ip_adapter`"),
    ):
        outcome = paint(sd, **said)
        assert isinstance(outcome, Failed)
        assert outcome.error.code == "param_unsupported"
        assert f"remove {word}" in outcome.error.message


def test_a_file_says_what_stood_beside_the_model(sd: Any, lora: str, tmp_path: Path) -> None:
    said = {"adapters": [{"model": lora, "weight": 0.5}, {"model": "file:tiny.safetensors"}]}
    asked = job(**said)
    path = tmp_path / "made.png"
    path.write_bytes(bodies(run_all(sd, [asked])["job"])[0])
    record = read_parameters(path)
    assert record["adapters"] == {name: files.revision for name, files in asked.adapters.items()}
    assert set(record["adapters"]) == {lora, "file:tiny.safetensors"}
    assert all(revision.startswith("sha256:") for revision in record["adapters"].values())
    again = TextToImageParams.model_validate(record["params"])
    assert [(each.model, each.weight) for each in again.adapters or ()] == [(lora, 0.5), ("file:tiny.safetensors", 1.0)]
    path.write_bytes(bodies(paint(sd))[0])
    assert "adapters" not in read_parameters(path)


# --- ControlNet ---


def control(image: str, **how: Any) -> dict[str, Any]:
    return {"controlnet": {"model": made("controlnet"), "image": PHOTOS[image], **how}}


def test_a_controlled_picture_is_that_of_a_direct_call(sd: Any) -> None:
    import torch
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    net = ControlNetModel.from_pretrained(made("controlnet"))
    pipe = StableDiffusionControlNetPipeline.from_pretrained(sd._files.folder, controlnet=net, safety_checker=None)
    theirs = pipe(
        "a hat", image=Image.open(PHOTOS["square"]), num_inference_steps=3, guidance_scale=3.0,
        controlnet_conditioning_scale=0.8, generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    before = bodies(paint(sd, 5))
    ours = picture(paint(sd, 5, **control("square", scale=0.8)))
    assert np.abs(ours - np.asarray(theirs.images[0]).astype(int)).max() <= 1
    assert bodies(paint(sd, 5)) == before


def test_what_it_follows_and_how_closely_makes_the_picture(sd: Any) -> None:
    free, square, other = picture(paint(sd)), *(picture(paint(sd, **control(each))) for each in ("square", "other"))
    assert np.abs(square - other).max() > 4
    assert np.abs(free - square).max() > 4
    assert np.abs(picture(paint(sd, **control("square", scale=0.0))) - free).max() <= 2
    late = picture(paint(sd, **control("square", start=0.5)))
    assert np.abs(late - square).max() > 1


def test_a_controlled_picture_has_the_shape_of_what_it_follows(sd: Any) -> None:
    assert facts(paint(sd, **control("wide")))["width"] > facts(paint(sd, **control("wide")))["height"]
    sides = facts(paint(sd, **control("wide"), width=24, height=32))
    assert (sides["width"], sides["height"]) == (24, 32)


def test_jobs_with_one_control_model_meet_whatever_they_follow(sd: Any) -> None:
    jobs = [
        job("0", **control("square")),
        job("1", **control("other")),
        job("2", **control("other", scale=0.5)),
        job("3"),
    ]
    assert sorted([each.job_id for each in part] for part in sd.cut(jobs, 32)) == [["0", "1"], ["2"], ["3"]]


def test_progress_of_controlled_jobs_goes_by_steps(sd: Any) -> None:
    run = FakeRun()
    run_all(sd, [job(**control("square"))], run=run)
    assert [step[1:] for step in run.steps] == [(1, 3), (2, 3), (3, 3)]


# --- IP-Adapter ---


def like(*images: str, **how: Any) -> dict[str, Any]:
    return {"ip_adapter": {"model": made("ip_adapter"), "images": [PHOTOS[image] for image in images], **how}}


def test_a_likeness_is_that_of_a_direct_call_and_leaves_no_trace(sd: Any) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    before, parts = bodies(paint(sd, 5)), layers(sd)
    had = {name: type(part) for name, part in sd._pipe.components.items()}
    pipe = StableDiffusionPipeline.from_pretrained(sd._files.folder, safety_checker=None)
    pipe.load_ip_adapter(made("ip_adapter"), subfolder="", weight_name="ip-adapter.safetensors")
    pipe.set_ip_adapter_scale(0.9)
    theirs = pipe(
        "a hat", ip_adapter_image=Image.open(PHOTOS["square"]), num_inference_steps=3, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    ours = picture(paint(sd, 5, **like("square", scale=0.9)))
    assert np.abs(ours - np.asarray(theirs.images[0]).astype(int)).max() <= 1
    assert np.abs(ours - pixels(before[0])).max() > 2
    assert bodies(paint(sd, 5)) == before
    assert layers(sd) == parts
    assert {name: type(part) for name, part in sd._pipe.components.items()} == had


def test_it_takes_after_one_picture_or_several(sd: Any) -> None:
    one, other, both = (
        picture(paint(sd, **like(*each, scale=1.0))) for each in (("square",), ("clear",), ("square", "clear"))
    )
    assert np.abs(one - other).max() > 1
    assert np.abs(one - both).max() > 1
    assert np.abs(picture(paint(sd, **like("square", scale=0.0))) - picture(paint(sd))).max() <= 2


def test_an_adapter_without_eyes_says_what_is_missing(sd: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copy(Path(made("ip_adapter")) / "ip-adapter.safetensors", tmp_path / "ip.safetensors")
    outcome = paint(
        sd,
        **(like("square") | {"ip_adapter": {"model": str(tmp_path / "ip.safetensors"), "images": [PHOTOS["square"]]}}),
    )
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "adapter_unfit"
    assert "image_encoder" in outcome.error.message


# --- parking ---


def test_a_model_that_is_parked_takes_nothing_along(sd: Any, lora: str) -> None:
    said = {"adapters": [{"model": lora}], **control("square"), **like("square")}
    made_before, parts = bodies(paint(sd, **said)), None
    assert sd.park()
    parts = layers(sd)
    assert not any("lora" in name or "IPAdapter" in name for name in parts)
    sd.unpark()
    assert bodies(paint(sd, **said)) == made_before


def test_what_is_named_twice_is_found_once() -> None:
    said = TextToImageParams.model_validate(
        {"prompt": "x", "adapters": [{"model": "b/c"}], "controlnet": {"model": "b/c", "image": "x.png"}}
    )
    assert models_beside(said) == [("controlnet", "b/c"), ("lora", "b/c")]
    assert json.loads(said.model_dump_json(exclude_none=True))["adapters"] == [{"model": "b/c", "weight": 1.0}]
