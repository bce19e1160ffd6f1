"""Params that the tasks which paint pictures have in common."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.tasks import Params
from shared.tasks.adapters import Control, Likeness, Lora

#: names of the ways to walk from noise to picture; what each stands for is in the generator
Scheduler = Literal[
    "ddim", "ddpm", "pndm", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras", "unipc", "lcm",
]  # fmt: skip

Side = Annotated[int, Field(ge=16, le=4096, multiple_of=8)]
# 6,000 characters of prompt and negative prompt each always fit into the 64 KiB that EXIF has in a JPEG.
Prompt = Annotated[str, Field(max_length=6000)]


class PictureParams(Params):
    """What every job of a diffusion model may set."""

    prompt: Annotated[Prompt, Field(min_length=1, description="what the picture shows")]
    negative_prompt: Annotated[Prompt | None, Field(description="what the picture should not show")] = None
    width: Annotated[Side | None, Field(description="pixels, a multiple of 8; by default the model's own")] = None
    height: Annotated[Side | None, Field(description="pixels, a multiple of 8; by default the model's own")] = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000, description="denoising steps")] = 30
    guidance_scale: Annotated[
        float | None,
        Field(ge=0, le=50, description="how closely to follow the prompt; by default what suits the model"),
    ] = None
    num_images: Annotated[int, Field(ge=1, le=64, description="pictures per job; the i-th uses seed + i")] = 1
    scheduler: Annotated[
        Scheduler | None, Field(description="the way from noise to picture; by default the model's own")
    ] = None
    format: Annotated[Literal["png", "jpeg", "webp"], Field(description="file format; png is lossless")] = "png"
    quality: Annotated[
        int | None, Field(ge=1, le=100, description="of a jpeg or webp; 90 by default; png has none")
    ] = None
    long_prompt: Annotated[
        Literal["chunk", "truncate", "fail"] | None,
        Field(
            description="a prompt longer than the text encoder reads: `chunk` into several windows, `truncate` to its "
            "beginning, or `fail`; by default `chunk` where the model allows it, else `fail`"
        ),
    ] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give both `width` and `height`, or neither")
        if self.quality is not None and self.format == "png":
            raise ValueError("`quality` has no effect on a png: remove it, or set format to jpeg or webp")
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise ValueError(
                f"`negative_prompt` has no effect with guidance_scale={self.guidance_scale:g}: "
                "remove it, or raise guidance_scale above 1"
            )
        return self


class AdaptedPictureParams(PictureParams):
    """The same, for models that others may stand beside."""

    adapters: Annotated[
        tuple[Lora, ...] | None,
        Field(
            max_length=8,
            description='LoRA adapters, as a list of `{"model": …, "weight": 1.0}`',
        ),
    ] = None
    controlnet: Annotated[
        Control | None,
        Field(description='a ControlNet and the picture that it follows: `{"model": …, "image": …, "scale": 1.0}`'),
    ] = None
    ip_adapter: Annotated[
        Likeness | None,
        Field(description='an IP-Adapter and pictures to take after: `{"model": …, "images": […], "scale": 0.6}`'),
    ] = None

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if self.adapters == ():
            raise ValueError("`adapters` is empty: leave it out")
        names = [adapter.model for adapter in self.adapters or ()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"`adapters` names {twice} twice: once is enough, with the sum of the weights")
        return self


def cost(params: PictureParams) -> float:
    """Steps times pixels times pictures; 512×512 stands in for the model's own size."""
    pixels = (params.width or 512) * (params.height or 512)
    return 0.05 * params.num_inference_steps * params.num_images * pixels / (512 * 512)
