"""`text-to-video`: videos from a prompt with a diffusion model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.tasks import Task
from shared.tasks.pictures import Prompt
from shared.tasks.videos import VideoParams, cost


class TextToVideoParams(VideoParams):
    """What a `text-to-video` job may set."""

    prompt: Annotated[Prompt, Field(min_length=1, description="what happens in the video")]


TASK = Task(
    name="text-to-video",
    summary="videos from a prompt with a diffusion model",
    params=TextToVideoParams,
    needs_model=True,
    queue="gpu",
    cost=cost,
    example={
        "task": "text-to-video",
        "model": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "params": {"prompt": "a cat walks through tall grass, filmed from the side", "num_frames": 81},
        "seed": 7,
    },
)
