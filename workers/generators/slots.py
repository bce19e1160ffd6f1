"""Keys and values of texts that join and leave a running model: one slot each, read where they lie.

A cache as transformers' models know it (`Cache`), with another memory behind it: a row of the batch is a slot, the
slots in use are the first ones, and each is at its own position. A step of the model writes one token per slot and
reads the slots without copying them; `DynamicCache` copies all of it at every step, and has one length for all rows.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

# Slots grow longer by at least so many tokens at once: growing copies them.
_CHUNK = 64


class _Layer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """Keys and values of one layer, (slots, heads, tokens, width) each."""

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room, once it is known of what shape; zeros, since what is masked is still multiplied."""
        self.keys, self.values = (self._room(states) for states in (key_states, value_states))
        self.is_initialized = True

    def _room(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros(self._slots.rows, states.shape[1], self._slots.tokens, states.shape[3])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what the model has computed, and show it all that it may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots = self._slots
        if slots.at is None:
            rows, _, tokens, _ = key_states.shape
            self.keys[slots.first : slots.first + rows, :, :tokens] = key_states
            self.values[slots.first : slots.first + rows, :, :tokens] = value_states
            return key_states, value_states
        self.keys[slots.each, :, slots.at] = key_states[:, :, 0]
        self.values[slots.each, :, slots.at] = value_states[:, :, 0]
        rows = len(slots.at)
        return self.keys[:rows, :, : slots.width], self.values[:rows, :, : slots.width]

    def fit(self) -> None:
        """Take over what is stored into room of the size that the slots have now."""
        if self.is_initialized:
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = self._room(old)
                tokens = min(old.shape[2], new.shape[2])
                new[: old.shape[0], :, :tokens] = old[:, :, :tokens]
                setattr(self, name, new)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Make the first tokens of one slot those of another."""
        for states in (self.keys, self.values):
            states[target, :, :tokens] = states[source, :, :tokens]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Never asked: the masks come with the call."""
        raise NotImplementedError

    def get_seq_length(self) -> int:
        """Nothing that all slots share is stored: each has its own length, and positions come with the call."""
        return 0

    def get_max_length(self) -> int:
        """Slots grow as needed."""
        return -1


class Slots(Cache):  # type: ignore[misc]  # transformers has no types
    """The slots of a model, and where the next call writes."""

    def __init__(self, layers: int) -> None:
        #: how many slots there is room for, and how many tokens in each
        self.rows, self.tokens = 0, 0
        #: for prompts: the slot of the first of them
        self.first = 0
        #: for a step: each row's slot and position; None while prompts are read
        self.each: torch.Tensor | None = None
        self.at: torch.Tensor | None = None
        #: for a step: how many tokens of a slot it looks at
        self.width = 0
        super().__init__(layers=[_Layer(self) for _ in range(layers)])

    def reserve(self, rows: int, tokens: int) -> None:
        """Have room for so many slots of so many tokens, and not for slots of twice as many."""
        tokens = -(-tokens // _CHUNK) * _CHUNK
        if rows <= self.rows and tokens <= self.tokens < 2 * tokens:
            return
        self.rows = max(self.rows, rows)
        self.tokens = tokens if self.tokens >= 2 * tokens else max(self.tokens, tokens)
        for layer in self.layers:
            layer.fit()

    def prompts_at(self, first: int) -> None:
        """The next call reads prompts, padded on the right, into the slots from `first` on."""
        self.first, self.each, self.at = first, None, None

    def step_at(self, positions: torch.Tensor) -> None:
        """The next call computes one token for each of the first slots, at these positions."""
        self.each, self.at = torch.arange(len(positions), device=positions.device), positions
        self.width = int(positions.max()) + 1

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Make the first tokens of one slot those of another."""
        for layer in self.layers:
            layer.copy(source, target, tokens)

    @property
    def bytes_per_token(self) -> int:
        """What one token of one slot takes in all layers; 0 before the first call."""
        states = [states for layer in self.layers if layer.is_initialized for states in (layer.keys, layer.values)]
        return sum(s.shape[1] * s.shape[3] * s.element_size() for s in states)
