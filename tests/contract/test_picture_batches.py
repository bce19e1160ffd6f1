"""Many pictures in one call of the pipeline: what may meet there, and that nobody's picture changes by it."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from PIL import Image

from shared.settings import Settings
from shared.tasks.text_to_image import TextToImageParams
from workers.generators import Device, Done, Work
from workers.model_files import resolve

pytestmark = [pytest.mark.torch, pytest.mark.models]

CPU = Device("cpu", "float32")
PICTURE = {"prompt": "a hat", "num_inference_steps": 2, "guidance_scale": 3.0}


class Steps:
    """What the engine offers, for a test."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def step(self, job_ids: Sequence[str], done: int, total: int) -> None:
        assert job_ids
        self.seen.append((done, total))

    def wanted(self, job_id: str) -> bool:
        return bool(job_id)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are so small that a second thread only waits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], Path]], Any]:
    root = tmp_path_factory.getbasetemp() / "tiny"
    settings = Settings(_env_file=None, data_dir=root)

    def load(model: Callable[[Path], Path]) -> Any:
        from workers.generators.diffusers_text_to_image import DiffusersTextToImage

        return DiffusersTextToImage.load(resolve(str(model(root)), settings=settings), CPU)

    return load


@pytest.fixture(scope="module")
def sd(load: Callable[..., Any]) -> Any:
    return load(tiny_models.stable_diffusion)


@pytest.fixture(scope="module")
def sdxl(load: Callable[..., Any]) -> Any:
    return load(tiny_models.stable_diffusion_xl)


def jobs_of(*params: dict[str, Any]) -> list[Work]:
    return [
        Work(f"job-{i}", "text-to-image", TextToImageParams.model_validate(PICTURE | each), 10 * i)
        for i, each in enumerate(params)
    ]


def paint(generator: Any, jobs: Sequence[Work], limit: int = 32, run: Steps | None = None) -> dict[str, list[Any]]:
    pictures = {}
    for microbatch in generator.cut(jobs, limit):
        for outcome in generator.generate(microbatch, run or Steps()):
            assert isinstance(outcome, Done), outcome
            bodies = [output.body() for output in outcome.outputs]
            pictures[outcome.job_id] = [np.asarray(Image.open(io.BytesIO(body))).astype(int) for body in bodies]
    return pictures


def assert_each_is_as_alone(generator: Any, jobs: Sequence[Work]) -> None:
    together = paint(generator, jobs)
    for job in jobs:
        for one, other in zip(together[job.job_id], paint(generator, [job])[job.job_id], strict=True):
            assert np.abs(one - other).max() <= 2


@pytest.fixture(params=["sd", "sdxl"])
def known(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_guidance_scales_of_their_own_share_a_call(known: Any) -> None:
    jobs = jobs_of({"guidance_scale": 1.5}, {}, {"guidance_scale": 9.0}, {"guidance_scale": None})

    assert [len(part) for part in known.cut(jobs, 32)] == [4]
    assert_each_is_as_alone(known, jobs)
    one, other = (paint(known, jobs_of({"guidance_scale": scale}))["job-0"][0] for scale in (1.5, 9.0))
    assert np.abs(one - other).max() > 8


def test_what_is_guided_and_what_is_not_go_apart(known: Any) -> None:
    jobs = jobs_of({"guidance_scale": 3.0}, {"guidance_scale": 1.0}, {"guidance_scale": 0.0})

    assert [len(part) for part in known.cut(jobs, 32)] == [1, 2]


def test_a_pipeline_that_may_do_more_with_the_scale_gets_one_number(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.generators.guidance import guides_each

    # Distilled models embed the scale, and would take one for all.
    monkeypatch.setattr(sd._pipe, "unet", sd._pipe.unet.__class__(**TINY_UNET, time_cond_proj_dim=8))
    monkeypatch.setattr(sd, "_guides_each", guides_each(sd._pipe))

    assert len(sd.cut(jobs_of({"guidance_scale": 2.0}, {"guidance_scale": 3.0}), 32)) == 2


TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 32,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def test_no_negative_prompt_meets_an_empty_one_where_that_is_the_same(sd: Any, sdxl: Any) -> None:
    jobs = jobs_of({}, {"negative_prompt": ""}, {"negative_prompt": "red"})

    assert [len(part) for part in sd.cut(jobs, 32)] == [3]
    assert [len(part) for part in sdxl.cut(jobs, 32)] == [1, 2]  # to it no words are not the same as empty ones
    assert_each_is_as_alone(sd, jobs)


def test_a_text_is_encoded_once(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = sd._windows._encoded
    monkeypatch.setattr(sd._windows, "_encoded", lambda texts, n: (encoded.extend(texts), encode(texts, n))[1])
    jobs = jobs_of(*({"prompt": prompt} for prompt in ("one cup", "two cups", "one cup", "two cups")))

    paint(sd, jobs)
    assert sorted(encoded) in (["", "one cup", "two cups"], ["one cup", "two cups"])  # earlier tests may have had ""
    encoded.clear()
    paint(sd, jobs)
    assert encoded == []
    sd._windows.forget()
    paint(sd, jobs)
    assert sorted(encoded) == ["", "one cup", "two cups"]


def test_embeddings_take_bounded_room(sd: Any) -> None:
    windows = sd._windows
    for i in range(200):
        windows.encode([f"{i}"], 1)
    windows.encode(["0", "long"], 100)
    assert sum(count for _, count in windows._embeddings) <= 128


def test_shape_tells_what_memory_and_time_depend_on(sd: Any) -> None:
    def shape(**params: Any) -> Any:
        return sd.shape(jobs_of(params))

    assert shape() == shape(guidance_scale=9.0) == shape(prompt="a cup", negative_prompt="red", format="webp")
    others = [
        shape(width=24, height=32),
        shape(width=32, height=24),
        shape(guidance_scale=1.0),
        shape(num_images=2),
        shape(num_inference_steps=4),
        shape(prompt="hat " * 40),
    ]
    assert len({shape(), *others}) == 7


def test_a_job_of_many_pictures_that_do_not_fit_is_made_in_halves(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    jobs = jobs_of({"num_images": 5})
    whole = paint(sd, jobs)["job-0"]
    made, sizes = sd._made, []

    def small(pictures: Sequence[Any], on_step: Any) -> Any:
        sizes.append(len(pictures))
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made(pictures, on_step)

    monkeypatch.setattr(sd, "_made", small)
    monkeypatch.setattr(sd, "_fits", {})
    for one, other in zip(paint(sd, jobs)["job-0"], whole, strict=True):
        assert np.abs(one - other).max() <= 2
    assert sizes == [5, 3, 2, 1, 2]
    paint(sd, jobs)
    assert sizes[5:] == [2, 2, 1]  # it is remembered
    with pytest.raises(torch.OutOfMemoryError):  # the engine's affair
        paint(sd, jobs_of({}, {}, {}))


def test_parked_and_brought_back_it_paints_the_same(load: Callable[..., Any]) -> None:
    generator, jobs = load(tiny_models.stable_diffusion), jobs_of({}, {"prompt": "two cups"})
    before = paint(generator, jobs)

    assert generator.park()
    assert not generator._windows._embeddings
    generator.unpark()
    for name, pictures in paint(generator, jobs).items():
        assert np.abs(pictures[0] - before[name][0]).max() == 0


# --- compiled ---


class Backend:
    """A compiler that counts what it is given and leaves it as it is."""

    def __init__(self, error: Exception | None = None) -> None:
        self.graphs = 0
        self.error = error

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        if self.error:
            raise self.error
        return graph.forward


@pytest.fixture
def compiled(load: Callable[..., Any]) -> Callable[[Backend], Any]:
    from workers.generators.compiled import Compiled

    def compiled(backend: Backend) -> Any:
        generator = load(tiny_models.stable_diffusion)
        generator._compiled = Compiled(generator._pipe, backend)
        return generator

    return compiled


def test_compiled_pictures_are_those_of_the_model_as_it_is(sd: Any, compiled: Callable[[Backend], Any]) -> None:
    backend = Backend()
    generator = compiled(backend)
    jobs = jobs_of({}, {"prompt": "two cups"}, {"guidance_scale": 5.0})

    expected, found = paint(sd, jobs), paint(generator, jobs)

    assert backend.graphs > 0
    assert found.keys() == expected.keys()
    for name, pictures in found.items():
        assert len(pictures) == 1
        assert np.abs(pictures[0] - expected[name][0]).max() <= 2


def test_few_sizes_of_calls_are_compiled_and_the_rest_is_padded(compiled: Callable[[Backend], Any]) -> None:
    backend = Backend()
    generator = compiled(backend)
    paint(generator, jobs_of(*[{}] * 4))
    graphs = backend.graphs

    assert graphs > 0
    for count in (3, 4):
        paint(generator, jobs_of(*[{"prompt": f"{count} cups"}] * count))
    assert backend.graphs == graphs
    sizes = {generator._compiled.padded(count, 24) for count in range(1, 25)}
    assert sizes == {1, 2, 4, 8, 16, 24}


def test_after_enough_shapes_the_others_run_as_they_are(
    sd: Any, compiled: Callable[[Backend], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.generators import compiled as module

    monkeypatch.setattr(module, "SHAPES", 1)
    backend = Backend()
    generator = compiled(backend)
    paint(generator, jobs_of({}))
    graphs = backend.graphs

    jobs = jobs_of({"width": 24, "height": 32})
    found = paint(generator, jobs)["job-0"][0]

    assert backend.graphs == graphs
    assert np.abs(found - paint(sd, jobs)["job-0"][0]).max() <= 2


def test_each_compilation_is_a_sign_of_life_and_progress_does_not_go_back(compiled: Callable[[Backend], Any]) -> None:
    generator, first, later = compiled(Backend()), Steps(), Steps()

    paint(generator, jobs_of({}), run=first)
    paint(generator, jobs_of({}), run=later)

    assert later.seen == [(1, 2), (2, 2)]
    assert len([step for step in first.seen if step[0] == 0]) >= 3  # before the first step: down, middle and up
    assert first.seen == sorted(first.seen)


def test_where_nothing_can_be_compiled_pictures_are_painted_all_the_same(
    sd: Any, compiled: Callable[[Backend], Any], caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend(RuntimeError("there is no C++ compiler"))
    generator, jobs = compiled(backend), jobs_of({}, {"prompt": "two cups"})

    with caplog.at_level(logging.WARNING, logger="aigc.worker"):
        found = [paint(generator, jobs) for _ in range(2)]

    assert backend.graphs == 1
    assert len([line for line in caplog.messages if "compiling failed" in line]) == 1
    for pictures in found:
        assert np.abs(pictures["job-1"][0] - paint(sd, jobs)["job-1"][0]).max() <= 2
