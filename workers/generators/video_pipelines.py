"""Pipelines of diffusers that make videos: which one serves a model and a task, and what it can make.

What a pipeline takes is read off its call, and what its model can make off its parts. Tables name only what neither
tells.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

_STEPS = ("num_inference_steps", "generator", "output_type")
#: what the number of frames is called
_FRAMES = ("num_frames", "frames")
#: what frames in a second are called
_RATES = ("frame_rate", "fps", "target_fps")
#: a pipeline that takes one of these begins with more than words and a picture, or makes a sound that nobody asked for
_FOREIGN = (
    "video", "conditions", "conditioning_frames", "control_video", "controls", "mask", "mask_video", "cond_image",
    "reference_images", "reference_conditions", "audio_latents", "sound_latents",
)  # fmt: skip
#: those that can do without, and make a video of words alone as well as of a picture
_EITHER = ("LTXConditionPipeline", "HeliosPipeline")

#: those that make a sound which belongs to the video
_SOUNDING = ("LTX2Pipeline", "LTX2ImageToVideoPipeline")

#: pipelines of words and of pictures that run on the same weights
_PAIRS = (
    ("LTXPipeline", "LTXImageToVideoPipeline"), ("LTX2Pipeline", "LTX2ImageToVideoPipeline"),
    ("WanPipeline", "WanImageToVideoPipeline"),
)  # fmt: skip

#: frames in a second that models were trained with, where their pipeline's call does not say, by how its name begins
_TRAINED_FPS = {
    "Allegro": 15, "AnimateDiff": 8, "CogVideoX": 8, "ConsisID": 8, "EasyAnimate": 8, "Helios": 24, "HunyuanVideo": 24,
    "HunyuanVideoFramepack": 30, "Kandinsky5": 24, "Mochi": 30, "Motif": 24, "PIA": 8, "SkyReels": 24,
    "TextToVideoSD": 8,
}  # fmt: skip
_USUAL_FPS = 16

#: those whose decoder takes latents by twos, and an odd one first
_BY_TWOS = ("CogVideoX", "ConsisID")

#: of these it is known that the videos of one call, each with its random generator, know nothing of each other
_TOGETHER = (
    "AnimateDiffPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXPipeline", "LTXImageToVideoPipeline",
    "LTXPipeline", "StableVideoDiffusionPipeline", "WanPipeline",
)  # fmt: skip
#: pixels of all frames of the videos in one call; a larger video fills the device by itself
TOGETHER_PIXELS = 4 * 16 * 512 * 512


def from_words(config: Mapping[str, Any]) -> type | str:
    """The pipeline that makes videos of words with this `model_index.json`; or why there is none."""
    found = _named(config)
    if isinstance(found, str):
        return found
    found = _twin(found, config, 0) or found
    accepts = inspect.signature(found.__call__).parameters
    if "prompt" in accepts and _makes_videos(found, accepts, given=("prompt",)) and _can_do_without(found, accepts):
        return found
    return f"{found.__name__} makes no videos of words"


def from_pictures(config: Mapping[str, Any]) -> type | str:
    """The pipeline that makes a video of a picture with this `model_index.json`; or why there is none."""
    found = _named(config)
    if isinstance(found, str):
        return found
    found = _twin(found, config, 1) or found
    accepts = inspect.signature(found.__call__).parameters
    if "image" in accepts and _makes_videos(found, accepts, given=("image", "prompt")):
        return found
    return f"{found.__name__} makes no video of a picture"


def _named(config: Mapping[str, Any]) -> type | str:
    """The pipeline that a model names; or why that is none of this diffusers."""
    name = config.get("_class_name")
    if not isinstance(name, str):
        return "it is not a diffusers model (no model_index.json that names a pipeline)"
    pipeline = getattr(diffusers, name, None)
    if not isinstance(pipeline, type) or not issubclass(pipeline, diffusers.DiffusionPipeline):
        return f"diffusers {diffusers.__version__} has no pipeline {name}"
    return pipeline


def _twin(pipeline: type, config: Mapping[str, Any], which: int) -> type | None:
    """The pipeline for words (0) or for pictures (1) on the weights of another one."""
    pair = next((pair for pair in _PAIRS if pipeline.__name__ in pair), None)
    if pair is None or (pair[0].startswith("Wan") and not config.get("expand_timesteps")):
        return None  # the other models of Wan are for one of the two only
    twin: type = getattr(diffusers, pair[which])
    return twin


def _makes_videos(pipeline: type, accepts: Mapping[str, inspect.Parameter], *, given: tuple[str, ...]) -> bool:
    """Whether it makes videos of no more than this."""
    wanted = {name for name, each in accepts.items() if each.default is each.empty and each.kind != each.VAR_KEYWORD}
    return (
        all(name in accepts for name in _STEPS)
        and any(name in accepts for name in _FRAMES)
        and wanted - {"self"} <= set(given)
        and (pipeline.__name__ in (*_EITHER, *_SOUNDING) or not any(name in accepts for name in _FOREIGN))
    )


def _can_do_without(pipeline: type, accepts: Mapping[str, inspect.Parameter]) -> bool:
    return pipeline.__name__ in _EITHER or "image" not in accepts


def dtypes(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """What the parts of a model compute in: the decoder of Wan, which loses much in fewer bits, in float32."""
    decoder = config.get("vae")
    if isinstance(decoder, (list, tuple)) and decoder[-1] == "AutoencoderKLWan":
        return {"default": dtype, "vae": torch.float32}
    return dtype


@dataclass(frozen=True, slots=True)
class Range:
    """What a loaded pipeline can make."""

    #: what its call calls the number of frames, the frames in a second (None: it is not told), and the guidance
    frames_name: str
    rate_name: str | None
    guidance_name: str
    #: numbers of frames: `least`, and `step` more any number of times, up to `most`
    least: int
    step: int
    most: int | None
    #: what sides are multiples of
    multiple: int
    #: width and height where a job does not say; None = the pipeline decides
    size: tuple[int, int] | None
    #: whether that is the only one
    one_size: bool
    #: frames, frames in a second, steps where a job does not say; None = the pipeline decides
    frames: int | None
    fps: int
    steps: int | None
    #: whether videos of several jobs may be made in one call
    together: bool
    #: samples in a second of the sound that it makes; None = it is silent
    sound_rate: int | None

    def nearest(self, frames: int) -> int:
        """The number of frames that it can make which is nearest to this one."""
        steps = max(0, round((frames - self.least) / self.step))
        if self.most is not None:
            steps = min(steps, (self.most - self.least) // self.step)
        return self.least + steps * self.step


def range_of(pipe: Any) -> Range:
    """What this pipeline can make."""
    name = type(pipe).__name__
    accepts = inspect.signature(type(pipe).__call__).parameters
    model = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    own = getattr(model, "config", None)
    frames_name = next(each for each in _FRAMES if each in accepts)
    rate_name = next((each for each in _RATES if each in accepts), None)
    step = _first(pipe, "vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor") or 1
    frames = _default(accepts, frames_name) or getattr(own, "num_frames", None) or _sample_frames(own, name, step)
    step *= 2 if name.startswith(_BY_TWOS) else 1
    scale = _first(
        pipe,
        "vae_scale_factor_spatial",
        "vae_spatial_compression_ratio",
        "vae_spatial_scale_factor",
        "vae_scale_factor",
    )
    patch = getattr(own, "patch_size", None) or 1
    multiple = math.lcm(8, (scale or 8) * int(max(patch[-2:]) if isinstance(patch, (list, tuple)) else patch))
    most = getattr(own, "motion_max_seq_length", None)
    return Range(
        frames_name=frames_name,
        rate_name=rate_name,
        guidance_name="max_guidance_scale" if "max_guidance_scale" in accepts else "guidance_scale",
        least=step if name == "AllegroPipeline" else 1,
        step=1 if name == "HeliosPipeline" else step,
        most=most,
        multiple=multiple,
        size=_own_size(pipe, accepts, scale or 8),
        one_size=bool(getattr(own, "use_learned_positional_embeddings", False)),
        frames=min(frames, most) if frames and most else frames,
        fps=_default(accepts, rate_name) or _trained_fps(name, own, pipe),
        steps=_default(accepts, "num_inference_steps"),
        together=name in _TOGETHER,
        sound_rate=int(pipe.vocoder.config.output_sampling_rate) if name in _SOUNDING else None,
    )


def _own_size(pipe: Any, accepts: Mapping[str, inspect.Parameter], scale: int) -> tuple[int, int] | None:
    sides = _default(accepts, "width"), _default(accepts, "height")
    if None in sides:
        sides = getattr(pipe, "default_width", None), getattr(pipe, "default_height", None)
    own = getattr(getattr(pipe, "transformer", None) or getattr(pipe, "unet", None), "config", None)
    if None in sides and isinstance(side := getattr(own, "sample_size", None), int):
        sides = side * scale, side * scale
    if None in sides and isinstance(getattr(own, "sample_width", None), int):
        sides = own.sample_width * scale, own.sample_height * scale  # type: ignore[union-attr]
    width, height = sides
    return None if width is None or height is None or "width" not in accepts else (int(width), int(height))


def _sample_frames(own: Any, name: str, step: int) -> int | None:
    frames = getattr(own, "sample_frames", None)
    return frames * step if frames and name == "AllegroPipeline" else frames


def _trained_fps(name: str, own: Any, pipe: Any) -> int:
    if name.startswith("CogVideoX") and getattr(own, "patch_size_t", None) is not None:
        return 16  # CogVideoX 1.5
    if name.startswith("Wan") and pipe.config.get("expand_timesteps"):
        return 24  # Wan 2.2 of 5B
    known = [prefix for prefix in _TRAINED_FPS if name.startswith(prefix)]
    return _TRAINED_FPS[max(known, key=len)] if known else _USUAL_FPS


def _default(accepts: Mapping[str, inspect.Parameter], name: str | None) -> int | None:
    default = getattr(accepts.get(name or ""), "default", None)
    return int(default) if isinstance(default, (int, float)) and not isinstance(default, bool) else None


def _first(pipe: Any, *names: str) -> int | None:
    return next((int(value) for name in names if isinstance(value := getattr(pipe, name, None), (int, float))), None)
