"""How many jobs fit is learned from what did not fit, and forgotten slowly."""

from __future__ import annotations

from workers.ceilings import PATIENCE, Ceilings


def test_nothing_is_held_back_before_anything_failed() -> None:
    assert Ceilings().limit("sd 512", 32) == 32


def test_half_of_what_ran_out_of_memory_is_tried_from_then_on() -> None:
    ceilings = Ceilings()
    ceilings.ran_out("sd 512", 32)
    assert [ceilings.limit("sd 512", wanted) for wanted in (32, 16, 4)] == [16, 16, 4]
    ceilings.ran_out("sd 512", 16)
    assert ceilings.limit("sd 512", 32) == 8
    ceilings.ran_out("sd 512", 32)
    assert ceilings.limit("sd 512", 32) == 8, "an older, larger failure does not raise it"


def test_another_shape_or_model_is_not_held_back() -> None:
    ceilings = Ceilings()
    ceilings.ran_out("sd 1024", 8)
    assert ceilings.limit("sd 512", 32) == 32


def test_one_job_may_always_be_tried() -> None:
    ceilings = Ceilings()
    ceilings.ran_out("huge", 1)
    assert ceilings.limit("huge", 5) == 1


def test_it_creeps_up_after_many_that_fitted_and_falls_at_once() -> None:
    ceilings = Ceilings()
    ceilings.ran_out("k", 32)
    for _ in range(PATIENCE - 1):
        ceilings.fitted("k", 16)
        ceilings.fitted("k", 3)  # smaller ones tell nothing
    assert ceilings.limit("k", 32) == 16
    ceilings.fitted("k", 16)
    assert ceilings.limit("k", 32) == 18
    ceilings.ran_out("k", 18)
    assert ceilings.limit("k", 32) == 9


def test_what_microbatches_took_at_their_peak_decides_how_many_more_are_tried() -> None:
    ceilings = Ceilings()
    ceilings.measured("sd 1024", jobs=4, taken=4_000, room=16_000)
    assert ceilings.limit("sd 1024", 32) == 14, "1,000 bytes each, and a tenth is kept free"
    assert ceilings.limit("sd 1024", 8) == 8
    ceilings.measured("sd 1024", jobs=14, taken=7_000, room=16_000)
    assert ceilings.limit("sd 1024", 32) == 28, "a part of it is needed once, whatever their number"
    ceilings.measured("sd 1024", jobs=2, taken=3_000, room=16_000)
    assert ceilings.limit("sd 1024", 32) == 28, "smaller ones tell less"


def test_what_fitted_may_be_tried_again_however_tight_it_was() -> None:
    ceilings = Ceilings()
    ceilings.measured("sd 2048", jobs=4, taken=15_900, room=16_000)
    assert ceilings.limit("sd 2048", 32) == 4


def test_what_ran_out_of_memory_counts_for_more_than_what_was_planned() -> None:
    ceilings = Ceilings()
    ceilings.measured("k", jobs=4, taken=4, room=1_000)
    ceilings.ran_out("k", 32)
    assert ceilings.limit("k", 32) == 16
