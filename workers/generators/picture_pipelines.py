"""Pipelines of diffusers: which make pictures from words, what folders and devices ask for, and what comes out."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from safetensors import SafetensorError

from shared.errors import JobFailed, ModelRejected
from workers.generators import ModelFiles, quantized
from workers.generators.clip_tokens import clip_tokenizer
from workers.generators.memory import PLAIN, MemoryPlan
from workers.single_files import shapes_in

_NEEDED = ("prompt", "num_inference_steps", "generator", "output_type")
# A pipeline that takes one of these makes something else than a picture from words alone.
_MOVING = ("video", "num_frames", "frame_size", "audio_length_in_s", "audio_end_in_s")
_FOREIGN = ("image", "control_image", *_MOVING)
# the text encoders that are as large as the model itself
_T5 = ["transformers", "T5EncoderModel"]


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

    def flaw(self, dtype: str, asked: tuple[int | None, int | None]) -> JobFailed | None:
        """Why it is not what was asked for, of this size and computed in this number type; None if it is."""
        if self.hidden:
            return JobFailed(
                "content_filtered", "the model's own safety filter hid the picture: change the prompt or seed"
            )
        half = dtype != "float32"
        if not self.finite or (half and not self.lit):
            advice = "run the worker with AIGC_DTYPE=float32" + (" or bfloat16" if dtype == "float16" else "")
            return JobFailed("numerics", f"the model's numbers overflowed in {dtype}" + (f": {advice}" if half else ""))
        height, width = self.shades.shape[:2]
        if asked[0] is not None and asked != (width, height):
            message = f"the model makes {width}x{height} instead of {asked[0]}x{asked[1]}: ask for that size"
            return JobFailed("size_unsupported", message)
        return None


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


def load_pipeline(
    files: ModelFiles, pipeline: Any, dtype: torch.dtype, plan: MemoryPlan = PLAIN, device: str = "cpu"
) -> Any:
    """A pipeline of a model's folder, or of its one file: safetensors only, from this host only, and silent.

    Raises `ModelRejected`: `model_not_a_model` if it cannot be read, `memory_unsupported` if it cannot be held so.
    """
    diffusers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if plan.quantization is not None:
        options["quantization_config"] = _quantization(files, plan, dtype, device)
    try:
        if files.weights is not None:
            pipe = _of_one_file(files, pipeline, options)
        else:
            pipe = pipeline.from_pretrained(files.folder, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelRejected("model_not_a_model", f"{files.ref} cannot be loaded: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    # It would log the part of a prompt that it truncates, and prompts do not belong into logs.
    logging.getLogger(type(pipe).__module__).setLevel(logging.ERROR)
    return pipe


def _of_one_file(files: ModelFiles, pipeline: Any, options: Mapping[str, Any]) -> Any:
    """A pipeline of a checkpoint as ComfyUI and the web UI keep it; CLIP's tokenizers, which it lacks, are ours."""
    if not hasattr(pipeline, "from_single_file"):
        raise ModelRejected("model_wrong_task", f"{files.ref}: a {pipeline.__name__} cannot be read from a single file")
    ours = {
        name: clip_tokenizer(pad="!") if name == "tokenizer_2" else clip_tokenizer()
        for name, said in files.config.items()
        if name.startswith("tokenizer") and said[-1] == "CLIPTokenizer" and not (files.folder / name).is_dir()
    }
    try:
        return pipeline.from_single_file(str(files.weights), config=str(files.folder), **ours, **options)
    except NotImplementedError as error:  # what stays without weights cannot be moved
        reason = "not all of its weights are in it"
        raise ModelRejected("model_not_a_model", f"{files.ref} cannot be loaded: {reason}") from error
    except SingleFileComponentError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelRejected("model_not_a_model", f"{files.ref} cannot be loaded: {reason}") from error


def _quantization(files: ModelFiles, plan: MemoryPlan, dtype: torch.dtype, device: str) -> Any:
    """What tells diffusers to keep the large parts in 8 or 4 bits."""
    quantized.require_able(files, device)
    large = [name for name, said in files.config.items() if name in ("transformer", "unet") or said == _T5]
    return diffusers.PipelineQuantizationConfig(
        quant_backend=f"bitsandbytes_{plan.quantization}", quant_kwargs=quantized.how(str(plan.quantization), dtype),
        components_to_quantize=large,
    )  # fmt: skip


def weight_bytes(files: ModelFiles, dtype: torch.dtype) -> int:
    """Bytes that the weights of a model take as this number type, by what its files say of themselves."""
    stored = [files.weights] if files.weights is not None else files.folder.rglob("*.safetensors")
    numbers = (math.prod(shape) for path in stored for shape in shapes_in(files.ref, path).values())
    return sum(numbers) * int(dtype.itemsize)


def free_bytes(device: str) -> int | None:
    """Bytes of a GPU that nothing of this process uses, and no other one; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def hold(pipe: Any, files: ModelFiles, plan: MemoryPlan, device: str) -> None:
    """Bring a pipeline to where it computes, or have it brought there part by part.

    Raises `ModelRejected` with `memory_unsupported` for what this kind of pipeline cannot do.
    """
    wanted = {"vae_slicing": ("vae", "enable_slicing"), "vae_tiling": ("vae", "enable_tiling")}
    for name, (part, switch) in wanted.items():
        if not getattr(plan, name):
            continue
        if (turn_on := getattr(getattr(pipe, part, None), switch, None)) is not None:
            turn_on()
        elif name in files.memory.asked:
            raise ModelRejected(
                "memory_unsupported", f"{files.ref}: {type(pipe).__name__} knows no {name}: leave it out"
            )
    if plan.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif plan.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    if plan.attention_slicing:
        pipe.enable_attention_slicing()


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
