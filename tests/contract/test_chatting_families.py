"""Families of models that chat, each with numbers of its own for a picture: what the library writes, also together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import input_vision
import pytest
import vision_families
from contract import Kind, bodies, run_all, text_of, work
from PIL import Image

from workers.generators import Generator

pytestmark = [pytest.mark.torch, pytest.mark.models]

Load = Callable[..., Generator]
VIEWS = input_vision.views()
FAMILIES = (
    vision_families.llava_next, vision_families.llava_onevision, vision_families.gemma3, vision_families.idefics3,
)  # fmt: skip


@pytest.fixture(params=FAMILIES, ids=lambda model: model.__name__)
def kind(request: pytest.FixtureRequest) -> Kind:
    model = request.param
    return Kind(model.__name__, "image-to-text", "picture_reader:PictureReader", model, mixed=())


def asked(*names: str, **more: Any) -> dict[str, Any]:
    return {"image": [VIEWS[name] for name in names], "question": "two hats?", "max_new_tokens": 10} | more


@pytest.mark.parametrize("names", [("odd",), ("wide",), ("odd", "odd too")])
def test_a_family_is_asked_by_its_own_template(load: Load, kind: Kind, names: tuple[str, ...]) -> None:
    import torch

    generator = load(kind.generator(), kind.model)
    processor = generator._asker._processor
    content: list[Any] = [{"type": "image", "image": Image.open(VIEWS[name])} for name in names]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": "two hats?"}]}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        made = generator._model.generate(**inputs, max_new_tokens=10, do_sample=False)
    expected = processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert text_of(run_all(generator, [work(kind, asked(*names))])["job-0"]) == expected
    assert expected


def test_jobs_of_one_shape_are_written_together_as_they_are_alone(
    load: Load, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(kind.generator(), kind.model)
    jobs = [
        work(kind, asked("odd"), 1),
        work(kind, asked("odd too"), 2),
        work(kind, asked("odd too", temperature=1.1, num_return_sequences=2), 3),
        work(kind, asked("odd", "odd too"), 4),
        work(kind, asked("odd too", "odd"), 5),
    ]
    alone = {job.job_id: bodies(run_all(generator, [job])[job.job_id]) for job in jobs}
    passes: list[int] = []
    generate = generator._model.generate

    def counted(**inputs: Any) -> Any:
        passes.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(generator._model, "generate", counted)
    together = run_all(generator, jobs)
    assert sorted(passes) == [2, 4]
    assert {job_id: bodies(outcome) for job_id, outcome in together.items()} == alone
    assert len(set(alone["job-3"])) == 2
