"""Outputs as bytes: here runs what a generator left to be done off the device's thread."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.errors import JobFailed
from workers.finisher.parcel import File, Parcel, Published
from workers.finisher.pool import Pool
from workers.generators import Output

log = logging.getLogger("aigc.worker")

#: longest media type, as the table of artifacts has it
MAX_MEDIA_TYPE = 100
#: outputs that are bytes already, and of no more than so many, are no work for a pool
LIGHT_BYTES = 64 * 1024

_ROLES = frozenset({"output", "preview", "checkpoint", "metric"})
_PLAIN = frozenset({str, int, float, bool, type(None)})


class Encoders:
    """A pool of threads that encode: as many as the machine has cores, four at most."""

    def __init__(self, done: Callable[[Parcel], None], *, on_defect: Callable[[BaseException], None]) -> None:
        """`done` gets every parcel back, with its files, or with the error that it ends in."""
        self._done = done
        self._guard = threading.Lock()
        self._begun: dict[int, float] = {}
        self._pool = Pool("encode", min(4, os.cpu_count() or 1), self._encode, on_defect=on_defect)

    def put(self, parcel: Parcel) -> None:
        """Have its outputs encoded."""
        self._pool.put(parcel)

    def since(self) -> float:
        """When the oldest of what is being encoded now was begun, by the monotonic clock; 0 if nothing is."""
        with self._guard:
            return min(self._begun.values(), default=0.0)

    def close(self, *, abandon: bool) -> None:
        """Encode what is there,, unless that is to be abandoned, and end."""
        self._pool.close(abandon=abandon)

    def _encode(self, parcel: Parcel) -> None:
        me = threading.get_ident()
        with self._guard:
            self._begun[me] = time.monotonic()
        try:
            encode(parcel)
        finally:
            with self._guard:
                del self._begun[me]
        self._done(parcel)


def is_light(parcel: Parcel) -> bool:
    """Whether nothing of it has to be encoded, and little to be looked at."""
    return parcel.size <= LIGHT_BYTES and all(isinstance(output.body, bytes) for output in parcel.outputs)


def encode(parcel: Parcel) -> None:
    """Give a parcel its files; where one cannot be made it ends in error, and nobody else does."""
    first = parcel.item.position if isinstance(parcel.item, Published) else 0
    try:
        parcel.files = [_file(output, first + n) for n, output in enumerate(parcel.outputs)]
    except Exception as defect:  # noqa: BLE001 - encoding is a part of the generator
        log.error("an output could not be encoded:\n%s", "".join(traceback.format_exception(defect)))
        parcel.error = JobFailed("encoding_failed", f"{type(defect).__name__}: {defect}", retryable=True)


def _file(output: Output, position: int) -> File:
    facts = _checked(output.facts)
    if len(output.media_type) > MAX_MEDIA_TYPE:
        raise ValueError(f"media type {output.media_type[:40]}… is longer than {MAX_MEDIA_TYPE} characters")
    if output.role not in _ROLES:
        raise ValueError(f"an output cannot have the role {output.role!r}")
    body = output.body if isinstance(output.body, bytes) else output.body()
    return File(output.role, position, output.media_type, body, hashlib.sha256(body).hexdigest(), facts)


def _checked(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What SQL cannot take is this job's failure, not its neighbours'. Raises `TypeError` or `ValueError`."""
    known = dict(facts)
    if not all(type(key) is str and type(value) in _PLAIN for key, value in known.items()):
        json.dumps(known)
    return known


def sizes(files: Sequence[File]) -> int:
    """Bytes of these files together."""
    return sum(len(file.body) for file in files)
