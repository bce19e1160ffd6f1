"""What a generator is asked and how its answers are compared: the tools of the contract suite."""

from __future__ import annotations

import io
import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import broken_models
import input_adapters
import numpy as np
import pytest
import soundfile
from PIL import Image, ImageSequence

from shared.settings import Settings
from shared.tasks import Params, all_tasks
from shared.tasks.inputs import references
from workers.generators import Device, Done, Generator, ModelFiles, Outcome, Work
from workers.inputs.looks import Limits, examine
from workers.model_files import resolve

CPU = Device("cpu", "float32")
PICTURE = {"num_inference_steps": 3, "guidance_scale": 3.0}
LONG = "a very long winter coat, blue and warm, for every road and every day of the year; " * 2


class Stop(BaseException):
    """What an engine raises to end a microbatch."""


@dataclass
class FakeRun:
    """An engine that notes progress, can stop at a step, and can lose interest in jobs."""

    stop_at: int | None = None
    unwanted: set[str] = field(default_factory=set)
    steps: list[tuple[tuple[str, ...], int, int]] = field(default_factory=list)

    def step(self, job_ids: Sequence[str], done: int, total: int) -> None:
        self.steps.append((tuple(job_ids), done, total))
        if len(self.steps) == self.stop_at:
            raise Stop

    def advance(self, progress: Mapping[str, tuple[int, int]]) -> None:
        for job_id, (done, total) in progress.items():
            self.step([job_id], done, total)

    def wanted(self, job_id: str) -> bool:
        return job_id not in self.unwanted


@dataclass(frozen=True)
class Kind:
    """One generator over one model: what to ask of it, and what must not work."""

    name: str
    task: str
    #: module below workers.generators, and class
    path: str
    model: Callable[[Path], Path | ModelFiles] | None
    #: jobs that differ in everything that may differ
    mixed: tuple[dict[str, Any], ...]
    #: a job with several outputs, and how many
    several: tuple[dict[str, Any], int] | None = None
    #: jobs that fail, and why
    bad: tuple[tuple[dict[str, Any], str], ...] = ()
    #: models that it must reject
    wrong: tuple[Callable[[Path], Path], ...] = ()
    #: those of them whose config is in order: what is wrong shows when they are loaded
    wrong_inside: tuple[Callable[[Path], Path], ...] = (broken_models.no_head_weights,)

    def generator(self) -> type[Generator]:
        """Imported when first used: torch is slow to import."""
        return generator(self.path)

    def said(self, params: dict[str, Any]) -> Params:
        """Validated, as at submit."""
        return all_tasks()[self.task].params.model_validate(params)


def generator(path: str) -> type[Generator]:
    """A generator by its module below workers.generators, and its class."""
    return pkgutil.resolve_name(f"workers.generators.{path}")


def files_of(model: Callable[[Path], Path | ModelFiles], root: Path) -> ModelFiles:
    made, settings = model(root), Settings(_env_file=None, data_dir=root)
    return made if isinstance(made, ModelFiles) else resolve(str(made), settings=settings)


def work(kind: Kind, params: dict[str, Any], number: int = 0, seed: int | None = None) -> Work:
    said = kind.said(params)
    limits = Limits(pixels=10**7, seconds=100.0)
    files = {each.place: examine(Path(each.text), each.kind, each.text, limits) for each in references(said)}
    seed, beside = 100 * number if seed is None else seed, input_adapters.found(said)
    return Work(f"job-{number}", kind.task, said, seed, inputs=files, adapters=beside)


def run_all(
    generator: Generator, jobs: Sequence[Work], limit: int = 32, run: FakeRun | None = None
) -> dict[str, Outcome]:
    """As an engine does: cut, generate, one outcome per job."""
    outcomes: dict[str, Outcome] = {}
    for microbatch in generator.cut(jobs, limit):
        for outcome in generator.generate(microbatch, run or FakeRun()):
            assert outcome.job_id not in outcomes
            outcomes[outcome.job_id] = outcome
    return outcomes


def bodies(outcome: Outcome) -> list[bytes]:
    assert isinstance(outcome, Done), outcome
    return [output.body if isinstance(output.body, bytes) else output.body() for output in outcome.outputs]


def text_of(outcome: Outcome) -> str:
    return bodies(outcome)[0].decode()


def pixels(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)


def moving_pixels(body: bytes) -> np.ndarray:
    """Of all frames of a video, or of a picture that moves."""
    if body.startswith((b"GIF8", b"RIFF")):
        with Image.open(io.BytesIO(body)) as image:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]).astype(int)
    with av.open(io.BytesIO(body)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def assert_same(one: Outcome, other: Outcome) -> None:
    """Texts and facts equal; pictures within 2/255, sounds within 1/1000, or what lossy coding makes of them."""
    assert isinstance(one, Done)
    assert isinstance(other, Done)
    assert [output.facts for output in one.outputs] == [output.facts for output in other.outputs]
    for output, a, b in zip(one.outputs, bodies(one), bodies(other), strict=True):
        if output.media_type == "application/x-npy":
            assert np.allclose(np.load(io.BytesIO(a)), np.load(io.BytesIO(b)), atol=2e-6)
        elif output.media_type == "application/json" and a != b:
            assert_close(json.loads(a), json.loads(b))
        elif output.media_type.startswith("video/") or output.facts.get("frames"):
            # One shade somewhere is enough for an encoder to decide otherwise there; another video is far away.
            assert np.abs(moving_pixels(a) - moving_pixels(b)).mean() <= 3
        elif output.media_type.startswith("image/"):
            assert np.abs(pixels(a) - pixels(b)).max() <= (2 if output.media_type == "image/png" else 24)
        elif output.media_type.startswith("audio/"):
            assert_heard_alike(a, b, 1e-3 if output.media_type in ("audio/wav", "audio/flac") else 0.05)
        else:
            assert a == b


def assert_heard_alike(one: bytes, other: bytes, tolerance: float) -> None:
    """The same length, rate and channels, and samples that are nearly the same."""
    (a, rate_a), (b, rate_b) = (soundfile.read(io.BytesIO(body), always_2d=True) for body in (one, other))
    assert (a.shape, rate_a) == (b.shape, rate_b)
    assert np.abs(a - b).max() <= tolerance


def assert_close(one: Any, other: Any) -> None:
    """Equal but for the last digit of numbers."""
    if isinstance(one, float):
        assert one == pytest.approx(other, abs=1.1e-5)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        assert_close(list(one.values()), list(other.values()))
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b)
    else:
        assert one == other


def facts(outcome: Outcome, index: int = 0) -> dict[str, Any]:
    assert isinstance(outcome, Done), outcome
    return dict(outcome.outputs[index].facts)
