"""`unconditional-image-generation`: pictures from noise alone, of what a model was trained on."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.tasks import Params, Task
from shared.tasks.pictures import Scheduler


class UnconditionalImageGenerationParams(Params):
    """What an `unconditional-image-generation` job may set."""

    num_images: Annotated[int, Field(ge=1, le=64, description="pictures per job; the i-th uses seed + i")] = 1
    num_inference_steps: Annotated[int, Field(ge=1, le=1000, description="denoising steps")] = 50
    scheduler: Annotated[
        Scheduler | None, Field(description="the way from noise to picture; by default the model's own")
    ] = None
    format: Annotated[Literal["png", "jpeg", "webp"], Field(description="file format; png is lossless")] = "png"
    quality: Annotated[
        int | None, Field(ge=1, le=100, description="of a jpeg or webp; 90 by default; png has none")
    ] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.quality is not None and self.format == "png":
            raise ValueError("`quality` has no effect on a png: remove it, or set format to jpeg or webp")
        return self


TASK = Task(
    name="unconditional-image-generation",
    summary="pictures from noise alone, of what a model was trained on",
    params=UnconditionalImageGenerationParams,
    needs_model=True,
    queue="gpu",
    cost=lambda params: 0.02 * params.num_inference_steps * params.num_images,
    example={
        "task": "unconditional-image-generation",
        "model": "google/ddpm-celebahq-256",
        "params": {"num_images": 4, "num_inference_steps": 100},
        "seed": 7,
    },
)
