"""How a model is held in memory: as the operator has set it for this model, else by what fits."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

#: share of their size that weights of 16 bits keep, with what stays in full
_KEPT = {None: 1.0, "8bit": 0.6, "4bit": 0.35}
#: of a GPU's memory that is free, the share that weights may fill
FILLED = 0.85


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a generator is told of how to hold a model; all of it may be left out.

    Slices and offloading change no picture by more than rounding, so they may be chosen by what fits. Number types and
    tiles do: they are the operator's to set.
    """

    #: number type of the weights on a GPU; None = the worker's (AIGC_DTYPE). A CPU always computes in float32
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    #: weights of the largest parts in 8 or 4 bits, by bitsandbytes; on CUDA only
    quantization: Literal["8bit", "4bit"] | None = None
    #: held on the host: `model` brings each part to the GPU when it is its turn, `sequential` each layer, which takes
    #: least and is slow; `none` never; None = `model` if it does not fit otherwise. Without effect on a CPU
    offload: Literal["model", "sequential", "none"] | None = None
    #: decode one picture at a time; None = where the model fits only just
    vae_slicing: bool | None = None
    #: decode large pictures in tiles, blended into each other
    vae_tiling: bool | None = None
    #: attention in slices: less memory, slower
    attention_slicing: bool | None = None

    @property
    def asked(self) -> set[str]:
        """What the operator has set, beside the number type."""
        return {each.name for each in fields(self) if each.name != "dtype" and getattr(self, each.name) is not None}

    @property
    def held_on_host(self) -> bool:
        """Whether the model is elsewhere than on the GPU between two calls."""
        return self.offload in ("model", "sequential")

    def numbers(self, device: str, default: str) -> str:
        """What is computed with on a device, for the record; `default` is the worker's number type."""
        dtype = "float32" if device == "cpu" else self.dtype or default
        return f"{dtype} {self.quantization}" if self.quantization else dtype

    def fitting(self, weights: int, free: int | None) -> MemoryPlan:
        """With what was left open chosen for a model of so many bytes, on a GPU that has so many bytes free.

        `free` None: the model is where it computes anyway, on a CPU.
        """
        if free is None:
            return replace(self, offload="none", vae_slicing=bool(self.vae_slicing))
        taken, room = weights * _KEPT[self.quantization], free * FILLED
        offload = self.offload or ("none" if taken <= room else "model")
        tight = offload != "none" or taken > room / 2
        slicing = tight if self.vae_slicing is None else self.vae_slicing
        return replace(self, offload=offload, vae_slicing=slicing)


#: as a model is held of which nobody has said anything
PLAIN = MemoryPlan()
