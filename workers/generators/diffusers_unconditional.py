"""`unconditional-image-generation` with a pipeline of diffusers (DDPM, DDIM, latent diffusion without words)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

from workers.generators import Work
from workers.generators.diffusers_pictures import DiffusersPictures, Picture
from workers.generators.picture_pipelines import from_noise


class DiffusersUnconditional(DiffusersPictures):
    """Pictures from noise alone."""

    deed: ClassVar[str] = "make pictures from noise alone"

    @classmethod
    def pipeline(cls, config: Mapping[str, Any]) -> type | str:
        """The one that the model names, if it wants neither words nor pictures."""
        return from_noise(config)

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """Steps, and pictures per job."""
        return jobs[0].params.num_inference_steps, max(job.params.num_images for job in jobs)

    def _key(self, job: Work) -> tuple[object, ...]:
        return job.params.num_inference_steps, job.params.scheduler

    def _size(self, job: Work) -> tuple[int | None, int | None]:
        return None, None

    def _check(self, job: Work) -> None:
        self._samplers.check(job.params.scheduler)

    def _given(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        return {"batch_size": len(pictures)}

    def _guidance(self, params: Any) -> float | None:
        return None

    def _scales(self, pictures: Sequence[Picture]) -> float | None:
        return None

    def _prompts(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        return {}
