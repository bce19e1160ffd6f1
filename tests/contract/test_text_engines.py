"""Texts that join and leave a running model: the same as alone, and each is done when it is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models

from shared.settings import Settings
from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Device, Done, Failed, Outcome, Work
from workers.model_files import resolve

pytestmark = [pytest.mark.torch, pytest.mark.models]

CPU = Device("cpu", "float32")
WORDS = ("new shoes", "old hats", "blue cups", "warm coats for a long winter", "buy two, pay for one today!", "road")
#: everything that a job without beams may ask for
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.9, "top_k": 50, "top_p": 0.95},
    {"top_p": 0.8},
    {"temperature": 2.0},
    {"temperature": 1.1, "num_return_sequences": 3},
    {"temperature": 1.0, "stop": ["e", "zz"]},
    {"top_k": 7, "repetition_penalty": 1.4, "min_new_tokens": 5},
    {"no_repeat_ngram_size": 1},
)


class Stop(BaseException):
    """What an engine raises to end a stream."""


@dataclass
class Run:
    """An engine that notes progress, can stop at a step, and can lose interest in jobs."""

    stop_at: int | None = None
    unwanted: set[str] = field(default_factory=set)
    #: (job, done, total), step by step
    steps: list[dict[str, tuple[int, int]]] = field(default_factory=list)
    #: called after each step
    after: Callable[[int], None] = lambda step: None

    def advance(self, progress: Mapping[str, tuple[int, int]]) -> None:
        self.steps.append(dict(progress))
        if len(self.steps) == self.stop_at:
            raise Stop
        self.after(len(self.steps))

    def step(self, job_ids: Sequence[str], done: int, total: int) -> None:
        self.advance(dict.fromkeys(job_ids, (done, total)))

    def wanted(self, job_id: str) -> bool:
        return job_id not in self.unwanted


@dataclass
class Feed:
    """Jobs that come one after the other: at most `at_once` of them every `every` looks."""

    jobs: list[Work]
    at_once: int = 1000
    every: int = 1
    looks: int = 0
    #: how much room there was at each look
    rooms: list[int] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return bool(self.jobs)

    def take(self, room: int) -> Sequence[Work]:
        self.looks += 1
        self.rooms.append(room)
        if self.looks % self.every:
            return ()
        n = min(room, self.at_once)
        given, self.jobs = self.jobs[:n], self.jobs[n:]
        return given


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Callable[[Path], Path]], Any]]:
    from workers.generators.causal_lm import CausalLM

    root, loaded = tmp_path_factory.getbasetemp() / "tiny", dict[object, Any]()

    def load(model: Callable[[Path], Path]) -> Any:
        if model not in loaded:
            files = resolve(str(model(root)), settings=Settings(_env_file=None, data_dir=root))
            loaded[model] = CausalLM.load(files, CPU)
        return loaded[model]

    yield load
    for generator in loaded.values():
        generator.unload()


@pytest.fixture(params=[tiny_models.gpt2, tiny_models.llama], ids=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest, load: Callable[..., Any]) -> Any:
    return load(request.param)


@pytest.fixture
def gpt2(load: Callable[..., Any]) -> Any:
    return load(tiny_models.gpt2)


def job(name: object, seed: int = 0, **params: Any) -> Work:
    return Work(f"job-{name}", "text-generation", TextGenerationParams.model_validate(params), seed)


def mixed(n: int) -> list[Work]:
    return [
        job(i, i, prompt=WORDS[i % 6] * (1 + i % 3), max_new_tokens=5 + 3 * (i % 5), **SETTINGS[i % len(SETTINGS)])
        for i in range(n)
    ]


def streamed(
    lm: Any, jobs: Sequence[Work], feed: Feed | None = None, run: Run | None = None, *, first: int = 5
) -> dict[str, Outcome]:
    """As an engine does: some jobs at the start, the others by the feed; in the order in which they are done."""
    assert all(lm.streams(job) for job in jobs)
    feed = feed or Feed([])
    feed.jobs += jobs[first:]
    outcomes: dict[str, Outcome] = {}
    for outcome in lm.stream(jobs[:first], feed, run or Run()):
        assert outcome.job_id not in outcomes
        outcomes[outcome.job_id] = outcome
    return outcomes


def static(lm: Any, jobs: Sequence[Work], limit: int = 32) -> dict[str, Outcome]:
    return {outcome.job_id: outcome for works in lm.cut(jobs, limit) for outcome in lm.generate(works, Run())}


def texts(outcome: Outcome) -> list[str]:
    assert isinstance(outcome, Done), outcome
    return [output.body.decode() for output in outcome.outputs]  # type: ignore[union-attr]


def facts(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Done), outcome
    return dict(outcome.outputs[0].facts)


# ── the same text ──


def test_a_text_is_the_same_in_a_stream_in_a_static_batch_and_alone(lm: Any) -> None:
    jobs = mixed(48)
    expected = static(lm, jobs)
    assert expected.keys() == {job.job_id for job in jobs}
    assert streamed(lm, jobs) == expected
    assert streamed(lm, jobs[::-1], Feed([], at_once=2, every=3), first=1) == expected
    for alone in jobs[:: 48 // len(SETTINGS) + 1]:
        assert streamed(lm, [alone]) == {alone.job_id: expected[alone.job_id]}


def test_more_texts_than_fit_at_once_take_turns(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job("many", 3, prompt="old hats", max_new_tokens=6, temperature=1.2, num_return_sequences=7), *mixed(9)]
    expected = static(gpt2, jobs)
    monkeypatch.setattr(gpt2._flow, "rows", 3)
    most = []
    run = Run(after=lambda step: most.append(len(gpt2._flow.going)))
    assert streamed(gpt2, jobs, run=run) == expected
    assert max(most) == 3


def test_where_memory_is_short_fewer_run_at_once_and_all_are_done(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.generators import continuous_text

    jobs = [*mixed(8), job("long", prompt="hats and cups " * 8, max_new_tokens=40)]
    expected = static(gpt2, jobs)
    together = []
    for free in (10**12, 4 * 64 * gpt2._flow._per_token):
        monkeypatch.setattr(continuous_text, "_free_bytes", lambda device, free=free: free)
        most: list[int] = []
        assert (
            streamed(gpt2, jobs, run=Run(after=lambda step, most=most: most.append(len(gpt2._flow.going)))) == expected
        )
        together.append(max(most))
    assert together[1] < together[0] / 2


def test_equal_prompts_are_read_once(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    reading = gpt2._flow._read
    monkeypatch.setattr(
        gpt2._flow, "_read", lambda prompts, first: (read.append(len(prompts)), reading(prompts, first))
    )
    many = job(0, 1, prompt="warm coats", max_new_tokens=4, temperature=1.0, num_return_sequences=8)
    assert len(set(texts(streamed(gpt2, [many])["job-0"]))) == 8
    assert read == [1]


# ── joining and leaving ──


def test_a_short_text_does_not_wait_for_a_long_one_that_began_before(gpt2: Any) -> None:
    long = job("long", prompt="buy", max_new_tokens=70, min_new_tokens=70)
    short = [job(i, i, prompt="hats and cups", max_new_tokens=4, temperature=1.0) for i in range(6)]
    run, steps = Run(), dict[str, int]()
    for outcome in gpt2.stream([long], Feed(list(short), at_once=1, every=5), run):
        steps[outcome.job_id] = len(run.steps)
    assert list(steps)[-1] == "job-long"
    assert steps["job-long"] == 70
    joined = {id_: next(n for n, step in enumerate(run.steps) if id_ in step) for id_ in steps}
    assert all(steps[one.job_id] - joined[one.job_id] <= 4 for one in short)


def test_no_more_jobs_are_taken_than_there_is_room_for(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2._flow, "rows", 4)
    feed = Feed([])
    streamed(gpt2, mixed(16), feed, first=1)
    assert max(feed.rooms) <= 4
    assert 0 in feed.rooms


def test_a_job_that_is_no_longer_wanted_leaves_and_its_neighbours_stay(lm: Any) -> None:
    jobs = mixed(12)
    expected = static(lm, jobs)
    run = Run()
    run.after = lambda step: run.unwanted.update({"job-4", "job-8"} & run.steps[-1].keys())
    outcomes = streamed(lm, jobs, run=run, first=12)
    assert run.unwanted == {"job-4", "job-8"}
    assert outcomes == {id_: outcome for id_, outcome in expected.items() if id_ not in run.unwanted}
    assert sum("job-8" in step for step in run.steps) == 1


def test_a_stream_waits_for_an_open_feed_and_ends_with_it(gpt2: Any) -> None:
    jobs = mixed(3)
    feed = Feed(list(jobs[1:]), at_once=1, every=40)  # nothing is left in the model when each of them comes
    assert {outcome.job_id for outcome in gpt2.stream(jobs[:1], feed, Run())} == {job.job_id for job in jobs}
    assert list(gpt2.stream([], Feed([]), Run())) == []


def test_what_a_step_raises_passes_through_and_leaves_nothing_behind(gpt2: Any) -> None:
    jobs = mixed(6)
    expected = static(gpt2, jobs)
    with pytest.raises(Stop):
        streamed(gpt2, jobs, run=Run(stop_at=3))
    assert gpt2._flow.idle
    assert gpt2._flow._slots.bytes_per_token == 0  # no slots are held
    assert streamed(gpt2, jobs) == expected


def test_a_job_that_cannot_run_fails_at_once_and_its_neighbours_run(gpt2: Any) -> None:
    jobs = mixed(4)
    expected = static(gpt2, jobs)
    bad = [
        job("long", prompt="hat " * 200, max_new_tokens=5),
        job("far", prompt="buy", max_new_tokens=5000),
        job("chat", messages=[{"role": "user", "content": "hi"}]),
    ]
    outcomes = streamed(gpt2, [bad[0], *jobs, *bad[1:]])
    codes = {id_: outcome.error.code for id_, outcome in outcomes.items() if isinstance(outcome, Failed)}
    assert codes == {
        "job-long": "prompt_too_long", "job-far": "length_unsupported", "job-chat": "no_chat_template",
    }  # fmt: skip
    assert next(iter(outcomes)) == "job-long"
    assert {id_: outcomes[id_] for id_ in expected} == expected


def test_progress_never_goes_back_and_comes_to_its_total(gpt2: Any) -> None:
    run = Run()
    jobs = [job(i, i, prompt="hats", max_new_tokens=5 + i, min_new_tokens=5 + i, top_k=9, num_return_sequences=1 + i)
            for i in range(4)]  # fmt: skip
    streamed(gpt2, jobs, run=run, first=1)
    for n, one in enumerate(jobs):
        progress = [step[one.job_id] for step in run.steps if one.job_id in step]
        assert [done for done, _ in progress] == sorted({done for done, _ in progress})
        assert {total for _, total in progress} == {(5 + n) * (1 + n)}
        assert progress[-1][0] == (5 + n) * (1 + n)


def test_a_text_ends_where_it_says_why(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = job(0, prompt="New shoes:", max_new_tokens=20)
    text = texts(streamed(gpt2, [whole])["job-0"])[0]
    stop = text[8:11]
    stopped = streamed(gpt2, [job(0, prompt="New shoes:", max_new_tokens=20, stop=[stop])])["job-0"]
    assert texts(stopped) == [text[: text.index(stop)]]
    assert facts(stopped)["finish_reason"] == "stop"
    ids = gpt2._texts.tokenizer(text)["input_ids"]
    monkeypatch.setattr(gpt2._texts, "ends", [*ids[4:5]])
    ended = streamed(gpt2, [whole])["job-0"]
    assert facts(ended) == facts(static(gpt2, [whole])["job-0"])
    monkeypatch.setattr(gpt2._texts, "ends", [])
    assert facts(streamed(gpt2, [whole])["job-0"])["finish_reason"] == "length"


# ── what goes another way ──


def test_beams_and_models_that_cannot_be_stepped_go_to_static_batches(load: Callable[..., Any]) -> None:
    gpt2, mistral = load(tiny_models.gpt2), load(tiny_models.sliding)
    assert not gpt2.streams(job(0, prompt="x", num_beams=2))
    assert gpt2.room() == 64
    plain = job(0, prompt="old hats", max_new_tokens=5)
    assert not mistral.streams(plain)
    assert mistral.room() is None
    assert texts(static(mistral, [plain])["job-0"])


@pytest.mark.parametrize("fault", ["positions", "mask", "refuses"])
def test_a_model_that_gives_other_logits_in_a_stream_is_not_stepped(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from workers.generators.continuous_text import Continuous

    model = gpt2._model
    assert Continuous.of(model, gpt2._texts) is not None
    forward = model.forward

    def off(
        input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        if past_key_values is not None and fault == "refuses":
            raise TypeError("no cache of this kind")
        if past_key_values is not None and position_ids is not None and fault == "positions":
            position_ids = position_ids * 0
        if past_key_values is not None and fault == "mask":
            attention_mask = attention_mask * 0
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, **options,
        )  # fmt: skip

    monkeypatch.setattr(model, "forward", off)
    assert Continuous.of(model, gpt2._texts) is None


def test_static_batches_are_alike_in_length_and_within_a_budget_of_tokens(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.generators import static_passes

    jobs = [job(i, prompt="hats " * (1 + i % 7), max_new_tokens=8 * (1 + i % 5)) for i in range(40)]
    monkeypatch.setitem(static_passes._TOKENS, "cpu", 300)
    groups = gpt2.cut(jobs, 16)
    assert sorted(one.job_id for group in groups for one in group) == sorted(one.job_id for one in jobs)
    assert all(len(group) * max(map(static_passes._tokens, group)) <= 300 for group in groups)
    lengths = [one.params.max_new_tokens for group in groups for one in group]
    assert lengths == sorted(lengths)
    short, long = job(0, prompt="a", max_new_tokens=4), job(1, prompt="a", max_new_tokens=4000)
    assert gpt2.shape([short, long]) == gpt2.shape([long]) != gpt2.shape([short])


def test_a_model_that_was_parked_gives_the_same_texts(gpt2: Any) -> None:
    jobs = mixed(6)
    before = streamed(gpt2, jobs)
    assert gpt2.park()
    gpt2.unpark()
    assert streamed(gpt2, jobs) == before


# ── vLLM, by its interface alone: a stand-in for the module, since it runs on CUDA only ──


class FakeEngine:
    """What `VllmText` uses of `vllm.LLMEngine`: each text counts up from the last token of its prompt."""

    def __init__(self) -> None:
        config = ModuleType("config")
        config.hf_text_config = ModuleType("text")  # type: ignore[attr-defined]
        config.hf_text_config.eos_token_id, config.hf_text_config.vocab_size = 1, 400  # type: ignore[attr-defined]
        config.max_model_len = 96  # type: ignore[attr-defined]
        self.model_config, self.engine_core = config, None
        self.texts: dict[str, tuple[list[int], Any]] = {}
        self.sampling: dict[str, dict[str, Any]] = {}
        self.aborted: list[str] = []

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: dict[str, Any]) -> None:
        self.texts[request_id] = ([*prompt["prompt_token_ids"]], params)
        self.sampling[request_id] = params

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for id_ in request_ids:
            del self.texts[id_]

    def step(self) -> list[Any]:
        outputs = []
        for id_, (tokens, params) in list(self.texts.items()):
            tokens.append(100 + (tokens[-1] + 1) % 200)
            params["left"] = params.get("left", params["max_tokens"]) - 1
            output, completion = ModuleType("output"), ModuleType("completion")
            completion.token_ids = tokens[-1:]  # type: ignore[attr-defined]
            output.request_id, output.outputs, output.finished = id_, [completion], not params["left"]  # type: ignore[attr-defined]
            if output.finished:  # type: ignore[attr-defined]
                del self.texts[id_]
            outputs.append(output)
        return outputs


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """vLLM and CUDA, as far as can be seen from the code; what engines were started with."""
    import importlib.machinery

    import torch

    started: list[dict[str, Any]] = []

    class LLMEngine:
        @staticmethod
        def from_engine_args(arguments: dict[str, Any]) -> FakeEngine:
            started.append(arguments)
            if "unknown" in arguments["model"]:
                raise ValueError("no such architecture")
            return FakeEngine()

    module, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.EngineArgs = module.TokensPrompt = module.SamplingParams = dict  # type: ignore[attr-defined]
    module.LLMEngine = LLMEngine  # type: ignore[attr-defined]
    sampling.RequestOutputKind = ModuleType("kind")  # type: ignore[attr-defined]
    sampling.RequestOutputKind.DELTA = 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * 2**30, 40 * 2**30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return started


def vllm_files(root: Path, name: str = "known") -> Any:
    import shutil

    folder = root / name
    shutil.copytree(tiny_models.gpt2(root), folder)
    return resolve(str(folder), settings=Settings(_env_file=None, data_dir=root))


def test_vllm_serves_only_where_it_is_installed_and_cuda_is_there(tmp_path: Path, vllm: list[Any]) -> None:
    import torch

    from workers.generators.vllm_text import VllmText

    files = vllm_files(tmp_path)
    assert VllmText.serves(files)
    assert not VllmText.serves(None)
    assert vllm == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert not VllmText.serves(files)
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "vllm")
        assert not VllmText.serves(files)


def test_vllm_is_asked_before_transformers() -> None:
    from workers.generators.causal_lm import CausalLM
    from workers.residency import _generator_for

    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "workers.generators.vllm_text.VllmText.serves", classmethod(lambda cls, files: asked.append("vllm"))
        )
        patch.setattr(CausalLM, "serves", classmethod(lambda cls, files: asked.append("transformers") or True))
        files = ModuleType("files")
        files.kind, files.config = "transformers", {}  # type: ignore[attr-defined]
        assert _generator_for("text-generation", files) is CausalLM  # type: ignore[arg-type]
    assert asked == ["vllm", "transformers"]


def test_vllm_gets_what_a_job_asks_for_and_the_rest_goes_to_transformers(tmp_path: Path, vllm: list[Any]) -> None:
    from workers.generators.vllm_text import VllmText

    lm: Any = VllmText.load(vllm_files(tmp_path), CPU)
    assert vllm[0] | {"gpu_memory_utilization": 0.6, "dtype": "float32", "trust_remote_code": False} == vllm[0]
    jobs = [
        job(0, 2**64 + 5, prompt="hats", max_new_tokens=6, temperature=0.7, top_k=5, num_return_sequences=2),
        job(1, prompt="cups", max_new_tokens=9, min_new_tokens=2, repetition_penalty=1.2),
        job(2, prompt="road", max_new_tokens=9, num_beams=2),
        job(3, prompt="road", max_new_tokens=9, no_repeat_ngram_size=2),
    ]
    assert [lm.streams(one) for one in jobs] == [True, True, False, False]
    outcomes = streamed(lm, jobs[:2], first=1)
    engine = lm._flow._engine
    sampled, second, greedy = engine.sampling.values()
    assert (sampled["seed"], second["seed"], sampled["temperature"], sampled["top_k"]) == (5, 6, 0.7, 5)
    assert (greedy["temperature"], greedy["seed"], greedy["min_tokens"], greedy["repetition_penalty"]) == (
        0,
        None,
        2,
        1.2,
    )
    assert {facts(outcome)["engine"] for outcome in outcomes.values()} == {"vllm"}
    assert [output.facts["completion_tokens"] for output in outcomes["job-0"].outputs] == [6, 6]  # type: ignore[union-attr]
    others = static(lm, jobs)
    assert {id_: facts(outcome)["engine"] for id_, outcome in others.items()} == {
        "job-0": "vllm", "job-1": "vllm", "job-2": "transformers", "job-3": "transformers",
    }  # fmt: skip
    assert engine.texts == {}
    lm.unload()


def test_a_text_that_is_stopped_or_not_wanted_leaves_vllm(tmp_path: Path, vllm: list[Any]) -> None:
    from workers.generators.vllm_text import VllmText

    lm: Any = VllmText.load(vllm_files(tmp_path), CPU)
    text = texts(streamed(lm, [job(0, prompt="hats", max_new_tokens=12)])["job-0"])[0]
    stopped = streamed(lm, [job(0, prompt="hats", max_new_tokens=12, stop=[text[4:6]])])["job-0"]
    assert (texts(stopped), facts(stopped)["finish_reason"]) == ([text[: text.index(text[4:6])]], "stop")
    assert len(lm._flow._engine.aborted) == 1
    run = Run()
    run.after = lambda step: run.unwanted.update({"job-1"} if step == 3 else ())
    outcomes = streamed(lm, [job(1, prompt="a", max_new_tokens=60), job(2, prompt="b", max_new_tokens=8)], run=run)
    assert outcomes.keys() == {"job-2"}
    with pytest.raises(Stop):
        streamed(lm, mixed(4)[:2], run=Run(stop_at=2))
    assert lm._flow._engine.texts == {}


def test_a_model_that_vllm_cannot_run_is_run_by_transformers(tmp_path: Path, vllm: list[Any]) -> None:
    from workers.generators.vllm_text import VllmText

    lm: Any = VllmText.load(vllm_files(tmp_path, "unknown"), CPU)
    outcome = streamed(lm, [job(0, prompt="hats", max_new_tokens=6)])["job-0"]
    assert facts(outcome)["engine"] == "transformers"
    lm.unload()
