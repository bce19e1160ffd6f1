"""Pictures with a pipeline of diffusers (Stable Diffusion, SDXL, SD3, Flux, PixArt, …), whatever they begin with.

One microbatch is one call of the pipeline over all pictures of its jobs. Each picture has its own random generator on
the CPU, whatever the device, so that a seed means the same noise everywhere and beside any neighbour.
"""

from __future__ import annotations

import gc
import inspect
import math
import traceback
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from shared.errors import JobFailed, ModelRejected
from shared.tasks.pictures import PictureParams
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.generators.companions import Companions, control
from workers.generators.compiled import COMPILATION_FAILED, Compiled
from workers.generators.guidance import ScaleEach, guides_each
from workers.generators.input_pictures import size_for
from workers.generators.long_prompts import ClipWindows, require_short
from workers.generators.memory import MemoryPlan
from workers.generators.picture_files import MEDIA_TYPES, encode
from workers.generators.picture_pipelines import (
    Made,
    each_pass,
    free_bytes,
    hold,
    load_pipeline,
    move_to_device,
    move_to_host,
    order_for_convolutions,
    own_defaults,
    own_pixels,
    shades_of,
    weight_bytes,
)
from workers.generators.pretrained import dtype_on
from workers.generators.samplers import Samplers
from workers.pinned import free_cached, out_of_memory


@dataclass(frozen=True, slots=True)
class Picture:
    """Picture `index` of a job."""

    job: Work
    index: int

    @property
    def seed(self) -> int:
        """Of this one."""
        return self.job.seed + self.index


class DiffusersPictures(Generator):
    """A pipeline of diffusers. A task says which one, and what a call is told beside the prompts."""

    #: what the model is to do, after "cannot"
    deed: ClassVar[str]
    #: params that the pipeline's call has to have, where a job sets them
    called: ClassVar[tuple[str, ...]] = ("negative_prompt", "guidance_scale", "width", "height")
    heeds: ClassVar[frozenset[str]] = frozenset(
        {"quantization", "offload", "vae_slicing", "vae_tiling", "attention_slicing"}
    )

    @classmethod
    @abstractmethod
    def pipeline(cls, config: Mapping[str, Any]) -> type | str:
        """The class of diffusers for this `model_index.json`; or why there is none, as a sentence about the model."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether there is a pipeline for the model that is named in `model_index.json`."""
        return files is not None and isinstance(cls.pipeline(files.config), type)

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Load safetensors only, and no code of the model's own.

        Raises `ModelRejected`: `model_wrong_task` for a model of another kind, `model_not_a_model` if files are missing
        or cannot be read.
        """
        if files is None:
            raise ModelRejected("model_not_found", "this task needs a model")
        found = cls.pipeline(files.config)
        if isinstance(found, str):
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot {cls.deed}: {found}")
        dtype = dtype_on(device)
        plan = files.memory.fitting(weight_bytes(files, dtype), free_bytes(device.name))
        pipe = load_pipeline(files, found, dtype, plan, device.name)
        hold(pipe, files, plan, device.name)
        if device.name != "cpu" and not plan.held_on_host:
            order_for_convolutions(pipe)
        compiled = Compiled.of(pipe, files.ref) if device.compile and not plan.held_on_host else None
        return cls(pipe, files, Device(device.name, str(dtype).removeprefix("torch.")), compiled, plan)

    def __init__(
        self, pipe: Any, files: ModelFiles, device: Device, compiled: Compiled | None, plan: MemoryPlan
    ) -> None:
        self._pipe = pipe
        self._device = device.name
        self._compiled = compiled
        self._files = files
        self._plan = plan
        self._dtype = device.dtype
        #: parameters of the pipeline's call
        self._accepts: Mapping[str, inspect.Parameter] = inspect.signature(type(pipe).__call__).parameters
        # A pipeline made of several keeps a scheduler in each: those stay as they are.
        self._samplers = Samplers(None if hasattr(pipe, "decoder_pipe") else getattr(pipe, "scheduler", None))
        self._windows = ClipWindows.of(pipe, self._accepts)
        self._guides_each = guides_each(pipe)
        self._own_defaults = own_defaults(files)
        self._companions = Companions(pipe, self._accepts, getattr(torch, device.dtype), device.name, plan)
        #: most pictures at a time, as the engine last said
        self._limit: int | None = None
        #: and as it turned out, for jobs of many pictures
        self._fits: dict[Hashable, int] = {}

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Cut into microbatches of at most `limit` pictures that agree in all that a call has only one of.

        A job with more pictures than that comes alone; `generate` takes it in slices.
        """
        self._limit = limit
        groups: dict[object, list[list[Work]]] = {}
        for job in jobs:
            shares = groups.setdefault(self._key(job), [[]])
            if shares[-1] and sum(other.params.num_images for other in shares[-1]) + job.params.num_images > limit:
                shares.append([])
            shares[-1].append(job)
        return [share for shares in groups.values() for share in shares]

    def most(self, jobs: Sequence[Work], limit: int) -> int:
        """As `cut` does it: by pictures."""
        pictures: int = max(job.params.num_images for job in jobs)
        return max(1, limit // pictures)

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run the jobs; those that cannot be done fail before the model starts."""
        able: dict[object, list[Work]] = {}
        for job in jobs:
            try:
                self._check(job)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                able.setdefault(self._key(job), []).append(job)
        for alike in able.values():
            try:
                self._have_beside(alike[0])
            except JobFailed as error:
                yield from (Failed(job.job_id, error) for job in alike)
            else:
                yield from self._alike(alike, run)

    def _have_beside(self, job: Work) -> None:
        """Have the models in force that stand beside this one for the job. Raises `JobFailed` if they do not fit it."""
        reread = True
        try:
            reread = self._companions.use(job)
        finally:
            if reread and self._windows is not None:
                self._windows.forget()

    def park(self) -> bool:
        """Move everything to the host, and forget embeddings, which take room on the device too."""
        if self._plan.quantization is not None:
            return False
        self._companions.clear()
        if self._windows is not None:
            self._windows.forget()
        if not self._plan.held_on_host:
            move_to_host(self._pipe)
        return True

    def unpark(self) -> None:
        """Move everything back."""
        if not self._plan.held_on_host:
            move_to_device(self._pipe, self._device)

    def unload(self) -> None:
        """Drop the pipeline and give its memory back."""
        self._pipe = self._windows = self._compiled = None
        del self._companions
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """Size, guided or not (twice the work), windows of the prompt, pictures per job; of the time decide steps, too.

        Memory does not: steps follow each other in the same one. How closely to follow the prompt costs nothing.
        """
        params: list[PictureParams] = [job.params for job in jobs]
        return (
            *self._size(jobs[0]),
            params[0].num_inference_steps,
            any(self._guided(each) for each in params),
            max(self._window_count(each) for each in params),
            max(each.num_images for each in params),
            self._companions.names(params[0]),
        )

    def _key(self, job: Work) -> tuple[object, ...]:
        """What the jobs of one call have to share."""
        params: PictureParams = job.params
        beside = self._companions.key(params)
        each = self._guides_each and control(params) is None
        guidance = self._guided(params) if each else self._guidance(params)
        # Where we encode the prompts, none is the same as an empty one. To SDXL, say, it is not.
        negative = self._windows is None and params.negative_prompt is not None
        shared = (params.num_inference_steps, params.scheduler, guidance, negative, self._window_count(params))
        return *self._size(job), *shared, beside

    def _size(self, job: Work) -> tuple[int | None, int | None]:
        """Width and height of the pictures of a job; None where the model decides."""
        if job.params.width is None and control(job.params) is not None:
            return self._size_of(job, "controlnet.image")
        return job.params.width, job.params.height

    def _size_of(self, job: Work, place: str) -> tuple[int, int]:
        """That of a picture that the job brings along, as far as the model takes it."""
        facts = job.inputs[place].facts
        blank = Image.new("1", (facts["width"], facts["height"]))
        return size_for(blank, multiple=self._multiple(), most_pixels=own_pixels(self._pipe))

    def _window_count(self, params: PictureParams) -> int:
        if self._windows is None or params.long_prompt not in (None, "chunk"):
            return 1
        return max(self._windows.count(text) for text in (params.prompt, params.negative_prompt or ""))

    def _guided(self, params: PictureParams) -> bool:
        """Whether the model runs twice per step, with the prompt and without."""
        guidance = self._guidance(params)
        return guidance is not None and guidance > 1

    def _check(self, job: Work) -> None:
        """Raise `JobFailed` if the pipeline cannot do what the job asks for; nothing is ever dropped."""
        params: PictureParams = job.params
        for name in self.called:
            if getattr(params, name, None) is not None and name not in self._accepts:
                raise JobFailed("param_unsupported", f"this model's pipeline has no `{name}`: remove it")
        guiding = "true_cfg_scale" if "true_cfg_scale" in self._accepts else "guidance_scale"
        guidance = self._guidance(params) if guiding == "guidance_scale" else self._default(guiding)
        if params.negative_prompt and guidance is not None and guidance <= 1:
            advice = ", or set guidance_scale above 1" if guiding == "guidance_scale" else ""
            raise JobFailed(
                "param_unsupported",
                f"`negative_prompt` has no effect with this model's {guiding} of {guidance:g}: remove it{advice}",
            )
        self._check_size(job)
        self._companions.check(params)
        self._samplers.check(params.scheduler)
        require_short(self._pipe, self._accepts, self._windows, params)

    def _check_size(self, job: Work) -> None:
        params: PictureParams = job.params
        if params.width is None or params.height is None:
            return
        multiple = self._multiple()
        wrong = {name: side for name in ("width", "height") if (side := getattr(params, name)) % multiple}
        if wrong:
            nearest = {name: max(multiple, round(side / multiple) * multiple) for name, side in wrong.items()}
            raise JobFailed(
                "size_unsupported",
                f"this model makes pictures whose sides are multiples of {multiple}; nearest: "
                + ", ".join(f"{name}={side}" for name, side in nearest.items()),
            )

    def _multiple(self) -> int:
        """What the sides of a picture are multiples of."""
        processor = getattr(self._pipe, "image_processor", None)
        factor = int(getattr(getattr(processor, "config", None), "vae_scale_factor", 8))
        return math.lcm(8, factor * int(getattr(self._pipe, "patch_size", None) or 1))

    def _guidance(self, params: PictureParams) -> float | None:
        """The guidance scale in force; None if the pipeline has none."""
        return self._default("guidance_scale") if params.guidance_scale is None else params.guidance_scale

    def _default(self, name: str) -> float | None:
        if name in self._own_defaults and name in self._accepts:
            return self._own_defaults[name]
        default = getattr(self._accepts.get(name), "default", None)
        return float(default) if isinstance(default, (int, float)) else None

    def _alike(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run jobs that agree in all that a call has only one of, in slices of at most the limit."""
        pictures = [Picture(job, index) for job in jobs for index in range(job.params.num_images)]
        size = min(self._limit or len(pictures), self._fits.get(self.shape(jobs), len(pictures)))
        slices = [pictures[start : start + size] for start in range(0, len(pictures), size)]
        outputs: dict[str, list[Output]] = {job.job_id: [] for job in jobs}
        for at, share in enumerate(slices):
            wanted = [picture for picture in share if picture.job.job_id in outputs and run.wanted(picture.job.job_id)]
            if not wanted:
                continue
            for picture, made in zip(wanted, self._fitting(wanted, run, at, len(slices)), strict=True):
                job = picture.job
                if job.job_id not in outputs:
                    continue
                if (error := made.flaw(self._dtype, self._size(job))) is not None:
                    del outputs[job.job_id]
                    yield Failed(job.job_id, error)
                    continue
                outputs[job.job_id].append(self._output(picture, made.shades))
                if len(outputs[job.job_id]) == job.params.num_images and run.wanted(job.job_id):
                    yield Done(job.job_id, outputs.pop(job.job_id))

    def _fitting(self, pictures: Sequence[Picture], run: Run, at: int, slices: int) -> list[Made]:
        """Pictures of one job that do not fit into memory together are made in halves; the engine halves jobs only."""
        try:
            return self._call(pictures, run, at, slices)
        except (RuntimeError, MemoryError) as error:
            alone = all(picture.job is pictures[0].job for picture in pictures)
            if not (out_of_memory(error) and alone and len(pictures) > 1):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the halves need
        free_cached(self._device)
        half = (len(pictures) + 1) // 2
        self._fits[self.shape([pictures[0].job])] = half
        return [made for part in (pictures[:half], pictures[half:]) for made in self._fitting(part, run, at, slices)]

    def _call(self, pictures: Sequence[Picture], run: Run, at: int, slices: int) -> list[Made]:
        """Run the pipeline on pictures that agree in all that a call has only one of."""
        params: PictureParams = pictures[0].job.params
        job_ids = list(dict.fromkeys(picture.job.job_id for picture in pictures))
        steps_done = 0

        def on_step(pipe: Any, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal steps_done
            steps, steps_done = getattr(pipe, "num_timesteps", None) or params.num_inference_steps, step + 1
            run.step(job_ids, at * steps + steps_done, slices * steps)
            return {}

        if "callback_on_step_end" not in self._accepts:
            with each_pass(self._pipe, lambda done: on_step(self._pipe, done, None, {}), params.num_inference_steps):
                return self._made(pictures, on_step)
        if self._compiled is None:
            return self._made(pictures, on_step)
        if self._companions.key(params):
            with self._compiled.aside():
                return self._made(pictures, on_step)
        size = self._compiled.padded(len(pictures), self._limit or len(pictures))
        every = [*pictures, *[pictures[-1]] * (size - len(pictures))]

        def alive() -> None:
            steps = getattr(self._pipe, "num_timesteps", None) or params.num_inference_steps
            run.step(job_ids, at * steps + steps_done, slices * steps)

        shape = (size, *self._size(pictures[0].job), self._guided(params), self._window_count(params))
        try:
            with self._compiled.running(shape, alive):
                return self._made(every, on_step)[: len(pictures)]
        except COMPILATION_FAILED as error:
            self._compiled.give_up(error)
        return self._call(pictures, run, at, slices)

    def _made(self, pictures: Sequence[Picture], on_step: Callable[..., dict[str, Any]]) -> list[Made]:
        """One call of the pipeline."""
        params: PictureParams = pictures[0].job.params
        pipe = self._companions.pipeline(pictures[0].job)
        call: dict[str, Any] = {"num_inference_steps": params.num_inference_steps, **self._given(pictures)}
        call |= self._given_beside(pictures)
        if (scales := self._scales(pictures)) is not None:
            call["guidance_scale"] = scales
        call |= self._prompts(pictures)
        if "callback_on_step_end" in self._accepts:
            call["callback_on_step_end"] = on_step
        call["generator"] = [torch.Generator("cpu").manual_seed(picture.seed % 2**64) for picture in pictures]
        if (scheduler := self._samplers.make(params.scheduler)) is not None:
            pipe.scheduler = scheduler
        made = pipe(output_type="pt", **call)
        hidden = getattr(made, "nsfw_content_detected", None) or [False] * len(pictures)
        return shades_of(made.images, hidden)

    def _given(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """What a call is told beside prompts, steps and guidance."""
        width, height = self._size(pictures[0].job)
        return {} if width is None else {"width": width, "height": height}

    def _given_beside(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """What a call is told of the models beside this one."""
        job = pictures[0].job
        if not self._companions.key(job.params):
            return {}
        width, height = self._size(job)
        jobs = [picture.job for picture in pictures]
        return self._companions.given(jobs, (width or 0, height or 0), self._guided(job.params))

    def _scales(self, pictures: Sequence[Picture]) -> float | None:
        """The guidance of a call: one number, or one a picture where the pipeline can do that."""
        scales = [self._guidance(picture.job.params) for picture in pictures]
        known = [scale for scale in scales if scale is not None]
        if not known or len(set(known)) == 1 or not self._guided(pictures[0].job.params):
            return scales[0]
        return ScaleEach(known)

    def _prompts(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """The prompts, as words, or as embeddings where we can make them."""
        every: list[PictureParams] = [picture.job.params for picture in pictures]
        prompts = [params.prompt for params in every]
        negatives = [params.negative_prompt or "" for params in every]
        if self._windows is None:
            return {"prompt": prompts} | ({} if every[0].negative_prompt is None else {"negative_prompt": negatives})
        count = self._window_count(every[0])
        embedded = {"prompt_embeds": self._windows.encode(prompts, count)}
        if "negative_prompt_embeds" in self._accepts and self._guided(every[0]):
            embedded["negative_prompt_embeds"] = self._windows.encode(negatives, count)
        return embedded

    def _output(self, picture: Picture, shades: npt.NDArray[np.uint8]) -> Output:
        params: PictureParams = picture.job.params
        height, width = shades.shape[:2]
        beside = {name: picture.job.adapters[name].revision for name in self._companions.names(params)}
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
            **({"adapters": beside} if beside else {}),
            "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        }
        body = partial(_file, shades, params.format, params.quality, record, self._samplers.words(params.scheduler))
        facts = {"width": width, "height": height, "seed": picture.seed, "format": params.format}
        return Output(MEDIA_TYPES[params.format], body, facts, size=shades.nbytes)


def _file(shades: npt.NDArray[np.uint8], *how: Any) -> bytes:
    return encode(Image.fromarray(shades), *how)
