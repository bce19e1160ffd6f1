"""`text-classification`: what kind of text this is (sentiment, topic, moderation, …), by a model's own labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.tasks import Task
from shared.tasks.texts import TextsParams


class TextClassificationParams(TextsParams):
    """What a `text-classification` job may set."""

    top_k: Annotated[
        int | None, Field(ge=1, le=10_000, description="only so many labels, the likeliest; by default all of them")
    ] = None
    function_to_apply: Annotated[
        Literal["softmax", "sigmoid", "none"] | None,
        Field(
            description="what makes scores of the model's numbers: `softmax` (labels exclude each other), `sigmoid` "
            "(each label by itself) or `none`; by default what the model was trained for"
        ),
    ] = None


def _cost(params: TextClassificationParams) -> float:
    return 1e-3 + 1e-4 * params.tokens


TASK = Task(
    name="text-classification",
    summary="labels with scores for a text (sentiment, topic, moderation, …)",
    params=TextClassificationParams,
    needs_model=True,
    queue="gpu",
    cost=_cost,
    example={
        "task": "text-classification",
        "model": "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        "params": {"text": "The new shoes fit at once, and look better than in the picture."},
    },
)
