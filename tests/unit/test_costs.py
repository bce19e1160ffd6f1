"""What a microbatch costs is learned from what microbatches took, and so is how many jobs one is worth."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from workers.costs import MOST_S, Costs


def learned(costs: Costs, takes: Callable[[int], float], most: int, rounds: int = 60) -> list[int]:
    """Run microbatches of the suggested size; returns the sizes."""
    sizes = []
    for _ in range(rounds):
        sizes.append(costs.suggested("k", most))
        costs.measured("k", sizes[-1], takes(sizes[-1]))
    return sizes


def rate(takes: Callable[[int], float], n: int) -> float:
    return n / takes(n)


def test_of_what_nothing_is_known_as_many_as_possible_run_together() -> None:
    assert Costs().suggested("k", 32) == 32


def test_a_device_that_gains_nothing_from_company_gets_one_job_at_a_time() -> None:
    assert learned(Costs(), lambda n: 2.0 * n, 32)[-1] == 1


def test_a_device_that_gains_much_gets_them_all() -> None:
    assert learned(Costs(), lambda n: 1.0 + 0.01 * n, 32)[-1] == 32


@pytest.mark.parametrize("fixed_s", [0.001, 0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("most", [8, 32, 48, 256])
def test_what_is_found_is_close_to_the_best_of_a_sweep_although_measurements_vary(fixed_s: float, most: int) -> None:
    chance = random.Random(7)

    def takes(n: int) -> float:
        return fixed_s + 0.02 * n

    found = learned(Costs(), lambda n: takes(n) * chance.uniform(0.98, 1.04), most, 120)[-20:]
    best = max(rate(takes, n) for n in range(1, most + 1))
    assert sum(rate(takes, n) for n in found) / len(found) >= 0.95 * best


def test_where_large_microbatches_are_slower_a_smaller_one_is_found() -> None:
    def takes(n: int) -> float:
        return 0.2 + 0.02 * n if n <= 16 else 0.1 * n  # the caches do not suffice any more

    found = learned(Costs(), takes, 32)[-1]
    assert rate(takes, found) >= 0.95 * max(rate(takes, n) for n in range(1, 33))


def test_a_device_that_changes_is_followed() -> None:
    costs = Costs()
    assert learned(costs, lambda n: 1.0 + 0.01 * n, 32)[-1] == 32
    assert learned(costs, lambda n: 0.5 * n, 32, 200)[-1] < 32


def test_the_first_run_of_a_size_warms_up_and_tells_nothing() -> None:
    costs = Costs()
    costs.measured("k", 32, 100.0)
    assert costs.expected("k", 32) is None
    costs.measured("k", 32, 1.0)
    assert costs.expected("k", 32) == pytest.approx(1.0)


def test_no_microbatch_is_made_that_takes_longer_than_a_minute() -> None:
    found = learned(Costs(), lambda n: 10.0 + 10.0 * n, 32)[-1]
    assert 10.0 + 10.0 * found <= MOST_S


def test_shapes_and_models_are_told_apart() -> None:
    costs = Costs()
    for n in (32, 16, 8) * 4:
        costs.measured("large", n, 1.0 * n)
    assert costs.suggested("large", 32) == 1
    assert costs.suggested("small", 32) == 32


def test_what_a_unit_of_estimated_cost_takes_is_learned_by_task_and_model() -> None:
    costs = Costs()
    assert costs.seconds("text-generation", "gpt2", 3.0) == 3.0, "the estimate, where nothing is known"
    for _ in range(20):
        costs.spent("text-generation", "gpt2", cost=2.0, seconds=0.5)
    assert costs.seconds("text-generation", "gpt2", 4.0) == pytest.approx(1.0)
    assert costs.seconds("text-generation", "other", 4.0) == 4.0
