"""`text-to-image` with a pipeline of diffusers (Stable Diffusion, SDXL, SD3, Flux, PixArt, …)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from workers.generators.diffusers_pictures import DiffusersPictures
from workers.generators.picture_pipelines import from_words


class DiffusersTextToImage(DiffusersPictures):
    """Pictures from words alone."""

    deed: ClassVar[str] = "make pictures from a prompt"

    @classmethod
    def pipeline(cls, config: Mapping[str, Any]) -> type | str:
        """The one that the model names, if it makes pictures from words."""
        return from_words(config)
