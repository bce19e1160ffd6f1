"""`super-resolution` with the upscalers of diffusers: Stable Diffusion x4, and the latent upscaler by 2.

One call takes pictures of one size together, each with its own random generator. A large picture is denoised as a
whole, its networks taking it in tiles.
"""

from __future__ import annotations

import gc
import inspect
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import diffusers
import numpy as np
import torch
from PIL import Image

from shared.errors import JobFailed, ModelRejected
from shared.tasks.super_resolution import DEFAULT_STEPS, SuperResolutionParams
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Run, Work
from workers.generators.enlarged import picture_output, refuse, require_room
from workers.generators.input_pictures import open_picture
from workers.generators.long_prompts import excess
from workers.generators.picture_pipelines import (
    Made,
    load_pipeline,
    move_to_device,
    move_to_host,
    order_for_convolutions,
    own_defaults,
    shades_of,
)
from workers.generators.pretrained import dtype_on
from workers.generators.samplers import Samplers
from workers.generators.tiled_networks import in_tiles
from workers.generators.tiles import tiles

#: side of a tile where a job does not say, by pipeline and device
_SIDE = {
    "StableDiffusionUpscalePipeline": {"cpu": 128, "cuda": 256},
    "StableDiffusionLatentUpscalePipeline": {"cpu": 256, "cuda": 512},
}


@dataclass(frozen=True, slots=True)
class _Grid:
    """How one of a pipeline's networks takes its tiles."""

    network: Any
    #: pixels of the input for one of its own: 1/2 where it has two for one
    pixels: float
    #: whether it runs at each step, or once
    stepped: bool


class DiffusersUpscale(Generator):
    """A pipeline of diffusers that enlarges pictures."""

    microbatch: ClassVar[int | None] = 4

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether `model_index.json` names one of the pipelines."""
        return files is not None and files.config.get("_class_name") in _SIDE

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Load safetensors only, and no code of the model's own.

        Raises `ModelRejected`: `model_wrong_task` for a model of another kind, `model_not_a_model` if files are missing
        or cannot be read.
        """
        if files is None:
            raise ModelRejected("model_not_found", "super-resolution needs a model")
        if not cls.serves(files):
            kind = files.config.get("_class_name") or files.config.get("model_type")
            raise ModelRejected(
                "model_wrong_task", f"{files.ref} cannot enlarge pictures: {kind!r} is none of {', '.join(_SIDE)}"
            )
        dtype = dtype_on(device)
        pipe = load_pipeline(files, getattr(diffusers, files.config["_class_name"]), dtype)
        pipe.to(device.name)
        if device.name != "cpu":
            order_for_convolutions(pipe)
        return cls(pipe, files, Device(device.name, str(dtype).removeprefix("torch.")))

    def __init__(self, pipe: Any, files: ModelFiles, device: Device) -> None:
        self._pipe = pipe
        self._files = files
        self._device = device.name
        self._dtype = device.dtype
        #: parameters of the pipeline's call
        self._accepts: Mapping[str, inspect.Parameter] = inspect.signature(type(pipe).__call__).parameters
        self._samplers = Samplers(pipe.scheduler)
        self._own_defaults = own_defaults(files)
        self._latent = type(pipe).__name__ == "StableDiffusionLatentUpscalePipeline"
        shrinks, halvings = int(pipe.vae_scale_factor), 2 ** (len(pipe.unet.config.block_out_channels) - 1)
        self._scale = 2 if self._latent else shrinks
        #: what sides, and where tiles begin, are multiples of
        self._multiple = shrinks * halvings if self._latent else math.lcm(shrinks, halvings)
        self._grids: tuple[_Grid, ...]
        if self._latent:
            self._grids = (
                _Grid(pipe.vae.encoder, 1, stepped=False),
                _Grid(pipe.unet, shrinks / 2, stepped=True),
                _Grid(pipe.vae.decoder, shrinks / 2, stepped=False),
            )
        else:
            self._grids = _Grid(pipe.unet, 1, stepped=True), _Grid(pipe.vae.decoder, 1, stepped=False)

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Cut into microbatches of at most `limit` that agree in all that a call has only one of."""
        groups: dict[object, list[list[Work]]] = {}
        for job in jobs:
            facts = job.inputs["image"].facts
            shares = groups.setdefault((self._key(job), facts["width"], facts["height"]), [[]])
            if len(shares[-1]) == limit:
                shares.append([])
            shares[-1].append(job)
        return [share for shares in groups.values() for share in shares]

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """Size, tiles, steps, and whether the model runs with the prompt and without."""
        facts, params = jobs[0].inputs["image"].facts, jobs[0].params
        return facts["width"], facts["height"], params.tile, params.num_inference_steps, self._guidance(params) > 1

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run the jobs; those that cannot be done fail before the model starts."""
        able: dict[object, list[tuple[Work, Image.Image]]] = {}
        for job in jobs:
            try:
                self._check(job.params)
                picture = open_picture(job.inputs["image"].path)
                require_room(job.params, picture.width * self._scale, picture.height * self._scale)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                able.setdefault((self._key(job), picture.size), []).append((job, picture))
        for alike in able.values():
            wanted = [each for each in alike if run.wanted(each[0].job_id)]
            if not wanted:
                continue
            for (job, picture), made in zip(wanted, self._made(wanted, run), strict=True):
                if (flaw := self._flaw(made)) is not None:
                    yield Failed(job.job_id, flaw)
                elif run.wanted(job.job_id):
                    shades = made.shades[: picture.height * self._scale, : picture.width * self._scale]
                    yield Done(job.job_id, [self._output(job, shades)])

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
        self._grids = ()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _key(self, job: Work) -> tuple[object, ...]:
        """What the jobs of one call have to share, beside the size of their pictures."""
        params: SuperResolutionParams = job.params
        negative = params.negative_prompt is not None
        called = params.num_inference_steps, self._guidance(params), params.noise_level, params.scheduler, negative
        return *called, params.tile, params.overlap

    def _guidance(self, params: SuperResolutionParams) -> float:
        if params.guidance_scale is not None:
            return params.guidance_scale
        return self._own_defaults.get("guidance_scale", float(self._accepts["guidance_scale"].default))

    def _check(self, params: SuperResolutionParams) -> None:
        """Raise `JobFailed` if the pipeline cannot do what the job asks for; nothing is ever dropped."""
        guidance = self._guidance(params)
        if self._latent:
            refuse(params, ("noise_level", "scheduler"))
            if params.prompt and guidance == 0:
                raise JobFailed("param_unsupported", "`prompt` has no effect with guidance_scale=0: remove one of them")
        elif params.noise_level is not None and params.noise_level > self._pipe.config.max_noise_level:
            most = self._pipe.config.max_noise_level
            raise JobFailed(
                "param_unsupported", f"noise_level={params.noise_level} is more than this model's {most}: lower it"
            )
        if params.negative_prompt and guidance <= 1:
            raise JobFailed(
                "param_unsupported",
                f"`negative_prompt` has no effect with this model's guidance_scale of {guidance:g}: remove it, or set "
                "guidance_scale above 1",
            )
        self._samplers.check(params.scheduler)
        for name in ("prompt", "negative_prompt"):
            if (over := excess(self._pipe, self._accepts, getattr(params, name) or "")) is not None:
                raise JobFailed(
                    "prompt_too_long", f"`{name}` has {over[0]} tokens, and this model reads {over[1]}: shorten it"
                )

    def _tiling(self, params: SuperResolutionParams) -> tuple[int, int]:
        """Side and overlap of the tiles in pixels of the input, as they fit the networks."""
        multiple = self._multiple
        overlap = -(-params.overlap // multiple) * multiple
        kind = "cuda" if self._device.startswith("cuda") else "cpu"
        side = params.tile or max(_SIDE[type(self._pipe).__name__][kind], 4 * overlap)
        side = max(multiple, side // multiple * multiple)
        return side, min(overlap, side // 2 // multiple * multiple)

    def _made(self, alike: Sequence[tuple[Work, Image.Image]], run: Run) -> list[Made]:
        """One call of the pipeline over pictures of one size."""
        params: SuperResolutionParams = alike[0][0].params
        steps = params.num_inference_steps or DEFAULT_STEPS
        pictures = [self._filled(picture) for _, picture in alike]
        side, overlap = self._tiling(params)
        passes = 0
        for grid in self._grids:
            sides = (int(length / grid.pixels) for length in reversed(pictures[0].size))
            pieces = len(tiles(*sides, side=int(side / grid.pixels), overlap=int(overlap / grid.pixels)))
            passes += pieces * (steps if grid.stepped else 1)
        job_ids = [job.job_id for job, _ in alike]
        done = 0

        def say() -> None:
            nonlocal done
            done = min(done + 1, passes)  # some schedulers take two passes for a step
            run.step(job_ids, done, passes)

        with ExitStack() as stack:
            for grid in self._grids:
                sizes = {"side": int(side / grid.pixels), "overlap": int(overlap / grid.pixels)}
                stack.enter_context(in_tiles(grid.network, **sizes, say=say))
            made = self._called([job for job, _ in alike], pictures, steps)
        hidden = getattr(made, "nsfw_content_detected", None) or [False] * len(alike)
        return shades_of(made.images, hidden)

    def _filled(self, picture: Image.Image) -> Image.Image:
        """In sides that the networks take: beyond its edge the picture is mirrored, and cut off again."""
        down, right = (-length % self._multiple for length in (picture.height, picture.width))
        if not down and not right:
            return picture
        return Image.fromarray(np.pad(np.asarray(picture), ((0, down), (0, right), (0, 0)), mode="symmetric"))

    def _called(self, jobs: Sequence[Work], pictures: Sequence[Image.Image], steps: int) -> Any:
        every: list[SuperResolutionParams] = [job.params for job in jobs]
        call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": self._guidance(every[0])}
        if every[0].noise_level is not None:
            call["noise_level"] = every[0].noise_level
        if every[0].negative_prompt is not None:
            call["negative_prompt"] = [params.negative_prompt or "" for params in every]
        if (scheduler := self._samplers.make(every[0].scheduler)) is not None:
            self._pipe.scheduler = scheduler
        return self._pipe(
            prompt=[params.prompt for params in every],
            image=list(pictures),
            generator=[torch.Generator("cpu").manual_seed(job.seed % 2**64) for job in jobs],
            output_type="pt",
            **call,
        )

    def _flaw(self, made: Made) -> JobFailed | None:
        """Why this picture is not what was asked for; None if it is."""
        if made.hidden:
            return JobFailed(
                "content_filtered", "the model's own safety filter hid the picture: change the prompt or seed"
            )
        half = self._dtype != "float32"
        if not made.finite or (half and not made.lit):
            advice = "run the worker with AIGC_DTYPE=float32" + (" or bfloat16" if self._dtype == "float16" else "")
            return JobFailed(
                "numerics", f"the model's numbers overflowed in {self._dtype}" + (f": {advice}" if half else "")
            )
        return None

    def _output(self, job: Work, shades: Any) -> Any:
        params: SuperResolutionParams = job.params
        versions = {"diffusers": diffusers.__version__, "torch": torch.__version__}
        return picture_output(
            job, self._files, shades, self._scale, sampler=self._samplers.words(params.scheduler),
            guidance_scale=self._guidance(params), dtype=self._dtype, versions=versions,
        )  # fmt: skip
