"""`text-to-image` by a remote service: images.

https://platform.openai.com/docs/api-reference/images/create
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, Field

from shared.errors import JobFailed
from shared.tasks.text_to_image import TextToImageParams
from workers.generators import Output, Work
from workers.generators.picture_files import MEDIA_TYPES, encode
from workers.generators.remote import Remote, refuse
from workers.remote import Answer, bad_answer

#: params that the API does not know, with the values that ask for nothing
_UNKNOWN: Mapping[str, Any] = {
    "negative_prompt": (None, ""), "num_inference_steps": TextToImageParams.model_fields["num_inference_steps"].default,
    "guidance_scale": None, "scheduler": None, "long_prompt": (None, "fail"), "adapters": None, "controlnet": None,
    "ip_adapter": None,
}  # fmt: skip
#: most pixels of a picture that is made for us
MOST_PIXELS = 64_000_000
_FORMATS = ("PNG", "JPEG", "WEBP")


class _Picture(BaseModel):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _Usage(BaseModel):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Pictures(BaseModel):
    data: Annotated[list[_Picture], Field(min_length=1)]
    usage: _Usage | None = None


class RemotePictures(Remote):
    """A request per picture. It is encoded here, so that the file says how it was made like any other."""

    path: ClassVar[str] = "/images/generations"

    def questions(self, job: Work) -> Sequence[Mapping[str, Any]]:
        """The i-th has seed + i where the service takes seeds."""
        params: TextToImageParams = job.params
        refuse(job, neutral=_UNKNOWN, why="remove it; use prompt, width and height, num_images and format")
        asked: dict[str, Any] = {"model": self._model, "prompt": params.prompt, "n": 1}
        if params.width is not None:
            asked["size"] = f"{params.width}x{params.height}"
        if not self._model.startswith("gpt-image"):  # those answer so anyway, and refuse to be asked for it
            asked["response_format"] = "b64_json"
        seeds = range(job.seed, job.seed + params.num_images)
        return [asked | ({"seed": seed} if self._service.image_seed else {}) for seed in seeds]

    def read(self, job: Work, number: int, answer: Answer) -> Output:
        """One picture, decoded to see that it is whole."""
        made = answer.read(_Pictures)
        picture = made.data[0]
        if picture.b64_json is None:
            what = "with a link, which is not followed" if picture.url else "without a picture"
            raise bad_answer(self._service, f"answered {what}: it has to know response_format b64_json")
        image = self._decoded(picture.b64_json)
        if image.mode == "RGBA" and job.params.format == "jpeg":  # which knows no transparency
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        self._require_size(job.params, image)
        facts = {
            "width": image.width,
            "height": image.height,
            "format": job.params.format,
            "seed": job.seed + number if self._service.image_seed else None,
            "revised_prompt": picture.revised_prompt,
            "prompt_tokens": made.usage.input_tokens if made.usage else None,
            "completion_tokens": made.usage.output_tokens if made.usage else None,
        }
        known = {name: value for name, value in facts.items() if value is not None}
        body = partial(encode, image, job.params.format, job.params.quality, self._record(job, number, image), "remote")
        size = image.width * image.height * len(image.getbands())
        return Output(MEDIA_TYPES[job.params.format], body, known, size=size)

    def outputs(self, job: Work, parts: Sequence[Output]) -> Sequence[Output]:
        """As they were read."""
        return parts

    def _decoded(self, text: str) -> Image.Image:
        try:
            body = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad_answer(self._service, f"answered with a picture that is not base64: {error}") from None
        try:
            with Image.open(io.BytesIO(body), formats=_FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise bad_answer(self._service, f"answered with {image.width}x{image.height} pixels")
                return image.convert("RGBA" if image.has_transparency_data else "RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise bad_answer(self._service, f"answered with what is no whole picture: {error}") from None

    def _require_size(self, params: TextToImageParams, image: Image.Image) -> None:
        if params.width is not None and (params.width, params.height) != image.size:
            raise JobFailed(
                "size_unsupported",
                f"{self._service.name} makes {image.width}x{image.height} instead of {params.width}x{params.height}: "
                "ask for that size, or for none",
            )

    def _record(self, job: Work, number: int, image: Image.Image) -> Mapping[str, Any]:
        return {
            "task": job.task,
            "model": self._files.ref,
            "revision": self._files.revision,
            "params": job.params.model_dump(mode="json", exclude_none=True, exclude={"num_inference_steps"}),
            "seed": job.seed + number,
            "image": number,
            "width": image.width,
            "height": image.height,
            "guidance_scale": None,
        }
