"""The stream that `Storage.open` returns, the same for every storage."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: reads up to so many bytes; b"" is the end
Read = Callable[[int], bytes]


class RangeReader(io.RawIOBase):
    """Gives exactly `length` bytes of a source, or raises: a transfer that ends early is not an end of file.

    `read` and `close_source` may raise whatever they like; `explain` makes the error that leaves.
    """

    def __init__(
        self,
        read: Read,
        close_source: Callable[[], None],
        length: int,
        explain: Callable[[Exception], Exception],
    ) -> None:
        self._read = read
        self._close_source = close_source
        self._left = length
        self._explain = explain

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer as far as one read of the source goes."""
        view = memoryview(buffer).cast("B")
        chunk = self._some(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    def readall(self) -> bytes:
        """What is left; in large pieces, where the inherited method would read 8 KiB at a time."""
        return b"".join(iter(lambda: self._some(1 << 20), b""))

    def close(self) -> None:
        """Let the source go; what was not read is not fetched."""
        if not self.closed:
            try:
                self._close_source()
            finally:
                super().close()

    def _some(self, most: int) -> bytes:
        want = min(most, self._left)
        if want == 0:
            return b""
        try:
            chunk = self._read(want)
            if not chunk:
                raise EOFError(f"the transfer ended {self._left} bytes early")
        except Exception as error:
            raise self._explain(error) from error
        self._left -= len(chunk)
        return chunk
