"""The scheduler is a pure function: properties over many random situations."""

from __future__ import annotations

import random

import pytest

from shared.scheduling import Waiting, choose, window

CLOCK = 1000.0
BOUND = 30.0


def situations(n: int = 500) -> list[tuple[list[Waiting], set[str]]]:
    chance = random.Random(7)
    made = []
    for _ in range(n):
        lanes = [
            Waiting(
                number, "task", chance.choice(["", "a", "b", "c"]), chance.choice([-5, 0, 0, 7]),
                CLOCK - chance.choice([0, 1, 10, 29, 31, 100]), chance.randint(1, 99),
            )
            for number in range(chance.randint(1, 6))
        ]  # fmt: skip
        made.append((lanes, set(chance.sample(["a", "b", "c"], chance.randint(0, 2)))))
    return made


def at_hand(lane: Waiting, resident: set[str]) -> bool:
    return not lane.model or lane.model in resident


def test_nothing_waits_nothing_is_chosen() -> None:
    assert choose([], {"a"}, CLOCK, age_bound_s=BOUND) is None


def test_the_choice_is_of_the_highest_priority_and_fair() -> None:
    for waiting, resident in situations():
        chosen = choose(waiting, resident, CLOCK, age_bound_s=BOUND)
        assert chosen is not None
        peers = [lane for lane in waiting if lane.priority == max(other.priority for other in waiting)]
        oldest = min(lane.oldest for lane in peers)
        assert chosen in peers
        if CLOCK - oldest > BOUND:
            assert chosen.oldest == oldest, "somebody waited beyond the bound"
        elif any(at_hand(lane, resident) for lane in peers):
            assert at_hand(chosen, resident), "a model is swapped although one in memory has work"
            assert chosen.oldest == min(lane.oldest for lane in peers if at_hand(lane, resident))
        else:
            assert chosen.oldest == oldest


def test_the_choice_does_not_depend_on_the_order_of_the_rows() -> None:
    for waiting, resident in situations():
        chosen = choose(waiting, resident, CLOCK, age_bound_s=BOUND)
        assert choose(waiting[::-1], resident, CLOCK, age_bound_s=BOUND) == chosen


@pytest.mark.parametrize("ready", [1, 3, 20, 1000])
@pytest.mark.parametrize("workers", [0, 1, 8, 64])
def test_a_window_is_a_fair_share_and_at_most_a_few_microbatches(ready: int, workers: int) -> None:
    size = window(ready, workers, 32)
    assert 1 <= size <= 64
    assert size * max(1, workers) >= min(ready, 64), "together they leave nothing lying"
    assert size - 1 < ready / max(1, workers), "nobody hoards"


def test_a_lone_worker_takes_all_and_eight_take_three_each() -> None:
    assert window(20, 1, 32) == 20
    assert window(20, 8, 32) == 3
    assert window(0, 1, 32) == 1
