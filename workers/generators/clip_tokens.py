"""The tokenizer of CLIP, which Stable Diffusion 1.x and XL read prompts with: checkpoints in one file lack it."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from workers import __file__ as _workers

_MERGES = Path(_workers).parent / "pipeline_configs" / "clip_merges.txt.gz"
_START, _END = "<|startoftext|>", "<|endoftext|>"
#: tokens that a text encoder reads
_WIDTH = 77


def clip_tokenizer(pad: str = _END) -> Any:
    """As OpenAI published it; `pad` is `!` for the second text encoder of XL."""
    vocab, merges = _words()
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), pad_token=pad, model_max_length=_WIDTH)


@cache
def _words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids by token, and the pairs that are joined, in order.

    First stand the 256 letters for bytes, then the same at the end of a word, what pairs become, and the two marks.
    """
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        pairs = [line.split() for line in file]
    merges = [(first, second) for first, second in pairs]
    letters = _letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges), _START, _END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _letters() -> list[str]:
    """A letter for each byte, printable ones for themselves, in the order of GPT-2's table."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)]
