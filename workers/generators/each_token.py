"""A way to look on while `generate()` of transformers writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria


class EachToken(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """Stops nothing: after each token `say` is told how many there were since this was made; what it raises passes."""

    def __init__(self, say: Callable[[int], object]) -> None:
        self._say = say
        self._tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """No row is done because of this."""
        self._tokens += 1
        self._say(self._tokens)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
