"""`inpainting`: a part of a picture painted anew, by words; what the mask leaves black stays as it is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.tasks import Task
from shared.tasks.image_to_image import Fit
from shared.tasks.inputs import ImageInput
from shared.tasks.pictures import AdaptedPictureParams, cost


class InpaintingParams(AdaptedPictureParams):
    """What an `inpainting` job may set."""

    image: Annotated[ImageInput, Field(description="the picture")]
    mask: Annotated[
        ImageInput, Field(description="of the same shape: what is white is painted anew, what is black stays")
    ]
    strength: Annotated[
        float | None,
        Field(gt=0, le=1, description="how much is made anew within the mask; by default the pipeline's own"),
    ] = None
    keep: Annotated[
        bool, Field(description="put what the mask leaves out back from the picture, to the last pixel")
    ] = True
    fit: Fit = "crop"


TASK = Task(
    name="inpainting",
    summary="a masked part of a picture painted anew, by words",
    params=InpaintingParams,
    needs_model=True,
    queue="gpu",
    cost=cost,
    example={
        "task": "inpainting",
        "model": "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "params": {
            "image": "https://example.org/room.jpg",
            "mask": "https://example.org/wall.png",
            "prompt": "a brick wall",
        },
        "seed": 7,
    },
)
