"""What an evaluation may ask for: which metrics go together, and what each of them needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from producer.quick import Validator
from producer.requests import Invalid, ValidJob, validate
from shared.tasks.evaluate import DEFAULTS, METRICS, EvaluateParams, Options

PAIR = {"outputs": ["a cat"], "references": ["the cat"]}
PICTURES = {"outputs": ["artifact:b0123456789abcdef-1"], "references": ["file:f1"]}
SOUNDS = {"outputs": {"recordings": ["file:f1"]}, "references": {"recordings": ["file:f2"]}}


def said(**params: Any) -> dict[str, Any]:
    return EvaluateParams.model_validate(params).model_dump(mode="json", exclude_none=True)


@pytest.mark.parametrize(
    ("given", "metric", "understood"),
    [
        (["a cat", "a hat"], "distinct", {"texts": ["a cat", "a hat"]}),
        ("batch:spring", "distinct", {"text_files": ["batch:spring"]}),
        ("artifact:b0-1", "distinct", {"text_files": ["artifact:b0-1"]}),
        (["artifact:b0-1", "file:f1"], "distinct", {"text_files": ["artifact:b0-1", "file:f1"]}),
        ("texts.txt", "distinct", {"lines": "texts.txt"}),
        (["file: this is a text"], "distinct", {"texts": ["file: this is a text"]}),
        ("batch:spring", "clip_score", {"images": ["batch:spring"]}),
        (["a.png", "b.png"], "clip_score", {"images": ["a.png", "b.png"]}),
        ({"images": ["a.png"]}, "clip_score", {"images": ["a.png"]}),
    ],
)
def test_short_forms_are_understood_by_what_the_metric_judges(given: Any, metric: str, understood: Any) -> None:
    assert said(metrics=[metric], outputs=given)["outputs"] == understood


def test_metrics_may_be_written_in_one_word() -> None:
    assert said(metrics="bleu, chrf", **PAIR)["metrics"] == ["bleu", "chrf"]


@pytest.mark.parametrize(
    ("params", "advice"),
    [
        ({"metrics": ["blue"], **PAIR}, "'bleu'"),
        ({"metrics": ["bleu", "bleu"], **PAIR}, "names one twice"),
        ({"metrics": ["bleu"], "outputs": ["a"]}, "`references` is required for bleu"),
        ({"metrics": ["bleu"], "outputs": ["a", "b"], "references": ["a"]}, "there are 2 outputs and 1 references"),
        ({"metrics": ["bleu"], "outputs": ["a"], "references": [" "]}, "`references.texts.0` is empty"),
        ({"metrics": ["bleu"], "outputs": ["a"], "references": [["a", ""]]}, "`references.texts.0` is empty"),
        ({"metrics": ["bleu"], "outputs": [], "references": []}, "at least 1 item"),
        ({"metrics": ["bleu"], "outputs": ["a", "file:f1"], "references": ["a", "b"]}, "a list holds texts, or"),
        ({"metrics": ["bleu"], "outputs": [["a"]], "references": ["a"]}, "an output is one text"),
        ({"metrics": ["wer"], "outputs": ["a"], "references": [["a", "b"]]}, "wer take one reference for each output"),
        ({"metrics": ["distinct"], **PAIR}, "`references` has no effect on distinct"),
        ({"metrics": ["bleu", "psnr"], **PAIR}, "psnr judges pictures, and the outputs are texts"),
        ({"metrics": ["wer", "snr"], **SOUNDS}, "wer and snr compare with recordings and texts"),
        ({"metrics": ["psnr"], "outputs": ["a.png"], "references": {"texts": ["a"]}}, "and the references are texts"),
        ({"metrics": ["lpips", "fid"], **PICTURES}, "lpips and fid need different models"),
        ({"metrics": ["fid"], **PICTURES}, "fid needs at least 2 outputs, got 1"),
        ({"metrics": ["self_bleu"], "outputs": ["a"]}, "self_bleu needs at least 2 outputs, got 1"),
        ({"metrics": ["psnr"], **PICTURES, "prompts": ["a"]}, "`prompts` has no effect without clip_score"),
        ({"metrics": ["clip_score"], "outputs": ["file:f1"], "prompts": ["a", "b"]}, "1 outputs and 2 prompts"),
        ({"metrics": ["clip_score"], "outputs": ["file:f1"], "prompts": [""]}, "`prompts.texts.0` is empty"),
        ({"metrics": ["bleu"], **PAIR, "options": {"chrf": {}}}, "`options.chrf` has no effect on bleu"),
        ({"metrics": ["bleu"], **PAIR, "options": {"recognition": {}}}, "`options.recognition` has no effect"),
        ({"metrics": ["bleu"], **PAIR, "options": {"bleu": {"tokenise": "zh"}}}, "Extra inputs are not permitted"),
        ({"metrics": ["distinct"], "outputs": {"texts": ["a"], "lines": "x"}}, "give one of `texts`, `text_files`"),
        (
            {"metrics": ["perplexity"], "outputs": ["a"], "options": {"perplexity": {"window": 4, "stride": 4}}},
            "`stride` must be less than `window`",
        ),
        (
            {"metrics": ["rouge"], **PAIR, "options": {"rouge": {"stem": True, "tokenizer": "unicode"}}},
            "it has no effect with tokenizer=unicode",
        ),
        ({"metrics": ["distinct"], "outputs": ["a"] * 10_001}, "at most 10000 items"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_advice(params: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValidationError) as error:
        EvaluateParams.model_validate(params)
    assert advice in str(error.value)


def test_what_is_stored_is_read_back_as_it_was() -> None:
    params = EvaluateParams.model_validate(
        {"metrics": ["bleu", "rouge"], **PAIR, "options": {"rouge": {"stem": True, "types": ["rougeL"]}}}
    )
    assert EvaluateParams.model_validate_json(params.model_dump_json()) == params
    assert "null" not in params.outputs.model_dump_json()


@pytest.mark.parametrize("metric", ["fid", "kid"])
def test_sets_of_pictures_need_not_be_of_one_size(metric: str) -> None:
    assert said(metrics=[metric], outputs=["file:a", "file:b"], references=["file:c", "file:d", "file:e"])


def test_several_references_may_stand_for_one_output() -> None:
    assert said(metrics=["bleu", "rouge"], outputs=["a", "b"], references=[["a", "an a"], "b"])


def test_every_option_has_a_default_and_belongs_to_a_metric() -> None:
    assert set(DEFAULTS) == set(Options.model_fields)
    assert set(Options.model_fields) - {"recognition"} <= set(METRICS)


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", ["examples/evaluate.jsonl", "examples/tiny/evaluate.jsonl"])
def test_the_examples_are_valid_and_use_what_there_is(path: str) -> None:
    jobs = [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]
    used = {name for number, each in enumerate(jobs, start=1) for name in _metrics(validate(number, each))}

    assert len(jobs) == len({each["custom_id"] for each in jobs})
    assert len(used) >= 9


def _metrics(valid: ValidJob) -> list[str]:
    return list(EvaluateParams.model_validate_json(valid.params_json).metrics)


def test_every_metric_and_option_is_documented() -> None:
    page = (ROOT / "docs" / "tasks" / "evaluate.md").read_text(encoding="utf-8")
    rows = page.partition("## Metrics")[2].partition("## What comes out")[0]

    assert [name for name in METRICS if f"`{name}`" not in rows] == []
    told = {name for name, options in DEFAULTS.items() if name != "self_bleu" for name in type(options).model_fields}
    assert [name for name in (*told, "sample") if f"`{name}`" not in rows] == []


# --- the model ---


def job(model: str | None, **params: Any) -> dict[str, Any]:
    return {"task": "evaluate", "params": params} | ({"model": model} if model else {})


@pytest.mark.parametrize(
    ("params", "advice"),
    [
        ({"metrics": ["perplexity"], "outputs": ["a"]}, "such as 'gpt2'"),
        ({"metrics": ["fid"], "outputs": "batch:a", "references": "batch:b"}, "a picture encoder, whose features"),
        ({"metrics": ["fid", "clip_score"], "outputs": "batch:a", "references": "batch:b"}, "needs a CLIP model"),
        ({"metrics": ["lpips"], **PICTURES}, "'timm/vgg16.tv_in1k'"),
        ({"metrics": ["wer"], "outputs": {"recordings": ["file:a"]}, "references": ["a"]}, "a speech recogniser"),
    ],
)
def test_a_metric_without_its_model_is_refused_at_submit_and_says_which(params: dict[str, Any], advice: str) -> None:
    for check in (validate, Validator()):
        with pytest.raises(Invalid) as error:
            check(1, job(None, **params))
        [problem] = error.value.problems
        assert (problem.field, problem.message.startswith("is required: ")) == ("model", True)
        assert advice in problem.message
    assert validate(1, job("some/model", **params)).lane.queue == "cpu"


def test_a_model_that_nothing_asks_for_is_refused() -> None:
    quickly = Validator()
    assert quickly(1, job("gpt2", metrics=["perplexity"], outputs=["a"])).lane.model == "gpt2"
    for check in (validate, quickly):
        with pytest.raises(Invalid, match="nothing in these params takes a model: leave it out"):
            check(2, job("gpt2", metrics=["bleu"], **PAIR))
    assert quickly(3, job(None, metrics=["bleu"], **PAIR)).lane.model == ""
    with pytest.raises(Invalid, match="perplexity needs a causal language model"):
        quickly(4, job(None, metrics=["perplexity"], outputs=["a"]))
