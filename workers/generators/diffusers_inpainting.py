"""`inpainting` with a pipeline of diffusers: the inpainting one of a model's kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from workers.generators import Output, Work
from workers.generators.diffusers_image_to_image import DiffusersImageToImage
from workers.generators.diffusers_pictures import Picture
from workers.generators.input_pictures import fitted, open_mask
from workers.generators.picture_pipelines import within_masks


class DiffusersInpainting(DiffusersImageToImage):
    """Pictures of which a part is painted anew."""

    deed: ClassVar[str] = "fill in a part of a picture"

    @classmethod
    def pipeline(cls, config: Mapping[str, Any]) -> type | str:
        """The sibling of the pipeline that the model names."""
        return within_masks(config)

    def _given(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        return {**super()._given(pictures), "mask_image": [self._mask(picture.job) for picture in pictures]}

    def _mask(self, job: Work) -> Image.Image:
        width, height = self._size(job)
        mask = open_mask(job.inputs["mask"].path)
        return fitted(mask, (int(width or 0), int(height or 0)), job.params.fit)

    def _output(self, picture: Picture, shades: npt.NDArray[np.uint8]) -> Output:
        """With what the mask leaves out put back: a pipeline comes near to it, through its decoder."""
        if picture.job.params.keep:
            [before] = self._inputs([picture])
            made = Image.composite(Image.fromarray(shades).convert("RGB"), before, self._mask(picture.job))
            shades = np.asarray(made)
        return super()._output(picture, shades)
