"""`image-to-video`: a video that begins with a picture."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.tasks import Task
from shared.tasks.image_to_image import Fit
from shared.tasks.inputs import ImageInput
from shared.tasks.videos import VideoParams, cost


class ImageToVideoParams(VideoParams):
    """What an `image-to-video` job may set."""

    image: Annotated[ImageInput, Field(description="the picture to begin with")]
    fit: Fit = "crop"
    motion_bucket_id: Annotated[
        int | None,
        Field(ge=0, le=255, description="how much moves, for models that take it (SVD); by default the pipeline's own"),
    ] = None
    noise_aug_strength: Annotated[
        float | None,
        Field(
            ge=0, le=10,
            description="noise laid over the picture, for models that take it (SVD): more of it, and the video keeps "
            "less to the picture and moves more",
        ),
    ] = None  # fmt: skip


TASK = Task(
    name="image-to-video",
    summary="a video that begins with a picture",
    params=ImageToVideoParams,
    needs_model=True,
    queue="gpu",
    cost=cost,
    example={
        "task": "image-to-video",
        "model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "params": {"image": "https://example.org/shoe.jpg", "prompt": "the shoe turns around", "num_frames": 121},
        "seed": 7,
    },
)
