"""What all enlargers share: sizes that can be written, params that a model does not have, the file that comes out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.errors import JobFailed
from shared.tasks.super_resolution import SuperResolutionParams
from workers.generators import ModelFiles, Output, Work
from workers.generators.picture_files import MEDIA_TYPES, encode

#: most pixels along a side that a format can hold
_LONGEST = {"jpeg": 65_500, "webp": 16_383}


def require_room(params: SuperResolutionParams, width: int, height: int) -> None:
    """Raise `JobFailed` if the format cannot hold a picture of this size."""
    longest = _LONGEST.get(params.format)
    if longest is not None and max(width, height) > longest:
        raise JobFailed(
            "size_unsupported",
            f"the enlarged picture has {width}x{height} pixels, and a {params.format} holds {longest:,} along a side: "
            "set format to png",
        )


def refuse(params: SuperResolutionParams, names: tuple[str, ...]) -> None:
    """Raise `JobFailed` if the job sets what this model has not."""
    for name in names:
        if getattr(params, name) not in (None, ""):
            raise JobFailed("param_unsupported", f"this model has no `{name}`: remove it")


def picture_output(
    job: Work, files: ModelFiles, shades: npt.NDArray[np.uint8], scale: int, *, sampler: str = "", **more: Any
) -> Output:
    """The enlarged picture, (height, width, 3), as a file that says how it was made; `more` goes into its record."""
    params: SuperResolutionParams = job.params
    height, width = shades.shape[:2]
    record: dict[str, Any] = {
        "task": job.task,
        "model": files.ref,
        "revision": files.revision,
        "params": params.model_dump(mode="json", exclude_none=True),
        "seed": job.seed,
        "width": width,
        "height": height,
        "guidance_scale": None,
    }
    body = partial(_file, shades, params.format, params.quality, record | more, sampler)
    facts = {"width": width, "height": height, "scale": scale, "seed": job.seed, "format": params.format}
    return Output(MEDIA_TYPES[params.format], body, facts, size=shades.nbytes)


def _file(
    shades: npt.NDArray[np.uint8], form: str, quality: int | None, record: Mapping[str, Any], sampler: str
) -> bytes:
    return encode(Image.fromarray(shades), form, quality, record, sampler)
