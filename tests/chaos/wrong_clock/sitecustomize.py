"""Makes the clock of a process wrong by an hour; Python runs this file first where its folder stands on PYTHONPATH.

Only what tells the time of day is wrong; `time.monotonic` is right, as on a machine whose clock was set badly. What
botocore sees is right too: a store refuses requests that are signed an hour off, and that says nothing about us.
"""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any

SHIFT_S = 3600.0

_time, _time_ns = time.time, time.time_ns
_real = datetime.datetime


def _shift() -> float:
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return 0.0 if caller.startswith("botocore") else SHIFT_S


def _wrong_time() -> float:
    return _time() + _shift()


def _wrong_time_ns() -> int:
    return _time_ns() + int(_shift() * 1e9)


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _real)


class _WrongDatetime(_real, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _real.fromtimestamp(_time() + _shift(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return _real.fromtimestamp(_time() + _shift(), datetime.UTC).replace(tzinfo=None)


_WrongDatetime.__module__, _WrongDatetime.__qualname__, _WrongDatetime.__name__ = "datetime", "datetime", "datetime"

time.time, time.time_ns = _wrong_time, _wrong_time_ns
datetime.datetime = _WrongDatetime  # type: ignore[misc]
