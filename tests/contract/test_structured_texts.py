"""Texts that keep to a JSON schema, in both engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
from contract import assert_same, facts, generator, run_all, text_of
from pydantic import ValidationError

from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Failed, Generator, Outcome, Work

pytestmark = [pytest.mark.torch, pytest.mark.models]

SHOE = {
    "type": "object",
    "properties": {
        "name": {"enum": ["boot", "sandal"]}, "size": {"type": "integer", "minimum": 36, "maximum": 47},
        "sold": {"type": "boolean"},
    },
    "required": ["name", "size", "sold"], "additionalProperties": False,
}  # fmt: skip


def asked(schema: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"prompt": "New shoes:", "max_new_tokens": 80, **more, "response_format": form}


@pytest.fixture(params=["causal_lm:CausalLM gpt2", "causal_lm:CausalLM llama", "encoder_decoder:EncoderDecoder bart"])
def lm(request: pytest.FixtureRequest, load: Callable[..., Generator]) -> Generator:
    path, _, model = request.param.partition(" ")
    return load(generator(path), getattr(tiny_models, model))


def work(number: int, params: dict[str, Any]) -> Work:
    return Work(f"job-{number}", "text-generation", TextGenerationParams.model_validate(params), number)


def ask(lm: Generator, **params: Any) -> Outcome:
    return run_all(lm, [work(0, params)])["job-0"]


def test_random_weights_write_what_the_schema_wants(lm: Generator) -> None:
    for seed in range(4):
        outcome = run_all(lm, [work(seed, asked(SHOE, temperature=1.5))])[f"job-{seed}"]
        shoe = json.loads(text_of(outcome))
        assert shoe["name"] in ("boot", "sandal")
        assert 36 <= shoe["size"] <= 47
        assert isinstance(shoe["sold"], bool)
        assert facts(outcome)["finish_reason"] == "stop"


def test_each_text_keeps_to_its_own_schema_whatever_runs_beside(lm: Generator) -> None:
    digit = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    jobs = [
        work(0, asked(SHOE, temperature=1.0)), work(1, asked(digit)),
        work(2, {"prompt": "old hats", "max_new_tokens": 90}), work(3, asked(SHOE, temperature=1.0, max_new_tokens=5)),
    ]  # fmt: skip
    together = run_all(lm, jobs)
    for job in jobs:
        assert_same(together[job.job_id], run_all(lm, [job])[job.job_id])
    assert json.loads(text_of(together["job-1"]))["n"] in (1, 2)
    assert facts(together["job-3"])["finish_reason"] == "length"


def test_an_object_is_an_object(lm: Generator) -> None:
    text = text_of(ask(lm, prompt="hats", max_new_tokens=60, response_format={"type": "json_object"}))
    assert text.startswith("{")


@pytest.mark.parametrize(
    ("schema", "word"),
    [({"type": "objekt"}, "objekt"), ({"type": "object", "not": {"type": "string"}}, "not"),
     ({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}, "nowhere"),
     ({"$ref": "#"}, "without end"),
     ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without end")],
)  # fmt: skip
def test_a_schema_that_cannot_be_kept_to_is_refused(lm: Generator, schema: dict[str, Any], word: str) -> None:
    outcome = ask(lm, **asked(schema))
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "response_format_unsupported"
    assert word in outcome.error.message


def test_a_tokenizer_that_cannot_be_followed_is_refused(load: Callable[..., Generator]) -> None:
    outcome = ask(load(generator("encoder_decoder:EncoderDecoder"), tiny_models.t5), **asked(SHOE))
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "response_format_unsupported"


def test_a_model_that_cannot_end_is_refused(load: Callable[..., Generator], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(generator("causal_lm:CausalLM"), tiny_models.gpt2)
    monkeypatch.setattr(lm._texts._grammars, "_ends", [])
    outcome = ask(lm, **asked(SHOE))
    assert isinstance(outcome, Failed)
    assert "end" in outcome.error.message


@pytest.mark.parametrize(
    "params",
    [asked(SHOE, num_beams=2), asked(SHOE, stop="}"), asked(SHOE, no_repeat_ngram_size=2),
     asked(SHOE, min_new_tokens=3), asked(None), {"prompt": "x", "response_format": {"type": "yaml"}}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_at_submit(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="response_format"):
        TextGenerationParams.model_validate(params)
