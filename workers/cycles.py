"""How often Python looks for garbage that refers to itself. To be set once in the process that runs jobs."""

from __future__ import annotations

import gc

#: containers that are made, and not freed, before the youngest are looked through; and so many times that for the next
#: older ones, and so on (Python's own: 700, 10, 10)
_THRESHOLDS = (20_000, 10, 10)


def look_for_cycles_less() -> None:
    """Leave what has been imported out of every search, and search when much was made.

    Thousands of small jobs make and free their objects without a cycle among them, and a search that finds nothing
    takes a quarter of the processor time that they need. Whoever lets go of a model, or of what a failure holds in
    memory, searches by itself.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
