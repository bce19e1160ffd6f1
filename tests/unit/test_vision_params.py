"""What a job about a picture may set: checked at submit, with advice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from producer.requests import Invalid, validate
from shared.tasks.image_to_text import ImageToTextParams
from shared.tasks.inputs import references
from shared.tasks.super_resolution import SuperResolutionParams

ROOT = Path(__file__).resolve().parents[2]


def problems(task: str, **params: object) -> str:
    with pytest.raises(Invalid) as error:
        validate(1, {"task": task, "model": "org/name", "params": {"image": "file:f1", **params}})
    return str(error.value)


@pytest.mark.parametrize(
    ("params", "advice"),
    [
        ({"tile": 65}, "multiple of 8"),
        ({"tile": 32}, "at least 64"),
        ({"tile": 64, "overlap": 40}, "overlap=40 is more than half of tile=64"),
        ({"overlap": 300}, "at most 256"),
        ({"quality": 50}, "`quality` has no effect on a png"),
        ({"negative_prompt": "x", "guidance_scale": 1}, "raise guidance_scale above 1"),
        ({"scale": 4}, "unknown name"),
    ],
)
def test_an_enlargement_that_cannot_be_made_is_refused_with_advice(params: dict[str, object], advice: str) -> None:
    assert advice in problems("super-resolution", **params)


@pytest.mark.parametrize(
    ("params", "advice"),
    [
        ({"question": "what?", "prompt": "a photo"}, "not both"),
        ({"question": ""}, "must not be empty"),
        ({"image": []}, "must not be empty"),
        ({"image": ["file:f1"] * 17}, "at most 16"),
        ({"num_beams": 2, "temperature": 1.0}, "`temperature` has no effect with num_beams > 1"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at most as many texts as it has beams"),
        ({"length_penalty": 1.0}, "`length_penalty` has no effect without beams"),
        ({"do_sample": False, "num_return_sequences": 2}, "would all be equal"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "lower it"),
        ({"min_new_tokens": 300}, "max_new_tokens=256"),
        ({"stop": ["a"] * 17}, "at most 16"),
        ({"messages": []}, "unknown name"),
    ],
)
def test_a_text_that_cannot_be_written_is_refused_with_advice(params: dict[str, object], advice: str) -> None:
    assert advice in problems("image-to-text", **params)


def test_one_picture_or_a_list_of_them_is_found_where_it_stands() -> None:
    one, several = ImageToTextParams(image="a.png"), ImageToTextParams(image=["a.png", "file:f2"])
    assert [(each.place, each.text) for each in references(one)] == [("image", "a.png")]
    assert [(each.place, each.text) for each in references(several)] == [("image.0", "a.png"), ("image.1", "file:f2")]
    assert (one.places, several.places) == (["image"], ["image.0", "image.1"])
    assert [each.place for each in references(SuperResolutionParams(image="a.png"))] == ["image"]


def test_what_samples_follows_from_what_is_set() -> None:
    assert not ImageToTextParams(image="a.png").writing.samples
    assert ImageToTextParams(image="a.png", temperature=0.7).writing.samples
    assert ImageToTextParams(image="a.png", num_return_sequences=2).writing.samples
    assert ImageToTextParams(image="a.png", stop="END").stop == ("END",)
    with pytest.raises(ValidationError):
        ImageToTextParams(image="a.png", top_p=0)


@pytest.mark.parametrize("task", ["super-resolution", "image-to-text"])
@pytest.mark.parametrize("folder", ["examples", "examples/tiny"])
def test_the_examples_may_be_submitted(task: str, folder: str) -> None:
    lines = (ROOT / folder / f"{task}.jsonl").read_text().splitlines()
    assert len({validate(number, json.loads(line)).custom_id for number, line in enumerate(lines, 1)}) == len(lines)
