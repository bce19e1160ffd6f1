"""`image-to-video` with a pipeline of diffusers (Wan, LTX, CogVideoX, Stable Video Diffusion, …)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image

from shared.tasks.image_to_video import ImageToVideoParams
from workers.generators import Work
from workers.generators.diffusers_videos import DiffusersVideos, Video
from workers.generators.input_pictures import fitted, open_picture, size_for
from workers.generators.video_pipelines import from_pictures

#: params that only some pipelines have
_OWN = ("motion_bucket_id", "noise_aug_strength")


class DiffusersImageToVideo(DiffusersVideos):
    """Videos that begin with a picture."""

    deed: ClassVar[str] = "make a video of a picture"
    called: ClassVar[tuple[str, ...]] = (*DiffusersVideos.called, *_OWN)

    @classmethod
    def pipeline(cls, config: Mapping[str, Any]) -> type | str:
        """The one that the model names, or its twin for pictures."""
        return from_pictures(config)

    def _size(self, job: Work) -> tuple[int | None, int | None]:
        """As asked for, else the picture's shape, in no more pixels than the model's own size has."""
        params: ImageToVideoParams = job.params
        own = self._range.size
        if params.width is not None or own is None or self._range.one_size:
            return super()._size(job)
        facts = job.inputs["image"].facts
        blank = Image.new("1", (facts["width"], facts["height"]))
        return size_for(blank, multiple=self._range.multiple, most_pixels=own[0] * own[1])

    def _key(self, job: Work) -> tuple[object, ...]:
        return *super()._key(job), *(getattr(job.params, name) for name in _OWN)

    def _given(self, videos: Sequence[Video]) -> dict[str, Any]:
        params = videos[0].job.params
        own = {name: value for name in _OWN if (value := getattr(params, name)) is not None}
        return super()._given(videos) | own

    def _begin(self, videos: Sequence[Video]) -> list[Image.Image]:
        """Several videos of one job share their picture."""
        ready: dict[str, Image.Image] = {}
        for video in videos:
            job = video.job
            if job.job_id not in ready:
                width, height = self._size(job)
                picture = open_picture(job.inputs["image"].path)
                if width is not None and height is not None:
                    picture = fitted(picture, (width, height), job.params.fit)
                ready[job.job_id] = picture
        return [ready[video.job.job_id] for video in videos]
