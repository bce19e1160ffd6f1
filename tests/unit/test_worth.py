"""Which model goes first when room is needed: by what its loading takes, how often it is used, and its size."""

from __future__ import annotations

from workers.worth import Worth

A, B, C = ("task", "a"), ("task", "b"), ("task", "c")


def test_of_two_models_the_one_that_is_loaded_faster_for_its_size_goes_first() -> None:
    worth = Worth()
    worth.used(A, 0.0, load_s=10.0, size_mb=1000)
    worth.used(B, 1.0, load_s=1.0, size_mb=1000)
    assert worth.least([A, B], ()) == B
    worth.used(C, 2.0, load_s=10.0, size_mb=50_000)
    assert worth.least([A, B, C], ()) == C


def test_what_is_used_more_often_stays_and_what_somebody_waits_for_goes_last() -> None:
    worth = Worth()
    for clock in range(10):
        worth.used(A, clock, load_s=5.0, size_mb=1000)
    worth.used(B, 10.0, load_s=5.0, size_mb=1000)
    assert worth.least([A, B], ()) == B
    assert worth.least([A, B], {B}) == A


def test_nothing_lives_on_old_merits() -> None:
    """Given a model that was used very often, long ago; then it goes once others have come and gone often enough."""
    worth = Worth()
    for clock in range(50):
        worth.used(A, clock, load_s=5.0, size_mb=1000)
    held, gone = [A], 0
    while A in held and gone < 1000:
        new = ("task", f"new-{gone}")
        worth.used(new, 100.0 + gone, load_s=5.0, size_mb=1000)
        held.append(new)
        if len(held) > 2:
            least = worth.least(held, ())
            worth.dropped(least)
            held.remove(least)
        gone += 1
    assert 10 < gone < 200


def test_steady_use_is_use_again_and_again_and_until_now() -> None:
    worth = Worth()
    assert not worth.in_steady_use(A, 0.0, 10.0)
    worth.used(A, 0.0, load_s=1.0, size_mb=1)
    assert not worth.in_steady_use(A, 1.0, 10.0), "used once"
    worth.used(A, 5.0, load_s=1.0, size_mb=1)
    assert worth.in_steady_use(A, 6.0, 10.0)
    assert not worth.in_steady_use(A, 16.0, 10.0), "not any more"
    worth.used(B, 0.0, load_s=1.0, size_mb=1)
    worth.used(B, 100.0, load_s=1.0, size_mb=1)
    assert not worth.in_steady_use(B, 101.0, 10.0), "too seldom"
