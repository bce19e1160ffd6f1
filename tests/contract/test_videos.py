"""Videos, beyond what every generator promises: the files, and what each family can make."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import input_files
import numpy as np
import pytest
import tiny_models
from contract import CPU, FakeRun, Stop, bodies, files_of, generator, moving_pixels, pixels, run_all
from PIL import Image

from shared.errors import ModelRejected
from shared.picture_records import read_parameters as read_poster
from shared.tasks import all_tasks
from workers.generators import Done, Failed, Generator, Outcome, Work
from workers.generators.video_files import read_parameters
from workers.inputs.looks import Limits, examine

pytestmark = [pytest.mark.torch, pytest.mark.models]

PHOTOS = input_files.photos()
STEPS = {"num_inference_steps": 2}


def of_words() -> type[Generator]:
    return generator("diffusers_text_to_video:DiffusersTextToVideo")


def of_pictures() -> type[Generator]:
    return generator("diffusers_image_to_video:DiffusersImageToVideo")


@pytest.fixture
def cog(load: Callable[..., Generator]) -> Any:
    """Of the tiny models the one whose videos have the most in them."""
    return load(of_words(), tiny_models.cogvideox)


@pytest.fixture
def svd(load: Callable[..., Generator]) -> Any:
    return load(of_pictures(), tiny_models.stable_video_diffusion)


def job(task: str, seed: int = 0, name: str = "job", **params: Any) -> Work:
    said = all_tasks()[task].params.model_validate(STEPS | params)
    inputs = {}
    if "image" in params:
        inputs["image"] = examine(Path(params["image"]), "image", "image", Limits(pixels=10**7, seconds=100))
    return Work(name, task, said, seed, inputs=inputs)


def film(maker: Generator, task: str, seed: int = 0, **params: Any) -> Outcome:
    return run_all(maker, [job(task, seed, **params)])["job"]


def facts(outcome: Outcome) -> list[dict[str, Any]]:
    assert isinstance(outcome, Done), outcome
    return [dict(output.facts) for output in outcome.outputs]


def error_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Failed), outcome
    return f"{outcome.error.code}: {outcome.error.message}"


HAT = {"prompt": "a hat", "width": 32, "height": 16, "num_frames": 9, "fps": 10}


def test_a_job_becomes_videos_with_a_poster_and_a_preview_of_each(cog: Any) -> None:
    outcome = film(cog, "text-to-video", 40, num_videos=2, **HAT)
    parts = [(each["part"], each["seed"]) for each in facts(outcome)]
    assert parts == [
        ("video", 40), ("video", 41), ("poster", 40), ("preview", 40), ("poster", 41), ("preview", 41)
    ]  # fmt: skip
    assert isinstance(outcome, Done)
    kinds = [output.media_type for output in outcome.outputs]
    assert kinds == ["video/mp4", "video/mp4", "image/jpeg", "image/webp", "image/jpeg", "image/webp"]
    assert all(output.role == "output" for output in outcome.outputs)


def test_the_way_from_noise_to_video_is_chosen_where_the_model_leaves_a_choice(load: Callable[..., Generator]) -> None:
    said = {"prompt": "a hat", "width": 32, "height": 16, "num_frames": 4}
    maker: Any = load(of_words(), tiny_models.animatediff)
    own, ddpm = (film(maker, "text-to-video", 1, **said | more) for more in ({}, {"scheduler": "ddpm"}))
    assert not np.array_equal(moving_pixels(bodies(own)[0]), moving_pixels(bodies(ddpm)[0]))
    assert bodies(film(maker, "text-to-video", 1, **said)) == bodies(own), "nothing of it stays behind"
    jobs = [job("text-to-video", 1, "a", **said), job("text-to-video", 1, "b", scheduler="ddpm", **said)]
    assert [len(part) for part in maker.cut(jobs, 8)] == [1, 1]
    assert "no `flow_shift`" in error_of(film(maker, "text-to-video", flow_shift=3.0, **said))


def test_a_model_of_rectified_flow_is_shifted_as_a_direct_call_is(load: Callable[..., Generator]) -> None:
    said = {"prompt": "a hat", "width": 32, "height": 16, "num_frames": 5, "num_inference_steps": 4}
    maker: Any = load(of_words(), tiny_models.wan)
    own = maker._pipe.scheduler.config
    as_it_is = film(maker, "text-to-video", 1, **said)
    same = film(maker, "text-to-video", 1, flow_shift=own.flow_shift, **said)
    assert np.array_equal(moving_pixels(bodies(same)[0]), moving_pixels(bodies(as_it_is)[0]))
    film(maker, "text-to-video", 1, flow_shift=9.0, **said)
    used = maker._pipe.scheduler
    wanted = type(used).from_config(own, flow_shift=9.0)
    wanted.set_timesteps(4)
    assert used.sigmas.tolist() == wanted.sigmas.tolist()
    assert used.config.flow_shift == 9.0
    assert bodies(film(maker, "text-to-video", 1, **said)) == bodies(as_it_is), "nothing of it stays behind"
    assert "scheduler=ddim does not fit" in error_of(film(maker, "text-to-video", scheduler="ddim", **said))


def test_what_a_model_decides_itself_is_refused(cog: Any, svd: Any, load: Callable[..., Generator]) -> None:
    photo = {"image": PHOTOS["square"], "width": 32, "height": 32, "num_frames": 2}
    assert "scheduler=euler does not fit" in error_of(film(cog, "text-to-video", **HAT | {"scheduler": "euler"}))
    assert "no `flow_shift`" in error_of(film(cog, "text-to-video", **HAT | {"flow_shift": 2}))
    assert "scheduler=ddim does not fit" in error_of(film(svd, "image-to-video", scheduler="ddim", **photo))
    ltx: Any = load(of_words(), tiny_models.ltx)
    told = error_of(film(ltx, "text-to-video", prompt="a hat", width=32, height=32, num_frames=9, flow_shift=2))
    assert "by the size of the video" in told


@pytest.mark.parametrize("form", ["mp4", "webm", "webp", "gif"])
def test_each_file_is_what_its_facts_say(cog: Any, form: str) -> None:
    outcome = film(cog, "text-to-video", 40, **HAT | {"format": form, "preview": "gif"})
    video, poster, preview = facts(outcome)
    body, still, small = bodies(outcome)
    assert video == {
        "part": "video", "width": 32, "height": 16, "frames": 9, "fps": 10, "seconds": 0.9, "format": form, "seed": 40
    }  # fmt: skip
    assert moving_pixels(body).shape == (9, 16, 32, 3)
    if form in ("mp4", "webm"):
        with av.open(io.BytesIO(body)) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.average_rate) == (32, 16, 10)
            assert container.duration == pytest.approx(900_000, abs=1000)
    assert (poster["width"], poster["height"], poster["format"]) == (32, 16, "jpeg")
    assert pixels(still).shape == (16, 32, 3)
    assert preview["frames"] == len(moving_pixels(small)) == 9
    # The poster is the first frame: they differ by what their coding loses, and other videos by more.
    other = bodies(film(cog, "text-to-video", 41, **HAT | {"format": form, "preview": "none"}))[1]
    near, far = (np.abs(moving_pixels(body)[0] - pixels(each)).mean() for each in (still, other))
    assert near < far / 2


def test_a_video_is_that_of_a_direct_call(cog: Any) -> None:
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(cog._files.folder)
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(7)
    direct = pipe(
        "a hat", width=32, height=16, num_frames=9, num_inference_steps=2, generator=rng, output_type="np"
    ).frames[0]
    [made] = cog._made(cog._given([_video(job("text-to-video", 7, **HAT))]))
    assert np.abs(direct * 255 - made.frames).max() <= 1


def _video(work: Work) -> Any:
    from workers.generators.diffusers_videos import Video

    return Video(work, 0)


def test_a_file_says_how_it_was_made_and_makes_it_again(cog: Any, tmp_path: Path) -> None:
    outcome = film(cog, "text-to-video", 6, num_videos=2, negative_prompt="red", **HAT)
    assert isinstance(outcome, Done)
    made = bodies(outcome)
    (tmp_path / "x.mp4").write_bytes(made[1])
    (tmp_path / "x.jpeg").write_bytes(made[4])
    record = read_parameters(tmp_path / "x.mp4")
    assert read_poster(tmp_path / "x.jpeg") == record
    assert (record["task"], record["model"], record["seed"], record["video"]) == (
        "text-to-video", cog._files.ref, 7, 1
    )  # fmt: skip
    again = film(cog, "text-to-video", record["seed"], **record["params"] | {"num_videos": 1})
    assert np.abs(moving_pixels(bodies(again)[0]) - moving_pixels(made[1])).mean() <= 3


@pytest.mark.parametrize(
    ("model", "params", "advice"),
    [
        (tiny_models.ltx, {"num_frames": 12}, "1, 9, 17, 25 … frames; nearest: num_frames=9"),
        (tiny_models.ltx, {"num_frames": 14}, "nearest: num_frames=17"),
        (tiny_models.ltx, {"width": 40, "height": 64}, "multiples of 32; nearest: width=32"),
        (tiny_models.wan, {"num_frames": 8}, "1, 5, 9, 13 … frames; nearest: num_frames=9"),
        (tiny_models.wan, {"width": 40, "height": 24}, "multiples of 16; nearest: width=32, height=32"),
        (tiny_models.wan, {"decode_chunk_size": 2}, "has no `decode_chunk_size`: remove it"),
        (tiny_models.cogvideox, {"num_frames": 48}, "1, 9, 17, 25 … frames; nearest: num_frames=49"),
        (tiny_models.animatediff, {"num_frames": 20}, "up to 8 frames; nearest: num_frames=8"),
        (tiny_models.ltx, {"prompt": "shoes " * 500}, "this model reads 128: shorten it, or set long_prompt=truncate"),
    ],
)
def test_what_a_family_cannot_make_is_refused_with_the_nearest_that_it_can(
    load: Callable[..., Generator], model: Any, params: dict[str, Any], advice: str
) -> None:
    asked = {"prompt": "a hat", "num_frames": 1} | params
    assert advice in error_of(film(load(of_words(), model), "text-to-video", **asked))


def test_the_nearest_number_of_frames_is_one_that_the_family_makes(load: Callable[..., Generator]) -> None:
    for model in (tiny_models.ltx, tiny_models.wan, tiny_models.cogvideox, tiny_models.animatediff):
        known = load(of_words(), model)._range  # type: ignore[attr-defined]
        for asked in range(1, 40):
            nearest = known.nearest(asked)
            assert known.nearest(nearest) == nearest
            assert all(
                abs(each - asked) >= abs(nearest - asked) for each in range(1, 60) if known.nearest(each) == each
            )


def test_a_model_of_one_size_takes_every_picture_and_says_which_size(load: Callable[..., Generator]) -> None:
    maker = load(of_pictures(), tiny_models.cogvideox_of_pictures)
    asked = {"prompt": "a hat", "image": PHOTOS["wide"], "num_frames": 9}
    [video, *_] = facts(film(maker, "image-to-video", **asked))
    assert (video["width"], video["height"]) == (16, 16)
    refused = film(maker, "image-to-video", width=32, height=16, **asked)
    assert "one size only: set width=16 and height=16, or neither" in error_of(refused)


def test_a_video_has_the_shape_of_its_picture_unless_asked_otherwise(svd: Any) -> None:
    [video, *_] = facts(film(svd, "image-to-video", image=PHOTOS["wide"]))
    assert (video["width"], video["height"], video["frames"], video["fps"]) == (40, 16, 4, 7)
    [video, *_] = facts(film(svd, "image-to-video", image=PHOTOS["wide"], width=16, height=24, num_frames=2))
    assert (video["width"], video["height"], video["frames"]) == (16, 24, 2)


def test_a_model_of_pictures_alone_wants_no_words(svd: Any) -> None:
    refused = film(svd, "image-to-video", image=PHOTOS["square"], prompt="a hat")
    assert "has no `prompt`: remove it" in error_of(refused)


@pytest.mark.parametrize(
    "params", [{"motion_bucket_id": 255}, {"noise_aug_strength": 3.0}, {"guidance_scale": 9.0}, {"fps": 30}]
)
def test_every_param_of_stable_video_diffusion_does_something(svd: Any, params: dict[str, Any]) -> None:
    plain, other = (
        svd._made(svd._given([_video(job("image-to-video", image=PHOTOS["square"], **each))])) for each in ({}, params)
    )
    assert (plain[0].frames != other[0].frames).any()


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        (tiny_models.ltx, {"width": 32, "height": 32, "num_frames": 9}),
        (tiny_models.wan, {"num_frames": 5}),
        (tiny_models.wan_of_pictures, {"num_frames": 5}),
        (tiny_models.cogvideox_of_pictures, {"num_frames": 9}),
    ],
)
def test_another_picture_makes_another_video(load: Callable[..., Generator], model: Any, asked: dict[str, Any]) -> None:
    maker: Any = load(of_pictures(), model)
    one, other = (
        maker._made(maker._given([_video(job("image-to-video", prompt="a hat", image=PHOTOS[name], **asked))]))
        for name in ("square", "other")
    )
    assert (one[0].frames != other[0].frames).any()


@pytest.mark.parametrize("task", ["text-to-video", "image-to-video"])
def test_a_model_that_makes_sound_as_well_makes_it_a_part_of_the_video(
    load: Callable[..., Generator], task: str
) -> None:
    words = task == "text-to-video"
    maker = load(of_words() if words else of_pictures(), tiny_models.ltx2)
    asked = {"prompt": "rain", "width": 32, "height": 32, "num_frames": 9, "fps": 12}
    outcome = film(maker, task, **asked | ({} if words else {"image": PHOTOS["square"]}))
    video = facts(outcome)[0]
    assert (video["sample_rate"], video["channels"], video["seconds"]) == (16000, 2, 0.75)
    with av.open(io.BytesIO(bodies(outcome)[0])) as container:
        [stream] = container.streams.audio
        assert (stream.rate, stream.channels) == (16000, 2)
        heard = sum(frame.samples for frame in container.decode(audio=0))
    assert heard / 16000 == pytest.approx(0.75, abs=0.2)


def test_small_videos_meet_and_large_ones_do_not(load: Callable[..., Generator]) -> None:
    maker = load(of_words(), tiny_models.ltx)
    small = [job("text-to-video", name=f"s{n}", prompt=str(n), width=32, height=32, num_frames=9) for n in range(5)]
    large = [job("text-to-video", name=f"l{n}", prompt=str(n)) for n in range(3)]
    assert [len(share) for share in maker.cut([*small, *large], 32)] == [5, 1, 1, 1]
    assert (maker.most(small, 32), maker.most(large, 32)) == (32, 1)


def test_chunks_of_frames_never_hold_two_videos(svd: Any) -> None:
    straight, across = (
        [
            job("image-to-video", name=f"{n}", image=PHOTOS["square"], num_frames=4, decode_chunk_size=chunk)
            for n in range(3)
        ]
        for chunk in (2, 3)
    )
    assert [len(svd._given([_video(each)])["generator"]) for each in straight] == [1, 1, 1]
    assert [len(share) for share in svd.cut(straight, 8)] == [3]
    assert [len(share) for share in svd.cut(across, 8)] == [1, 1, 1]


def test_numbers_that_overflow_fail_the_job_and_say_what_to_do(cog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    decode = cog._pipe.decode_latents
    monkeypatch.setattr(cog._pipe, "decode_latents", lambda latents: torch.full_like(decode(latents), torch.nan))
    assert "numerics: the model's numbers overflowed" in error_of(film(cog, "text-to-video", **HAT))


def test_a_pipeline_without_callbacks_is_stopped_between_its_steps_too(cog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(cog, "_accepts", {n: p for n, p in cog._accepts.items() if n != "callback_on_step_end"})
    run = FakeRun(stop_at=2)
    with pytest.raises(Stop):
        list(cog.generate([job("text-to-video", **HAT | {"num_inference_steps": 4})], run))
    assert [(done, total) for _, done, total in run.steps] == [(1, 4), (2, 4)]
    assert isinstance(film(cog, "text-to-video", **HAT), Done)


def test_videos_that_do_not_fit_together_are_made_in_halves(cog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked = HAT | {"num_videos": 4, "preview": "none"}
    expected = bodies(film(cog, "text-to-video", 3, **asked))
    call, sizes = type(cog._pipe).__call__, []

    def narrow(self: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["generator"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, *args, **kwargs)

    monkeypatch.setattr(type(cog._pipe), "__call__", narrow)
    made = bodies(film(cog, "text-to-video", 3, **asked))
    assert sizes == [4, 2, 2]
    for one, other in zip(made[:4], expected[:4], strict=True):
        assert np.abs(moving_pixels(one) - moving_pixels(other)).mean() <= 3


@pytest.mark.parametrize(
    ("pipeline", "words", "pictures"),
    [
        ("LTXPipeline", "LTXPipeline", "LTXImageToVideoPipeline"),
        ("LTXImageToVideoPipeline", "LTXPipeline", "LTXImageToVideoPipeline"),
        ("LTXConditionPipeline", "LTXConditionPipeline", "LTXConditionPipeline"),
        ("WanPipeline", "WanPipeline", None),
        ("WanImageToVideoPipeline", None, "WanImageToVideoPipeline"),
        ("WanVACEPipeline", None, None),
        ("WanVideoToVideoPipeline", None, None),
        ("CogVideoXPipeline", "CogVideoXPipeline", None),
        ("CogVideoXImageToVideoPipeline", None, "CogVideoXImageToVideoPipeline"),
        ("CogVideoXVideoToVideoPipeline", None, None),
        ("CogVideoXFunControlPipeline", None, None),
        ("AnimateDiffPipeline", "AnimateDiffPipeline", None),
        ("AnimateDiffSDXLPipeline", "AnimateDiffSDXLPipeline", None),
        ("AnimateDiffControlNetPipeline", None, None),
        ("AnimateDiffVideoToVideoPipeline", None, None),
        ("StableVideoDiffusionPipeline", None, "StableVideoDiffusionPipeline"),
        ("HunyuanVideoPipeline", "HunyuanVideoPipeline", None),
        ("HunyuanVideoImageToVideoPipeline", None, "HunyuanVideoImageToVideoPipeline"),
        ("HunyuanVideoFramepackPipeline", None, "HunyuanVideoFramepackPipeline"),
        ("HunyuanVideo15Pipeline", "HunyuanVideo15Pipeline", None),
        ("MochiPipeline", "MochiPipeline", None),
        ("AllegroPipeline", "AllegroPipeline", None),
        ("Kandinsky5T2VPipeline", "Kandinsky5T2VPipeline", None),
        ("Kandinsky5I2VPipeline", None, "Kandinsky5I2VPipeline"),
        ("SanaVideoPipeline", "SanaVideoPipeline", None),
        ("SkyReelsV2Pipeline", "SkyReelsV2Pipeline", None),
        ("SkyReelsV2ImageToVideoPipeline", None, "SkyReelsV2ImageToVideoPipeline"),
        ("CosmosTextToWorldPipeline", "CosmosTextToWorldPipeline", None),
        ("LTX2Pipeline", "LTX2Pipeline", "LTX2ImageToVideoPipeline"),
        ("LTX2ConditionPipeline", None, None),
        ("Kandinsky6TI2VAPipeline", None, None),
        ("StableDiffusionPipeline", None, None),
        ("StableDiffusionImg2ImgPipeline", None, None),
        ("FluxPipeline", None, None),
        ("NoSuchPipeline", None, None),
    ],
)
def test_which_pipeline_serves_a_model(pipeline: str, words: str | None, pictures: str | None) -> None:
    from workers.generators.video_pipelines import from_pictures, from_words

    for serves, name in ((from_words, words), (from_pictures, pictures)):
        found = serves({"_class_name": pipeline})
        assert (found.__name__ if isinstance(found, type) else None) == name, found


def test_the_small_wan_is_for_both(root: Path) -> None:
    files = files_of(tiny_models.wan, root)
    assert of_words().serves(files)
    assert of_pictures().serves(files)


@pytest.mark.parametrize("task", ["text-to-video", "image-to-video"])
def test_the_later_ltx_has_one_pipeline_for_both(root: Path, tmp_path: Path, task: str) -> None:
    folder = tmp_path / "ltx-later"
    shutil.copytree(tiny_models.ltx(root), folder)
    for name, before, after in (
        ("model_index.json", '"LTXPipeline"', '"LTXConditionPipeline"'),
        ("scheduler/scheduler_config.json", '"use_dynamic_shifting": true', '"use_dynamic_shifting": false'),
    ):
        said = (folder / name).read_text()
        assert before in said
        (folder / name).write_text(said.replace(before, after))
    words = task == "text-to-video"
    kind = of_words() if words else of_pictures()
    maker = kind.load(files_of(lambda _: folder, tmp_path), CPU)
    asked = {"prompt": "rain", "width": 64, "height": 32, "num_frames": 9, "num_videos": 2}
    made = [
        facts(film(maker, task, **asked | ({} if words else {"image": PHOTOS[name]}), preview="none"))[0]
        for name in ("square", "other")
    ]
    assert [(each["width"], each["height"], each["frames"], each["fps"]) for each in made] == [(64, 32, 9, 25)] * 2


def test_the_decoder_of_wan_keeps_its_precision() -> None:
    import torch

    from workers.generators.video_pipelines import dtypes

    assert dtypes({"vae": ["diffusers", "AutoencoderKLWan"]}, torch.bfloat16)["vae"] == torch.float32
    assert dtypes({"vae": ["diffusers", "AutoencoderKLLTXVideo"]}, torch.bfloat16) == torch.bfloat16


def test_a_folder_without_weights_is_rejected(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_models.wan(root), folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelRejected) as error:
        of_words().load(files_of(lambda _: folder, tmp_path), CPU)
    assert error.value.code == "model_not_a_model"


def test_a_pipeline_that_needs_a_library_says_which(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import WanPipeline

    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("`cosmos_guardrail` is not installed")

    monkeypatch.setattr(WanPipeline, "from_pretrained", lacking)
    with pytest.raises(ModelRejected, match="cosmos_guardrail") as error:
        of_words().load(files_of(tiny_models.wan, root), CPU)
    assert (error.value.code, error.value.retryable) == ("library_missing", False)


def test_a_poster_is_a_picture_that_pillow_reads(svd: Any) -> None:
    poster = bodies(film(svd, "image-to-video", image=PHOTOS["square"]))[1]
    with Image.open(io.BytesIO(poster)) as image:
        assert (image.format, image.size) == ("JPEG", (16, 16))
