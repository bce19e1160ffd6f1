"""Pipelines of diffusers: which make pictures from words, what folders and devices ask for, and what comes out."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from safetensors import SafetensorError

from shared.errors import ModelRejected
from workers.generators import ModelFiles

_NEEDED = ("prompt", "num_inference_steps", "generator", "output_type")
# A pipeline that takes one of these makes something else than a picture from words alone.
_MOVING = ("video", "num_frames", "frame_size", "audio_length_in_s", "audio_end_in_s")
_FOREIGN = ("image", "control_image", *_MOVING)


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


def from_words(config: Mapping[str, Any]) -> type | str:
    """The pipeline that makes pictures from words with this `model_index.json`; or why there is none."""
    found = _named(config)
    if isinstance(found, str):
        return found
    known = {kind.__name__ for key, kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items() if "control" not in key}
    if found.__name__ in known:
        return found
    accepts = inspect.signature(found.__call__).parameters
    if all(each in accepts for each in _NEEDED) and not any(each in accepts for each in _FOREIGN):
        return found
    return f"{found.__name__} is a pipeline for another task"


def from_pictures(config: Mapping[str, Any]) -> type | str:
    """The pipeline that makes a picture of another one, by words; or why there is none."""
    found = _named(config)
    if isinstance(found, str):
        return found
    sibling = _sibling(found, AUTO_IMAGE2IMAGE_PIPELINES_MAPPING)
    if sibling is not None:
        return sibling
    accepts = inspect.signature(found.__call__).parameters
    if all(each in accepts for each in ("image", *_NEEDED)) and not any(
        each in accepts for each in (*_MOVING, "mask_image", "control_image")
    ):
        return found
    return f"{found.__name__} makes no picture of another one"


def within_masks(config: Mapping[str, Any]) -> type | str:
    """The pipeline that fills in a masked part of a picture; or why there is none."""
    found = _named(config)
    if isinstance(found, str):
        return found
    sibling = _sibling(found, AUTO_INPAINT_PIPELINES_MAPPING)
    return sibling if sibling is not None else f"{found.__name__} fills in no part of a picture"


def from_noise(config: Mapping[str, Any]) -> type | str:
    """The pipeline that makes pictures from noise alone; or why there is none."""
    found = _named(config)
    if isinstance(found, str):
        return found
    accepts = inspect.signature(found.__call__).parameters
    needed = ("batch_size", "num_inference_steps", "generator", "output_type")
    if all(each in accepts for each in needed) and not any(
        each in accepts for each in ("prompt", "class_labels", *_FOREIGN)
    ):
        return found
    return f"{found.__name__} does not make pictures from noise alone"


def _named(config: Mapping[str, Any]) -> type | str:
    """The pipeline that a model names; or why that is none of this diffusers."""
    name = config.get("_class_name")
    if not isinstance(name, str):
        return "it is not a diffusers model (no model_index.json that names a pipeline)"
    pipeline = getattr(diffusers, name, None)
    if not isinstance(pipeline, type) or not issubclass(pipeline, diffusers.DiffusionPipeline):
        return f"diffusers {diffusers.__version__} has no pipeline {name}"
    return pipeline


def _sibling(pipeline: type, family: Mapping[str, type]) -> type | None:
    """The pipeline of another task for the same kind of model, by diffusers' own tables."""
    tables = (AUTO_TEXT2IMAGE_PIPELINES_MAPPING, AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, AUTO_INPAINT_PIPELINES_MAPPING)
    kinds = [kind for table in tables for kind, each in table.items() if each is pipeline and "control" not in kind]
    return next((family[kind] for kind in kinds if kind in family), None)


def load_pipeline(files: ModelFiles, pipeline: Any, dtype: torch.dtype) -> Any:
    """A pipeline of a model's folder: safetensors only, and silent. Raises `ModelRejected` if it cannot be read."""
    diffusers.utils.logging.disable_progress_bar()
    try:
        pipe = pipeline.from_pretrained(files.folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelRejected("model_not_a_model", f"{files.ref} cannot be loaded: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    # It would log the part of a prompt that it truncates, and prompts do not belong into logs.
    logging.getLogger(type(pipe).__module__).setLevel(logging.ERROR)
    return pipe


@contextmanager
def each_pass(pipe: Any, say: Callable[[int], object], steps: int) -> Iterator[None]:
    """Where a pipeline says nothing between its steps: `say` is told the number of each pass through its model.

    From 0; passes beyond the steps count as the last of them: guidance may take two for one.
    """
    passes = itertools.count()
    model = next(getattr(pipe, name) for name in ("unet", "transformer", "prior") if hasattr(pipe, name))
    hook = model.register_forward_hook(lambda *_: (say(min(next(passes), steps - 1)), None)[1])
    try:
        yield
    finally:
        hook.remove()


def own_pixels(pipe: Any) -> int:
    """How many pixels the pictures have that a model was trained on; a million where it does not say."""
    for name in ("unet", "transformer"):
        side = getattr(getattr(getattr(pipe, name, None), "config", None), "sample_size", None)
        if isinstance(side, int):
            return int((side * getattr(pipe, "vae_scale_factor", 8)) ** 2)
    return 1024 * 1024


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
