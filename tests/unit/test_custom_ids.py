"""An id is never said to be taken unless it is, and never given twice."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from producer import custom_ids
from producer.custom_ids import CustomIds


class Ids:
    """Ids with the places they were put down at, as the spool keeps them: ten to a place."""

    def __init__(self) -> None:
        self.places: list[list[str]] = [[]]
        self.looks = 0
        self.ids = CustomIds(self.at)

    def at(self, place: int) -> Sequence[str]:
        self.looks += 1
        return self.places[place]

    def taken(self, line: int, custom_id: str | None = None) -> bool:
        if self.ids.taken(line, custom_id, len(self.places) - 1):
            return True
        self.places[-1].append(custom_id or str(line))
        if len(self.places[-1]) == 10:
            self.places.append([])
        return False


@pytest.fixture
def ids() -> Ids:
    return Ids()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, "a"), (2, "a")),
        ((7, None), (8, "7")),
        ((7, "8"), (8, None)),
        ((1, "99999999999"), (2, "99999999999")),
        ((custom_ids._NUMBERS, None), (1, str(custom_ids._NUMBERS))),
        ((1, "0"), (2, "0")),
        ((1, str(custom_ids._NUMBERS - 1)), (2, str(custom_ids._NUMBERS - 1))),
    ],
)
def test_an_id_is_taken_once_given_or_implied(
    ids: Ids, first: tuple[int, str | None], second: tuple[int, str | None]
) -> None:
    assert not ids.taken(*first)
    assert ids.taken(*second)


@pytest.mark.parametrize("given", ["07", "7.0", " 7", "-7", "٧", "²", "7_0", "+7"])
def test_what_only_looks_like_a_line_number_is_another_id(ids: Ids, given: str) -> None:
    assert not ids.taken(7)
    assert not ids.taken(1, given)
    assert ids.taken(2, given)


def test_it_agrees_with_a_plain_set_over_many_ids(ids: Ids) -> None:
    chance = random.Random(5)
    seen: set[str] = set()
    for line in range(1, 30_001):
        kind = chance.choice(["own", "own", "number", None])
        given = {"own": f"id-{chance.randrange(20_000)}", "number": str(chance.randrange(40_000)), None: None}[kind]
        expected = (given or str(line)) in seen
        assert ids.taken(line, given) is expected, (line, given)
        seen.add(given or str(line))


def test_two_ids_of_one_hash_are_told_apart(ids: Ids, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given that all hashes agree, every id is looked up where it was put down."""
    monkeypatch.setattr(custom_ids, "hash", lambda _text: 5, raising=False)
    names = [f"id-{n}" for n in range(50)]
    assert not any(ids.taken(line, name) for line, name in enumerate(names, 1))
    assert all(ids.taken(line, name) for line, name in enumerate(names, 51))
    assert not ids.taken(200, "another")


def test_ids_that_are_new_are_looked_up_nowhere(ids: Ids) -> None:
    assert not any(ids.taken(line, f"id-{line}") for line in range(1, 20_001))
    assert ids.looks == 0


def test_line_numbers_are_a_bit_each_and_other_ids_some_dozen_bytes(ids: Ids) -> None:
    assert not any(ids.ids.taken(line, None, 0) for line in range(1, 300_001))
    assert len(ids.ids._numbers) < 45_000
    assert not any(ids.ids.taken(line, f"id-{line}", 0) for line in range(1, 100_001))
    assert ids.ids._hashes.itemsize * len(ids.ids._hashes) <= 8 * 2**18
    assert ids.ids._places.itemsize * len(ids.ids._places) <= 4 * 2**18
