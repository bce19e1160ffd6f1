"""`torch.compile` for the model that takes the noise away, which is nearly all that a pipeline does.

Compiled are the blocks that the model repeats, once for all that are alike: seconds instead of the minutes of a whole
model. What is compiled fits one shape of call. So that a mixed load does not compile for ever, calls are padded to few
sizes, and after a number of shapes every further one runs as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo.config as dynamo
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

log = logging.getLogger("aigc.worker")

#: shapes of calls that one model is compiled for
SHAPES = 32
# What torch would refuse to compile beyond; a shape needs one graph per kind of block and width. Ours is the limit.
_GRAPHS = 4096
#: what a failed compilation raises
COMPILATION_FAILED = (TorchDynamoException, FailOnRecompileLimitHit)


class Compiled:
    """The compiled part of one pipeline."""

    def __init__(self, pipe: Any, backend: str = "inductor") -> None:
        """Nothing is compiled before it is first called. Raises `ValueError` if the model names no repeated blocks."""
        self._model = _denoiser(pipe)
        #: names of the classes of the blocks that the model repeats
        self._repeated: Sequence[str] = getattr(self._model, "_repeated_blocks", None) or ()
        if not self._repeated:
            raise ValueError(f"{type(pipe).__name__} has no model that says which of its blocks are repeated")
        self._shapes: set[Hashable] = set()
        self._failed = False
        self._alive: Callable[[], None] | None = None
        dynamo.recompile_limit = max(dynamo.recompile_limit, _GRAPHS)
        dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, _GRAPHS)
        self._model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
        for part in self._model.modules():
            if self._holds_blocks(part):
                part.register_forward_pre_hook(self._before_part)

    @classmethod
    def of(cls, pipe: Any, ref: str) -> Compiled | None:
        """The same; None, with a word in the log, if this pipeline cannot be compiled."""
        try:
            return cls(pipe)
        except ValueError as error:
            log.warning("%s runs without AIGC_COMPILE: %s", ref, error)
            return None

    def padded(self, pictures: int, most: int) -> int:
        """How many pictures to make where so many are wanted: the next power of two, at most `most`."""
        return max(pictures, min(most, 1 << (pictures - 1).bit_length()))

    @contextmanager
    def running(self, shape: Hashable, alive: Callable[[], None]) -> Iterator[None]:
        """A call of this shape goes on inside. While its shape is new, `alive` is called before each part of the model.

        Each compilation is a step of its own to whoever watches that things move.
        """
        new = shape not in self._shapes
        if self._failed or (new and len(self._shapes) >= SHAPES):
            with self.aside():
                yield
            return
        self._alive = alive if new else None
        try:
            yield
        finally:
            self._alive = None
        self._shapes.add(shape)

    def aside(self) -> Any:
        """Inside everything runs as it is, and counts as no shape."""
        return torch.compiler.set_stance("force_eager")

    def give_up(self, error: Exception) -> None:
        """Compiling does not work on this host: from now on everything runs as it is."""
        log.warning("AIGC_COMPILE is without effect, compiling failed: %s", str(error).strip().partition("\n")[0])
        self._failed = True

    def _holds_blocks(self, part: torch.nn.Module) -> bool:
        inside = [type(each).__name__ in self._repeated for each in part.modules()]
        return part is not self._model and any(inside) and not inside[0]

    def _before_part(self, *_: object) -> None:
        if self._alive is not None:
            self._alive()


def _denoiser(pipe: Any) -> Any:
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
