"""`translation`: a text in another language, with a translation model, or a model that chats."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.tasks import Params, Task

Language = Annotated[str, Field(min_length=1, max_length=40)]


class TranslationParams(Params):
    """What a `translation` job may set."""

    text: Annotated[str, Field(min_length=1, description="the text to translate")]
    source_language: Annotated[
        Language | None,
        Field(
            description="the language of the text, as the model names it (`en`, `eng_Latn`, `English`, …); a model for "
            "one pair needs none"
        ),
    ] = None
    target_language: Annotated[
        Language | None,
        Field(description="the language wanted, as the model names it; a model for one pair needs none"),
    ] = None
    max_new_tokens: Annotated[int, Field(ge=1, le=8192, description="most tokens of the translation")] = 256
    num_beams: Annotated[
        int | None,
        Field(
            ge=1,
            le=32,
            description="beams of the search for the likeliest words; 1 takes each likeliest token; by default 4, and "
            "1 for a model that chats",
        ),
    ] = None
    length_penalty: Annotated[
        float | None, Field(ge=-10, le=10, description="beams: above 0 favours long translations; default 1")
    ] = None
    long_text: Annotated[
        Literal["fail", "truncate"],
        Field(description="a text that is longer than the model reads: `fail`, or `truncate` it to its beginning"),
    ] = "fail"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.length_penalty is not None and self.num_beams == 1:
            raise ValueError("`length_penalty` has no effect without beams: remove it or set num_beams above 1")
        return self


def _cost(params: TranslationParams) -> float:
    tokens = min(params.max_new_tokens, len(params.text) // 3 + 8)
    return 0.005 * (tokens * math.sqrt(params.num_beams or 4) + len(params.text) / 200)


TASK = Task(
    name="translation",
    summary="a text in another language",
    params=TranslationParams,
    needs_model=True,
    queue="gpu",
    cost=_cost,
    example={
        "task": "translation",
        "model": "facebook/nllb-200-distilled-600M",
        "params": {"text": "New shoes for every road.", "source_language": "eng_Latn", "target_language": "deu_Latn"},
    },
)
