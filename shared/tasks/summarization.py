"""`summarization`: a long text said shortly, with an encoder-decoder model made for it, or a model that chats."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.tasks import Params, Task


class SummarizationParams(Params):
    """What a `summarization` job may set."""

    text: Annotated[str, Field(min_length=1, description="the text to summarise")]
    max_new_tokens: Annotated[int, Field(ge=1, le=8192, description="most tokens of the summary")] = 128
    min_new_tokens: Annotated[int, Field(ge=0, le=8192, description="fewest tokens of the summary")] = 0
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
        float | None, Field(ge=-10, le=10, description="beams: above 0 favours long summaries; default 1")
    ] = None
    no_repeat_ngram_size: Annotated[
        int | None,
        Field(
            ge=0,
            le=1024,
            description="no run of this many tokens occurs twice in the summary; 0 means off; by default 3, and 0 for "
            "a model that chats, which would count the text too",
        ),
    ] = None
    long_text: Annotated[
        Literal["fail", "truncate"],
        Field(description="a text that is longer than the model reads: `fail`, or `truncate` it to its beginning"),
    ] = "fail"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}: lower it"
            )
        if self.length_penalty is not None and self.num_beams == 1:
            raise ValueError("`length_penalty` has no effect without beams: remove it or set num_beams above 1")
        return self


def _cost(params: SummarizationParams) -> float:
    return 0.005 * (params.max_new_tokens * math.sqrt(params.num_beams or 4) + len(params.text) / 200)


TASK = Task(
    name="summarization",
    summary="a long text said shortly",
    params=SummarizationParams,
    needs_model=True,
    queue="gpu",
    cost=_cost,
    example={
        "task": "summarization",
        "model": "facebook/bart-large-cnn",
        "params": {
            "text": "The new shop on the market square opened on Monday. By noon the queue reached the fountain, and "
            "by evening every pair of winter shoes was sold. The owner says that more will come on Thursday.",
            "max_new_tokens": 40,
        },
    },
)
