"""When the next request to a service may go, by imagined clocks."""

from __future__ import annotations

import pytest

from workers.remote.pace import FIRST_HOLD_S, MAX_HOLD_S, Pace


def test_without_a_limit_only_places_count() -> None:
    pace = Pace(0, 2)
    for _ in range(2):
        assert pace.free
        assert pace.wait_s(5.0) == 0
        pace.sent(5.0)
    assert (pace.free, pace.wait_s(5.0)) == (0, 0)
    pace.over()
    assert pace.free == 1


@pytest.mark.parametrize("per_minute", [1, 7, 60, 600])
def test_no_minute_ever_holds_more_requests_than_it_may(per_minute: int) -> None:
    pace, clock, sent = Pace(per_minute, 1000), 0.0, list[float]()
    while clock < 400:
        wait = pace.wait_s(clock)
        if wait:
            clock += wait
            continue
        pace.sent(clock)
        sent.append(clock)
        if 100 < clock < 200:
            clock += 13.7  # the worker had something else to do: nothing is made up for
    for n, begin in enumerate(sent):
        assert sum(1 for at in sent[n:] if at < begin + 60 - 1e-6) <= per_minute
    assert len([at for at in sent if at < 60 - 1e-6]) == per_minute


def test_a_service_is_left_alone_for_as_long_as_it_wants() -> None:
    pace = Pace(0, 4)
    pace.hold(10.0, 7.0)
    assert pace.wait_s(10.0) == pytest.approx(7)
    pace.hold(11.0, 2.0)
    assert pace.wait_s(11.0) == pytest.approx(6), "a shorter wish does not shorten a longer one"
    assert pace.wait_s(17.0) == 0


def test_one_that_does_not_say_for_how_long_is_left_alone_for_longer_each_time() -> None:
    pace, clock, pauses = Pace(0, 4), 0.0, list[float]()
    for _ in range(9):
        pace.hold(clock, None)
        pace.hold(clock, None)  # several were under way, and all were refused
        pauses.append(pace.held_s(clock))
        clock += pauses[-1]
    assert pauses[:3] == [FIRST_HOLD_S, 2 * FIRST_HOLD_S, 4 * FIRST_HOLD_S]
    assert pauses[-1] == MAX_HOLD_S
    pace.went_well()
    pace.hold(clock, None)
    assert pace.held_s(clock) == FIRST_HOLD_S
