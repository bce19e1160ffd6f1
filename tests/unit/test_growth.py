"""A worker that gathers memory is told from one that needs it."""

from __future__ import annotations

from workers.memory import SETTLING, Growth

MB = 2**20


def settled(growth: Growth, models: set[str], used: int) -> None:
    for _ in range(SETTLING):
        assert not growth.too_much(models, used)


def test_growth_beyond_the_limit_with_the_same_models_is_too_much() -> None:
    growth = Growth(100 * MB)
    settled(growth, {"a"}, 500 * MB)
    assert not growth.too_much({"a"}, 599 * MB)
    assert growth.too_much({"a"}, 601 * MB)


def test_a_model_more_in_memory_is_no_growth() -> None:
    growth = Growth(100 * MB)
    settled(growth, {"a"}, 500 * MB)
    settled(growth, {"a", "b"}, 5000 * MB)
    assert not growth.too_much({"a", "b"}, 5050 * MB)


def test_what_the_first_microbatches_need_is_no_growth() -> None:
    growth = Growth(100 * MB)
    for used in (100, 900, 400)[:SETTLING]:
        assert not growth.too_much({"a"}, used * MB)
    assert not growth.too_much({"a"}, 990 * MB)


def test_without_a_limit_nothing_is_too_much() -> None:
    growth = Growth(0)
    settled(growth, set(), MB)
    assert not growth.too_much(set(), 10_000_000 * MB)
