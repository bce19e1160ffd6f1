"""Models that see and do not chat: each is prompted in the form that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import input_vision
import pytest
import vision_families
from contract import Kind, facts, run_all, text_of, work
from PIL import Image

from workers.generators import Failed, Generator

pytestmark = [pytest.mark.torch, pytest.mark.models]

Load = Callable[..., Generator]
VIEWS = input_vision.views()
SHORT = {"max_new_tokens": 10}


def kind_of(model: Any) -> Kind:
    return Kind(model.__name__, "image-to-text", "picture_reader:PictureReader", model, mixed=())


def written(load: Load, model: Any, params: dict[str, Any]) -> Any:
    kind = kind_of(model)
    return run_all(load(kind.generator(), model), [work(kind, {"image": VIEWS["wide"]} | SHORT | params, seed=3)])[
        "job-0"
    ]


def by_the_library(load: Load, model: Any, said: str | None, *, cut: int = 0) -> str:
    """What the library writes about the picture and these words; the last `cut` of their tokens are left out."""
    import torch

    generator = load(kind_of(model).generator(), model)
    words = {} if said is None else {"text": said}
    inputs = dict(generator._asker._processor(images=Image.open(VIEWS["wide"]), **words, return_tensors="pt"))
    inputs.pop("labels", None)
    if cut:
        inputs |= {name: inputs[name][:, :-cut] for name in ("input_ids", "attention_mask")}
    begin = 1 if generator._model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    with torch.inference_mode():
        made = generator._model.generate(**inputs, max_new_tokens=10, do_sample=False)
    return generator._asker.tokenizer.decode(made[0, begin:], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("model", "params", "said"),
    [
        (vision_families.paligemma, {}, "<image>caption en"),
        (vision_families.paligemma, {"question": "which shoes?"}, "<image>answer en which shoes?"),
        (vision_families.paligemma, {"prompt": "ocr"}, "<image>ocr"),
        (vision_families.blip_2, {"question": "which shoes?"}, "Question: which shoes? Answer:"),
        (vision_families.blip_2, {"prompt": "new shoes"}, "new shoes"),
        (vision_families.florence2, {}, "<CAPTION>"),
        (vision_families.instructblip, {}, "Describe this picture."),
        (vision_families.instructblip, {"question": "which shoes?"}, "which shoes?"),
        (vision_families.pix2struct, {}, None),
        (vision_families.florence2, {"prompt": "<OD>"}, "<OD>"),
    ],
)
def test_words_are_put_into_the_form_of_the_family(load: Load, model: Any, params: dict[str, Any], said: str) -> None:
    expected = by_the_library(load, model, said)
    assert text_of(written(load, model, params)) == expected
    assert expected


def test_a_model_that_goes_on_with_a_caption_reads_no_end_mark(load: Load) -> None:
    expected = by_the_library(load, vision_families.git, "new shoes", cut=1).removeprefix("##")  # joins the word before
    assert text_of(written(load, vision_families.git, {"prompt": "new shoes"})) == expected
    assert expected


@pytest.mark.parametrize("model", [vision_families.git, vision_families.blip_2], ids=lambda model: model.__name__)
def test_a_captioner_needs_no_words(load: Load, model: Any) -> None:
    assert text_of(written(load, model, {}))
    assert facts(written(load, model, {}))["completion_tokens"] >= 1


@pytest.mark.parametrize("model", [vision_families.git, vision_families.florence2], ids=lambda model: model.__name__)
def test_a_family_without_questions_refuses_them(load: Load, model: Any) -> None:
    outcome = written(load, model, {"question": "which shoes?"})
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "param_unsupported"
    assert "takes no question" in outcome.error.message


def test_a_prompt_of_donut_stands_for_the_usual_beginning(load: Load) -> None:
    import torch

    model = vision_families.donut
    generator = load(kind_of(model).generator(), model)
    asker = generator._asker
    pixels = asker._images(images=Image.open(VIEWS["wide"]), return_tensors="pt")["pixel_values"]
    begin = asker.tokenizer("<s_shoes>", add_special_tokens=False)["input_ids"]
    assert len(begin) == 1
    with torch.inference_mode():
        made = generator._model.generate(
            pixel_values=pixels, decoder_input_ids=torch.tensor([begin]), max_new_tokens=10, do_sample=False
        )
    outcome = written(load, model, {"prompt": "<s_shoes>"})
    assert text_of(outcome) == asker.tokenizer.decode(made[0, 1:], skip_special_tokens=True).strip()
    assert facts(outcome)["prompt_tokens"] == 1


def test_a_model_that_nobody_knows_how_to_ask_wants_a_prompt(load: Load) -> None:
    model = vision_families.llava_untold
    outcome = written(load, model, {})
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "prompt_missing"
    assert text_of(written(load, model, {"prompt": "new shoes"})) == by_the_library(load, model, "<image>new shoes")
