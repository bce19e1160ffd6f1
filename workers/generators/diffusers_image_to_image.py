"""`image-to-image` with a pipeline of diffusers: the one of a model's kind for it, or one that edits by words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image

from shared.errors import JobFailed
from shared.tasks.image_to_image import ImageToImageParams
from workers.generators import Work
from workers.generators.diffusers_pictures import DiffusersPictures, Picture
from workers.generators.input_pictures import fitted, open_picture
from workers.generators.picture_pipelines import from_pictures

#: params that only some pipelines have
_OWN = ("strength", "image_guidance_scale")


class DiffusersImageToImage(DiffusersPictures):
    """Pictures that begin with another one."""

    deed: ClassVar[str] = "make a picture of another one"
    called: ClassVar[tuple[str, ...]] = ("negative_prompt", "guidance_scale", *_OWN)

    @classmethod
    def pipeline(cls, config: Mapping[str, Any]) -> type | str:
        """The sibling of the pipeline that the model names."""
        return from_pictures(config)

    def _size(self, job: Work) -> tuple[int | None, int | None]:
        """As asked for, else the picture's own, as far as the model takes it."""
        params: ImageToImageParams = job.params
        if params.width is not None:
            return params.width, params.height
        return self._size_of(job, "image")

    def _key(self, job: Work) -> tuple[object, ...]:
        return *super()._key(job), *(getattr(job.params, name, None) for name in _OWN)

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """As for pictures from words; and how many of the steps are walked."""
        shape = super().shape(jobs)
        return (*shape, jobs[0].params.strength) if isinstance(shape, tuple) else shape

    def _check(self, job: Work) -> None:
        super()._check(job)
        steps, strength = job.params.num_inference_steps, job.params.strength
        if strength is not None and int(steps * strength) < 1:
            raise JobFailed(
                "param_unsupported",
                f"strength={strength:g} of {steps} steps is none at all: raise num_inference_steps or strength",
            )

    def _given(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        params: ImageToImageParams = pictures[0].job.params
        given = {name: value for name in _OWN if (value := getattr(params, name, None)) is not None}
        size = zip(("width", "height"), self._size(pictures[0].job), strict=True)
        sides = {name: side for name, side in size if name in self._accepts}
        return {**given, **sides, "image": self._inputs(pictures)}

    def _inputs(self, pictures: Sequence[Picture]) -> list[Image.Image]:
        """What each picture of a call begins with; several of one job share theirs."""
        ready: dict[str, Image.Image] = {}
        for picture in pictures:
            job = picture.job
            if job.job_id not in ready:
                width, height = self._size(job)
                opened = open_picture(job.inputs["image"].path)
                ready[job.job_id] = fitted(opened, (int(width or 0), int(height or 0)), job.params.fit)
        return [ready[picture.job.job_id] for picture in pictures]
