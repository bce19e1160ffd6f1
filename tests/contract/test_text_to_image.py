"""Pictures out of words, beyond what every generator promises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from contract import CPU, LONG, PICTURE, bodies, facts, generator, pixels, run_all
from PIL import Image

from shared.errors import ModelRejected, RequestError
from shared.picture_records import read_parameters
from shared.settings import Settings
from shared.tasks.text_to_image import TextToImageParams
from workers.generators import Failed, Generator, Outcome, Work
from workers.model_files import resolve

pytestmark = [pytest.mark.torch, pytest.mark.models]


def painter() -> type[Generator]:
    return generator("diffusers_text_to_image:DiffusersTextToImage")


@pytest.fixture
def sd(load: Callable[..., Generator]) -> Any:
    return load(painter(), tiny_models.stable_diffusion)


@pytest.fixture
def library_log() -> Iterator[list[str]]:
    """All that the libraries log, whatever their own handlers do."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    loggers, handler = [logging.getLogger(name) for name in ("diffusers", "transformers")], Keep()
    for logger in loggers:
        logger.addHandler(handler)
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


def paint(sd: Any, seed: int = 0, **params: Any) -> Outcome:
    job = Work("job", "text-to-image", TextToImageParams.model_validate(PICTURE | {"prompt": "a hat"} | params), seed)
    return run_all(sd, [job])["job"]


def test_a_picture_is_that_of_a_direct_call(sd: Any) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd._files.folder, safety_checker=None)
    made = pipe("a hat", negative_prompt="red", num_inference_steps=4, guidance_scale=5.0,
                generator=torch.Generator().manual_seed(9)).images[0]  # fmt: skip
    ours = paint(sd, 9, negative_prompt="red", num_inference_steps=4, guidance_scale=5.0)
    assert np.abs(pixels(bodies(ours)[0]) - np.asarray(made).astype(int)).max() <= 1
    assert facts(ours) == {"width": 16, "height": 16, "seed": 9, "format": "png"}


def test_a_model_may_recommend_a_guidance_of_its_own(tmp_path: Path, sd: Any) -> None:
    import shutil

    folder = tmp_path / "mild"
    shutil.copytree(sd._files.folder, folder)
    (folder / "generation_defaults.json").write_text('{"guidance_scale": 2.0}')
    settings = Settings(_env_file=None, data_dir=tmp_path)
    mild = painter().load(resolve(str(folder), settings=settings), CPU)
    by_default, asked, usual = (pixels(bodies(paint(mild, guidance_scale=g))[0]) for g in (None, 2.0, 7.5))
    assert np.abs(by_default - asked).max() == 0
    assert np.abs(by_default - usual).max() > 2

    (folder / "generation_defaults.json").write_text('{"guidance": 2.0}')
    with pytest.raises(ModelRejected, match=r"generation_defaults\.json"):
        painter().load(resolve(str(folder), settings=settings), CPU)


def test_every_scheduler_runs_and_leaves_no_state_behind(sd: Any) -> None:
    from workers.generators.samplers import SCHEDULERS

    before = paint(sd)
    for name, (kind, settings, _) in SCHEDULERS.items():
        picture = pixels(bodies(paint(sd, scheduler=name))[0])
        assert picture.std() > 1
        used = sd._pipe.scheduler
        assert type(used).__name__ == kind
        assert settings.items() <= dict(used.config).items()
        assert used.config.beta_start == 0.00085  # the model's own
    assert bodies(paint(sd)) == bodies(before)


def test_a_scheduler_that_does_not_fit_the_model_is_refused(sd: Any, monkeypatch) -> None:
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    from workers.generators.samplers import Samplers

    flow = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    for own in (FlowMatchEulerDiscreteScheduler(), flow, None):
        monkeypatch.setattr(sd, "_samplers", Samplers(own))
        outcome = paint(sd, scheduler="ddim")
        assert isinstance(outcome, Failed)
        assert outcome.error.code == "scheduler_unsupported"
        assert "leave `scheduler` out" in outcome.error.message


def test_what_the_pipeline_has_not_is_never_dropped(sd: Any, monkeypatch) -> None:
    accepts = {name: parameter for name, parameter in sd._accepts.items() if name not in ("negative_prompt", "width")}
    monkeypatch.setattr(sd, "_accepts", accepts)
    for params in ({"negative_prompt": "red"}, {"width": 32, "height": 32}):
        outcome = paint(sd, **params)
        assert isinstance(outcome, Failed)
        assert outcome.error.code == "param_unsupported"


def test_a_size_that_the_model_cannot_make_names_the_nearest(sd: Any, monkeypatch) -> None:
    monkeypatch.setattr(sd._pipe, "patch_size", 32, raising=False)
    outcome = paint(sd, width=72, height=64)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "size_unsupported"
    assert outcome.error.message.endswith("multiples of 64; nearest: width=64")


def test_windows_of_a_short_prompt_are_what_the_pipeline_encodes_itself(sd: Any) -> None:
    import torch

    theirs, empty = sd._pipe.encode_prompt("blue cups", "cpu", 1, True)
    assert torch.allclose(sd._windows.encode(["blue cups"], 1), theirs, atol=1e-6)
    two = sd._windows.encode(["blue cups"], 2)
    assert two.shape == (1, 2 * 77, 32)
    assert torch.allclose(two[:, 77:], empty, atol=1e-6)


def test_a_long_prompt_is_read_to_its_end_cut_or_refused(sd: Any) -> None:
    assert sd._windows.count("x" * 75) == 1
    assert sd._windows.count("x" * 76) == 2
    chunked, other = paint(sd, prompt=LONG), paint(sd, prompt=LONG + "red")
    assert facts(chunked) == facts(asked := paint(sd, prompt=LONG, long_prompt="chunk"))
    assert (pixels(bodies(chunked)[0]) == pixels(bodies(asked)[0])).all()
    assert (pixels(bodies(chunked)[0]) != pixels(bodies(other)[0])).any()
    cut = [pixels(bodies(paint(sd, prompt=p, long_prompt="truncate"))[0]) for p in (LONG, LONG + "red")]
    assert (cut[0] == cut[1]).all()
    refused = paint(sd, prompt=LONG, long_prompt="fail")
    assert isinstance(refused, Failed)
    tokens = len(sd._pipe.tokenizer(LONG)["input_ids"])
    assert f"has {tokens} tokens, and this model reads 77" in refused.error.message
    negative = paint(sd, negative_prompt=LONG, long_prompt="fail")
    assert isinstance(negative, Failed)
    assert "`negative_prompt` has" in negative.error.message


def test_prompts_do_not_go_to_the_log(sd: Any, library_log: list[str]) -> None:
    paint(sd, prompt=LONG, long_prompt="truncate")
    paint(sd, prompt=LONG)
    assert not [line for line in library_log if "every road" in line]


def test_a_picture_that_overflowed_fails_with_advice(sd: Any, monkeypatch) -> None:
    import torch

    decode = sd._pipe.vae.decode
    monkeypatch.setattr(sd, "_dtype", "float16")
    monkeypatch.setattr(sd._pipe.vae, "decode", lambda *a, **k: (torch.full_like(decode(*a, **k)[0], torch.nan),))
    outcome = paint(sd)
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.error.retryable) == ("numerics", False)
    assert "AIGC_DTYPE=float32" in outcome.error.message


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
def test_a_file_says_how_it_was_made_and_makes_it_again(sd: Any, format_: str, tmp_path: Path) -> None:
    prompt = 'ein "Hut", größer als 🎩\nzweite Zeile'
    outcome = paint(
        sd, 6, prompt=prompt, negative_prompt="klein: 小", format=format_, num_images=2, scheduler="euler_a"
    )
    path = tmp_path / f"made.{format_}"
    path.write_bytes(bodies(outcome)[1])
    record = read_parameters(path)
    assert (record["task"], record["model"], record["seed"], record["image"]) == ("text-to-image", sd._files.ref, 7, 1)
    assert record["revision"] == sd._files.revision
    assert record["dtype"] == "float32"
    again = paint(sd, record["seed"], **(record["params"] | {"num_images": 1}))
    assert np.abs(pixels(bodies(again)[0]) - pixels(path.read_bytes())).max() <= (2 if format_ == "png" else 24)
    assert web_ui_text(path.read_bytes()).startswith(
        f"{prompt}\nNegative prompt: klein: 小\nSteps: 3, Sampler: Euler a, CFG scale: 3, Seed: 7, Size: 16x16, Model: "
    )


def web_ui_text(body: bytes) -> str:
    """`parameters` by an independent reader: only the formats' own framing, no Pillow."""
    if body.startswith(b"\x89PNG"):
        at = 8
        while at < len(body):
            size, name = int.from_bytes(body[at : at + 4], "big"), body[at + 4 : at + 8]
            data = body[at + 8 : at + 8 + size]
            if name == b"iTXt" and data.startswith(b"parameters\0"):
                assert data[11:13] == b"\0\0"  # not compressed
                return data[13:].split(b"\0", 2)[2].decode()
            at += size + 12
        raise AssertionError("no text chunk")
    marked = body.index(b"UNICODE\0") + len(b"UNICODE\0")
    exif = body.index(b"Exif\0\0") + 6 if b"Exif\0\0" in body else body.index(b"EXIF") + 8
    order = "little" if body[exif : exif + 2] == b"II" else "big"
    # UserComment, of the type UNDEFINED
    entry = (0x9286).to_bytes(2, order) + (7).to_bytes(2, order)
    count = int.from_bytes(body[(at := body.index(entry)) + 4 : at + 8], order)
    return body[marked : marked + count - 8].decode("utf-16-be")


def test_the_longest_prompts_fit_into_a_jpeg(tmp_path: Path) -> None:
    from workers.generators.picture_files import encode

    params = {"prompt": "🎩" * 6000, "negative_prompt": "é" * 6000, "num_inference_steps": 3}
    record = {
        "task": "text-to-image",
        "model": "m",
        "params": params,
        "seed": 1,
        "width": 16,
        "height": 16,
        "guidance_scale": 7.5,
    }
    path = tmp_path / "x.jpeg"
    path.write_bytes(encode(Image.new("RGB", (16, 16)), "jpeg", None, record, "DDIM"))
    assert read_parameters(path) == record


def test_a_picture_of_others_says_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    for name in ("x.png", "x.jpg", "missing.png"):
        with pytest.raises(RequestError):
            read_parameters(tmp_path / name)
