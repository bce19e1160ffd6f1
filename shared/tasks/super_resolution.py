"""`super-resolution`: a picture with more pixels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.tasks import Params, Task
from shared.tasks.inputs import ImageInput
from shared.tasks.pictures import Prompt, Scheduler

#: denoising steps of a diffusion model where a job does not say
DEFAULT_STEPS = 30


class SuperResolutionParams(Params):
    """What a `super-resolution` job may set."""

    image: Annotated[ImageInput, Field(description="the picture to enlarge")]
    tile: Annotated[
        int | None,
        Field(
            ge=64, le=2048, multiple_of=8,
            description="side of the pieces that a large picture is worked on in, in its own pixels; by default what "
            "suits the device",
        ),
    ] = None  # fmt: skip
    overlap: Annotated[
        int,
        Field(
            ge=0, le=256, description="pixels by which pieces overlap, blended into each other so that no seam shows"
        ),
    ] = 32
    prompt: Annotated[Prompt, Field(description="what the picture shows, for diffusion models that are told")] = ""
    negative_prompt: Annotated[
        Prompt | None, Field(description="what the picture should not show; diffusion models")
    ] = None
    num_inference_steps: Annotated[
        int | None,
        Field(ge=1, le=1000, description=f"denoising steps of a diffusion model; {DEFAULT_STEPS} by default"),
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=0, le=50, description="how closely to follow the prompt; diffusion models; by default the pipeline's"),
    ] = None
    noise_level: Annotated[
        int | None,
        Field(
            ge=0, le=1000,
            description="noise put over the picture before it is enlarged: more of it lets the model invent more; "
            "20 by default, where the model has it",
        ),
    ] = None  # fmt: skip
    scheduler: Annotated[
        Scheduler | None, Field(description="the way from noise to picture; diffusion models; by default the model's")
    ] = None
    format: Annotated[Literal["png", "jpeg", "webp"], Field(description="file format; png is lossless")] = "png"
    quality: Annotated[
        int | None, Field(ge=1, le=100, description="of a jpeg or webp; 90 by default; png has none")
    ] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.quality is not None and self.format == "png":
            raise ValueError("`quality` has no effect on a png: remove it, or set format to jpeg or webp")
        if self.tile is not None and self.overlap * 2 > self.tile:
            raise ValueError(f"overlap={self.overlap} is more than half of tile={self.tile}: lower it, or raise tile")
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise ValueError(
                f"`negative_prompt` has no effect with guidance_scale={self.guidance_scale:g}: "
                "remove it, or raise guidance_scale above 1"
            )
        return self


TASK = Task(
    name="super-resolution",
    summary="a picture with more pixels",
    params=SuperResolutionParams,
    needs_model=True,
    queue="gpu",
    cost=lambda params: 2.0 * (params.num_inference_steps or 1),
    example={
        "task": "super-resolution",
        "model": "caidas/swin2SR-classical-sr-x2-64",
        "params": {"image": "https://example.org/old-photo.jpg"},
    },
)
