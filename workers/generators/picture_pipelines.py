"""Pipelines of diffusers: which make pictures from words, what folders and devices ask for, and what comes out."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

from shared.errors import ModelRejected
from workers.generators import ModelFiles

_NEEDED = ("prompt", "num_inference_steps", "generator", "output_type")
# A pipeline that takes one of these makes something else than a picture from words alone.
_FOREIGN = ("image", "video", "num_frames", "frame_size", "audio_length_in_s", "audio_end_in_s", "control_image")


@dataclass(frozen=True, slots=True)
class Made:
    """A picture as it came out of the pipeline."""

    #: (height, width, channels), or (height, width)
    shades: npt.NDArray[np.uint8]
    #: whether every number of it was one
    finite: bool
    #: whether anything of it is not quite black
    lit: bool
    #: whether the model's safety filter hid it
    hidden: bool


def own_defaults(files: ModelFiles) -> dict[str, float]:
    """What a model's folder recommends where a job says nothing: `guidance_scale` in `generation_defaults.json`.

    Small and distilled models want another guidance than the one that their pipeline's class was written for.
    """
    try:
        found = json.loads((files.folder / "generation_defaults.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelRejected(
            "model_not_a_model", f"{files.ref}: generation_defaults.json cannot be read: {error}"
        ) from None
    scale = found.get("guidance_scale") if isinstance(found, dict) else None
    if set(found) != {"guidance_scale"} or isinstance(scale, bool) or not isinstance(scale, (int, float)) or scale < 0:
        raise ModelRejected(
            "model_not_a_model", f'{files.ref}: generation_defaults.json must be like {{"guidance_scale": 4}}'
        )
    return {"guidance_scale": float(scale)}


def why_not(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `model_index.json` makes no pictures from words; None if it does."""
    name = config.get("_class_name")
    if not isinstance(name, str):
        return "it is not a diffusers model (no model_index.json that names a pipeline)"
    known = {kind.__name__ for key, kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items() if "control" not in key}
    if name in known:
        return None
    pipeline = getattr(diffusers, name, None)
    if not isinstance(pipeline, type) or not issubclass(pipeline, diffusers.DiffusionPipeline):
        return f"diffusers {diffusers.__version__} has no pipeline {name}"
    accepts = inspect.signature(pipeline.__call__).parameters
    if all(each in accepts for each in _NEEDED) and not any(each in accepts for each in _FOREIGN):
        return None
    return f"{name} is a pipeline for another task"


def order_for_convolutions(pipe: Any) -> None:
    """The order of numbers in memory that a GPU's convolutions want; those over three dimensions have no such order."""
    for name in ("unet", "vae"):
        model = getattr(pipe, name, None)
        if model is not None and all(parameter.ndim < 5 for parameter in model.parameters()):
            model.to(memory_format=torch.channels_last)


def move_to_host(pipe: Any) -> None:
    """Out of the GPU's memory, into pages that it can read by itself on the way back."""
    for tensor in _tensors(pipe):
        host = tensor.data.to("cpu")
        tensor.data = host.pin_memory() if torch.cuda.is_available() else host


def move_to_device(pipe: Any, device: str) -> None:
    """The way back; the order of the numbers in memory stays."""
    for tensor in _tensors(pipe):
        tensor.data = tensor.data.to(device, non_blocking=True)


def _tensors(pipe: Any) -> Iterable[torch.Tensor]:
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            yield from model.parameters()
            yield from model.buffers()


def shades_of(images: Any, hidden: Sequence[bool]) -> list[Made]:
    """Pictures (n, channels, height, width) between 0 and 1 as shades; some old pipelines only know numpy's order.

    Rounded on the device: a quarter of the bytes leaves it, and the device's thread is not kept by numpy.
    """
    tensor = images if torch.is_tensor(images) else torch.from_numpy(np.asarray(images)).movedim(-1, 1)
    finite, lit = torch.stack([tensor.isfinite().flatten(1).all(1), tensor.flatten(1).amax(1) > 0]).tolist()
    shades = tensor.float().mul(255).round_().to(torch.uint8).movedim(1, -1).contiguous().cpu().numpy()
    if shades.shape[-1] == 1:
        shades = shades.squeeze(-1)
    return [Made(*each) for each in zip(shades, finite, lit, hidden, strict=True)]
