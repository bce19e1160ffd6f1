"""`feature-extraction`: texts as vectors (embeddings), for search, clustering and finding doubles."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.tasks import Task
from shared.tasks.texts import TextsParams


class FeatureExtractionParams(TextsParams):
    """What a `feature-extraction` job may set."""

    pooling: Annotated[
        Literal["mean", "cls", "last"] | None,
        Field(
            description="one vector out of those of the tokens: their `mean`, the first (`cls`) or the `last`; by "
            "default what the model's own files say (sentence-transformers), else `mean`"
        ),
    ] = None
    normalize: Annotated[
        bool, Field(description="scale each vector to length 1, so that a dot product is the cosine")
    ] = True
    dimensions: Annotated[
        int | None,
        Field(ge=1, description="keep only the first so many numbers, for models trained for that; by default all"),
    ] = None
    prefix: Annotated[
        str, Field(max_length=2000, description="put before each text, where a model asks for it: `query: `, say")
    ] = ""
    format: Annotated[
        Literal["npy", "json"],
        Field(description="`npy`: float32, an array (texts, dimensions) for numpy.load; or `json`: a list per text"),
    ] = "npy"


def _cost(params: FeatureExtractionParams) -> float:
    return 1e-3 + 1e-4 * params.tokens


TASK = Task(
    name="feature-extraction",
    summary="texts as vectors (embeddings)",
    params=FeatureExtractionParams,
    needs_model=True,
    queue="gpu",
    cost=_cost,
    example={
        "task": "feature-extraction",
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "params": {"text": ["new shoes for every road", "warm coats for a long winter"]},
    },
)
