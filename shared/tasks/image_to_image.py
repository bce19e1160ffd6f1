"""`image-to-image`: a picture made of another one, by words: style, restoration, editing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.tasks import Task
from shared.tasks.inputs import ImageInput
from shared.tasks.pictures import AdaptedPictureParams, cost

Fit = Annotated[
    Literal["crop", "pad", "stretch"],
    Field(
        description="a picture of another shape than `width` and `height`: `crop` its edges, `pad` it with its edge's "
        "colour, or `stretch` it"
    ),
]


class ImageToImageParams(AdaptedPictureParams):
    """What an `image-to-image` job may set."""

    image: Annotated[ImageInput, Field(description="the picture to begin with")]
    strength: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="how much is made anew: near 0 little, 1 all; by default the pipeline's own; a model that "
            "edits by instruction has none",
        ),
    ] = None
    image_guidance_scale: Annotated[
        float | None,
        Field(ge=1, le=50, description="how closely to follow the picture, for models that edit by instruction"),
    ] = None
    fit: Fit = "crop"


def _cost(params: ImageToImageParams) -> float:
    return cost(params) * (params.strength or 1.0)


TASK = Task(
    name="image-to-image",
    summary="a picture made of another one, by words",
    params=ImageToImageParams,
    needs_model=True,
    queue="gpu",
    cost=_cost,
    example={
        "task": "image-to-image",
        "model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "params": {"image": "https://example.org/shoe.jpg", "prompt": "a watercolour of a shoe", "strength": 0.6},
        "seed": 7,
    },
)
