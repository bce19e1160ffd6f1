"""Prompts longer than a text encoder reads.

A CLIP text encoder reads 77 tokens, of which 75 are the prompt's. As AUTOMATIC1111's web UI does, a longer prompt is
cut into windows of 75 tokens; each is encoded by itself, and the embeddings stand one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class ClipWindows:
    """The windows of a pipeline whose only text encoder is a CLIP."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        #: tokens in a window, both marks included
        self.width: int = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    @classmethod
    def of(cls, pipe: Any, accepts: Mapping[str, Any]) -> ClipWindows | None:
        """The windows of this pipeline, or None where prompts cannot be cut so; `accepts` is what its call takes."""
        encoder, tokenizer = getattr(pipe, "text_encoder", None), getattr(pipe, "tokenizer", None)
        if encoder is None or tokenizer is None or type(encoder).__name__ != "CLIPTextModel":
            return None
        if getattr(pipe, "text_encoder_2", None) is not None or getattr(encoder.config, "use_attention_mask", False):
            return None
        return cls(tokenizer, encoder) if "prompt_embeds" in accepts else None

    def count(self, text: str) -> int:
        """How many windows a text fills; at least one."""
        return max(1, -(-len(self._ids(text)) // (self.width - 2)))

    def encode(self, texts: Sequence[str], windows: int) -> torch.Tensor:
        """Embeddings (texts, windows × width, features); texts with fewer windows are filled up with empty ones."""
        tokenizer, room = self._tokenizer, self.width - 2
        filled = []
        for text in texts:
            ids = self._ids(text)
            for start in range(0, windows * room, room):
                window = [tokenizer.bos_token_id, *ids[start : start + room], tokenizer.eos_token_id]
                filled.append(window + [tokenizer.pad_token_id] * (self.width - len(window)))
        with torch.no_grad():
            states = self._encoder(torch.tensor(filled, device=self._encoder.device))[0]
        return states.reshape(len(texts), windows * self.width, -1)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def excess(pipe: Any, accepts: Mapping[str, Any], text: str) -> tuple[int, int] | None:
    """(tokens of the text, most tokens read) if every text encoder would cut it; None if one reads it whole."""
    worst: tuple[int, int] | None = None
    for suffix in ("", "_2", "_3"):
        tokenizer, encoder = getattr(pipe, f"tokenizer{suffix}", None), getattr(pipe, f"text_encoder{suffix}", None)
        if tokenizer is None or encoder is None:
            continue
        room = tokenizer.model_max_length
        if type(encoder).__name__.startswith("CLIP"):
            room = min(room, encoder.config.max_position_embeddings)
        elif isinstance(asked := getattr(accepts.get("max_sequence_length"), "default", None), int):
            room = asked
        tokens = len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if tokens <= room:
            return None
        if worst is None or room > worst[1]:
            worst = (tokens, room)
    return worst
