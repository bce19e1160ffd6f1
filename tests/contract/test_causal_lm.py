"""Continued texts, beyond what every generator promises."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tiny_models
from contract import assert_same, bodies, facts, generator, run_all, text_of

from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Failed, Generator, Outcome, Work

pytestmark = [pytest.mark.torch, pytest.mark.models]


@pytest.fixture(params=[tiny_models.gpt2, tiny_models.llama], ids=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest, load: Callable[..., Generator]) -> Any:
    return load(generator("causal_lm:CausalLM"), request.param)


@pytest.fixture
def chat(load: Callable[..., Generator]) -> Any:
    return load(generator("causal_lm:CausalLM"), tiny_models.gpt2_chat)


@pytest.fixture
def gpt2(load: Callable[..., Generator]) -> Any:
    return load(generator("causal_lm:CausalLM"), tiny_models.gpt2)


def ask(lm: Any, seed: int = 0, **params: Any) -> Outcome:
    job = Work("job", "text-generation", TextGenerationParams.model_validate(params), seed)
    return run_all(lm, [job])["job"]


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


def test_the_models_own_generation_defaults_are_not_taken_over(gpt2: Any) -> None:
    greedy = ask(gpt2, prompt="New shoes:", max_new_tokens=12)
    assert bodies(greedy) == bodies(ask(gpt2, prompt="New shoes:", max_new_tokens=12, temperature=0))
    assert text_of(greedy) == direct(gpt2, "New shoes:", max_new_tokens=12)[0]


def test_another_seed_gives_another_text_and_a_seed_may_be_large(gpt2: Any) -> None:
    texts = {text_of(ask(gpt2, seed, prompt="buy", temperature=1.0)) for seed in (0, 1, 2, 2**63 - 1, 2**64)}
    assert len(texts) == 5


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


def test_an_end_token_ends_a_text(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = gpt2._texts.tokenizer("New shoes:", return_tensors="pt")["input_ids"]
    ids = gpt2._model.generate(inputs, max_new_tokens=20)[0, inputs.shape[1] :].tolist()
    monkeypatch.setattr(gpt2._texts, "ends", [ids[4]])
    outcome = ask(gpt2, prompt="New shoes:", max_new_tokens=20)
    assert facts(outcome)["finish_reason"] == "stop"
    assert facts(outcome)["completion_tokens"] == ids.index(ids[4]) + 1
    longer = ask(gpt2, prompt="New shoes:", max_new_tokens=20, min_new_tokens=15)
    assert facts(longer)["completion_tokens"] >= 15


def test_a_model_without_an_end_token_goes_on_to_the_length(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2._texts, "ends", [])
    monkeypatch.setattr(gpt2._model.generation_config, "eos_token_id", None)
    jobs = [
        Work(f"job-{n}", "text-generation", TextGenerationParams(prompt="hats " * n, max_new_tokens=4 * n), 0)
        for n in (1, 3)
    ]
    assert [facts(outcome)["completion_tokens"] for outcome in run_all(gpt2, jobs).values()] == [4, 12]


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


def test_prompts_that_do_not_fit_the_positions_together_run_one_after_the_other(gpt2: Any) -> None:
    long = {"prompt": "hats and cups " * 12, "max_new_tokens": 4}
    short = {"prompt": "buy", "max_new_tokens": 80}
    jobs = [Work(f"job-{i}", "text-generation", TextGenerationParams(**p), 0) for i, p in enumerate((long, short))]
    outcomes = run_all(gpt2, jobs)
    for job in jobs:
        assert_same(outcomes[job.job_id], run_all(gpt2, [job])[job.job_id])


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
