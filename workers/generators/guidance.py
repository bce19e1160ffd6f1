"""Pictures with guidance scales of their own in one call of a pipeline that takes a single number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

# Of these it is known that they compare the scale with 1 and multiply with it, and do nothing else. One that embeds
# it, as Flux does, would silently take a single number for all.
_KNOWN = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def guides_each(pipe: Any) -> bool:
    """Whether this pipeline may be given a `ScaleEach`."""
    return type(pipe).__name__ in _KNOWN and getattr(pipe.unet.config, "time_cond_proj_dim", None) is None


class ScaleEach(float):
    """One scale per picture where one number is expected: compares as the smallest, multiplies each by its own.

    Scales are all above 1, or none is: a call guides all of its pictures or none.
    """

    _scales: torch.Tensor

    def __new__(cls, scales: Sequence[float]) -> Self:
        """Of pictures 0, 1, …"""
        made = super().__new__(cls, min(scales))
        made._scales = torch.tensor(scales, dtype=torch.float32)
        return made

    def __mul__(self, by: Any) -> Any:
        """`by` is (pictures, …). In float32, then rounded: the same as with each number by itself, to the bit."""
        if not torch.is_tensor(by):
            return NotImplemented
        scales = self._scales.to(by.device).reshape(-1, *[1] * (by.ndim - 1))
        return (scales * by).to(by.dtype)
