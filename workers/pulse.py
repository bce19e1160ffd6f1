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

import psutil

_LAYOUT = struct.Struct("=qq64sddd")
_SESSION, _SIGN = 16, 80


@dataclass(frozen=True, slots=True)
class Reading:
    """What the parent sees at one moment."""

    #: process id of the child, 0 before it has said anything; and when it was started, in ticks since the host was
    pid: int
    started: int
    #: its worker session; empty if it has none
    session: str
    #: when the last step of the model was made, or that began which should not take for ever; 0 = nothing such goes on
    stepped_at: float
    #: seconds after which it counts as stuck
    patience_s: float
    #: when the time of a job in the model is up; 0 = none of them has a limit
    deadline: float


#: before any child has said anything
NOTHING = Reading(0, 0, "", 0.0, 0.0, 0.0)


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
        self._map[:] = _LAYOUT.pack(os.getpid(), _process(os.getpid())[1], b"", 0.0, 0.0, 0.0)

    def session(self, id_: str) -> None:
        """The worker session in force; empty once it has ended in good order."""
        self._map[_SESSION : _SESSION + 64] = id_.encode().ljust(64, b"\0")

    def wait(self, since: float, patience_s: float, deadline: float | None = None) -> None:
        """Something goes on that made its last step then, and counts as stuck after so many seconds without another."""
        struct.pack_into("=ddd", self._map, _SIGN, since, patience_s, deadline or 0.0)

    def rest(self) -> None:
        """Nothing goes on that could be stuck."""
        struct.pack_into("=ddd", self._map, _SIGN, 0.0, 0.0, 0.0)

    # --- the parent's side ---

    def read(self) -> Reading:
        """What the child said last."""
        pid, started, session, stepped_at, patience_s, deadline = _LAYOUT.unpack(self._map[:])
        name = session.rstrip(b"\0").decode("ascii", "replace")
        return Reading(pid, started, name, stepped_at, patience_s, deadline)


def alive(child: Reading) -> bool:
    """Whether the process that said this runs, or could go on. Not: another one that came to have its number."""
    return _process(child.pid) == (True, child.started)


def _process(pid: int) -> tuple[bool, int]:
    """Whether a process is there and no zombie, and when it was started: in ticks, which no setting of a clock moves.

    Without /proc the second is 0: then numbers alone have to do.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        if not Path("/proc/self/stat").exists():
            return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE, 0
        return False, 0
    except ProcessLookupError:
        return False, 0
    return state not in "ZX", int(rest[18])
