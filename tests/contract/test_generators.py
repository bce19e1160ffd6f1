"""What every generator promises, held against each of them; then what each promises beyond that."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from PIL import Image

from shared.errors import ModelRejected, RequestError
from shared.settings import Settings
from shared.tasks import Params
from shared.tasks.echo import EchoParams
from shared.tasks.feature_extraction import FeatureExtractionParams
from shared.tasks.image_to_image import ImageToImageParams
from shared.tasks.inpainting import InpaintingParams
from shared.tasks.inputs import references
from shared.tasks.summarization import SummarizationParams
from shared.tasks.text_classification import TextClassificationParams
from shared.tasks.text_generation import TextGenerationParams
from shared.tasks.text_to_image import TextToImageParams
from shared.tasks.translation import TranslationParams
from shared.tasks.unconditional_image_generation import UnconditionalImageGenerationParams
from shared.tasks.zero_shot_classification import ZeroShotClassificationParams
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Work
from workers.generators.echo import Echo
from workers.generators.picture_files import read_parameters
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

    def wanted(self, job_id: str) -> bool:
        return job_id not in self.unwanted


def causal_lm() -> type[Generator]:
    from workers.generators.causal_lm import CausalLM

    return CausalLM


def encoder_decoder() -> type[Generator]:
    from workers.generators.encoder_decoder import EncoderDecoder

    return EncoderDecoder


def summarizer() -> type[Generator]:
    from workers.generators.summarizer import Summarizer

    return Summarizer


def translator() -> type[Generator]:
    from workers.generators.translator import Translator

    return Translator


def text_classifier() -> type[Generator]:
    from workers.generators.text_classifier import TextClassifier

    return TextClassifier


def zero_shot_classifier() -> type[Generator]:
    from workers.generators.zero_shot_classifier import ZeroShotClassifier

    return ZeroShotClassifier


def text_embedder() -> type[Generator]:
    from workers.generators.text_embedder import TextEmbedder

    return TextEmbedder


def image_to_image() -> type[Generator]:
    from workers.generators.diffusers_image_to_image import DiffusersImageToImage

    return DiffusersImageToImage


def inpainting() -> type[Generator]:
    from workers.generators.diffusers_inpainting import DiffusersInpainting

    return DiffusersInpainting


def unconditional() -> type[Generator]:
    from workers.generators.diffusers_unconditional import DiffusersUnconditional

    return DiffusersUnconditional


def text_to_image() -> type[Generator]:
    from workers.generators.diffusers_text_to_image import DiffusersTextToImage

    return DiffusersTextToImage


@dataclass(frozen=True)
class Kind:
    """One generator over one model: what to ask of it, and what must not work."""

    name: str
    task: str
    generator: Callable[[], type[Generator]]
    model: Callable[[Path], Path] | None
    params: type[Params]
    #: jobs that differ in everything that may differ
    mixed: tuple[dict[str, Any], ...]
    #: a job with several outputs, and how many
    several: tuple[dict[str, Any], int] | None = None
    #: jobs that fail, and why
    bad: tuple[tuple[dict[str, Any], str], ...] = ()
    #: models that it must reject
    wrong: tuple[Callable[[Path], Path], ...] = ()
    #: those of them whose config is in order: what is wrong shows when they are loaded
    wrong_inside: tuple[Callable[[Path], Path], ...] = (tiny_models.no_head_weights,)


TEXTS = (
    {"prompt": "New shoes:", "max_new_tokens": 12},
    {"prompt": "old hats, blue cups & warm coats for", "max_new_tokens": 20},
    {"prompt": "buy", "max_new_tokens": 16, "temperature": 0.9, "top_k": 50, "top_p": 0.95},
    {"prompt": "buy two, pay for one", "max_new_tokens": 9, "temperature": 1.5},
    {"prompt": "for a long winter", "max_new_tokens": 16, "top_p": 0.7, "stop": ["e", "zz"]},
    {"prompt": "a", "max_length": 30, "top_k": 7, "repetition_penalty": 1.4, "min_new_tokens": 5},
    {"prompt": "today! today! today!", "max_new_tokens": 14, "no_repeat_ngram_size": 1},
    {"prompt": "every road; every", "max_new_tokens": 14, "num_beams": 3, "num_return_sequences": 2},
    {"prompt": "hats", "max_new_tokens": 14, "num_beams": 3, "num_return_sequences": 2, "repetition_penalty": 1.3},
    {
        "prompt": "cups",
        "max_new_tokens": 10,
        "num_beams": 2,
        "early_stopping": True,
        "length_penalty": 0.4,
        "stop": "a",
    },
)
WRONG_TEXTS = (tiny_models.headless, tiny_models.no_head_weights, tiny_models.classifier, tiny_models.stable_diffusion)
BAD_TEXTS = (
    ({"prompt": "hat " * 200, "max_new_tokens": 5}, "prompt_too_long"),
    ({"prompt": "buy", "max_length": 5000}, "length_unsupported"),
    ({"prompt": "buy", "max_new_tokens": 5000}, "length_unsupported"),
    ({"prompt": "buy", "max_length": 20, "min_new_tokens": 19}, "length_unsupported"),
    ({"prompt": "warm coats for a long winter", "max_length": 3}, "prompt_too_long"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "no_chat_template"),
)

PAIR = {"source_language": "en", "target_language": "de", "max_new_tokens": 10}
BAD_ANSWERS = (
    ({"prompt": "hat " * 200, "max_new_tokens": 5}, "prompt_too_long"),
    ({"prompt": "buy", "max_new_tokens": 5000}, "length_unsupported"),
)
PHOTOS = tiny_models.photos()
#: more than one pass takes, of several lengths
MANY_TEXTS = [f"{number} pairs of new shoes" + " and a hat" * (number % 5) for number in range(1, 41)]

KINDS = [
    Kind(
        "echo",
        "echo",
        lambda: Echo,
        None,
        EchoParams,
        mixed=({"message": "hi", "steps": 2}, {"message": {"a": [1]}}, {"message": "ünï", "steps": 3}),
        bad=(({"message": "x", "fail": True}, "echo_failed"),),
    ),
    *(
        Kind(
            f"causal-lm {model.__name__}",
            "text-generation",
            causal_lm,
            model,
            TextGenerationParams,
            mixed=TEXTS,
            several=({"prompt": "old hats", "max_new_tokens": 12, "temperature": 1.2, "num_return_sequences": 3}, 3),
            bad=BAD_TEXTS,
            wrong=WRONG_TEXTS,
        )
        for model in (tiny_models.gpt2, tiny_models.llama)
    ),
    *(
        Kind(
            f"encoder-decoder {model.__name__}",
            "text-generation",
            encoder_decoder,
            model,
            TextGenerationParams,
            mixed=TEXTS,
            several=({"prompt": "old hats", "max_new_tokens": 12, "temperature": 1.2, "num_return_sequences": 3}, 3),
            bad=BAD_ANSWERS if model is tiny_models.bart else BAD_ANSWERS[:1],
            wrong=(tiny_models.gpt2, tiny_models.classifier, tiny_models.stable_diffusion),
        )
        for model in (tiny_models.t5, tiny_models.bart)
    ),
    *(
        Kind(
            f"summarizer {model.__name__}",
            "summarization",
            summarizer,
            model,
            SummarizationParams,
            mixed=(
                {"text": "new shoes for every road", "max_new_tokens": 12},
                {"text": "old hats, blue cups & warm coats for a long winter", "num_beams": 1, "max_new_tokens": 9},
                {"text": "buy two", "max_new_tokens": 14, "min_new_tokens": 6},
                {"text": LONG * 5, "long_text": "truncate", "max_new_tokens": 8},
            ),
            bad=(({"text": LONG * 5}, "prompt_too_long"),),
            wrong=(tiny_models.gpt2, tiny_models.classifier, tiny_models.stable_diffusion),
            wrong_inside=(tiny_models.gpt2,),
        )
        for model in (tiny_models.t5, tiny_models.bart)
    ),
    Kind(
        "translator t5",
        "translation",
        translator,
        tiny_models.t5,
        TranslationParams,
        mixed=(
            {"text": "new shoes for every road"} | PAIR,
            {"text": "old hats", "num_beams": 1} | PAIR,
            {"text": "for a long winter", "num_beams": 2, "length_penalty": 0.5} | PAIR,
        ),
        bad=(
            ({"text": LONG * 5} | PAIR, "prompt_too_long"),
            ({"text": "x", "source_language": "en", "target_language": "fr", "max_new_tokens": 9}, "language_unknown"),
        ),
        wrong=(tiny_models.gpt2, tiny_models.classifier, tiny_models.stable_diffusion),
        wrong_inside=(tiny_models.gpt2,),
    ),
    Kind(
        "classifier",
        "text-classification",
        text_classifier,
        tiny_models.classifier,
        TextClassificationParams,
        mixed=(
            {"text": MANY_TEXTS},
            {"text": "new shoes"},
            {"text": ["old hats", "blue cups and warm coats for a long winter"], "top_k": 1},
            {"text": "buy two", "function_to_apply": "sigmoid"},
            {"text": "buy two", "function_to_apply": "none"},
            {"text": LONG * 12, "long_text": "truncate"},
        ),
        bad=(({"text": LONG * 12}, "text_too_long"),),
        wrong=(tiny_models.headless, tiny_models.gpt2, tiny_models.stable_diffusion),
    ),
    Kind(
        "nli",
        "zero-shot-classification",
        zero_shot_classifier,
        tiny_models.nli,
        ZeroShotClassificationParams,
        mixed=(
            {"text": MANY_TEXTS, "candidate_labels": ["shoes", "hats"]},
            {"text": "new shoes", "candidate_labels": ["shoes", "hats", "cups"]},
            {"text": ["a", "b"], "candidate_labels": ["shoes"], "multi_label": True},
            {"text": "new", "candidate_labels": ["x", "y"], "hypothesis_template": "{}!"},
        ),
        bad=(({"text": LONG * 12, "candidate_labels": ["x", "y"]}, "text_too_long"),),
        wrong=(tiny_models.classifier, tiny_models.gpt2, tiny_models.stable_diffusion),
    ),
    *(
        Kind(
            f"embedder {model.__name__}",
            "feature-extraction",
            text_embedder,
            model,
            FeatureExtractionParams,
            mixed=(
                {"text": MANY_TEXTS},
                {"text": "new shoes", "pooling": "cls"},
                {"text": ["old hats", "blue cups and warm coats for a long winter"], "pooling": "last"},
                {"text": "buy two", "normalize": False, "prefix": "query: "},
                {"text": "buy two", "dimensions": 8, "format": "json"},
                {"text": LONG * 12, "long_text": "truncate"},
            ),
            bad=(({"text": LONG * 12}, "text_too_long"), ({"text": "x", "dimensions": 999}, "param_unsupported")),
            wrong=(tiny_models.stable_diffusion,),
        )
        for model in (tiny_models.classifier, tiny_models.gpt2)
    ),
    Kind(
        "stable diffusion",
        "text-to-image",
        text_to_image,
        tiny_models.stable_diffusion,
        TextToImageParams,
        mixed=(
            PICTURE | {"prompt": "a hat"},
            PICTURE | {"prompt": "two blue cups", "negative_prompt": "red"},
            PICTURE | {"prompt": "a blue cup", "negative_prompt": "tall"},
            PICTURE | {"prompt": "a road", "num_images": 2, "format": "webp"},
            PICTURE | {"prompt": "a road", "guidance_scale": 1.0, "format": "jpeg"},
            PICTURE | {"prompt": "a road", "width": 24, "height": 32, "scheduler": "euler_a"},
            PICTURE | {"prompt": "a shoe", "width": 24, "height": 32, "scheduler": "euler_a"},
            PICTURE | {"prompt": LONG},
            PICTURE | {"prompt": LONG + "and red", "num_inference_steps": 2},
            PICTURE | {"prompt": LONG, "long_prompt": "truncate"},
        ),
        several=(PICTURE | {"prompt": "hats", "num_images": 3, "scheduler": "ddpm"}, 3),
        bad=((PICTURE | {"prompt": LONG, "long_prompt": "fail"}, "prompt_too_long"),),
        wrong=(tiny_models.ddpm, tiny_models.gpt2, tiny_models.classifier),
    ),
    Kind(
        "picture from a picture",
        "image-to-image",
        image_to_image,
        tiny_models.stable_diffusion,
        ImageToImageParams,
        mixed=(
            PICTURE | {"prompt": "a hat", "image": PHOTOS["square"], "strength": 0.9},
            PICTURE | {"prompt": "two blue cups", "image": PHOTOS["other"], "strength": 0.9},
            PICTURE | {"prompt": "a road", "image": PHOTOS["square"], "strength": 0.5, "num_inference_steps": 6},
            PICTURE | {"prompt": "a road", "image": PHOTOS["wide"]},
            PICTURE | {"prompt": "a road", "image": PHOTOS["wide"], "width": 24, "height": 32, "fit": "pad"},
            PICTURE | {"prompt": "a shoe", "image": PHOTOS["clear"], "num_images": 2, "format": "webp"},
        ),
        several=(PICTURE | {"prompt": "hats", "image": PHOTOS["square"], "strength": 1.0, "num_images": 3}, 3),
        bad=(
            (PICTURE | {"prompt": "x", "image": PHOTOS["square"], "strength": 0.1}, "param_unsupported"),
            (PICTURE | {"prompt": "x", "image": PHOTOS["square"], "image_guidance_scale": 2}, "param_unsupported"),
        ),
        wrong=(tiny_models.ddpm, tiny_models.gpt2, tiny_models.classifier),
    ),
    Kind(
        "part of a picture",
        "inpainting",
        inpainting,
        tiny_models.stable_diffusion,
        InpaintingParams,
        mixed=(
            PICTURE | {"prompt": "a hat", "image": PHOTOS["square"], "mask": PHOTOS["mask"], "strength": 1.0},
            PICTURE | {"prompt": "a cup", "image": PHOTOS["other"], "mask": PHOTOS["mask"], "strength": 1.0},
            PICTURE | {"prompt": "a cup", "image": PHOTOS["other"], "mask": PHOTOS["mask"], "keep": False},
            PICTURE | {"prompt": "a cup", "image": PHOTOS["wide"], "mask": PHOTOS["mask"], "format": "jpeg"},
        ),
        several=(
            PICTURE
            | {"prompt": "hats", "image": PHOTOS["square"], "mask": PHOTOS["mask"], "strength": 1.0, "num_images": 3},
            3,
        ),
        wrong=(tiny_models.ddpm, tiny_models.gpt2, tiny_models.classifier),
    ),
    Kind(
        "ddpm",
        "unconditional-image-generation",
        unconditional,
        tiny_models.ddpm,
        UnconditionalImageGenerationParams,
        mixed=(
            {"num_inference_steps": 3},
            {"num_inference_steps": 3, "num_images": 2},
            {"num_inference_steps": 2, "format": "webp"},
            {"num_inference_steps": 3, "scheduler": "ddim"},
        ),
        several=({"num_inference_steps": 3, "num_images": 3}, 3),
        wrong=(tiny_models.stable_diffusion, tiny_models.gpt2),
    ),
]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny"


def files_of(model: Callable[[Path], Path], root: Path) -> ModelFiles:
    return resolve(str(model(root)), settings=Settings(_env_file=None, data_dir=root))


@pytest.fixture(scope="module")
def load(root: Path) -> Iterator[Callable[..., Generator]]:
    loaded: dict[object, Generator] = {}
    threads: list[int] = []

    def load(generator: type[Generator], model: Callable[[Path], Path] | None) -> Generator:
        key = (generator, model)
        if key not in loaded:
            loaded[key] = generator.load(files_of(model, root) if model else None, CPU)
        if model is not None and not threads:
            import torch

            threads.append(torch.get_num_threads())
            torch.set_num_threads(1)  # to models so small a second thread is only in the way
        return loaded[key]

    yield load
    for generator in loaded.values():
        generator.unload()
    if threads:
        sys.modules["torch"].set_num_threads(threads[0])


@pytest.fixture(params=[pytest.param(k, id=k.name, marks=[] if k.model is None else pytest.mark.torch) for k in KINDS])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def generator(kind: Kind, load: Callable[..., Generator]) -> Generator:
    return load(kind.generator(), kind.model)


def work(kind: Kind, params: dict[str, Any], number: int = 0, seed: int | None = None) -> Work:
    said = kind.params.model_validate(params)
    limits = Limits(pixels=10**7, seconds=100.0)
    files = {each.place: examine(Path(each.text), each.kind, each.text, limits) for each in references(said)}
    return Work(f"job-{number}", kind.task, said, 100 * number if seed is None else seed, inputs=files)


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


def assert_same(one: Outcome, other: Outcome) -> None:
    """Texts equal; pictures within 2/255, or what their lossy coding makes of that; facts equal."""
    assert isinstance(one, Done)
    assert isinstance(other, Done)
    assert [output.facts for output in one.outputs] == [output.facts for output in other.outputs]
    for output, a, b in zip(one.outputs, bodies(one), bodies(other), strict=True):
        if output.media_type == "application/x-npy":
            assert np.allclose(np.load(io.BytesIO(a)), np.load(io.BytesIO(b)), atol=2e-6)
        elif output.media_type == "application/json" and a != b:
            assert_close(json.loads(a), json.loads(b))
        elif output.media_type.startswith("image/"):
            assert np.abs(pixels(a) - pixels(b)).max() <= (2 if output.media_type == "image/png" else 24)
        else:
            assert a == b


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


# ── every generator ──


def test_each_job_has_one_outcome_however_it_is_cut(kind: Kind, generator: Generator) -> None:
    jobs = [work(kind, params, i) for i, params in enumerate(kind.mixed)]
    assert run_all(generator, jobs, 3).keys() == {job.job_id for job in jobs}


def test_no_microbatch_is_larger_than_asked(kind: Kind, generator: Generator) -> None:
    jobs = [work(kind, params, i) for i, params in enumerate(kind.mixed * 3)]
    cut = generator.cut(jobs, 4)
    assert sorted(job.job_id for microbatch in cut for job in microbatch) == sorted(job.job_id for job in jobs)
    assert all(1 <= len(microbatch) <= 4 for microbatch in cut)
    assert generator.cut([], 4) == []


def test_a_job_gives_the_same_alone_in_company_and_in_any_order(kind: Kind, generator: Generator) -> None:
    jobs = [work(kind, params, i) for i, params in enumerate(kind.mixed)]
    alone = {job.job_id: run_all(generator, [job])[job.job_id] for job in jobs}
    for company in (run_all(generator, jobs), run_all(generator, jobs[::-1], limit=5)):
        assert company.keys() == alone.keys()
        for job in jobs:
            assert_same(company[job.job_id], alone[job.job_id])


def test_a_job_gives_the_same_twice(kind: Kind, generator: Generator) -> None:
    for params in kind.mixed[:4]:
        first, second = (run_all(generator, [work(kind, params, seed=5)])["job-0"] for _ in range(2))
        assert bodies(first) == bodies(second)


def test_output_i_of_several_is_that_of_a_job_with_seed_plus_i(kind: Kind, generator: Generator) -> None:
    if kind.several is None:
        pytest.skip("one output per job")
    params, count = kind.several
    name = next(name for name in ("num_images", "num_return_sequences") if name in params)
    for limit in (32, 2):
        together = run_all(generator, [work(kind, params, seed=40)], limit)["job-0"]
        one = params | ({"num_images": 1} if name == "num_images" else {name: 1, "do_sample": True})
        singles = [run_all(generator, [work(kind, one, seed=40 + i)])["job-0"] for i in range(count)]
        assert isinstance(together, Done)
        for output, single in zip(together.outputs, singles, strict=True):
            assert isinstance(single, Done)
            assert_same(Done("job-0", [output]), single)
    assert len(set(bodies(together))) == count


def test_what_a_step_raises_passes_through(kind: Kind, generator: Generator) -> None:
    job = work(kind, kind.mixed[0])
    run = FakeRun(stop_at=2)
    with pytest.raises(Stop):
        list(generator.generate([job], run))
    assert [done for _, done, _ in run.steps] == [1, 2]
    assert_same(run_all(generator, [job])["job-0"], run_all(generator, [job])["job-0"])


def test_progress_never_goes_back_and_stays_within_its_total(kind: Kind, generator: Generator) -> None:
    for params in (kind.mixed[0], kind.mixed[-1], *([kind.several[0]] if kind.several else [])):
        run = FakeRun()
        run_all(generator, [work(kind, params)], limit=2, run=run)
        done = [step[1] for step in run.steps]
        assert done == sorted(done)
        assert all(ids == ("job-0",) and 1 <= at <= total for ids, at, total in run.steps)


def test_a_job_that_is_no_longer_wanted_is_dropped_and_its_neighbours_are_not(kind: Kind, generator: Generator) -> None:
    jobs = [work(kind, kind.mixed[0], i) for i in range(3)]
    expected = run_all(generator, [jobs[2]])
    run = FakeRun(unwanted={"job-0"})
    outcomes = run_all(generator, jobs, run=run)
    assert isinstance(outcomes.get("job-0"), Done | None)
    assert_same(outcomes["job-2"], expected["job-2"])
    if kind.model is not None:
        assert outcomes.keys() == {"job-1", "job-2"}
        assert all("job-0" not in ids for ids, _, _ in run.steps)


def test_a_job_that_cannot_be_done_fails_alone_and_says_why(kind: Kind, generator: Generator) -> None:
    good = work(kind, kind.mixed[0], 99)
    bad = [work(kind, params, i) for i, (params, _) in enumerate(kind.bad)]
    jobs = [*bad, good]
    outcomes = run_all(generator, jobs)
    assert isinstance(outcomes["job-99"], Done)
    for job, (_, code) in zip(bad, kind.bad, strict=True):
        outcome = outcomes[job.job_id]
        assert isinstance(outcome, Failed)
        assert (outcome.error.code, outcome.error.retryable) == (code, False), outcome.error


def test_a_model_of_another_kind_is_rejected(kind: Kind, root: Path) -> None:
    for model in kind.wrong:
        files = files_of(model, root)
        with pytest.raises(ModelRejected) as error:
            kind.generator().load(files, CPU)
        assert (error.value.code, error.value.retryable) == ("model_wrong_task", False)
        assert files.ref in error.value.message
        if model not in kind.wrong_inside:
            assert not kind.generator().serves(files)
    if kind.model is not None:
        assert kind.generator().serves(files_of(kind.model, root))


# ── text ──

torch_only = pytest.mark.torch


@pytest.fixture(params=[tiny_models.gpt2, tiny_models.llama], ids=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest, load: Callable[..., Generator]) -> Any:
    return load(causal_lm(), request.param)


@pytest.fixture
def chat(load: Callable[..., Generator]) -> Any:
    return load(causal_lm(), tiny_models.gpt2_chat)


@pytest.fixture
def gpt2(load: Callable[..., Generator]) -> Any:
    return load(causal_lm(), tiny_models.gpt2)


def ask(lm: Any, seed: int = 0, **params: Any) -> Outcome:
    job = Work("job", "text-generation", TextGenerationParams.model_validate(params), seed)
    return run_all(lm, [job])["job"]


def facts(outcome: Outcome, index: int = 0) -> dict[str, Any]:
    assert isinstance(outcome, Done), outcome
    return dict(outcome.outputs[index].facts)


@cache
def plain_model(folder: str) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=1)
    return model


def direct(lm: Any, prompt: str, **options: Any) -> list[str]:
    """The same model through `generate()`, with nothing of ours around it."""
    model = plain_model(lm._model.config._name_or_path)
    inputs = lm._texts.tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    made = model.generate(**inputs, do_sample=False, **options)
    return lm._texts.tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@torch_only
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 20},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0},
        {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 2},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": -1.0, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_the_text_is_that_of_a_direct_generate(lm: Any, options: dict[str, Any]) -> None:
    for prompt in ("New shoes:", "old hats, blue cups & warm"):
        outcome = ask(lm, prompt=prompt, max_new_tokens=24, **options)
        assert [body.decode() for body in bodies(outcome)] == direct(lm, prompt, max_new_tokens=24, **options)


@torch_only
def test_the_models_own_generation_defaults_are_not_taken_over(gpt2: Any) -> None:
    greedy = ask(gpt2, prompt="New shoes:", max_new_tokens=12)
    assert bodies(greedy) == bodies(ask(gpt2, prompt="New shoes:", max_new_tokens=12, temperature=0))
    assert text_of(greedy) == direct(gpt2, "New shoes:", max_new_tokens=12)[0]


@torch_only
def test_another_seed_gives_another_text_and_a_seed_may_be_large(gpt2: Any) -> None:
    texts = {text_of(ask(gpt2, seed, prompt="buy", temperature=1.0)) for seed in (0, 1, 2, 2**63 - 1, 2**64)}
    assert len(texts) == 5


@torch_only
def test_the_facts_count_tokens(gpt2: Any) -> None:
    prompt = "old hats, blue cups"
    outcome = ask(gpt2, 3, prompt=prompt, max_new_tokens=7)
    assert facts(outcome) == {
        "finish_reason": "length",
        "prompt_tokens": len(gpt2._texts.tokenizer(prompt)["input_ids"]),
        "completion_tokens": 7,
        "seed": 3,
    }
    assert facts(ask(gpt2, prompt=prompt, max_length=20))["completion_tokens"] == 20 - facts(outcome)["prompt_tokens"]


@torch_only
@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_ends_before_its_stop_text(gpt2: Any, beams: int) -> None:
    whole = ask(gpt2, prompt="New shoes:", max_new_tokens=30, num_beams=beams)
    stop = text_of(whole)[8:11]
    outcome = ask(gpt2, prompt="New shoes:", max_new_tokens=30, num_beams=beams, stop=["never this", stop])
    assert stop not in text_of(outcome)
    if beams == 1:
        assert text_of(outcome) == text_of(whole)[: text_of(whole).index(stop)]
        assert facts(outcome)["finish_reason"] == "stop"
        assert facts(outcome)["completion_tokens"] < facts(whole)["completion_tokens"]


@torch_only
def test_a_stop_text_over_several_tokens_ends_at_the_token_that_completes_it(gpt2: Any) -> None:
    tokens = [gpt2._texts.tokenizer.decode([i]) for i in range(400)]
    whole = ask(gpt2, 4, prompt="for", max_new_tokens=40, temperature=1.0)
    stop = text_of(whole)[5:17]
    assert all(stop not in token for token in tokens)
    outcome = ask(gpt2, 4, prompt="for", max_new_tokens=40, temperature=1.0, stop=stop)
    assert text_of(outcome) == text_of(whole)[: text_of(whole).index(stop)]
    count = facts(outcome)["completion_tokens"]
    assert stop in text_of(ask(gpt2, 4, prompt="for", max_new_tokens=count, temperature=1.0))
    assert stop not in text_of(ask(gpt2, 4, prompt="for", max_new_tokens=count - 1, temperature=1.0))


@torch_only
def test_an_end_token_ends_a_text(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = gpt2._texts.tokenizer("New shoes:", return_tensors="pt")["input_ids"]
    ids = gpt2._model.generate(inputs, max_new_tokens=20)[0, inputs.shape[1] :].tolist()
    monkeypatch.setattr(gpt2._texts, "ends", [ids[4]])
    outcome = ask(gpt2, prompt="New shoes:", max_new_tokens=20)
    assert facts(outcome)["finish_reason"] == "stop"
    assert facts(outcome)["completion_tokens"] == ids.index(ids[4]) + 1
    longer = ask(gpt2, prompt="New shoes:", max_new_tokens=20, min_new_tokens=15)
    assert facts(longer)["completion_tokens"] >= 15


@torch_only
def test_a_model_without_an_end_token_goes_on_to_the_length(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2._texts, "ends", [])
    monkeypatch.setattr(gpt2._model.generation_config, "eos_token_id", None)
    jobs = [
        Work(f"job-{n}", "text-generation", TextGenerationParams(prompt="hats " * n, max_new_tokens=4 * n), 0)
        for n in (1, 3)
    ]
    assert [facts(outcome)["completion_tokens"] for outcome in run_all(gpt2, jobs).values()] == [4, 12]


@torch_only
def test_a_prompt_too_long_names_both_numbers_or_is_cut_to_its_end(lm: Any) -> None:
    prompt = "hats and cups " * 40
    count, positions = len(lm._texts.tokenizer(prompt)["input_ids"]), lm._texts.positions
    outcome = ask(lm, prompt=prompt, max_new_tokens=16)
    assert isinstance(outcome, Failed)
    assert f"has {count} tokens" in outcome.error.message
    assert f"room for {positions - 16}" in outcome.error.message
    outcome = ask(lm, prompt=prompt, max_new_tokens=16, long_prompt="truncate")
    assert facts(outcome)["prompt_tokens"] == positions - 16
    ids = lm._texts.tokenizer(prompt)["input_ids"]
    marks = [ids[0]] if ids[0] == 0 else []
    kept = lm._texts.fit(ids, TextGenerationParams(prompt=prompt, max_new_tokens=16, long_prompt="truncate"))
    assert kept == marks + ids[count - (positions - 16) + len(marks) :]


@torch_only
def test_prompts_that_do_not_fit_the_positions_together_run_one_after_the_other(gpt2: Any) -> None:
    long = {"prompt": "hats and cups " * 12, "max_new_tokens": 4}
    short = {"prompt": "buy", "max_new_tokens": 80}
    jobs = [Work(f"job-{i}", "text-generation", TextGenerationParams(**p), 0) for i, p in enumerate((long, short))]
    outcomes = run_all(gpt2, jobs)
    for job in jobs:
        assert_same(outcomes[job.job_id], run_all(gpt2, [job])[job.job_id])


@torch_only
def test_padding_is_not_taken_for_a_repeated_token() -> None:
    import torch

    from workers.generators.static_text import _Constraints
    from workers.generators.text_rows import Row

    params = TextGenerationParams(prompt="x", repetition_penalty=2.0, no_repeat_ngram_size=1)
    row, long = (Row(Work("job", "text-generation", params, 0), 0, prompt, 4) for prompt in ([5, 6], [2, 3, 4, 5, 6]))
    scores = torch.arange(1.0, 9.0).repeat(2, 1)
    padded = torch.tensor([[1, 1, 1, 5, 6], [2, 3, 4, 5, 6]])  # 1 both ends and pads
    together = _Constraints([row, long], 5, [1])(padded, scores.clone())
    alone = _Constraints([row], 2, [1])(torch.tensor([[5, 6]]), scores[:1].clone())
    assert together[0].tolist() == alone[0].tolist()
    assert (together[0] != scores[0]).nonzero().flatten().tolist() == [5, 6]


@torch_only
def test_a_conversation_takes_the_models_own_form(chat: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hats?"}]
    outcome = ask(chat, messages=messages, max_new_tokens=12)
    assert text_of(outcome) == text_of(
        ask(chat, prompt="<system>Be brief.\n<user>hats?\n<assistant>", max_new_tokens=12)
    )
    refused = ask(chat, messages=messages[::-1])
    assert isinstance(refused, Failed)
    assert refused.error.code == "chat_template_refused"
    assert "the system message comes first" in refused.error.message


# ── pictures ──


@pytest.fixture
def sd(load: Callable[..., Generator]) -> Any:
    return load(text_to_image(), tiny_models.stable_diffusion)


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


@torch_only
def test_a_picture_is_that_of_a_direct_call(sd: Any) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd._files.folder, safety_checker=None)
    made = pipe("a hat", negative_prompt="red", num_inference_steps=4, guidance_scale=5.0,
                generator=torch.Generator().manual_seed(9)).images[0]  # fmt: skip
    ours = paint(sd, 9, negative_prompt="red", num_inference_steps=4, guidance_scale=5.0)
    assert np.abs(pixels(bodies(ours)[0]) - np.asarray(made).astype(int)).max() <= 1
    assert facts(ours) == {"width": 16, "height": 16, "seed": 9, "format": "png"}


@torch_only
def test_a_model_may_recommend_a_guidance_of_its_own(tmp_path: Path, sd: Any) -> None:
    import shutil

    folder = tmp_path / "mild"
    shutil.copytree(sd._files.folder, folder)
    (folder / "generation_defaults.json").write_text('{"guidance_scale": 2.0}')
    settings = Settings(_env_file=None, data_dir=tmp_path)
    mild = text_to_image().load(resolve(str(folder), settings=settings), Device("cpu", "float32"))
    by_default, asked, usual = (pixels(bodies(paint(mild, guidance_scale=g))[0]) for g in (None, 2.0, 7.5))
    assert np.abs(by_default - asked).max() == 0
    assert np.abs(by_default - usual).max() > 2

    (folder / "generation_defaults.json").write_text('{"guidance": 2.0}')
    with pytest.raises(ModelRejected, match=r"generation_defaults\.json"):
        text_to_image().load(resolve(str(folder), settings=settings), Device("cpu", "float32"))


@torch_only
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


@torch_only
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


@torch_only
def test_what_the_pipeline_has_not_is_never_dropped(sd: Any, monkeypatch) -> None:
    accepts = {name: parameter for name, parameter in sd._accepts.items() if name not in ("negative_prompt", "width")}
    monkeypatch.setattr(sd, "_accepts", accepts)
    for params in ({"negative_prompt": "red"}, {"width": 32, "height": 32}):
        outcome = paint(sd, **params)
        assert isinstance(outcome, Failed)
        assert outcome.error.code == "param_unsupported"


@torch_only
def test_a_size_that_the_model_cannot_make_names_the_nearest(sd: Any, monkeypatch) -> None:
    monkeypatch.setattr(sd._pipe, "patch_size", 32, raising=False)
    outcome = paint(sd, width=72, height=64)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "size_unsupported"
    assert outcome.error.message.endswith("multiples of 64; nearest: width=64")


@torch_only
def test_windows_of_a_short_prompt_are_what_the_pipeline_encodes_itself(sd: Any) -> None:
    import torch

    theirs, empty = sd._pipe.encode_prompt("blue cups", "cpu", 1, True)
    assert torch.allclose(sd._windows.encode(["blue cups"], 1), theirs, atol=1e-6)
    two = sd._windows.encode(["blue cups"], 2)
    assert two.shape == (1, 2 * 77, 32)
    assert torch.allclose(two[:, 77:], empty, atol=1e-6)


@torch_only
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


@torch_only
def test_prompts_do_not_go_to_the_log(sd: Any, library_log: list[str]) -> None:
    paint(sd, prompt=LONG, long_prompt="truncate")
    paint(sd, prompt=LONG)
    assert not [line for line in library_log if "every road" in line]


@torch_only
def test_a_picture_that_overflowed_fails_with_advice(sd: Any, monkeypatch) -> None:
    import torch

    decode = sd._pipe.vae.decode
    monkeypatch.setattr(sd, "_dtype", "float16")
    monkeypatch.setattr(sd._pipe.vae, "decode", lambda *a, **k: (torch.full_like(decode(*a, **k)[0], torch.nan),))
    outcome = paint(sd)
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.error.retryable) == ("numerics", False)
    assert "AIGC_DTYPE=float32" in outcome.error.message


@torch_only
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


@torch_only
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


def test_the_tasks_and_the_picture_files_need_no_torch() -> None:
    code = (
        "import sys, shared.tasks.text_generation, shared.tasks.text_to_image, workers.model_files, "
        "workers.generators.picture_files; import json; "
        "print(json.dumps([m for m in ('torch', 'transformers', 'diffusers', 'huggingface_hub') if m in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []
