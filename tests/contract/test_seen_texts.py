"""Texts about pictures: what the library itself would write, together with others and by a job's own seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import input_vision
import pytest
import tiny_models
from contract import CPU, Kind, facts, files_of, run_all, text_of, work
from PIL import Image

from shared.errors import ModelRejected
from workers.generators import Done, Failed, Generator

pytestmark = [pytest.mark.torch, pytest.mark.models]

Load = Callable[..., Generator]
VIEWS = input_vision.views()
CHATS = (tiny_models.llava, tiny_models.qwen2_vl, tiny_models.smolvlm)


def kind_of(model: Any) -> Kind:
    return Kind(model.__name__, "image-to-text", "picture_reader:PictureReader", model, mixed=())


def written(load: Load, model: Any, params: dict[str, Any], seed: int = 3) -> Any:
    kind = kind_of(model)
    return run_all(load(kind.generator(), model), [work(kind, params, seed=seed)])["job-0"]


def by_the_library(load: Load, model: Any, inputs: dict[str, Any], begin: int, **options: Any) -> str:
    """What `generate()` writes after as many tokens as the decoder begins with."""
    import torch

    generator = load(kind_of(model).generator(), model)
    with torch.inference_mode():
        made = generator._model.generate(**inputs, max_new_tokens=12, do_sample=False, **options)
    return generator._asker.tokenizer.decode(made[0, begin:], skip_special_tokens=True).strip()


def opened(name: str) -> Image.Image:
    return Image.open(VIEWS[name]).convert("RGB")


# --- as each family was trained to be asked ---------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("model", CHATS, ids=lambda model: model.__name__)
def test_a_model_that_chats_is_asked_by_its_own_template(load: Load, model: Any, beams: int) -> None:
    processor = load(kind_of(model).generator(), model)._asker._processor
    content = [{"type": "image", "image": opened("wide")}, {"type": "text", "text": "two hats?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    expected = by_the_library(load, model, dict(inputs), inputs["input_ids"].shape[1], num_beams=beams)
    asked = {"image": VIEWS["wide"], "question": "two hats?", "max_new_tokens": 12, "num_beams": beams}
    outcome = written(load, model, asked)
    assert text_of(outcome) == expected
    assert expected
    assert facts(outcome)["prompt_tokens"] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("model", CHATS, ids=lambda model: model.__name__)
def test_a_prompt_is_what_a_model_that_chats_is_told(load: Load, model: Any) -> None:
    one, other = (
        written(load, model, {"image": VIEWS["odd"], name: "new shoes", "max_new_tokens": 8})
        for name in ("question", "prompt")
    )
    assert text_of(one) == text_of(other)


@pytest.mark.parametrize("prompt", [None, "new shoes"])
def test_blip_captions_as_the_library_does(load: Load, prompt: str | None) -> None:
    processor = load(kind_of(tiny_models.blip).generator(), tiny_models.blip)._asker._processor
    said = {} if prompt is None else {"text": prompt}
    inputs = processor(images=opened("wide"), **said, return_tensors="pt")
    begin = 1 if prompt is None else inputs["input_ids"].shape[1] - 1
    expected = by_the_library(load, tiny_models.blip, dict(inputs), begin)
    asked = {"image": VIEWS["wide"], "max_new_tokens": 12} | ({} if prompt is None else {"prompt": prompt})
    assert text_of(written(load, tiny_models.blip, asked)) == expected
    assert expected


def test_blip_answers_as_the_library_does(load: Load) -> None:
    model = tiny_models.blip_vqa
    processor = load(kind_of(model).generator(), model)._asker._processor
    inputs = processor(images=opened("wide"), text="which shoes?", return_tensors="pt")
    expected = by_the_library(load, model, dict(inputs), 1)
    outcome = written(load, model, {"image": VIEWS["wide"], "question": "which shoes?", "max_new_tokens": 12})
    assert text_of(outcome) == expected
    assert facts(outcome)["prompt_tokens"] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("prompt", [None, "new shoes"])
def test_an_encoder_of_pictures_writes_as_the_library_does(load: Load, prompt: str | None) -> None:
    """Four beams stand in that model's own defaults: they are not taken over."""
    import torch

    model = tiny_models.vit_gpt2
    asker = load(kind_of(model).generator(), model)._asker
    inputs = dict(asker._images(images=opened("turned").transpose(Image.Transpose.ROTATE_270), return_tensors="pt"))
    begin = [0, *(asker.tokenizer(prompt)["input_ids"] if prompt else [])]
    inputs["decoder_input_ids"] = torch.tensor([begin])
    expected = by_the_library(load, model, inputs, len(begin), num_beams=1)
    asked = {"image": VIEWS["turned"], "max_new_tokens": 12} | ({} if prompt is None else {"prompt": prompt})
    assert text_of(written(load, model, asked)) == expected
    assert expected


def test_a_model_is_told_to_describe_where_a_job_asks_nothing(load: Load) -> None:
    bare = written(load, tiny_models.llava, {"image": VIEWS["odd"], "max_new_tokens": 8})
    told = {"image": VIEWS["odd"], "max_new_tokens": 8, "question": "Describe this picture."}
    assert text_of(bare) == text_of(written(load, tiny_models.llava, told))


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", CHATS, ids=lambda model: model.__name__)
def test_several_pictures_are_looked_at_in_their_order(load: Load, model: Any) -> None:
    texts = set()
    for images in ([VIEWS["odd"], VIEWS["wide"]], [VIEWS["wide"], VIEWS["odd"]], [VIEWS["wide"]]):
        outcome = written(load, model, {"image": images, "question": "which of them?", "max_new_tokens": 12})
        assert facts(outcome)["images"] == len(images)
        texts.add(text_of(outcome))
    assert len(texts) == 3


def test_a_picture_in_a_list_is_that_picture(load: Load) -> None:
    one, other = (
        written(load, tiny_models.blip, {"image": image, "max_new_tokens": 8})
        for image in (VIEWS["odd"], [VIEWS["odd"]])
    )
    assert text_of(one) == text_of(other)


def test_a_turned_photograph_is_seen_upright(load: Load, tmp_path: Path) -> None:
    upright = opened("turned").transpose(Image.Transpose.ROTATE_270)
    upright.save(tmp_path / "upright.png")
    texts = [
        text_of(written(load, tiny_models.blip, {"image": image, "max_new_tokens": 12}))
        for image in (VIEWS["turned"], str(tmp_path / "upright.png"))
    ]
    assert texts[0] == texts[1]


def test_a_picture_that_the_processor_refuses_fails_with_its_words(load: Load, tmp_path: Path) -> None:
    input_vision.scene(900, 2).save(tmp_path / "strip.png")
    outcome = written(load, tiny_models.qwen2_vl, {"image": str(tmp_path / "strip.png"), "max_new_tokens": 4})
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "input_unsupported"
    assert "aspect ratio" in outcome.error.message


# --- together ---------------------------------------------------------------------------------------------------------


def test_texts_of_one_shape_are_written_in_one_pass(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = kind_of(tiny_models.blip)
    generator = load(kind.generator(), tiny_models.blip)
    passes: list[int] = []
    generate = generator._model.generate

    def counted(**inputs: Any) -> Any:
        passes.append(len(inputs["pixel_values"]))
        return generate(**inputs)

    monkeypatch.setattr(generator._model, "generate", counted)
    names = ("odd", "wide", "turned", "large")
    jobs = [
        work(kind, {"image": VIEWS[name], "max_new_tokens": 4 + n, "temperature": 0.5 + n}, n)
        for n, name in enumerate(names)
    ]
    outcomes = run_all(generator, jobs)
    assert passes == [4]
    assert [facts(outcomes[f"job-{n}"])["completion_tokens"] <= 4 + n for n in range(4)] == [True] * 4


def test_a_seed_decides_what_is_drawn(load: Load) -> None:
    asked = {"image": VIEWS["odd"], "max_new_tokens": 12, "temperature": 1.5}
    texts = [text_of(written(load, tiny_models.llava, asked, seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_text_ends_the_output_before_it(load: Load) -> None:
    asked = {"image": VIEWS["odd"], "max_new_tokens": 30}
    whole = text_of(written(load, tiny_models.llava, asked))
    stop = whole[len(whole) // 2]
    outcome = written(load, tiny_models.llava, asked | {"stop": stop})
    assert text_of(outcome) == whole[: whole.index(stop)].strip()
    assert facts(outcome)["finish_reason"] == "stop"


def test_without_a_limit_a_text_is_as_long_as_there_is_room(load: Load) -> None:
    outcome = written(load, tiny_models.vit_gpt2, {"image": VIEWS["odd"], "temperature": 2.0})
    assert isinstance(outcome, Done)
    assert facts(outcome)["completion_tokens"] <= 95


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_processor_that_wants_a_missing_library_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ModelRejected) as error:
        kind_of(tiny_models.smolvlm).generator().load(files_of(tiny_models.smolvlm, root), CPU)
    assert error.value.code == "model_needs_package"
    assert "num2words" in error.value.message
