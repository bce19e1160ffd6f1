"""Videos with a pipeline of diffusers (LTX, Wan, CogVideoX, AnimateDiff, …), whatever they begin with.

Small videos of jobs that agree are made in one call where the pipeline can do that; a large one fills the device by
itself. Each video has its own random generator on the CPU, whatever the device, so that a seed means the same noise
everywhere and beside any neighbour.
"""

from __future__ import annotations

import gc
import inspect
import traceback
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import diffusers
import numpy as np
import torch
from PIL import Image

from shared.errors import JobFailed, ModelRejected
from shared.tasks.videos import VideoParams
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.generators.long_prompts import excess
from workers.generators.memory import MemoryPlan
from workers.generators.picture_pipelines import (
    each_pass,
    free_bytes,
    hold,
    load_pipeline,
    move_to_device,
    move_to_host,
    order_for_convolutions,
    own_defaults,
    weight_bytes,
)
from workers.generators.pretrained import dtype_on
from workers.generators.samplers import Samplers
from workers.generators.video_files import Frames, Sound
from workers.generators.video_outputs import outputs_of
from workers.generators.video_pipelines import TOGETHER_PIXELS, dtypes, range_of
from workers.pinned import free_cached, out_of_memory


@dataclass(frozen=True, slots=True)
class Video:
    """Video `index` of a job."""

    job: Work
    index: int

    @property
    def seed(self) -> int:
        """Of this one."""
        return self.job.seed + self.index


@dataclass(frozen=True, slots=True)
class Made:
    """A video as it came out of the pipeline."""

    frames: Frames
    #: what is heard, where the model makes that too
    sound: Sound | None
    #: whether every number of it was one
    finite: bool
    #: whether anything of it is not quite black
    lit: bool


class DiffusersVideos(Generator):
    """A pipeline of diffusers. A task says which one, and what a call is told beside the prompts."""

    #: what the model is to do, after "cannot"
    deed: ClassVar[str]
    #: params that the pipeline's call has to have, where a job sets them
    called: ClassVar[tuple[str, ...]] = ("prompt", "negative_prompt", "width", "height", "decode_chunk_size")
    heeds: ClassVar[frozenset[str]] = frozenset({"offload", "vae_slicing", "vae_tiling"})

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
        or cannot be read, `library_missing` if its pipeline needs more than is installed, `memory_unsupported`.
        """
        if files is None:
            raise ModelRejected("model_not_found", "this task needs a model")
        found = cls.pipeline(files.config)
        if isinstance(found, str):
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot {cls.deed}: {found}")
        dtype = dtype_on(device)
        plan = files.memory.fitting(weight_bytes(files, dtype), free_bytes(device.name))
        try:
            pipe = load_pipeline(files, found, dtypes(files.config, dtype))
        except ImportError as error:  # some families ask for a library that nobody else needs
            raise ModelRejected("library_missing", f"{files.ref} needs a library that is not here: {error}") from error
        hold(pipe, files, plan, device.name)
        if device.name != "cpu" and not plan.held_on_host:
            order_for_convolutions(pipe)
        return cls(pipe, files, Device(device.name, str(dtype).removeprefix("torch.")), plan)

    def __init__(self, pipe: Any, files: ModelFiles, device: Device, plan: MemoryPlan) -> None:
        self._pipe = pipe
        self._plan = plan
        self._device = device.name
        self._files = files
        self._dtype = device.dtype
        #: parameters of the pipeline's call
        self._accepts: Mapping[str, inspect.Parameter] = inspect.signature(type(pipe).__call__).parameters
        self._range = range_of(pipe)
        self._samplers = Samplers(getattr(pipe, "scheduler", None))
        self._own_defaults = own_defaults(files)
        #: most videos at a time, as the engine last said
        self._limit: int | None = None
        #: and as it turned out, for jobs of several videos
        self._fits: dict[Hashable, int] = {}

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Cut into microbatches of at most `limit` videos that agree in all that a call has only one of.

        A job with more videos than a call has room for comes alone; `generate` takes it in slices.
        """
        self._limit = limit
        groups: dict[object, list[list[Work]]] = {}
        for job in jobs:
            room = min(limit, self._room(job))
            shares = groups.setdefault(self._key(job), [[]])
            if shares[-1] and sum(other.params.num_videos for other in shares[-1]) + job.params.num_videos > room:
                shares.append([])
            shares[-1].append(job)
        return [share for shares in groups.values() for share in shares]

    def most(self, jobs: Sequence[Work], limit: int) -> int:
        """As `cut` does it: by videos, and by their pixels."""
        shares: list[int] = [min(limit, self._room(job)) // job.params.num_videos for job in jobs]
        return max(1, min(shares))

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """Size, frames, steps, guided or not (twice the work), and videos per job."""
        params: list[VideoParams] = [job.params for job in jobs]
        return (
            *self._size(jobs[0]),
            self._frames(jobs[0]),
            params[0].num_inference_steps,
            self._guided(params[0]),
            params[0].decode_chunk_size,
            max(each.num_videos for each in params),
        )

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
            yield from self._alike(alike, run)

    def park(self) -> bool:
        """Move everything to the host, where it is not there already."""
        if not self._plan.held_on_host:
            move_to_host(self._pipe)
        return True

    def unpark(self) -> None:
        """Move everything back."""
        if not self._plan.held_on_host:
            move_to_device(self._pipe, self._device)

    def unload(self) -> None:
        """Drop the pipeline and give its memory back."""
        self._pipe = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _key(self, job: Work) -> tuple[object, ...]:
        """What the jobs of one call have to share."""
        params: VideoParams = job.params
        what = (self._frames(job), self._fps(params), params.num_inference_steps, params.decode_chunk_size)
        way = (params.scheduler, params.flow_shift, self._guidance(params))
        return *self._size(job), *what, *way, params.negative_prompt is not None

    def _room(self, job: Work) -> int:
        """Most videos like those of this job in one call."""
        width, height = self._size(job)
        frames, chunk = self._frames(job), job.params.decode_chunk_size
        if not self._range.together or width is None or height is None or frames is None:
            return 1
        if chunk is not None and frames % chunk:
            return 1  # a chunk would hold the end of one video and the beginning of the next
        return max(1, TOGETHER_PIXELS // (width * height * frames))

    def _size(self, job: Work) -> tuple[int | None, int | None]:
        """Width and height of the videos of a job; None where the pipeline decides."""
        if job.params.width is not None:
            return job.params.width, job.params.height
        return self._range.size or (None, None)

    def _frames(self, job: Work) -> int | None:
        """How many frames a video of the job has; None where the pipeline decides."""
        return job.params.num_frames or self._range.frames

    def _fps(self, params: VideoParams) -> int:
        return params.fps or self._range.fps

    def _guidance(self, params: VideoParams) -> float | None:
        """The guidance scale in force; None if the pipeline has none."""
        return self._default(self._range.guidance_name) if params.guidance_scale is None else params.guidance_scale

    def _guided(self, params: VideoParams) -> bool:
        """Whether the model runs twice per step, with the prompt and without."""
        guidance = self._guidance(params)
        return guidance is not None and guidance > 1

    def _default(self, name: str) -> float | None:
        if name in self._own_defaults and name in self._accepts:
            return self._own_defaults[name]
        default = getattr(self._accepts.get(name), "default", None)
        return float(default) if isinstance(default, (int, float)) else None

    def _check(self, job: Work) -> None:
        """Raise `JobFailed` if the pipeline cannot do what the job asks for; nothing is ever dropped."""
        params: VideoParams = job.params
        for name in self.called:
            if getattr(params, name, None) is not None and name not in self._accepts:
                raise JobFailed("param_unsupported", f"this model's pipeline has no `{name}`: remove it")
        if params.guidance_scale is not None and self._range.guidance_name not in self._accepts:
            raise JobFailed("param_unsupported", "this model's pipeline has no `guidance_scale`: remove it")
        if "prompt" in self._accepts and params.prompt is None:
            raise JobFailed("prompt_missing", "this model wants a `prompt`: say what happens in the video")
        guiding = "true_cfg_scale" if "true_cfg_scale" in self._accepts else self._range.guidance_name
        guidance = self._default(guiding) if guiding == "true_cfg_scale" else self._guidance(params)
        if params.negative_prompt and guidance is not None and guidance <= 1:
            advice = ", or set guidance_scale above 1" if guiding == "guidance_scale" else ""
            raise JobFailed(
                "param_unsupported",
                f"`negative_prompt` has no effect with this model's {guiding} of {guidance:g}: remove it{advice}",
            )
        self._samplers.check(params.scheduler, params.flow_shift)
        self._check_size(params)
        self._check_frames(params)
        if params.long_prompt == "fail":
            self._check_prompts(params)

    def _check_size(self, params: VideoParams) -> None:
        if params.width is None or params.height is None:
            return
        own, multiple = self._range.size, self._range.multiple
        if self._range.one_size and own is not None and own != (params.width, params.height):
            raise JobFailed(
                "size_unsupported",
                f"this model makes videos of one size only: set width={own[0]} and height={own[1]}, or neither",
            )
        wrong = {name: side for name in ("width", "height") if (side := getattr(params, name)) % multiple}
        if wrong:
            nearest = {name: max(multiple, round(side / multiple) * multiple) for name, side in wrong.items()}
            raise JobFailed(
                "size_unsupported",
                f"this model makes videos whose sides are multiples of {multiple}; nearest: "
                + ", ".join(f"{name}={side}" for name, side in nearest.items()),
            )

    def _check_frames(self, params: VideoParams) -> None:
        asked = params.num_frames
        if asked is None or (nearest := self._range.nearest(asked)) == asked:
            return
        least, step, most = self._range.least, self._range.step, self._range.most
        some = ", ".join(str(least + number * step) for number in range(4))
        which = f"up to {most} frames" if step == 1 else f"{some} … frames"
        raise JobFailed("frames_unsupported", f"this model makes videos of {which}; nearest: num_frames={nearest}")

    def _check_prompts(self, params: VideoParams) -> None:
        for name in ("prompt", "negative_prompt"):
            if (over := excess(self._pipe, self._accepts, getattr(params, name) or "")) is not None:
                raise JobFailed(
                    "prompt_too_long",
                    f"`{name}` has {over[0]} tokens, and this model reads {over[1]}: shorten it, or set "
                    "long_prompt=truncate to keep its beginning",
                )

    def _alike(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run jobs that agree in all that a call has only one of, in slices of at most the limit."""
        videos = [Video(job, index) for job in jobs for index in range(job.params.num_videos)]
        size = min(self._limit or len(videos), self._room(jobs[0]), self._fits.get(self.shape(jobs), len(videos)))
        slices = [videos[start : start + size] for start in range(0, len(videos), size)]
        made: dict[str, list[Made]] = {job.job_id: [] for job in jobs}
        for at, share in enumerate(slices):
            wanted = [video for video in share if video.job.job_id in made and run.wanted(video.job.job_id)]
            if not wanted:
                continue
            for video, one in zip(wanted, self._fitting(wanted, run, at, len(slices)), strict=True):
                job = video.job
                if job.job_id not in made:
                    continue
                if (error := self._flaw(job, one)) is not None:
                    del made[job.job_id]
                    yield Failed(job.job_id, error)
                    continue
                made[job.job_id].append(one)
                if len(made[job.job_id]) == job.params.num_videos and run.wanted(job.job_id):
                    yield Done(job.job_id, self._outputs(job, made.pop(job.job_id)))

    def _fitting(self, videos: Sequence[Video], run: Run, at: int, slices: int) -> list[Made]:
        """Videos of one job that do not fit into memory together are made in halves; the engine halves jobs only."""
        try:
            return self._call(videos, run, at, slices)
        except (RuntimeError, MemoryError) as error:
            alone = all(video.job is videos[0].job for video in videos)
            if not (out_of_memory(error) and alone and len(videos) > 1):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the halves need
        free_cached(self._device)
        half = (len(videos) + 1) // 2
        self._fits[self.shape([videos[0].job])] = half
        return [made for part in (videos[:half], videos[half:]) for made in self._fitting(part, run, at, slices)]

    def _call(self, videos: Sequence[Video], run: Run, at: int, slices: int) -> list[Made]:
        """Run the pipeline on videos that agree in all that a call has only one of."""
        job_ids = list(dict.fromkeys(video.job.job_id for video in videos))
        asked = videos[0].job.params.num_inference_steps or self._range.steps or 1
        steps_done = 0

        def on_step(pipe: Any, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal steps_done
            steps = getattr(pipe, "num_timesteps", None) or asked
            steps_done = min(steps, max(steps_done, step + 1))  # one that makes a video in pieces begins anew for each
            run.step(job_ids, at * steps + steps_done, slices * steps)
            return {}

        call, params = self._given(videos), videos[0].job.params
        if (scheduler := self._samplers.make(params.scheduler, params.flow_shift)) is not None:
            self._pipe.scheduler = scheduler
        if "callback_on_step_end" in self._accepts:
            return self._made(call | {"callback_on_step_end": on_step})
        with each_pass(self._pipe, lambda done: on_step(self._pipe, done, None, {}), asked):
            return self._made(call)

    def _made(self, call: Mapping[str, Any]) -> list[Made]:
        """One call of the pipeline. What comes out is rounded on the device: a quarter of the bytes leaves it."""
        result = self._pipe(output_type="pt", **call)
        made = []
        for number, video in enumerate(result.frames):  # (frames, channels, height, width) between 0 and 1
            sound, finite, lit = None, bool(video.isfinite().all()), bool(video.amax() > 0)
            if (rate := self._range.sound_rate) is not None:
                samples = result.audio[number].float()
                finite = finite and bool(samples.isfinite().all())
                sound = Sound(np.atleast_2d(samples.cpu().numpy()), rate)
            shades = video.float().mul(255).round_().to(torch.uint8).movedim(1, -1).contiguous().cpu().numpy()
            made.append(Made(shades, sound, finite, lit))
        return made

    def _given(self, videos: Sequence[Video]) -> dict[str, Any]:
        """What a call is told: lists where it makes several, and else what most pipelines take."""
        job, known = videos[0].job, self._range
        params: VideoParams = job.params
        width, height = self._size(job)
        given: dict[str, Any] = {
            known.frames_name: self._frames(job),
            "num_inference_steps": params.num_inference_steps,
            "decode_chunk_size": params.decode_chunk_size,
        }
        if known.guidance_name in self._accepts:
            given[known.guidance_name] = self._guidance(params)
        if known.rate_name is not None:
            given[known.rate_name] = self._fps(params)
        if "width" in self._accepts:
            given |= {"width": width, "height": height}
        if getattr(getattr(getattr(self._pipe, "vae", None), "config", None), "timestep_conditioning", False):
            given |= {"decode_timestep": 0.05, "decode_noise_scale": 0.025}  # as the authors of LTX do it
        each: dict[str, list[Any]] = {
            "generator": [torch.Generator("cpu").manual_seed(video.seed % 2**64) for video in videos]
        }
        if "prompt" in self._accepts:
            each["prompt"] = [video.job.params.prompt for video in videos]
            if params.negative_prompt is not None:
                each["negative_prompt"] = [video.job.params.negative_prompt for video in videos]
        if (pictures := self._begin(videos)) is not None:
            each["image"] = pictures
        listed = each if known.together else {name: values[0] for name, values in each.items()}
        return {name: value for name, value in given.items() if value is not None} | listed

    def _begin(self, videos: Sequence[Video]) -> list[Image.Image] | None:
        """The pictures that videos begin with; None if they begin with none."""
        return None

    def _flaw(self, job: Work, made: Made) -> JobFailed | None:
        """Why this video is not what was asked for; None if it is."""
        half = self._dtype != "float32"
        if not made.finite or (half and not made.lit):
            advice = "run the worker with AIGC_DTYPE=float32" + (" or bfloat16" if self._dtype == "float16" else "")
            return JobFailed(
                "numerics", f"the model's numbers overflowed in {self._dtype}" + (f": {advice}" if half else "")
            )
        count, height, width = made.frames.shape[:3]
        if job.params.width is not None and (job.params.width, job.params.height) != (width, height):
            message = f"the model makes {width}x{height} instead of {job.params.width}x{job.params.height}"
            return JobFailed("size_unsupported", f"{message}: ask for that size")
        if job.params.num_frames is not None and job.params.num_frames != count:
            message = f"the model makes {count} frames instead of {job.params.num_frames}: ask for as many"
            return JobFailed("frames_unsupported", message)
        return None

    def _outputs(self, job: Work, made: Sequence[Made]) -> list[Output]:
        """The videos of a job; behind them a poster and a preview of each, which have its seed."""
        films, beside = [], []
        for index, one in enumerate(made):
            record = self._record(Video(job, index), one.frames)
            film, *others = outputs_of(
                one.frames, one.sound, job.params, record, self._samplers.words(job.params.scheduler)
            )
            films.append(film)
            beside += others
        return [*films, *beside]

    def _record(self, video: Video, frames: Frames) -> dict[str, Any]:
        params: VideoParams = video.job.params
        count, height, width = frames.shape[:3]
        return {
            "task": video.job.task,
            "model": self._files.ref,
            "revision": self._files.revision,
            "params": params.model_dump(mode="json", exclude_none=True),
            "seed": video.seed,
            "video": video.index,
            "width": width,
            "height": height,
            "frames": count,
            "fps": self._fps(params),
            "guidance_scale": self._guidance(params),
            "dtype": self._dtype,
            "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        }
