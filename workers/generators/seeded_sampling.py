"""Drawing tokens so that a job's text depends on its own seed only, whatever else is in its microbatch.

Libraries have one random generator for a whole batch. Here each row has one uniform number per token, from a hash of
(seed, tokens generated so far), put through the inverse of the row's cumulative distribution after temperature, top-k
and top-p. `next_tokens` draws so for rows that are at different points; `SeededSampling` does it within `generate()` of
transformers, as the last logits processor: the token drawn gets an infinite score, so that greedy selection takes it.

Tokens are accumulated in the order of their ids, not of their scores: rounding that differs between batch shapes then
moves the bounds of the distribution by about 1e-7 and changes a draw that often only, whereas it would reorder
near-equal tokens of the tail all the time.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor

# Nucleus sampling looks at this many likeliest tokens first: sorting a whole vocabulary costs ten times as much.
_SHORTLIST = 1024


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row draws its tokens."""

    seed: int
    temperature: float = 1.0
    #: 0 = all
    top_k: int = 0
    #: 1 = all
    top_p: float = 1.0


def uniform(seed: int, generated: int) -> float:
    """A number in [0, 1), the same on every machine, for a row with this seed and this many tokens so far."""
    digest = hashlib.blake2b(f"{seed}:{generated}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 12) / 2**52


def next_tokens(scores: torch.Tensor, draws: Sequence[Draw | None], generated: Sequence[int]) -> torch.Tensor:
    """The next token of each row of `scores` (rows, vocabulary): drawn, or the likeliest for a row without a draw.

    `generated` counts the tokens that each row has so far.
    """
    tokens = scores.argmax(-1)
    for k, nucleus, members in _alike(draws):
        rows = torch.tensor([index for index, _ in members], device=scores.device)
        uniforms = [uniform(draw.seed, generated[index]) for index, draw in members]
        tokens[rows] = _pick(scores[rows], [draw for _, draw in members], uniforms, top_k=k, nucleus=nucleus)
    return tokens


class SeededSampling(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Draws for the rows that sample; the others (None) stay as they are, for greedy selection."""

    def __init__(self, rows: Sequence[Draw | None], prompt_width: int) -> None:
        self._prompt_width = prompt_width
        self._groups = _alike(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` (rows, tokens so far), `scores` (rows, vocabulary) → scores with an infinity where drawn."""
        generated = input_ids.shape[1] - self._prompt_width
        for k, nucleus, members in self._groups:
            rows = torch.tensor([index for index, _ in members], device=scores.device)
            draws = [draw for _, draw in members]
            uniforms = [uniform(draw.seed, generated) for draw in draws]
            scores[rows, _pick(scores[rows], draws, uniforms, top_k=k, nucleus=nucleus)] = torch.inf
        return scores


def _alike(rows: Sequence[Draw | None]) -> list[tuple[int, bool, list[tuple[int, Draw]]]]:
    """(top-k, whether there is a nucleus, its rows): rows with one k share their tensors.

    A row never meets the k of another, so that ties are cut alike.
    """
    groups: dict[tuple[int, bool], list[tuple[int, Draw]]] = defaultdict(list)
    for index, draw in enumerate(rows):
        if draw is not None:
            groups[draw.top_k, draw.top_p < 1].append((index, draw))
    return [(k, nucleus, members) for (k, nucleus), members in groups.items()]


def _pick(
    scores: torch.Tensor, draws: Sequence[Draw], uniforms: Sequence[float], *, top_k: int, nucleus: bool
) -> torch.Tensor:
    """One token id per row of `scores` (rows, vocabulary)."""

    def column(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=scores.device)[:, None]

    scores = scores / column([draw.temperature for draw in draws], scores.dtype)
    share = column([draw.top_p for draw in draws], torch.float64)
    ids: torch.Tensor | None = None  # of the columns of `scores`, where they are no longer the whole vocabulary
    if 0 < top_k < scores.shape[-1]:
        scores, ids = scores.topk(top_k)
        if nucleus:
            scores = _keep(scores, scores, scores.to(torch.float64).logsumexp(-1, keepdim=True), share)
    elif nucleus:
        total = scores.to(torch.float64).logsumexp(-1, keepdim=True)
        likeliest, likeliest_ids = scores.topk(min(_SHORTLIST, scores.shape[-1]))
        if bool(((likeliest - total).exp().sum(-1, keepdim=True) >= share).all()):
            scores, ids = _keep(likeliest, likeliest, total, share), likeliest_ids
        else:
            scores = _keep(scores, scores.sort(-1, descending=True).values, total, share)
    if ids is not None:
        ids, order = ids.sort(-1)
        scores = scores.gather(-1, order)
    place = _invert(scores.softmax(-1, dtype=torch.float64), column(list(uniforms), torch.float64))
    return place if ids is None else ids.gather(-1, place[:, None])[:, 0]


def _keep(scores: torch.Tensor, descending: torch.Tensor, total: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """`scores` without those outside of the nucleus: a token is in while the likelier ones hold less than the share."""
    probabilities = (descending - total).exp()
    before = probabilities.cumsum(-1) - probabilities
    least = descending.masked_fill(before >= share, torch.inf).amin(-1, keepdim=True)
    return scores.masked_fill(scores < least, -torch.inf)


def _invert(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Where the cumulative probability first passes the uniform number, per row."""
    cumulative = probabilities.cumsum(-1)
    place = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return place[:, 0].clamp(max=probabilities.shape[-1] - 1)
