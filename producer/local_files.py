"""Files on the caller's machine: whole or not at all, and trouble with them in words."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from shared.errors import RequestError, Unavailable

#: unfinished files of an earlier run go once they are this old
ABANDONED_S = 24 * 3600


@contextmanager
def replacing(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A way to write `path` as a whole or not at all; gives the function that appends bytes.

    What is written goes to another file of the same folder, which takes the place of `path` when the block ends well.
    Raises `RequestError` if the folder cannot be written and `Unavailable` if the disk is full.
    """
    temporary = path.with_name(f".aigc-{secrets.token_hex(8)}.part")
    try:
        with explained(path):
            stream = temporary.open("xb", buffering=128 << 10)

        def append(content: bytes) -> None:
            with explained(path):
                stream.write(content)

        try:
            yield append
        except BaseException:
            with suppress(OSError):
                stream.close()
            raise
        with explained(path):
            stream.close()
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def drop_abandoned(folder: Path) -> None:
    """Remove what runs that were killed long ago left unfinished in a folder."""
    for part in folder.glob(".aigc-*.part"):
        with suppress(FileNotFoundError):
            if part.stat().st_mtime < time.time() - ABANDONED_S:
                part.unlink()


@contextmanager
def explained(path: Path, *, doing: Literal["read", "written"] = "written") -> Iterator[None]:
    """Turn trouble with the local file system into `RequestError` or, where it may pass, `Unavailable`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            raise Unavailable(
                "disk", str(path), reason, "Make room and run it again: what is there already is kept"
            ) from error
        raise RequestError(f"{path} cannot be {doing}: {reason}. Name another one, or mend this") from error
