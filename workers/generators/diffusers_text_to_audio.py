"""`text-to-audio` with a pipeline of diffusers: AudioLDM 2, Stable Audio, and what else takes a prompt and seconds.

Each piece has its own random generator on the CPU, whatever the device, as pictures have.
"""

from __future__ import annotations

import gc
import inspect
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Self

import diffusers
import torch

from shared.errors import JobFailed, ModelRejected
from shared.tasks.text_to_audio import TextToAudioParams
from workers.generators import Device, ModelFiles
from workers.generators.long_prompts import excess
from workers.generators.picture_pipelines import load_pipeline, move_to_device, move_to_host
from workers.generators.pretrained import dtype_on
from workers.generators.sound_files import Samples
from workers.generators.sound_pieces import Piece, Say, SoundPieces, refuse

#: how pipelines call the length that they are asked for
_SECONDS = ("audio_length_in_s", "audio_end_in_s", "duration")
# One that takes one of these makes something else than sound from words alone.
_FOREIGN = ("audio", "image", "video", "num_frames", "mask")

# The noise of Stable Audio's scheduler says at every step that its bounds are a rounding error apart.
warnings.filterwarnings("ignore", message="Should have t[ab]", category=UserWarning)


class DiffusersTextToAudio(SoundPieces):
    """A pipeline of diffusers that makes sound from words."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether `model_index.json` names such a pipeline."""
        return files is not None and isinstance(_pipeline(files.config), type)

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Load safetensors only, and no code of the model's own.

        Raises `ModelRejected`: `model_wrong_task` for a model of another kind, `model_not_a_model` if files are missing
        or cannot be read.
        """
        if files is None:
            raise ModelRejected("model_not_found", "text-to-audio needs a model")
        found = _pipeline(files.config)
        if isinstance(found, str):
            raise ModelRejected("model_wrong_task", f"{files.ref} makes no sound from a description: {found}")
        pipe = load_pipeline(files, found, dtype_on(device))
        if getattr(getattr(getattr(pipe, "text_encoder_2", None), "config", None), "model_type", "") == "vits":
            raise ModelRejected("model_wrong_task", f"{files.ref} makes no sound from a description: it reads aloud")
        return cls(pipe.to(device.name), device.name)

    def __init__(self, pipe: Any, device: str) -> None:
        self._pipe = pipe
        self._device = device
        self._accepts: Mapping[str, inspect.Parameter] = inspect.signature(type(pipe).__call__).parameters
        self._seconds = next(name for name in _SECONDS if name in self._accepts)

    @property
    def rate(self) -> int:
        """Of its vocoder, or of its autoencoder."""
        part = getattr(self._pipe, "vocoder", None) or self._pipe.vae
        return int(part.config.sampling_rate)

    @property
    def device(self) -> str:
        """Where the pipeline computes."""
        return self._device

    def alike(self, params: TextToAudioParams) -> Hashable:
        """All that a call has only one of; and the prompt's length where prompts would be padded to the longest."""
        second = getattr(self._pipe, "tokenizer_2", None)
        tokens = None if second is None else len(second(params.prompt)["input_ids"])
        steps, guidance = params.num_inference_steps, self._guidance(params)
        return params.seconds, steps, guidance, params.negative_prompt is None, tokens

    def check(self, params: TextToAudioParams) -> None:
        """It writes no tokens; and its encoders may not cut a prompt in silence."""
        refuse(params, ("temperature",), "a diffusion model")
        guidance = self._guidance(params)
        if params.negative_prompt and guidance <= 1:
            raise JobFailed(
                "param_unsupported",
                f"`negative_prompt` has no effect with this model's guidance_scale of {guidance:g}: remove it, or set "
                "guidance_scale above 1",
            )
        for name in ("prompt", "negative_prompt"):
            if (over := excess(self._pipe, self._accepts, getattr(params, name) or "")) is not None:
                raise JobFailed(
                    "prompt_too_long", f"`{name}` has {over[0]} tokens, and this model reads {over[1]}: shorten it"
                )
        if (most := self._most_seconds()) is not None and params.seconds > most:
            raise JobFailed("length_unsupported", f"this model makes up to {most:.1f} s, not {params.seconds:g}")
        if params.seconds < (least := self._least_seconds()):
            raise JobFailed("length_unsupported", f"this model makes {least:.2f} s and more, not {params.seconds:g}")

    def made(self, pieces: Sequence[Piece], say: Say) -> Sequence[Samples]:
        """One call of the pipeline."""
        first = pieces[0].params
        call: dict[str, Any] = {
            "prompt": [piece.params.prompt for piece in pieces],
            self._seconds: self._asked(first.seconds),
            "guidance_scale": self._guidance(first),
            "generator": [torch.Generator("cpu").manual_seed(piece.seed % 2**64) for piece in pieces],
            "output_type": "pt",
        }
        if first.negative_prompt is not None:
            call["negative_prompt"] = [piece.params.negative_prompt for piece in pieces]
        if first.num_inference_steps is not None:
            call["num_inference_steps"] = first.num_inference_steps

        def on_step(*said: Any) -> dict[str, Any]:
            number = next(each for each in said if isinstance(each, int))
            say(number + 1, len(self._pipe.scheduler.timesteps))
            return {}

        call["callback_on_step_end" if "callback_on_step_end" in self._accepts else "callback"] = on_step
        sounds = self._pipe(**call).audios
        made: Sequence[Samples] = [sound.reshape(-1, sound.shape[-1]) for sound in sounds.float().cpu().numpy()]
        return made

    def park(self) -> bool:
        """Move everything to the host."""
        move_to_host(self._pipe)
        return True

    def unpark(self) -> None:
        """Move everything back."""
        move_to_device(self._pipe, self._device)

    def unload(self) -> None:
        """Drop the pipeline and give its memory back."""
        self._pipe = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _guidance(self, params: TextToAudioParams) -> float:
        return float(
            self._accepts["guidance_scale"].default if params.guidance_scale is None else params.guidance_scale
        )

    def _most_seconds(self) -> float | None:
        """Of a model that always makes the same length, and cuts it."""
        if self._seconds != "audio_end_in_s":
            return None
        return float(self._pipe.transformer.config.sample_size * self._pipe.vae.hop_length / self.rate)

    def _least_seconds(self) -> float:
        """Of a model whose spectrograms have whole squares."""
        return float(self._pipe.vae_scale_factor * self._frame_s()) if self._seconds == "audio_length_in_s" else 0.0

    def _asked(self, seconds: float) -> float:
        """What the pipeline is asked for, so that it does not leave out the last, broken frame of a spectrogram."""
        if self._seconds != "audio_length_in_s":
            return seconds
        return (math.ceil(seconds / self._frame_s() - 1e-6) + 0.01) * self._frame_s()

    def _frame_s(self) -> float:
        """Seconds of a frame of the vocoder's spectrogram."""
        return float(math.prod(self._pipe.vocoder.config.upsample_rates) / self.rate)


def _pipeline(config: Mapping[str, Any]) -> type | str:
    """The pipeline that a model names, if it makes sound from words; or why not, as a sentence about the model."""
    name = config.get("_class_name")
    if not isinstance(name, str):
        return "it is not a diffusers model (no model_index.json that names a pipeline)"
    pipeline = getattr(diffusers, name, None)
    if not isinstance(pipeline, type) or not issubclass(pipeline, diffusers.DiffusionPipeline):
        return f"diffusers {diffusers.__version__} has no pipeline {name}"
    accepts = inspect.signature(pipeline.__call__).parameters
    if (
        "prompt" in accepts
        and any(each in accepts for each in _SECONDS)
        and not any(each in accepts for each in _FOREIGN)
    ):
        return pipeline
    return f"{name} is a pipeline for another task"
