"""Pictures with more pixels: of the exact size, upright, without seams, whatever comes in."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import input_vision
import numpy as np
import pytest
import tiny_models
from contract import FakeRun, Kind, facts, run_all, work
from PIL import ExifTags, Image

from shared.picture_records import read_parameters
from workers.generators import Done, Failed, Generator, Outcome

pytestmark = [pytest.mark.torch, pytest.mark.models]

SWIN = Kind("swin", "super-resolution", "swin2sr:Swin2SR", tiny_models.swin2sr, mixed=())
UPSCALER = Kind("x4", "super-resolution", "diffusers_upscale:DiffusersUpscale", tiny_models.sd_upscaler, mixed=())
LATENT = Kind("x2", "super-resolution", "diffusers_upscale:DiffusersUpscale", tiny_models.sd_latent_upscaler, mixed=())
SCALES = {"swin": 2, "x4": 4, "x2": 2}
STEPS = {"num_inference_steps": 2}

Load = Callable[..., Generator]


def saved(picture: Image.Image, path: Path, **options: Any) -> str:
    picture.save(path, **options)
    return str(path)


def made(load: Load, kind: Kind, params: dict[str, Any], run: FakeRun | None = None) -> Outcome:
    generator = load(kind.generator(), kind.model)
    return run_all(generator, [work(kind, params, seed=3)], run=run)["job-0"]


def opened(outcome: Outcome) -> Image.Image:
    assert isinstance(outcome, Done), outcome
    [output] = outcome.outputs
    body = output.body if isinstance(output.body, bytes) else output.body()
    return Image.open(io.BytesIO(body))


def shades(outcome: Outcome) -> np.ndarray:
    return np.asarray(opened(outcome).convert("RGB")).astype(int)


def oddness(picture: np.ndarray, at: int) -> float:
    """By what factor the step from the column before it is larger or smaller than those around it."""
    steps = np.abs(np.diff(picture, axis=1)).mean(axis=(0, 2))
    around = np.concatenate([steps[at - 40 : at - 4], steps[at + 4 : at + 40]]).mean()
    return float(max(steps[at - 1] / around, around / steps[at - 1]))


# --- exact sizes, and what comes in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SWIN, UPSCALER, LATENT], ids=lambda kind: kind.name)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 17), (32, 32), (33, 31), (70, 65)])
def test_the_size_is_the_factor_times_the_pictures(
    load: Load, tmp_path: Path, kind: Kind, width: int, height: int
) -> None:
    path = saved(input_vision.scene(width, height), tmp_path / "a.png")
    params = {"image": path, "tile": 64, "overlap": 16} | ({} if kind is SWIN else STEPS)
    outcome = made(load, kind, params)
    scale = SCALES[kind.name]
    assert opened(outcome).size == (width * scale, height * scale)
    said = facts(outcome)
    assert (said["width"], said["height"], said["scale"]) == (width * scale, height * scale, scale)


@pytest.mark.parametrize("kind", [SWIN, UPSCALER], ids=lambda kind: kind.name)
def test_a_turned_photograph_comes_out_upright(load: Load, tmp_path: Path, kind: Kind) -> None:
    picture = input_vision.scene(40, 24)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    more = {} if kind is SWIN else STEPS
    turned = made(load, kind, {"image": saved(picture, tmp_path / "a.png", exif=exif)} | more)
    upright = picture.transpose(Image.Transpose.ROTATE_270)
    assert (shades(turned) == shades(made(load, kind, {"image": saved(upright, tmp_path / "b.png")} | more))).all()
    assert opened(turned).getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_what_is_transparent_lies_on_white(load: Load, tmp_path: Path) -> None:
    picture = input_vision.scene(32, 24)
    layer = picture.copy()
    layer.putalpha(Image.linear_gradient("L").resize((32, 24)))
    ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(ground, layer).convert("RGB")
    one, other = (
        made(load, SWIN, {"image": saved(each, tmp_path / name)}) for each, name in ((layer, "a.png"), (flat, "b.png"))
    )
    assert opened(one).mode == "RGB"
    assert (shades(one) == shades(other)).all()


def test_sixteen_bits_are_the_same_picture_in_eight(load: Load, tmp_path: Path) -> None:
    eight = np.asarray(input_vision.scene(32, 24).convert("L"))
    deep = Image.fromarray(eight.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    one = made(load, SWIN, {"image": saved(deep, tmp_path / "a.png")})
    other = made(load, SWIN, {"image": saved(Image.fromarray(eight), tmp_path / "b.png")})
    assert (shades(one) == shades(other)).all()


def test_a_webp_that_would_be_too_wide_is_refused_and_a_png_is_not(load: Load, tmp_path: Path) -> None:
    path = saved(input_vision.scene(8300, 4), tmp_path / "a.png")
    outcome = made(load, SWIN, {"image": path, "format": "webp"})
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "size_unsupported"
    assert "16,383" in outcome.error.message
    assert opened(made(load, SWIN, {"image": path})).size == (16_600, 8)


@pytest.mark.parametrize("kind", [SWIN, UPSCALER], ids=lambda kind: kind.name)
@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_the_file_says_how_it_was_made(load: Load, tmp_path: Path, kind: Kind, form: str) -> None:
    path = saved(input_vision.scene(16, 16), tmp_path / "a.png")
    asked = {"image": path, "format": form} | ({} if kind is SWIN else STEPS | {"prompt": "a shoe"})
    outcome = made(load, kind, asked)
    assert isinstance(outcome, Done)
    file = tmp_path / f"out.{form}"
    file.write_bytes(outcome.outputs[0].body())  # type: ignore[operator]
    record = read_parameters(file)
    assert record["task"] == "super-resolution"
    assert record["seed"] == 3
    assert {name: record["params"][name] for name in asked} == asked


# --- tiles ------------------------------------------------------------------------------------------------------------


def test_tiles_make_what_the_whole_picture_would(load: Load, tmp_path: Path) -> None:
    """Where they overlap by more than the model sees from any one pixel."""
    path = saved(input_vision.scene(301, 170), tmp_path / "a.png")
    run = FakeRun()
    tiled = shades(made(load, SWIN, {"image": path, "tile": 160, "overlap": 64}, run))
    assert run.steps[-1][1:] == (6, 6)
    whole = shades(made(load, SWIN, {"image": path, "tile": 2048}))
    assert tiled.std() > 5
    assert np.abs(tiled - whole).max() <= 1


def test_the_whole_picture_is_what_the_model_makes_of_it(load: Load, tmp_path: Path) -> None:
    import torch

    picture = input_vision.scene(64, 48)
    path = saved(picture, tmp_path / "a.png")
    model = load(SWIN.generator(), SWIN.model)._model
    pixels = torch.from_numpy(np.asarray(picture)).movedim(-1, 0)[None].float() / 255
    with torch.inference_mode():
        expected = model(pixel_values=pixels).reconstruction[0].clamp(0, 1).movedim(0, -1).numpy() * 255
    assert np.abs(shades(made(load, SWIN, {"image": path})) - expected).max() <= 1


def test_the_usual_overlap_leaves_no_seam(load: Load, tmp_path: Path) -> None:
    path = saved(input_vision.scene(240, 100), tmp_path / "a.png")
    whole = shades(made(load, SWIN, {"image": path, "tile": 2048}))
    tiled = shades(made(load, SWIN, {"image": path, "tile": 128}))
    hard = shades(made(load, SWIN, {"image": path, "tile": 128, "overlap": 0}))
    assert np.abs(tiled - whole).max() <= 4 < np.abs(hard - whole).max()


def test_an_overlap_larger_than_the_usual_tile_makes_larger_tiles(load: Load, tmp_path: Path) -> None:
    path = saved(input_vision.scene(90, 40), tmp_path / "a.png")
    outcome = made(load, SWIN, {"image": path, "overlap": 256})
    assert opened(outcome).size == (180, 80)


def test_tiles_of_several_pictures_go_through_the_model_together(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(SWIN.generator(), SWIN.model)
    passes: list[int] = []
    enlarged = generator._enlarged
    monkeypatch.setattr(generator, "_enlarged", lambda pieces: passes.append(len(pieces)) or enlarged(pieces))
    jobs = [work(SWIN, {"image": saved(input_vision.scene(30, 20, n), tmp_path / f"{n}.png")}, n) for n in range(5)]
    outcomes = run_all(generator, jobs)
    assert passes == [5]
    assert len({shades(outcome).tobytes() for outcome in outcomes.values()}) == 5


def test_tiles_that_do_not_fit_into_memory_together_are_made_one_by_one(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(input_vision.scene(150, 100), tmp_path / "a.png")
    params = {"image": path, "tile": 64, "overlap": 16}
    expected = shades(made(load, SWIN, params))
    generator = load(SWIN.generator(), SWIN.model)
    enlarged = generator._enlarged

    def small(pieces: Any) -> Any:
        if len(pieces) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return enlarged(pieces)

    monkeypatch.setattr(generator, "_enlarged", small)
    monkeypatch.setattr(generator, "_fits", {})
    assert np.abs(shades(made(load, SWIN, params)) - expected).max() <= 1
    assert generator._fits


def test_a_picture_that_nobody_wants_any_more_stops_between_two_tiles(load: Load, tmp_path: Path) -> None:
    path = saved(input_vision.scene(600, 300), tmp_path / "a.png")
    run = FakeRun()
    wanted = run.wanted
    run.wanted = lambda job_id: wanted(job_id) and len(run.steps) < 4  # type: ignore[method-assign]
    generator = load(SWIN.generator(), SWIN.model)
    assert run_all(generator, [work(SWIN, {"image": path, "tile": 128})], run=run) == {}
    assert 4 <= len(run.steps) < 12


@pytest.mark.parametrize("kind", [UPSCALER, LATENT], ids=lambda kind: kind.name)
def test_a_picture_that_is_denoised_in_tiles_has_no_seam(load: Load, tmp_path: Path, kind: Kind) -> None:
    """The tile of these tiny models knows nothing of its neighbours: without an overlap its edge can be seen."""
    path = saved(input_vision.scene(128, 64), tmp_path / "a.png")
    asked = {"image": path, "prompt": "a shoe", "tile": 64} | STEPS
    at = 64 * SCALES[kind.name]
    hard, soft = (shades(made(load, kind, asked | {"overlap": overlap})) for overlap in (0, 32))
    assert hard.std() > 1
    assert oddness(soft, at) < 1.25 < oddness(hard, at)


@pytest.mark.parametrize("kind", [UPSCALER, LATENT], ids=lambda kind: kind.name)
def test_one_tile_is_the_pipeline_itself(load: Load, tmp_path: Path, kind: Kind) -> None:
    import torch

    picture = input_vision.scene(32, 48)
    path = saved(picture, tmp_path / "a.png")
    outcome = made(load, kind, {"image": path, "prompt": "a shoe", "guidance_scale": 4.0} | STEPS)
    pipe = load(kind.generator(), kind.model)._pipe
    rng = [torch.Generator("cpu").manual_seed(3)]
    call = {"prompt": ["a shoe"], "image": [picture], "guidance_scale": 4.0, "output_type": "np", "generator": rng}
    expected = pipe(**call, **STEPS).images[0] * 255
    assert np.abs(shades(outcome) - expected).max() <= 1


def test_a_network_in_tiles_gives_what_it_gives_at_once() -> None:
    import torch

    from workers.generators.tiled_networks import in_tiles

    torch.manual_seed(0)
    sample = torch.randn(2, 3, 96, 128)
    for network in (
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, padding=1)),
        torch.nn.Conv2d(3, 2, 4, stride=2, padding=1),
        torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(3, 2, 3, padding=1)),
    ):
        calls: list[int] = []
        with torch.inference_mode():
            whole = network(sample)
            with in_tiles(network, side=64, overlap=16, say=lambda calls=calls: calls.append(1)):
                tiled = network(sample)
            again = network(sample)
        assert len(calls) == 6
        assert torch.allclose(tiled, whole, atol=1e-5)
        assert torch.equal(again, whole)
        assert "forward" not in vars(network)
