"""B0 for the other modalities: each model in one process, no queue, all jobs known at once, files encoded and written.

Jobs run in batches of the size that the harness found best, where outputs do not depend on what is beside them; a
thread encodes and writes a batch while the next one is computed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from av.video.reformatter import ColorRange, Colorspace
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForImageToImage,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTextToWaveform,
    AutoTokenizer,
)

from benchmarks.baselines.serving import serve

Job = dict[str, Any]
_BT709 = 1
#: of an encoder of videos: what it writes depends on their number
_THREADS = 4
#: number of a job, and what writes its file to a path that still lacks its ending
Made = Iterator[tuple[int, Callable[[Path], None]]]


def cut(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Batches of at most this size."""
    return (order[start : start + size] for start in range(0, len(order), size))


class Embedder:
    """The texts of all jobs by length; the mean of a text's last hidden states, of length 1."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, pad_token="</s>")
        self._model = AutoModel.from_pretrained(folder).eval()

    def made(self, jobs: Sequence[Job], size: int) -> Made:
        """`size` counts texts."""
        texts = [text for job in jobs for text in job["params"]["text"]]
        ids = self._tokenizer(texts)["input_ids"]
        vectors: list[Any] = [None] * len(texts)
        for share in cut(sorted(range(len(texts)), key=lambda n: len(ids[n])), size):
            inputs = self._tokenizer.pad({"input_ids": [ids[n] for n in share]}, return_tensors="pt")
            mask = inputs["attention_mask"][..., None]
            pooled = (self._model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
            for n, vector in zip(share, torch.nn.functional.normalize(pooled, dim=1).numpy(), strict=True):
                vectors[n] = vector
        in_order = iter(vectors)
        for i, job in enumerate(jobs):
            yield i, partial(_write_vectors, np.stack([next(in_order) for _ in job["params"]["text"]]))


class Captioner:
    """Pictures of one size, greedily."""

    def __init__(self, folder: str) -> None:
        self._images = AutoImageProcessor.from_pretrained(folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def made(self, jobs: Sequence[Job], size: int) -> Made:
        """All captions are as long as the first job's."""
        for share in cut(range(len(jobs)), size):
            pixels = self._images([_picture(jobs[i]) for i in share], return_tensors="pt")["pixel_values"]
            ids = self._model.generate(pixels, max_new_tokens=jobs[0]["params"]["max_new_tokens"], num_beams=1)
            for i, text in zip(share, self._tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                yield i, partial(_write_text, text)


class Enlarger:
    """Pictures of one size, whose sides are whole windows of the model."""

    def __init__(self, folder: str) -> None:
        self._model = AutoModelForImageToImage.from_pretrained(folder).eval()

    def made(self, jobs: Sequence[Job], size: int) -> Made:
        """Rounded as a picture is written."""
        for share in cut(range(len(jobs)), size):
            shades = torch.from_numpy(np.stack([np.asarray(_picture(jobs[i])) for i in share]))
            made = self._model(pixel_values=shades.movedim(-1, 1) / 255).reconstruction
            for i, each in zip(share, _shades(made), strict=True):
                yield i, partial(_write_picture, each, jobs[i]["params"])


class Voice:
    """One text after the other: what the model draws and how it pads would change with what is beside it."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForTextToWaveform.from_pretrained(folder).eval()

    def made(self, jobs: Sequence[Job], size: int) -> Made:
        """`size` says nothing."""
        rate = self._model.config.sampling_rate
        for i, job in enumerate(jobs):
            torch.manual_seed(job["seed"] * 1_000_003)
            ids = self._tokenizer(job["params"]["text"], return_tensors="pt")["input_ids"]
            sound = self._model(ids, speaker_id=0).waveform[0].numpy()
            ramp = np.linspace(0.0, 1.0, round(0.005 * rate), dtype=np.float32)
            sound[: len(ramp)] *= ramp  # it begins and ends without a click
            sound[-len(ramp) :] *= ramp[::-1]
            yield i, partial(_write_sound, sound, rate, job["params"])


class Composer:
    """Pieces of one length; the likeliest tokens, as the model's own defaults say."""

    def __init__(self, folder: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForTextToWaveform.from_pretrained(folder).eval()

    def made(self, jobs: Sequence[Job], size: int) -> Made:
        """All are as long as the first job's."""
        codec, decoder = self._model.config.audio_encoder, self._model.config.decoder
        seconds = jobs[0]["params"]["seconds"]
        tokens = round(seconds * codec.frame_rate) + decoder.num_codebooks - 1
        for share in cut(range(len(jobs)), size):
            words = self._tokenizer([jobs[i]["params"]["prompt"] for i in share], padding=True, return_tensors="pt")
            given = {name: words[name] for name in ("input_ids", "attention_mask")}
            made = self._model.generate(**given, do_sample=False, max_new_tokens=tokens).numpy()
            for i, sound in zip(share, made[:, 0, : round(seconds * codec.sampling_rate)], strict=True):
                yield i, partial(_write_sound, sound, codec.sampling_rate, jobs[i]["params"])


class Listener:
    """Recordings of less than a window, in English."""

    def __init__(self, folder: str) -> None:
        self._extractor = AutoFeatureExtractor.from_pretrained(folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()

    def made(self, jobs: Sequence[Job], size: int) -> Made:
        """The model itself brings all of them to the length of a window."""
        rate = self._extractor.sampling_rate
        for share in cut(range(len(jobs)), size):
            sounds = [soundfile.read(jobs[i]["params"]["audio"], dtype="float32")[0] for i in share]
            features = self._extractor(sounds, sampling_rate=rate, return_tensors="pt").input_features
            ids = self._model.generate(features, language="en", task="transcribe")
            for i, text in zip(share, self._tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                yield i, partial(_write_text, text)


class Filmer:
    """Videos of one size and length: an mp4, and its first picture."""

    def __init__(self, folder: str) -> None:
        self._pipe = DiffusionPipeline.from_pretrained(folder)
        self._pipe.set_progress_bar_config(disable=True)

    def made(self, jobs: Sequence[Job], size: int) -> Made:
        """All are as the first job wants them."""
        params = jobs[0]["params"]
        alike = {name: params[name] for name in ("width", "height", "num_frames", "num_inference_steps")}
        for share in cut(range(len(jobs)), size):
            made = self._pipe(
                [jobs[i]["params"]["prompt"] for i in share],
                guidance_scale=params["guidance_scale"],
                frame_rate=params["fps"],
                generator=[torch.Generator("cpu").manual_seed(jobs[i]["seed"]) for i in share],
                output_type="pt",
                **alike,
            ).frames
            for i, frames in zip(share, made, strict=True):
                yield i, partial(_write_film, _shades(frames), params["fps"])


MODELS: Mapping[str, Any] = {
    "feature-extraction": Embedder,
    "image-to-text": Captioner,
    "super-resolution": Enlarger,
    "text-to-speech": Voice,
    "text-to-audio": Composer,
    "automatic-speech-recognition": Listener,
    "text-to-video": Filmer,
}


class Modalities:
    """All models that were asked for, in memory."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(1)

    @torch.inference_mode()
    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """`jobs` is a file, all of one task and model, `out` a folder, and `size` that of a batch."""
        jobs = [json.loads(line) for line in Path(command["jobs"]).read_text().splitlines()]
        out = Path(command["out"])
        out.mkdir(parents=True, exist_ok=True)
        folder = jobs[0]["model"]
        if folder not in self._loaded:
            self._loaded[folder] = MODELS[jobs[0]["task"]](folder)
        started = time.monotonic()
        made = self._loaded[folder].made(jobs, command["size"])
        writing = [self._pool.submit(write, out / f"{i}") for i, write in made]
        for written in writing:
            written.result()
        return {"seconds": time.monotonic() - started}


def _picture(job: Job) -> Image.Image:
    return Image.open(job["params"]["image"]).convert("RGB")


def _shades(made: torch.Tensor) -> Any:
    """(…, channels, height, width) between 0 and 1, as pixels of three bytes."""
    return made.clamp(0, 1).mul(255).round().to(torch.uint8).movedim(-3, -1).contiguous().numpy()


def _write_vectors(vectors: Any, path: Path) -> None:
    np.save(path.with_suffix(".npy"), vectors)


def _write_text(text: str, path: Path) -> None:
    path.with_suffix(".txt").write_text(text.strip())


def _write_picture(shades: Any, params: Mapping[str, Any], path: Path) -> None:
    form = params["format"]
    quality = {} if form == "png" else {"quality": params["quality"]}
    Image.fromarray(shades).save(path.with_suffix(f".{form}"), form.upper(), **quality)


def _write_sound(sound: Any, rate: int, params: Mapping[str, Any], path: Path) -> None:
    soundfile.write(path.with_suffix(f".{params['format']}"), sound, rate, subtype="PCM_16")


def _write_film(frames: Any, fps: int, path: Path) -> None:
    with av.open(str(path.with_suffix(".mp4")), "w", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "medium"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.color_range, context.colorspace = ColorRange.MPEG, _BT709
        context.color_primaries = context.color_trc = _BT709
        context.thread_count = _THREADS
        for number, shades in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(shades, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    Image.fromarray(frames[0]).save(path.with_suffix(".jpeg"), quality=90)


if __name__ == "__main__":
    serve(Modalities().run)
