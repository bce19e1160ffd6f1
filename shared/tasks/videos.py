"""Params that the tasks which make videos have in common."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.tasks import Params
from shared.tasks.pictures import Prompt, Scheduler, Side

#: a gif counts the time of a frame in hundredths of a second, and browsers slow down what is faster than two of them
GIF_FPS = 50


class VideoParams(Params):
    """What every job of a diffusion model that makes videos may set."""

    prompt: Annotated[
        Prompt | None, Field(min_length=1, description="what happens in the video; some models take no words")
    ] = None
    negative_prompt: Annotated[Prompt | None, Field(description="what the video should not show")] = None
    num_frames: Annotated[
        int | None,
        Field(ge=1, le=2000, description="pictures that the video is made of; by default as many as suit the model"),
    ] = None
    fps: Annotated[
        int | None,
        Field(ge=1, le=120, description="how many of them are shown in a second; by default what suits the model"),
    ] = None
    width: Annotated[Side | None, Field(description="pixels, a multiple of 8; by default the model's own")] = None
    height: Annotated[Side | None, Field(description="pixels, a multiple of 8; by default the model's own")] = None
    num_inference_steps: Annotated[
        int | None, Field(ge=1, le=1000, description="denoising steps; by default the pipeline's own")
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=0, le=50, description="how closely to follow what is asked for; by default what suits the model"),
    ] = None
    scheduler: Annotated[
        Scheduler | None,
        Field(description="the way from noise to video, for models that leave a choice; by default the model's own"),
    ] = None
    flow_shift: Annotated[
        float | None,
        Field(
            ge=0.1, le=100,
            description="how much of the way is spent where there is most noise, for models of rectified flow: more "
            "for larger videos; by default the model's own",
        ),
    ] = None  # fmt: skip
    num_videos: Annotated[int, Field(ge=1, le=8, description="videos per job; the i-th uses seed + i")] = 1
    decode_chunk_size: Annotated[
        int | None,
        Field(
            ge=1, le=2000,
            description="frames that are decoded at a time, for models that can choose (AnimateDiff, SVD): fewer take "
            "less memory",
        ),
    ] = None  # fmt: skip
    format: Annotated[
        Literal["mp4", "webm", "webp", "gif"],
        Field(description="file format; an mp4 (H.264) plays everywhere, a gif has 256 colours"),
    ] = "mp4"
    preview: Annotated[
        Literal["webp", "gif", "none"], Field(description="a small moving picture beside the video, or `none`")
    ] = "webp"
    long_prompt: Annotated[
        Literal["truncate", "fail"],
        Field(description="a prompt longer than the text encoder reads: `truncate` to its beginning, or `fail`"),
    ] = "fail"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give both `width` and `height`, or neither")
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise ValueError(
                f"`negative_prompt` has no effect with guidance_scale={self.guidance_scale:g}: "
                "remove it, or raise guidance_scale above 1"
            )
        if self.format == "gif" and self.fps is not None and self.fps > GIF_FPS:
            raise ValueError(f"a gif shows at most {GIF_FPS} frames a second: lower `fps`, or choose another format")
        return self


def cost(params: VideoParams) -> float:
    """Steps times pixels times videos, where four frames are a picture; 49 of 832×480 stand in for the model's own."""
    pixels = (params.width or 832) * (params.height or 480) * (params.num_frames or 49)
    return 0.05 / 4 * (params.num_inference_steps or 50) * params.num_videos * pixels / (512 * 512)
