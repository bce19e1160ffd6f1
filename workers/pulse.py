"""What a worker's child lets its parent know without a word: a few numbers in a file that both have in memory.

The child may be stuck in a kernel and its threads with it; the parent then still sees since when no step was made, and
which worker session dies with the child. Times are `time.monotonic`, which all processes of a host share.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_LAYOUT = struct.Struct("=q64sdd")
_SESSION, _STEPPED = 8, 72


@dataclass(frozen=True, slots=True)
class Reading:
    """What the parent sees at one moment."""

    #: process id of the child; 0 before it has said anything
    pid: int
    #: its worker session; empty if it has none
    session: str
    #: when the last step of the model was made, or the microbatch begun; 0 = it is not in a model
    stepped_at: float
    #: when the time of a job in the model is up; 0 = none of them has a limit
    deadline: float


class Pulse:
    """One file, written by the child and read by the parent. Writing costs well below a microsecond."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` if the file is not there."""
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)

    @classmethod
    def make(cls) -> Self:
        """A new file, for this user alone. It goes with this process, where the system can do that (Linux)."""
        handle, name = tempfile.mkstemp(prefix="aigc-pulse-")
        os.write(handle, bytes(_LAYOUT.size))
        lasting = Path(f"/proc/{os.getpid()}/fd/{handle}")
        if not lasting.exists():
            os.close(handle)
            return cls(Path(name))
        made = cls(lasting)
        Path(name).unlink()
        return made

    @classmethod
    def private(cls) -> Self:
        """One that nobody else sees, for a worker without a parent that watches."""
        made = cls.make()
        made.remove()
        return made

    def remove(self) -> None:
        """Take the file away, where it does not go by itself; whoever has it open goes on."""
        if not self.path.is_relative_to("/proc"):
            self.path.unlink(missing_ok=True)

    # --- the child's side ---

    def begin(self) -> None:
        """This process is the child now, and has no session."""
        self._map[:] = _LAYOUT.pack(os.getpid(), b"", 0.0, 0.0)

    def session(self, id_: str) -> None:
        """The worker session in force; empty once it has ended in good order."""
        self._map[_SESSION : _SESSION + 64] = id_.encode().ljust(64, b"\0")

    def step(self, at: float, deadline: float | None) -> None:
        """In the model: a step was made, or the first is about to be."""
        struct.pack_into("=dd", self._map, _STEPPED, at, deadline or 0.0)

    def rest(self) -> None:
        """Out of the model."""
        struct.pack_into("=dd", self._map, _STEPPED, 0.0, 0.0)

    # --- the parent's side ---

    def read(self) -> Reading:
        """What the child said last."""
        pid, session, stepped_at, deadline = _LAYOUT.unpack(self._map[:])
        return Reading(pid, session.rstrip(b"\0").decode("ascii", "replace"), stepped_at, deadline)
