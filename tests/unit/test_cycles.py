"""Python's search for garbage that refers to itself: seldom, but not never."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import gc, weakref
from workers.cycles import look_for_cycles_less

class Node:
    pass

look_for_cycles_less()
searches = []
gc.callbacks.append(lambda phase, info: searches.append(info["generation"]))
first = Node()
first.me = first
seen, kept = weakref.ref(first), []
del first
for n in range(300_000):
    kept.append([n])
    if seen() is None:
        break
print(gc.get_freeze_count() > 1000, n < 299_999, len(searches) < 50)
"""


def test_what_was_imported_is_never_searched_and_garbage_is_found_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]
