"""Prompts longer than a text encoder reads.

A CLIP text encoder reads 77 tokens, of which 75 are the prompt's. As AUTOMATIC1111's web UI does, a longer prompt is
cut into windows of 75 tokens; each is encoded by itself, and the embeddings stand one after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shared.errors import JobFailed
from shared.tasks.pictures import PictureParams

#: texts whose tokens are remembered
_TOKENS = 4096
#: windows whose embeddings are remembered, of a quarter of a megabyte each for a CLIP of 768 features in float32
_WINDOWS = 128


class ClipWindows:
    """The windows of a pipeline whose only text encoder is a CLIP.

    The jobs of a batch often share their prompt, and nearly always their negative one: a text is encoded once, and
    remembered for a while.
    """

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        #: tokens in a window, both marks included
        self.width: int = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        self._tokens: OrderedDict[str, list[int]] = OrderedDict()
        self._embeddings: OrderedDict[tuple[str, int], torch.Tensor] = OrderedDict()

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
        known = self._embeddings
        found = {text: known[text, windows] for text in set(texts) if (text, windows) in known}
        if new := list(dict.fromkeys(text for text in texts if text not in found)):
            # Each has memory of its own: a slice would keep its neighbours' for as long.
            found |= {text: states.clone() for text, states in zip(new, self._encoded(new, windows), strict=True)}
        for text, states in found.items():
            known[text, windows] = states
            known.move_to_end((text, windows))
        kept = sum(count for _, count in known)
        while kept > _WINDOWS:
            (_, count), _ = known.popitem(last=False)
            kept -= count
        return torch.stack([found[text] for text in texts])

    def forget(self) -> None:
        """Remember no embedding any more."""
        self._embeddings.clear()

    def _encoded(self, texts: Sequence[str], windows: int) -> torch.Tensor:
        tokenizer, room = self._tokenizer, self.width - 2
        filled = []
        for text in texts:
            ids = self._ids(text)
            for start in range(0, windows * room, room):
                window = [tokenizer.bos_token_id, *ids[start : start + room], tokenizer.eos_token_id]
                filled.append(window + [tokenizer.pad_token_id] * (self.width - len(window)))
        with torch.no_grad():
            home = self._encoder.device  # of a model that is brought here layer by layer: nowhere
            states = self._encoder(torch.tensor(filled, device="cpu" if home.type == "meta" else home))[0]
        return states.reshape(len(texts), windows * self.width, -1)

    def _ids(self, text: str) -> list[int]:
        if text not in self._tokens:
            if len(self._tokens) >= _TOKENS:
                self._tokens.popitem(last=False)
            ids = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            self._tokens[text] = list(ids)
        return self._tokens[text]


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


def require_short(pipe: Any, accepts: Mapping[str, Any], windows: ClipWindows | None, params: PictureParams) -> None:
    """Raise `JobFailed` if a prompt is longer than this pipeline reads, and the job does not say what to do then."""
    if params.long_prompt == "truncate" or (params.long_prompt != "fail" and windows is not None):
        return
    if params.long_prompt == "chunk":
        raise JobFailed("param_unsupported", "this model's text encoders do not allow long_prompt=chunk: remove it")
    for name in ("prompt", "negative_prompt"):
        if (over := excess(pipe, accepts, getattr(params, name) or "")) is not None:
            raise JobFailed(
                "prompt_too_long",
                f"`{name}` has {over[0]} tokens, and this model reads {over[1]}: shorten it, or set "
                "long_prompt=truncate to keep its beginning"
                + (", or long_prompt=chunk to read it in windows" if windows else ""),
            )
