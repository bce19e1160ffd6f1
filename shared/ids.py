"""Ids that sort by time and can be read aloud: Crockford's base 32, without i, l, o and u."""

from __future__ import annotations

import re
import secrets
import time

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


def _new(prefix: str) -> str:
    number = (time.time_ns() // 1_000_000 << 32) | secrets.randbits(32)
    digits = ""
    for _ in range(16):
        digits = _DIGITS[number & 31] + digits
        number >>= 5
    return prefix + digits


def new_batch_id() -> str:
    """`b` and 16 digits: 48 bits of milliseconds, 32 random ones. Made by the client, so that it can try again."""
    return _new("b")


def new_file_id() -> str:
    """`f` and 16 digits, for a file that was uploaded."""
    return _new("f")


def new_session_id() -> str:
    """`w` and 16 digits, for one life of a worker process."""
    return _new("w")


def job_id(batch_id: str, line: int) -> str:
    """`<batch>-<line>`: a job is known by its batch and its line."""
    return f"{batch_id}-{line}"


def is_job_id(text: str) -> bool:
    """Whether this has the form of a job's id; no batch may be named so."""
    return re.fullmatch(rf"b[{_DIGITS}]{{16}}-[0-9]+", text) is not None


def batch_of(job: str) -> str:
    """The batch that a job id belongs to."""
    return job.rpartition("-")[0]
