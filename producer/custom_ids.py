"""Which custom ids a submission holds so far: exactly, and in a few bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Container

#: numbers below this are known by a bit each; 8 MiB if all of them occur
_NUMBERS = 1 << 26
#: share of the slots that may be in use before there are twice as many
_FULL = 0.65


class CustomIds:
    """Ids seen so far. An id that nobody gave is the number of its line.

    Numbers are a bit each. Of every other id stand its hash and the place where it was put down, 12 bytes a slot: two
    ids whose hashes agree are looked up there, so that none is ever taken for another.
    """

    def __init__(self, ids_at: Callable[[int], Container[str]]) -> None:
        """`ids_at` gives the ids that were put down at a place, those of the jobs that are still being added too."""
        self._ids_at = ids_at
        self._numbers = bytearray()
        self._hashes = array("q", bytes(8 * 1024))
        self._places = array("L" if array("I").itemsize < 4 else "I", bytes(4 * 1024))
        self._used = 0

    def taken(self, line: int, custom_id: str | None, place: int) -> bool:
        """Note the id of a job that is put down at `place`; True if another job has it, and then it is not noted."""
        number = line if custom_id is None else _number(custom_id)
        if 0 <= number < _NUMBERS:
            return self._number_taken(number)
        text = str(line) if custom_id is None else custom_id
        hashed = hash(text) or 1  # 0 is an empty slot
        slot = self._slot(hashed, text)
        if slot is None:
            return True
        self._hashes[slot], self._places[slot] = hashed, place
        self._used += 1
        if self._used > _FULL * len(self._hashes):
            self._grow()
        return False

    def _number_taken(self, number: int) -> bool:
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._numbers):
            self._numbers.extend(bytes(max(byte - len(self._numbers) + 1, len(self._numbers) >> 3)))
        if self._numbers[byte] & bit:
            return True
        self._numbers[byte] |= bit
        return False

    def _slot(self, hashed: int, text: str) -> int | None:
        """The empty slot for this hash; None if `text` stands in one on the way there."""
        hashes, mask = self._hashes, len(self._hashes) - 1
        slot = hashed & mask
        while found := hashes[slot]:
            if found == hashed and text in self._ids_at(self._places[slot]):
                return None
            slot = slot + 1 & mask
        return slot

    def _grow(self) -> None:
        hashes, places = self._hashes, self._places
        self._hashes = array(hashes.typecode, bytes(hashes.itemsize * 2 * len(hashes)))
        self._places = array(places.typecode, bytes(places.itemsize * 2 * len(places)))
        mask, into, at = len(self._hashes) - 1, self._hashes, self._places
        for hashed, place in zip(hashes, places, strict=True):
            if hashed:
                slot = hashed & mask
                while into[slot]:
                    slot = slot + 1 & mask
                into[slot], at[slot] = hashed, place


def _number(custom_id: str) -> int:
    """The number that an id is, written as Python writes it; -1 if it is none, or too large to matter."""
    if not custom_id.isdigit() or not custom_id.isascii() or len(custom_id) > 8:
        return -1
    return -1 if custom_id[0] == "0" and custom_id != "0" else int(custom_id)
