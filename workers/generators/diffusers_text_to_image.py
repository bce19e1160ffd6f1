"""`text-to-image` with a pipeline of diffusers (Stable Diffusion, SDXL, SD3, Flux, PixArt, …).

One microbatch is one call of the pipeline over all pictures of its jobs. Each picture has its own random generator on
the CPU, whatever the device, so that a seed means the same noise everywhere and beside any neighbour.
"""

from __future__ import annotations

import gc
import inspect
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image
from safetensors import SafetensorError

from shared.errors import JobFailed, ModelRejected
from shared.tasks.text_to_image import TextToImageParams
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.generators.long_prompts import ClipWindows, excess
from workers.generators.picture_files import MEDIA_TYPES, encode

#: scheduler → class in diffusers, what it is set to, and its name in AUTOMATIC1111's web UI
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "ddim": ("DDIMScheduler", {}, "DDIM"),
    "ddpm": ("DDPMScheduler", {}, "DDPM"),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, "PLMS"),
    "euler": ("EulerDiscreteScheduler", {}, "Euler"),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, "Euler a"),
    "heun": ("HeunDiscreteScheduler", {}, "Heun"),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, "DPM++ 2M"),
    "dpmpp_2m_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
        "DPM++ 2M Karras",
    ),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "DPM++ 2M SDE"),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        "DPM++ 2M SDE Karras",
    ),
    "unipc": ("UniPCMultistepScheduler", {}, "UniPC"),
    "lcm": ("LCMScheduler", {}, "LCM"),
}
_NEEDED = ("prompt", "num_inference_steps", "generator", "output_type")
# A pipeline that takes one of these makes something else than a picture from words alone.
_FOREIGN = ("image", "video", "num_frames", "frame_size", "audio_length_in_s", "audio_end_in_s", "control_image")


@dataclass(frozen=True, slots=True)
class _Picture:
    """Picture `index` of a job."""

    job: Work
    index: int

    @property
    def seed(self) -> int:
        return self.job.seed + self.index


class DiffusersTextToImage(Generator):
    """A text-to-image pipeline of diffusers."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the pipeline named in `model_index.json` makes pictures from words."""
        return files is not None and _why_not(files.config) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Load safetensors only, and no code of the model's own.

        Raises `ModelRejected`: `model_wrong_task` for a model of another kind, `model_not_a_model` if files are missing
        or cannot be read.
        """
        if files is None:
            raise ModelRejected("model_not_found", "text-to-image needs a model")
        if (reason := _why_not(files.config)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot make pictures from a prompt: {reason}")
        diffusers.utils.logging.disable_progress_bar()
        dtype = torch.float32 if device.name == "cpu" else getattr(torch, device.dtype)
        try:
            pipe = getattr(diffusers, files.config["_class_name"]).from_pretrained(
                files.folder, dtype=dtype, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelRejected("model_not_a_model", f"{files.ref} cannot be loaded: {error}") from error
        pipe.to(device.name)
        pipe.set_progress_bar_config(disable=True)
        # It would log the part of a prompt that it truncates, and prompts do not belong into logs.
        logging.getLogger(type(pipe).__module__).setLevel(logging.ERROR)
        if device.name != "cpu" and getattr(pipe, "unet", None) is not None:
            pipe.unet.to(memory_format=torch.channels_last)
        return cls(pipe, files, str(dtype).removeprefix("torch."))

    def __init__(self, pipe: Any, files: ModelFiles, dtype: str) -> None:
        self._pipe = pipe
        self._files = files
        self._dtype = dtype
        #: parameters of the pipeline's call
        self._accepts: Mapping[str, inspect.Parameter] = inspect.signature(type(pipe).__call__).parameters
        # A pipeline made of several keeps a scheduler in each: those stay as they are.
        self._scheduler: Any = None if hasattr(pipe, "decoder_pipe") else getattr(pipe, "scheduler", None)
        self._windows = ClipWindows.of(pipe, self._accepts)
        self._own_defaults = _own_defaults(files)
        #: most pictures at a time, as the engine last said
        self._limit: int | None = None

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Cut into microbatches of at most `limit` pictures that agree in all that a call has only one of.

        A job with more pictures than that comes alone; `generate` takes it in slices.
        """
        self._limit = limit
        groups: dict[object, list[list[Work]]] = {}
        for job in jobs:
            shares = groups.setdefault(self._key(job.params), [[]])
            if shares[-1] and sum(other.params.num_images for other in shares[-1]) + job.params.num_images > limit:
                shares.append([])
            shares[-1].append(job)
        return [share for shares in groups.values() for share in shares]

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run the jobs; those that cannot be done fail before the model starts."""
        able: dict[object, list[Work]] = {}
        for job in jobs:
            try:
                self._check(job.params)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                able.setdefault(self._key(job.params), []).append(job)
        for alike in able.values():
            yield from self._alike(alike, run)

    def unload(self) -> None:
        """Drop the pipeline and give its memory back."""
        self._pipe = self._scheduler = self._windows = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _key(self, params: TextToImageParams) -> tuple[object, ...]:
        """What the jobs of one call have to share."""
        names = ("width", "height", "num_inference_steps", "guidance_scale", "scheduler")
        negative = params.negative_prompt is not None
        return *(getattr(params, name) for name in names), negative, self._window_count(params)

    def _window_count(self, params: TextToImageParams) -> int:
        if self._windows is None or params.long_prompt not in (None, "chunk"):
            return 1
        return max(self._windows.count(text) for text in (params.prompt, params.negative_prompt or ""))

    def _check(self, params: TextToImageParams) -> None:
        """Raise `JobFailed` if the pipeline cannot do what the job asks for; nothing is ever dropped."""
        for name in ("negative_prompt", "guidance_scale", "width", "height"):
            if getattr(params, name) is not None and name not in self._accepts:
                raise JobFailed("param_unsupported", f"this model's pipeline has no `{name}`: remove it")
        guiding = "true_cfg_scale" if "true_cfg_scale" in self._accepts else "guidance_scale"
        guidance = self._guidance(params) if guiding == "guidance_scale" else self._default(guiding)
        if params.negative_prompt and guidance is not None and guidance <= 1:
            advice = ", or set guidance_scale above 1" if guiding == "guidance_scale" else ""
            raise JobFailed(
                "param_unsupported",
                f"`negative_prompt` has no effect with this model's {guiding} of {guidance:g}: remove it{advice}",
            )
        self._check_size(params)
        self._make_scheduler(params.scheduler)
        if params.long_prompt == "truncate" or (params.long_prompt != "fail" and self._windows is not None):
            return
        if params.long_prompt == "chunk":
            raise JobFailed("param_unsupported", "this model's text encoders do not allow long_prompt=chunk: remove it")
        for name in ("prompt", "negative_prompt"):
            if (over := excess(self._pipe, self._accepts, getattr(params, name) or "")) is not None:
                raise JobFailed(
                    "prompt_too_long",
                    f"`{name}` has {over[0]} tokens, and this model reads {over[1]}: shorten it, or set "
                    "long_prompt=truncate to keep its beginning"
                    + (", or long_prompt=chunk to read it in windows" if self._windows else ""),
                )

    def _check_size(self, params: TextToImageParams) -> None:
        if params.width is None or params.height is None:
            return
        processor = getattr(self._pipe, "image_processor", None)
        factor = int(getattr(getattr(processor, "config", None), "vae_scale_factor", 8))
        multiple = math.lcm(8, factor * int(getattr(self._pipe, "patch_size", None) or 1))
        wrong = {name: side for name in ("width", "height") if (side := getattr(params, name)) % multiple}
        if wrong:
            nearest = {name: max(multiple, round(side / multiple) * multiple) for name, side in wrong.items()}
            raise JobFailed(
                "size_unsupported",
                f"this model makes pictures whose sides are multiples of {multiple}; nearest: "
                + ", ".join(f"{name}={side}" for name, side in nearest.items()),
            )

    def _make_scheduler(self, name: str | None) -> Any:
        """A fresh scheduler (they keep state), from the model's own settings; raises `scheduler_unsupported`."""
        if name is None:
            own = self._scheduler
            return None if own is None else type(own).from_config(own.config)
        if not _replaceable(self._scheduler):
            raise JobFailed(
                "scheduler_unsupported",
                f"scheduler={name} does not fit this model, which only runs with its own: leave `scheduler` out",
            )
        kind, settings, _ = SCHEDULERS[name]
        return getattr(diffusers, kind).from_config(self._scheduler.config, **settings)

    def _guidance(self, params: TextToImageParams) -> float | None:
        """The guidance scale in force; None if the pipeline has none."""
        return self._default("guidance_scale") if params.guidance_scale is None else params.guidance_scale

    def _default(self, name: str) -> float | None:
        if name in self._own_defaults and name in self._accepts:
            return self._own_defaults[name]
        default = getattr(self._accepts.get(name), "default", None)
        return float(default) if isinstance(default, (int, float)) else None

    def _alike(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run jobs that agree in all that a call has only one of, in slices of at most the limit."""
        pictures = [_Picture(job, index) for job in jobs for index in range(job.params.num_images)]
        size = self._limit or len(pictures)
        slices = [pictures[start : start + size] for start in range(0, len(pictures), size)]
        outputs: dict[str, list[Output]] = {job.job_id: [] for job in jobs}
        for at, share in enumerate(slices):
            wanted = [picture for picture in share if picture.job.job_id in outputs and run.wanted(picture.job.job_id)]
            if not wanted:
                continue
            arrays, hidden = self._call(wanted, run, at, len(slices))
            for picture, array, nsfw in zip(wanted, arrays, hidden, strict=True):
                job = picture.job
                if job.job_id not in outputs:
                    continue
                if (error := self._flaw(job.params, array, nsfw)) is not None:
                    del outputs[job.job_id]
                    yield Failed(job.job_id, error)
                    continue
                outputs[job.job_id].append(self._output(picture, array))
                if len(outputs[job.job_id]) == job.params.num_images and run.wanted(job.job_id):
                    yield Done(job.job_id, outputs.pop(job.job_id))

    def _call(
        self, pictures: Sequence[_Picture], run: Run, at: int, slices: int
    ) -> tuple[npt.NDArray[np.float32], Sequence[bool]]:
        """Run the pipeline: pictures (n, height, width, channels) between 0 and 1, and whether its filter hid each."""
        params: TextToImageParams = pictures[0].job.params
        job_ids = list(dict.fromkeys(picture.job.job_id for picture in pictures))

        def on_step(pipe: Any, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
            steps = getattr(pipe, "num_timesteps", None) or params.num_inference_steps
            run.step(job_ids, at * steps + step + 1, slices * steps)
            return {}

        call: dict[str, Any] = {
            name: value
            for name in ("width", "height", "num_inference_steps")
            if (value := getattr(params, name)) is not None
        }
        if params.guidance_scale is not None or "guidance_scale" in self._own_defaults:
            call["guidance_scale"] = self._guidance(params)
        call |= self._prompts(pictures)
        if "callback_on_step_end" in self._accepts:
            call["callback_on_step_end"] = on_step
        else:
            run.step(job_ids, at, slices)
        call["generator"] = [torch.Generator("cpu").manual_seed(picture.seed % 2**64) for picture in pictures]
        if (scheduler := self._make_scheduler(params.scheduler)) is not None:
            self._pipe.scheduler = scheduler
        made = self._pipe(output_type="np", **call)
        hidden = getattr(made, "nsfw_content_detected", None) or [False] * len(pictures)
        return np.asarray(made.images), hidden

    def _prompts(self, pictures: Sequence[_Picture]) -> dict[str, Any]:
        """The prompts, as words, or as embeddings where they fill several windows."""
        every: list[TextToImageParams] = [picture.job.params for picture in pictures]
        prompts = [params.prompt for params in every]
        negatives = [params.negative_prompt or "" for params in every]
        count = self._window_count(every[0])
        if count > 1 and self._windows is not None:
            embedded = {"prompt_embeds": self._windows.encode(prompts, count)}
            if "negative_prompt_embeds" in self._accepts:
                embedded["negative_prompt_embeds"] = self._windows.encode(negatives, count)
            return embedded
        return {"prompt": prompts} | ({} if every[0].negative_prompt is None else {"negative_prompt": negatives})

    def _flaw(self, params: TextToImageParams, array: npt.NDArray[np.float32], nsfw: bool) -> JobFailed | None:
        """Why this picture is not what was asked for; None if it is."""
        if nsfw:
            return JobFailed(
                "content_filtered", "the model's own safety filter hid the picture: change the prompt or seed"
            )
        half = self._dtype != "float32"
        if not np.isfinite(array).all() or (half and array.max() == 0):
            advice = "run the worker with AIGC_DTYPE=float32" + (" or bfloat16" if self._dtype == "float16" else "")
            return JobFailed(
                "numerics", f"the model's numbers overflowed in {self._dtype}" + (f": {advice}" if half else "")
            )
        height, width = array.shape[:2]
        if params.width is not None and (params.width, params.height) != (width, height):
            message = f"the model makes {width}x{height} instead of {params.width}x{params.height}: ask for that size"
            return JobFailed("size_unsupported", message)
        return None

    def _output(self, picture: _Picture, array: npt.NDArray[np.float32]) -> Output:
        params: TextToImageParams = picture.job.params
        height, width = array.shape[:2]
        record = {
            "task": picture.job.task,
            "model": self._files.ref,
            "revision": self._files.revision,
            "params": params.model_dump(mode="json", exclude_none=True),
            "seed": picture.seed,
            "image": picture.index,
            "width": width,
            "height": height,
            "guidance_scale": self._guidance(params),
            "dtype": self._dtype,
            "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        }
        image = Image.fromarray((array * 255).round().astype(np.uint8).squeeze())
        body = partial(encode, image, params.format, params.quality, record, self._sampler(params.scheduler))
        facts = {"width": width, "height": height, "seed": picture.seed, "format": params.format}
        return Output(MEDIA_TYPES[params.format], body, facts)

    def _sampler(self, name: str | None) -> str:
        """The scheduler's name in the web UI's words."""
        if name is not None:
            return SCHEDULERS[name][2]
        own = type(self._scheduler).__name__
        return next((words for kind, _, words in SCHEDULERS.values() if kind == own), own)


def _replaceable(scheduler: Any) -> bool:
    """Whether any of `SCHEDULERS` can stand for it: all of one family, which a model of rectified flow is not."""
    family = {*(each.name for each in KarrasDiffusionSchedulers), "LCMScheduler"}
    return type(scheduler).__name__ in family and scheduler.config.get("prediction_type") != "flow_prediction"


def _own_defaults(files: ModelFiles) -> dict[str, float]:
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


def _why_not(config: Mapping[str, Any]) -> str | None:
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
