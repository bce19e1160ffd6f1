"""What people are told, in words."""

from __future__ import annotations

from producer.words import told_once

GONE = {"code": "model_unreachable", "message": "the hub does not answer"}


def test_an_error_is_told_in_full_once() -> None:
    told = (
        "It waits, after model_unreachable: the hub does not answer. No worker can take it: one could not load it: "
        "model_unreachable: the hub does not answer; it tries again. It was given back; last: the hub does not answer."
    )
    assert told_once(told, GONE) == (
        "It waits, after model_unreachable: the hub does not answer. No worker can take it: one could not load it: "
        "the same; it tries again. It was given back; last: the same."
    )


def test_a_text_without_it_stays_as_it_is() -> None:
    assert told_once("It is done.", GONE) == "It is done."
    assert told_once("It failed.", {"code": "broken", "message": ""}) == "It failed."
