"""The sampler draws from the distribution that temperature, top-k and top-p define, and from nothing else."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch

from workers.generators.seeded_sampling import Draw, SeededSampling, next_tokens, uniform

pytestmark = pytest.mark.torch
LOGITS = [1.0, 3.0, -1.0, 2.0, 0.5, 2.5]


def draw(rows: list[Draw | None], scores: torch.Tensor, generated: int = 0) -> list[int]:
    ids = torch.zeros(len(rows), 4 + generated, dtype=torch.long)
    return SeededSampling(rows, prompt_width=4)(ids, scores.clone()).argmax(-1).tolist()


def expected(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """The distribution by hand, without torch."""
    weights = [math.exp(logit / temperature) for logit in LOGITS]
    order = sorted(range(len(LOGITS)), key=lambda i: -weights[i])
    kept = order[: top_k or len(order)]
    total, held, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if held < top_p:
            nucleus.append(i)
            held += weights[i] / total
    total = sum(weights[i] for i in nucleus)
    return [weights[i] / total if i in nucleus else 0.0 for i in range(len(LOGITS))]


SETTINGS = [
    {}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 1}, {"top_k": 3}, {"top_k": 99}, {"top_p": 0.8},
    {"top_p": 1e-9}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(settings) -> None:
    share = expected(**settings)
    for seed in range(200):
        u = uniform(seed, 3)
        token = next(i for i, held in enumerate(accumulate(share)) if u < held)
        assert draw([Draw(seed, **settings)], torch.tensor([LOGITS]), generated=3) == [token]


def test_many_draws_follow_the_distribution() -> None:
    settings = {"temperature": 1.3, "top_k": 5, "top_p": 0.97}
    share, n = expected(**settings), 6000
    tokens = draw([Draw(seed, **settings) for seed in range(n)], torch.tensor([LOGITS]).repeat(n, 1))
    counts = [tokens.count(i) for i in range(len(LOGITS))]
    assert all(count == 0 for count, p in zip(counts, share, strict=True) if p == 0)
    chi2 = sum((count - n * p) ** 2 / (n * p) for count, p in zip(counts, share, strict=True) if p)
    assert chi2 < 18.5  # 99.9 % at four degrees of freedom


def test_the_uniform_numbers_are_fixed_for_all_time_and_uniform() -> None:
    assert uniform(7, 0) == uniform(7, 0) != uniform(7, 1) != uniform(8, 1)
    assert uniform(7, 0) == 0.8658075582976756
    numbers = [uniform(seed, step) for seed in range(100) for step in range(100)]
    assert min(numbers) >= 0
    assert max(numbers) < 1
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.01


def test_a_row_does_not_see_its_neighbours() -> None:
    torch.manual_seed(0)
    rows = [None if i % 7 == 0 else Draw(i, 0.5 + i % 3, (0, 5, 50)[i % 3], (1.0, 0.9)[i % 2]) for i in range(40)]
    scores = torch.randn(40, 5000) * 2
    together = draw(rows, scores)
    alone = [draw([row], scores[i : i + 1])[0] for i, row in enumerate(rows)]
    turned = draw(rows[::-1], scores.flip(0))[::-1]
    assert together == alone == turned
    assert all(token == scores[i].argmax() for i, token in enumerate(together) if rows[i] is None)


@pytest.mark.parametrize("spread", [0.01, 3.0], ids=["flat: whole vocabulary is sorted", "peaked: shortlist is enough"])
def test_a_nucleus_of_a_large_vocabulary_is_found_exactly(spread) -> None:
    torch.manual_seed(1)
    scores = torch.randn(1, 4000) * spread
    descending, ids = scores[0].double().softmax(-1).sort(descending=True)
    nucleus = set(ids[: int((descending.cumsum(0) < 0.9).sum()) + 1].tolist())
    tokens = {draw([Draw(seed, top_p=0.9)], scores)[0] for seed in range(400)}
    assert tokens <= nucleus
    assert len(tokens) > 50


def test_tokens_that_were_forbidden_are_never_drawn() -> None:
    scores = torch.tensor([[1.0, -math.inf, 2.0, -math.inf]]).repeat(500, 1)
    for settings in ({}, {"top_k": 3}, {"top_p": 0.999}):
        assert set(draw([Draw(seed, **settings) for seed in range(500)], scores)) == {0, 2}


def test_rows_at_different_points_draw_what_each_draws_alone() -> None:
    torch.manual_seed(3)
    draws = [None, *(Draw(seed, **settings) for seed, settings in enumerate(SETTINGS)), None]
    scores, generated = torch.randn(len(draws), 40), [7 * i % 5 for i in range(len(draws))]
    alone = [draw([one], scores[i : i + 1], generated[i])[0] for i, one in enumerate(draws)]
    assert next_tokens(scores.clone(), draws, generated).tolist() == alone
    assert alone[0] == scores[0].argmax()
    assert next_tokens(scores.clone(), draws, [0] * len(draws)).tolist() != alone
