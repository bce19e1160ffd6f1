"""`text-to-audio`: music and sounds from a description."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from shared.tasks import Params, Task
from shared.tasks.sounds import AudioFormat


class TextToAudioParams(Params):
    """What a `text-to-audio` job may set."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000, description="what is to be heard")]
    negative_prompt: Annotated[
        str | None, Field(max_length=4000, description="what is not to be heard, for diffusion models")
    ] = None
    seconds: Annotated[
        float, Field(gt=0, le=600, description="how long; a model may end a little earlier or later")
    ] = 8.0
    guidance_scale: Annotated[
        float | None,
        Field(ge=0, le=50, description="how closely to follow the prompt; by default what suits the model"),
    ] = None
    temperature: Annotated[
        float | None,
        Field(gt=0, le=5, description="for models that write tokens: how freely they choose; 1 by default"),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        Field(ge=1, le=1000, description="for diffusion models: denoising steps; by default the model's own"),
    ] = None
    num_waveforms: Annotated[int, Field(ge=1, le=16, description="pieces per job; the i-th uses seed + i")] = 1
    format: AudioFormat = "wav"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise ValueError(
                f"`negative_prompt` has no effect with guidance_scale={self.guidance_scale:g}: "
                "remove it, or raise guidance_scale above 1"
            )
        return self


TASK = Task(
    name="text-to-audio",
    summary="music and sounds from a description",
    params=TextToAudioParams,
    needs_model=True,
    queue="gpu",
    cost=lambda params: 1.0 * params.seconds * params.num_waveforms,
    example={
        "task": "text-to-audio",
        "model": "facebook/musicgen-small",
        "params": {"prompt": "a calm piano over soft rain", "seconds": 10, "format": "mp3"},
        "seed": 7,
    },
)
