"""Video files: what an independent reader finds in them, and what becomes of the odd ones."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageSequence
from pydantic import ValidationError

from shared.errors import RequestError
from shared.tasks.image_to_video import ImageToVideoParams
from shared.tasks.text_to_video import TASK, TextToVideoParams
from workers.generators.video_files import Frames, Reel, Sound, read_parameters, write_preview, write_video

RECORD: dict[str, Any] = {"task": "text-to-video", "params": {"prompt": 'ein "Hut", größer als 🎩\n小'}, "seed": 7}
FILMS = ("mp4", "webm")
FORMS = (*FILMS, "webp", "gif")


def clip(count: int = 12, height: int = 48, width: int = 64) -> Frames:
    """A square that wanders over a ground of soft colours."""
    ground = np.zeros((height, width, 3), dtype=np.uint8)
    ground[..., 0] = np.linspace(30, 200, width)[None, :]
    ground[..., 1] = np.linspace(200, 40, height)[:, None]
    ground[..., 2] = 90
    frames = np.repeat(ground[None], count, axis=0)
    for number in range(count):
        frames[number, 8:24, 2 + 2 * number : 18 + 2 * number] = (220, 40, 40)
    return frames


def shown(body: bytes) -> Frames:
    """All frames. Of a gif by another reader than the writer; FFmpeg reads no webp that moves."""
    if body.startswith(b"RIFF"):
        with Image.open(io.BytesIO(body)) as image:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    with av.open(io.BytesIO(body)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def durations(body: bytes) -> list[float]:
    """Milliseconds of each frame of a moving picture."""
    found = []
    with Image.open(io.BytesIO(body)) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            found.append(frame.info["duration"])
    return found


def boxes(body: bytes) -> list[str]:
    """The names of an mp4's outermost boxes, in order."""
    names, at = [], 0
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        names.append(body[at + 4 : at + 8].decode())
        at += size
    return names


@pytest.mark.parametrize("form", FILMS)
@pytest.mark.parametrize("fps", [1, 8, 24, 30])
def test_a_film_has_the_frames_the_rate_and_the_length_that_its_facts_say(form: str, fps: int) -> None:
    frames = clip()
    facts = Reel(12, 64, 48, fps).facts(form)
    with av.open(io.BytesIO(write_video(frames, fps=fps, form=form, record=RECORD))) as container:
        [stream] = container.streams
        assert stream.codec_context.name in {"mp4": ("h264",), "webm": ("vp9", "libvpx-vp9")}[form]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (facts["width"], facts["height"]) == (64, 48)
        assert stream.average_rate == facts["fps"] == fps
        assert container.duration / 1_000_000 == pytest.approx(facts["seconds"], abs=0.002)
        times = [frame.time for frame in container.decode(stream)]
    assert len(times) == facts["frames"] == 12
    assert times == pytest.approx([number / fps for number in range(12)], abs=0.001)


@pytest.mark.parametrize("form", FILMS)
def test_a_film_shows_what_it_was_made_of_in_its_colours(form: str) -> None:
    frames = clip()
    body = write_video(frames, fps=8, form=form, record=RECORD)
    with av.open(io.BytesIO(body)) as container:
        context = container.streams.video[0].codec_context
        list(container.decode(video=0))
        # BT.709 in the range of television: what browsers take for granted, written down
        assert (context.color_range, context.colorspace) == (1, 1)
        seen = [
            frame.reformat(
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
            ).to_ndarray()
            for frame in av.open(io.BytesIO(body)).decode(video=0)
        ]
    assert np.abs(np.stack(seen).astype(int) - frames).mean() < 4


def test_an_mp4_has_its_index_in_front_of_its_content() -> None:
    found = boxes(write_video(clip(), fps=8, form="mp4", record=RECORD))
    assert found.index("moov") < found.index("mdat")
    assert found[0] == "ftyp"


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="no ffprobe here")
def test_ffprobe_finds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(write_video(clip(), fps=8, form="mp4", record=RECORD))
    asked = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    [stream] = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)["streams"]
    assert (stream["codec_name"], stream["pix_fmt"], stream["r_frame_rate"]) == ("h264", "yuv420p", "8/1")
    assert (stream["width"], stream["height"], stream["nb_read_frames"]) == (64, 48, "12")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(48, 65), (47, 64), (47, 65), (17, 31)])
def test_an_odd_side_is_no_trouble(form: str, size: tuple[int, int]) -> None:
    height, width = size
    facts = Reel(3, width, height, 8).facts(form)
    found = shown(write_video(clip(3, 48, 65)[:, :height, :width], fps=8, form=form, record=RECORD))
    assert found.shape == (3, facts["height"], facts["width"], 3)
    assert facts["width"] - width == (width % 2 if form in FILMS else 0)


@pytest.mark.parametrize("form", ["webp", "gif"])
@pytest.mark.parametrize("fps", [7, 8, 24, 30, 50])
def test_a_moving_picture_takes_as_long_as_its_facts_say_and_begins_anew(form: str, fps: int) -> None:
    body = write_video(clip(), fps=fps, form=form, record=RECORD)
    facts = Reel(12, 64, 48, fps).facts(form)
    assert sum(durations(body)) / 1000 == pytest.approx(facts["seconds"], abs=1e-6)
    assert facts["seconds"] == pytest.approx(12 / fps, abs=0.005)
    with Image.open(io.BytesIO(body)) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (12, (64, 48), 0)
        seen = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    assert np.abs(seen.astype(int) - clip()).mean() < 8


def test_frames_of_a_moving_picture_that_do_not_differ_take_their_time_all_the_same() -> None:
    still = np.repeat(clip(2), 3, axis=0)
    for form in ("webp", "gif"):
        assert durations(write_video(still, fps=8, form=form, record=RECORD)) == pytest.approx([375, 375], abs=5)


def test_a_single_frame_is_a_video_too() -> None:
    for form in FORMS:
        assert len(shown(write_video(clip(1), fps=8, form=form, record=RECORD))) == 1


@pytest.mark.parametrize("form", ["webp", "gif"])
def test_a_preview_is_small_has_fewer_frames_and_takes_as_long(form: str) -> None:
    frames = np.repeat(np.repeat(clip(25), 16, axis=1), 16, axis=2)
    small = Reel(25, 1024, 768, 24).preview()
    body = write_preview(frames, fps=24, form=form, record=RECORD)
    facts = small.facts(form)
    assert (facts["width"], facts["height"], facts["frames"], facts["fps"]) == (320, 240, 13, 12)
    with Image.open(io.BytesIO(body)) as image:
        assert (image.size, image.n_frames) == ((320, 240), 13)
    assert sum(durations(body)) / 1000 == pytest.approx(facts["seconds"], abs=0.02)
    assert facts["seconds"] == pytest.approx(25 / 24, abs=0.05)


def test_the_preview_of_a_small_video_is_no_larger() -> None:
    assert Reel(5, 32, 16, 8).preview() == Reel(5, 32, 16, 8)


@pytest.mark.parametrize("form", FILMS)
@pytest.mark.parametrize(("channels", "rate"), [(1, 16000), (2, 24000), (2, 44100)])
def test_a_film_has_its_sound(form: str, channels: int, rate: int) -> None:
    times = np.arange(int(1.5 * rate)) / rate
    tone = np.repeat(0.5 * np.sin(2 * np.pi * 440 * times)[None], channels, axis=0).astype(np.float32)
    sound = Sound(tone, rate)
    body = write_video(clip(), fps=8, form=form, record=RECORD, sound=sound)
    with av.open(io.BytesIO(body)) as container:
        [stream] = container.streams.audio
        assert {"sample_rate": stream.rate, "channels": stream.channels} == sound.facts(form)
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
    heard = np.concatenate(parts, axis=1)
    assert heard.shape[1] / stream.rate == pytest.approx(1.5, abs=0.15)  # AAC comes in blocks of 1,024
    middle = heard[0, heard.shape[1] // 4 : heard.shape[1] // 2]
    loudest = np.argmax(np.abs(np.fft.rfft(middle))) * stream.rate / len(middle)
    assert loudest == pytest.approx(440, abs=5)
    assert len(shown(body)) == 12
    if form == "mp4":
        assert boxes(body).index("moov") < boxes(body).index("mdat")


def test_a_moving_picture_is_silent() -> None:
    sound = Sound(np.zeros((1, 8000), dtype=np.float32), 16000)
    assert sound.facts("gif") == sound.facts("webp") == {}
    assert len(shown(write_video(clip(), fps=8, form="gif", record=RECORD, sound=sound))) == 12


@pytest.mark.parametrize("form", FORMS)
def test_a_file_says_how_it_was_made(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{form}"
    path.write_bytes(write_video(clip(), fps=8, form=form, record=RECORD))
    assert read_parameters(path) == RECORD


@pytest.mark.parametrize("form", FORMS)
def test_the_longest_prompts_fit(form: str, tmp_path: Path) -> None:
    record = {**RECORD, "params": {"prompt": "🎩" * 6000, "negative_prompt": "é" * 6000}}
    path = tmp_path / f"x.{form}"
    path.write_bytes(write_video(clip(2), fps=8, form=form, record=record))
    assert read_parameters(path) == record


def test_a_video_of_others_says_nothing(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(clip(1)[0])), *stream.encode(None)):
            container.mux(packet)
    Image.fromarray(clip(1)[0]).save(tmp_path / "x.gif")
    (tmp_path / "x.webm").write_bytes(b"no video")
    for name in ("x.mp4", "x.gif", "x.webm", "missing.mp4"):
        with pytest.raises(RequestError):
            read_parameters(tmp_path / name)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_frames_make_the_same_file(form: str) -> None:
    first, second = (write_video(clip(), fps=8, form=form, record=RECORD) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("params", "advice"),
    [
        ({"prompt": ""}, "at least 1 character"),
        ({"prompt": None}, "valid string"),
        ({"width": 64}, "give both"),
        ({"width": 65, "height": 64}, "multiple of 8"),
        ({"num_frames": 0}, "greater than or equal to 1"),
        ({"num_videos": 9}, "less than or equal to 8"),
        ({"fps": 0}, "greater than or equal to 1"),
        ({"format": "gif", "fps": 60}, "at most 50 frames a second: lower `fps`, or choose another format"),
        ({"format": "avi"}, "'mp4', 'webm', 'webp' or 'gif'"),
        ({"negative_prompt": "x", "guidance_scale": 1}, "raise guidance_scale above 1"),
        ({"motion_bucket_id": 5}, "Extra inputs are not permitted"),
    ],
)
def test_a_video_that_cannot_be_made_as_asked_is_refused_with_advice(params: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValidationError) as error:
        TextToVideoParams.model_validate({"prompt": "a hat"} | params)
    assert advice in str(error.value)


def test_a_video_of_a_picture_needs_the_picture_and_no_words() -> None:
    assert ImageToVideoParams.model_validate({"image": "x.png"}).prompt is None
    with pytest.raises(ValidationError, match="image"):
        ImageToVideoParams.model_validate({"prompt": "a hat"})
    with pytest.raises(ValidationError, match="less than or equal to 255"):
        ImageToVideoParams.model_validate({"image": "x.png", "motion_bucket_id": 256})


def test_cost_grows_with_frames_and_videos() -> None:
    def cost(**params: Any) -> float:
        return TASK.cost(TextToVideoParams.model_validate({"prompt": "a hat"} | params))

    assert cost(num_frames=98) == pytest.approx(2 * cost(num_frames=49)) == pytest.approx(2 * cost())
    assert cost(num_videos=3, num_inference_steps=100) == pytest.approx(6 * cost())
