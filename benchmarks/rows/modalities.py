"""The other modalities, a row each: this project against the same model by hand (B0).

One deployment and one baseline process hold all seven models, so that their imports are paid for once.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.arms import Deployment, Resident, together
from benchmarks.measure import Bench, Measured, Sample
from benchmarks.models import model
from benchmarks.rows.pictures import files_of, furthest
from benchmarks.work import Job

#: jobs of the round that warms up, and is compared
CHECKED = 8
#: of the seconds that a quick run gives to an arm
QUICK_SHARE = 5 / 7
#: different pictures and recordings that jobs begin with
INPUTS = 16
#: jobs together in B0, of which the best is found by a trial
BATCHES = (1, 2, 4, 8, 16)
WORDS = ("new", "shoes", "for", "every", "road", "old", "hats", "blue", "cups", "warm", "coats", "long", "winter")

Params = dict[str, Any]


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def _texts(rng: random.Random, _: Path) -> Params:
    """Eight texts, of 8 to 64 words."""
    return {"text": [_words(rng, count) for count in rng.choices(range(8, 65), k=8)]}


def _photo(rng: random.Random, inputs: Path, **more: Any) -> Params:
    return {"image": str(inputs / f"{rng.randrange(INPUTS)}.png"), **more}


def _enlarged(rng: random.Random, inputs: Path) -> Params:
    return _photo(rng, inputs, format="webp", quality=90)


def _sentence(rng: random.Random, _: Path) -> Params:
    return {"text": f"{_words(rng, rng.randint(8, 20)).capitalize()}.", "format": "flac"}


def _piece(rng: random.Random, _: Path) -> Params:
    return {"prompt": _words(rng, 6), "seconds": 2, "format": "wav"}


def _recording(rng: random.Random, inputs: Path) -> Params:
    return {"audio": str(inputs / f"{rng.randrange(INPUTS)}.wav"), "language": "en"}


def _film(rng: random.Random, _: Path) -> Params:
    return {
        "prompt": _words(rng, 6), "width": 128, "height": 96, "num_frames": 33, "fps": 24, "num_inference_steps": 4,
        "guidance_scale": 3.0, "preview": "none",
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Modality:
    """What a row measures."""

    task: str
    #: of `benchmarks.models`
    model: str
    #: of one job, drawn with the next random numbers; its inputs lie in the folder
    params: Callable[[random.Random, Path], Params]
    #: in words
    each: str
    #: how far apart the two arms' outputs are, in words; raises `RuntimeError` where that is too far
    compare: Callable[[Sequence[bytes], Sequence[Path]], str]
    #: ending of B0's files
    ending: str
    #: B0's batch where no trial was made
    together: int = 4


def modalities(bench: Bench) -> Iterator[Measured]:
    """Each as soon as it is measured. Seven rows take their share of a quick run's ten minutes: 5 s an arm."""
    if bench.plan.quick:
        bench = replace(bench, plan=replace(bench.plan, share=QUICK_SHARE))
    inputs = bench.folder / "inputs"
    _write_inputs(inputs)
    openmp = {arm: _best_openmp(bench, arm, inputs) for arm in ("pipeline", "b0")}
    pipeline = Deployment(bench.folder / "pipeline", openmp=openmp["pipeline"])
    b0 = Resident("b0_modalities", folder=bench.folder / "b0", openmp=openmp["b0"])
    with together(pipeline, b0):
        for row, modality in MODALITIES.items():
            yield _measured(bench, row, modality, pipeline, b0, openmp)


def _measured(
    bench: Bench, row: str, modality: Modality, pipeline: Deployment, b0: Resident, openmp: Mapping[str, str]
) -> Measured:
    inputs = bench.folder / "inputs"
    check = jobs_of(modality, CHECKED, inputs)
    lossless = [{**job, "params": _lossless(job["params"])} for job in check]
    batch = pipeline.run(lossless).batch
    warm_s = b0.run(lossless, "check", size=modality.together)["seconds"]
    theirs = [b0.folder / "check" / f"{i}{_ending(modality, lossless)}" for i in range(CHECKED)]
    alike = modality.compare(files_of(pipeline, batch), theirs)
    bench.say(f"{modality.task}: {alike}")
    size = int(bench.choice(f"b0 {modality.model}", lambda: _batches(b0, modality, inputs), str(modality.together)))
    if not bench.plan.quick:  # which has no time for a second look
        warm_s = b0.run(check, "warm", size=size)["seconds"]
    jobs = jobs_of(modality, bench.plan.size(CHECKED / warm_s, deal=CHECKED), inputs)
    rounds = bench.interleave(
        {
            "pipeline": lambda: pipeline.run(jobs).sample(),
            "b0": lambda: Sample(len(jobs), b0.run(jobs, "out", size=size)["seconds"]),
        }
    )
    how = (
        f"from the first submit to the last commit (B0: first call to last file), model warm; {len(jobs)} jobs, "
        f"{modality.each}; B0's batches of {size}; {alike}"
    )
    return rounds.measured(row, "pipeline", "b0", unit="jobs/min", per_s=60, how=how, openmp=openmp, b0_batch=size)


def jobs_of(modality: Modality, count: int, inputs: Path) -> list[Job]:
    """The same whenever they are drawn; of more jobs the first ones are those of fewer."""
    rng = random.Random(4)
    folder = str(model(modality.model))
    return [
        {"task": modality.task, "model": folder, "params": modality.params(rng, inputs), "seed": number}
        for number in range(count)
    ]


def _lossless(params: Params) -> Params:
    """Pictures as png: what both arms make can be compared to the last bit."""
    if params.get("format") != "webp":
        return params
    return {name: value for name, value in params.items() if name != "quality"} | {"format": "png"}


def _ending(modality: Modality, jobs: Sequence[Job]) -> str:
    return f".{jobs[0]['params'].get('format', modality.ending)}"


def _batches(b0: Resident, modality: Modality, inputs: Path) -> Mapping[str, float]:
    """How many jobs a second B0 does with each size of batch."""
    jobs = jobs_of(modality, max(BATCHES), inputs)
    return {str(size): len(jobs) / b0.run(jobs, "trial", size=size)["seconds"] for size in BATCHES}


def _best_openmp(bench: Bench, arm: str, inputs: Path) -> str:
    """By some jobs of every modality, one after the other."""

    def rate(openmp: str) -> float:
        place = bench.folder / f"trial-{arm}-{openmp}"
        started = (
            Deployment(place, openmp=openmp)
            if arm == "pipeline"
            else Resident("b0_modalities", folder=place, openmp=openmp)
        )
        seconds = 0.0
        with started as each:
            for modality in MODALITIES.values():
                jobs = jobs_of(modality, CHECKED, inputs)
                for _ in range(2):  # the first loads the model
                    if isinstance(each, Deployment):
                        took = each.run(jobs).whole_s
                    else:
                        took = each.run(jobs, "out", size=modality.together)["seconds"]
                seconds += took
        return CHECKED * len(MODALITIES) / seconds

    return bench.openmp(f"modalities {arm}", rate)


# --- inputs -----------------------------------------------------------------------------------------------------------


def _write_inputs(folder: Path) -> None:
    """Pictures of 96 by 64 pixels, and recordings of 3 to 10 seconds at 16 kHz: soft shapes, and noise that swells."""
    import numpy as np
    import soundfile
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(6)
    for number in range(INPUTS):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        coarse.resize((96, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        seconds = 3 + 7 * number / INPUTS
        loud = np.abs(np.sin(np.linspace(0, 4 * seconds, int(16_000 * seconds))))
        soundfile.write(folder / f"{number}.wav", 0.3 * loud * rng.standard_normal(len(loud)), 16_000)


# --- comparisons ------------------------------------------------------------------------------------------------------


def _near(what: str, apart: float, most: float) -> str:
    if apart > most:
        raise RuntimeError(f"the {what} of both arms differ by {apart:g}: no more than {most:g} was expected")
    return f"{what} differ by at most {apart:.2g}"


def _vectors(ours: Sequence[bytes], theirs: Sequence[Path]) -> str:
    import numpy as np

    pairs = [(np.load(io.BytesIO(body)), np.load(path)) for body, path in zip(ours, theirs, strict=True)]
    return _near("numbers", max(float(abs(a - b).max()) for a, b in pairs), 1e-4)


def _written(ours: Sequence[bytes], theirs: Sequence[Path]) -> str:
    same = sum(body == path.read_bytes() for body, path in zip(ours, theirs, strict=True))
    if same < len(ours):
        raise RuntimeError(f"only {same} of {len(ours)} texts are equal in both arms")
    return f"{same} of {len(ours)} texts equal"


def _shades(ours: Sequence[bytes], theirs: Sequence[Path]) -> str:
    return _near("pictures", furthest(ours, theirs), 2) + "/255"


def _sounds(ours: Sequence[bytes], theirs: Sequence[Path]) -> str:
    import soundfile

    pairs = [
        (soundfile.read(io.BytesIO(body))[0], soundfile.read(path)[0]) for body, path in zip(ours, theirs, strict=True)
    ]
    if any(len(a) != len(b) for a, b in pairs):
        raise RuntimeError("the sounds of both arms are not of one length")
    return _near("samples", max(float(abs(a - b).max()) for a, b in pairs), 1e-3) + " of 1"


def _films(ours: Sequence[bytes], theirs: Sequence[Path]) -> str:
    import av
    import numpy as np

    def frames(file: Any) -> Any:
        with av.open(file) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype("int16")

    pairs = [(frames(io.BytesIO(body)), frames(str(path))) for body, path in zip(ours, theirs, strict=True)]
    apart = max(float(abs(a - b).mean()) for a, b in pairs)
    return _near("frames", apart, 2) + "/255 in the mean"


MODALITIES: Mapping[str, Modality] = {
    "embeddings_b0": Modality(
        "feature-extraction", "embedder", _texts, "8 texts of 8 to 64 words each, MiniLM's size", _vectors, "npy", 32
    ),
    "captions_b0": Modality(
        "image-to-text", "captioner", partial(_photo, max_new_tokens=24), "24 tokens each, ViT and GPT-2 of 384",
        _written, "txt", 8,
    ),
    "super_resolution_b0": Modality(
        "super-resolution", "enlarger", _enlarged, "96×64 to 192×128 px, webp, Swin2SR", _shades, "webp", 2
    ),
    "speech_b0": Modality("text-to-speech", "voice", _sentence, "a sentence each, flac, VITS", _sounds, "flac", 1),
    "sound_b0": Modality("text-to-audio", "composer", _piece, "2 s each, wav, MusicGen", _sounds, "wav", 16),
    "recognition_b0": Modality(
        "automatic-speech-recognition", "listener", _recording, "3 to 10 s each, Whisper", _written, "txt", 8
    ),
    "video_b0": Modality(
        "text-to-video", "filmer", _film, "33 frames of 128×96 in 4 steps each, mp4 and poster, LTX", _films, "mp4", 1
    ),
}  # fmt: skip
