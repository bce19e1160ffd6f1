"""`text-to-image`: pictures from a prompt with a diffusion model."""

from __future__ import annotations

from shared.tasks import Task
from shared.tasks.pictures import AdaptedPictureParams, cost


class TextToImageParams(AdaptedPictureParams):
    """What a `text-to-image` job may set."""


TASK = Task(
    name="text-to-image",
    summary="pictures from a prompt with a diffusion model",
    params=TextToImageParams,
    needs_model=True,
    queue="gpu",
    cost=cost,
    example={
        "task": "text-to-image",
        "model": "starter/shapes",
        "params": {"prompt": "a red circle on a white ground", "num_inference_steps": 20},
        "seed": 7,
    },
)
