"""What a job may set: everything is checked at submit, and nothing is silently ignored."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shared.tasks import all_tasks
from shared.tasks.text_generation import TASK as TEXT
from shared.tasks.text_generation import TextGenerationParams
from shared.tasks.text_to_image import TASK as IMAGE
from shared.tasks.text_to_image import TextToImageParams


def text(**params: object) -> TextGenerationParams:
    return TextGenerationParams.model_validate({"prompt": "hello", **params})


def image(**params: object) -> TextToImageParams:
    return TextToImageParams.model_validate({"prompt": "a hat", **params})


@pytest.mark.parametrize("task", all_tasks().values(), ids=lambda task: task.name)
def test_each_task_has_an_example_that_is_valid_and_describes_every_field(task) -> None:
    params = task.params.model_validate(task.example["params"])
    assert task.cost(params) > 0
    assert task.example["task"] == task.name
    assert all(field.description for field in task.params.model_fields.values())
    assert task.params.model_validate(params.model_dump(mode="json")) == params


@pytest.mark.parametrize(
    ("params", "advice"),
    [
        ({"prompt": None}, "give either `prompt` or `messages`"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "not both"),
        ({"prompt": ""}, "at least 1 character"),
        ({"prompt": None, "messages": [{"role": "robot", "content": "hi"}]}, "'system', 'user' or 'assistant'"),
        ({"prompt": None, "messages": [{"role": "user", "content": "a"}], "long_prompt": "truncate"}, "drop early"),
        ({"max_new_tokens": 3, "max_length": 9}, "remove one"),
        ({"max_new_tokens": 0}, "greater than or equal to 1"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "lower it"),
        ({"min_new_tokens": 65}, "max_new_tokens=64"),
        (
            {"num_beams": 2, "temperature": 1.0},
            "`temperature` has no effect with num_beams > 1: remove it or set num_beams=1",
        ),
        ({"num_beams": 2, "top_k": 5}, "`top_k` has no effect"),
        ({"num_beams": 2, "top_p": 0.5}, "`top_p` has no effect"),
        ({"num_beams": 2, "do_sample": True}, "do_sample=true is not supported with num_beams > 1"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at most as many texts as it has beams"),
        ({"early_stopping": True}, "`early_stopping` has no effect without beams: remove it or set num_beams above 1"),
        ({"length_penalty": 1.0}, "`length_penalty` has no effect without beams"),
        ({"temperature": 0, "do_sample": True}, "contradicts"),
        ({"temperature": 0, "top_k": 5}, "`top_k` has no effect with temperature=0"),
        ({"do_sample": False, "top_p": 0.9}, "`top_p` has no effect with do_sample=false"),
        ({"do_sample": False, "temperature": 0.7}, "`temperature` has no effect with do_sample=false"),
        ({"do_sample": False, "num_return_sequences": 2}, "would all be equal"),
        ({"temperature": 0, "num_return_sequences": 2}, "would all be equal"),
        ({"top_p": 0}, "greater than 0"),
        ({"stop": ["a"] * 17}, "at most 16"),
        ({"stop": [""]}, "at least 1 character"),
        ({"penalty_alpha": 0.6}, "Extra inputs are not permitted"),
        ({"num_beam_groups": 2}, "Extra inputs are not permitted"),
        ({"temperature": float("nan")}, "finite"),
    ],
)
def test_a_text_that_cannot_be_made_as_asked_is_refused_with_advice(params, advice) -> None:
    with pytest.raises(ValidationError) as error:
        text(**params)
    assert advice in str(error.value)


@pytest.mark.parametrize(
    ("params", "samples"),
    [
        ({}, False), ({"temperature": 0.8}, True), ({"top_k": 5}, True), ({"top_p": 0.9}, True),
        ({"do_sample": True}, True), ({"num_return_sequences": 2}, True),
        ({"num_return_sequences": 2, "num_beams": 2}, False),
        ({"temperature": 0}, False), ({"temperature": 0, "top_p": 1}, False),
        ({"temperature": 0, "do_sample": False}, False),
    ],
)  # fmt: skip
def test_whether_a_job_samples_follows_from_what_it_sets(params, samples) -> None:
    assert text(**params).samples is samples


def test_the_length_is_64_new_tokens_unless_asked_otherwise() -> None:
    assert text().new_tokens(10) == 64
    assert text(max_new_tokens=5).new_tokens(10) == 5
    assert text(max_length=30).new_tokens(10) == 20


def test_values_from_a_csv_are_understood() -> None:
    params = text(max_new_tokens="7", temperature="0.5", do_sample="true", stop="END")
    assert (params.max_new_tokens, params.temperature, params.do_sample, params.stop) == (7, 0.5, True, ("END",))
    assert text(num_beams="2", early_stopping="never").early_stopping == "never"
    assert text(num_beams="2", early_stopping="true").early_stopping is True
    assert image(width="64", height="64", guidance_scale="7").width == 64


@pytest.mark.parametrize(
    ("params", "advice"),
    [
        ({"prompt": ""}, "at least 1 character"),
        ({"width": 64}, "give both"),
        ({"width": 65, "height": 64}, "multiple of 8"),
        ({"width": 8, "height": 64}, "greater than or equal to 16"),
        ({"quality": 50}, "`quality` has no effect on a png"),
        ({"negative_prompt": "x", "guidance_scale": 1}, "raise guidance_scale above 1"),
        ({"scheduler": "dpmpp_9z"}, "'dpmpp_2m'"),
        ({"num_images": 65}, "less than or equal to 64"),
        ({"strength": 0.5}, "Extra inputs are not permitted"),
    ],
)
def test_a_picture_that_cannot_be_made_as_asked_is_refused_with_advice(params, advice) -> None:
    with pytest.raises(ValidationError) as error:
        image(**params)
    assert advice in str(error.value)


def test_cost_grows_with_the_work() -> None:
    assert TEXT.cost(text(max_new_tokens=100)) > 5 * TEXT.cost(text(max_new_tokens=10))
    assert TEXT.cost(text(max_new_tokens=10, num_return_sequences=4)) == pytest.approx(
        4 * TEXT.cost(text(max_new_tokens=10))
    )
    assert IMAGE.cost(image(width=1024, height=1024)) == pytest.approx(4 * IMAGE.cost(image(width=512, height=512)))
    assert IMAGE.cost(image(num_images=3, num_inference_steps=60)) == pytest.approx(6 * IMAGE.cost(image()))


@pytest.mark.parametrize(
    ("task", "params", "advice"),
    [
        ("text-classification", {"text": []}, "at least 1 item"),
        ("text-classification", {"text": ""}, "at least 1 character"),
        ("text-classification", {"text": ["a", ""]}, "at least 1 character"),
        ("zero-shot-classification", {"text": "a", "candidate_labels": ["b"]}, "give several, or set multi_label=true"),
        ("zero-shot-classification", {"text": "a", "candidate_labels": ["b", "b"]}, "twice: remove it"),
        (
            "zero-shot-classification",
            {"text": "a", "candidate_labels": ["b", "c"], "hypothesis_template": "about"},
            "must hold `{}` once",
        ),
        ("summarization", {"text": "a", "min_new_tokens": 200}, "more than max_new_tokens=128: lower it"),
        ("summarization", {"text": "a", "num_beams": 1, "length_penalty": 1}, "has no effect without beams"),
        ("translation", {"text": "a", "num_beams": 1, "length_penalty": 1}, "has no effect without beams"),
    ],
)
def test_what_cannot_be_done_with_texts_is_refused_with_advice(task: str, params: dict, advice: str) -> None:
    with pytest.raises(ValidationError) as error:
        all_tasks()[task].params.model_validate(params)
    assert advice in str(error.value)
