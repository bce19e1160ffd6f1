"""A million lines in one file: memory, pace to the end, and what the status of such a batch costs."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy import func, select

from aigc import Client
from benchmarks.arms import end, environment
from benchmarks.machine import Load
from benchmarks.measure import Bench, Measured, middle
from benchmarks.work import no_ops
from shared.settings import load_settings
from shared.tables import batches, jobs

#: a process that submits: a small file first, so that everything is imported and connected, then the large one
_CHILD = """
import sys
from aigc import Client
client = Client()
client.submit_file(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(client.submit_file(sys.argv[1]).id, flush=True)
"""


def million(bench: Bench) -> list[Measured]:
    """Submissions into an empty database each, in processes of their own; then polls of the last one's batch."""
    count = 200_000 if bench.plan.quick else 1_000_000
    lines, few = bench.folder / "jobs.jsonl", bench.folder / "few.jsonl"
    job = json.dumps(no_ops(1)[0]) + "\n"
    few.write_text(job * 1000)
    with lines.open("w") as file:
        for _ in range(count):
            file.write(job)
    every: list[_Seen] = []
    with Load() as load:
        for number in range(bench.plan.rounds):
            data = bench.folder / f"data-{number}"
            settings = {"data_dir": str(data), "redis_url": "redis://127.0.0.1:1/0"}
            client = Client(load_settings(_env_file=None, **settings))
            with _submitting(lines, few, settings) as process:
                every.append(_watch(process, lines, client, count))
            bench.say(f"{count:,} lines in {every[-1].seconds:.1f} s, {every[-1].grown:.0f} MB")
            if number + 1 < bench.plan.rounds:
                shutil.rmtree(data)
    scale = "" if count == 1_000_000 else f"; a quick run: {count:,} lines in tenths, not a million"
    how_many = f"; {len(every)} submissions{scale}"
    tenths = [seen.tenths for seen in every]
    details = {"load": load.note, "tenths_s": tenths, "seconds": [seen.seconds for seen in every], "lines": count}
    grown, seconds = middle([seen.grown for seen in every]), middle([seen.seconds for seen in every])
    first, last = middle([times[0] for times in tenths]), middle([times[-1] for times in tenths])
    return [
        Measured(
            "million_memory", *grown, f"{grown[0]:.0f} MB, {count / seconds[0]:,.0f} lines/s",
            f"peak of resident memory over what it was after a submission of 1,000{how_many}", details=details,
        ),
        Measured(
            "million_pace", *middle([times[0] / times[-1] for times in tenths]),
            f"{first[0]:.2f} s for the first tenth, {last[0]:.2f} s for the last",
            f"reading, validating and storing a tenth of the lines{how_many}", details=details,
        ),
        _status(bench, client, every[-1].batch, count, scale),
    ]  # fmt: skip


@contextmanager
def _submitting(lines: Path, few: Path, settings: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to submit when it is told to."""
    own = {f"AIGC_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(lines), str(few)], env=environment(**own), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        end(process, within_s=5)


@dataclass(slots=True)
class _Seen:
    """A submission, as seen from outside."""

    before: int
    peak: int
    #: moments in which each tenth of the file had been read, and of the rows stored; the first is the beginning
    read: list[float]
    stored: list[float] = field(default_factory=list)
    batch: str = ""
    seconds: float = 0.0

    @property
    def grown(self) -> float:
        """Megabytes."""
        return (self.peak - self.before) / 1e6

    @property
    def tenths(self) -> list[float]:
        """Seconds for reading and storing each tenth."""
        return [read + stored for read, stored in zip(_gaps(self.read), _gaps(self.stored), strict=True)]


def _watch(process: subprocess.Popen[str], lines: Path, client: Client, count: int) -> _Seen:
    """Let it go, and look every 10 ms: at its memory, at its place in the file, at the newest line in the table."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    if stdout.readline() != "ready\n":
        raise RuntimeError("the submitting process ended")
    me = psutil.Process(process.pid)
    size = lines.stat().st_size
    earlier = client.batches(1)[0].id
    started = time.monotonic()
    seen = _Seen(before=_resident(me), peak=0, read=[started])
    answers: list[str] = []
    listener = threading.Thread(target=lambda: answers.append(stdout.readline().strip()), daemon=True)
    listener.start()
    stdin.write("go\n")
    stdin.flush()
    while listener.is_alive():
        clock = time.monotonic()
        seen.peak = max(seen.peak, _resident(me))
        _advance(seen.read, clock, _place(process.pid, lines), size)
        stored = _newest_line(client, earlier)
        if stored and not seen.stored:  # storing began when all was read, or beside the reading
            seen.stored.append(seen.read[-1] if len(seen.read) > 9 else started)
        _advance(seen.stored, clock, stored, count)
        listener.join(0.01)
    clock = time.monotonic()
    seen.seconds, seen.batch = clock - started, answers[0]
    if not seen.batch:
        raise RuntimeError("the submission failed")
    seen.read += [seen.read[-1]] * (11 - len(seen.read))
    seen.stored = (seen.stored or [started]) + [clock] * (11 - len(seen.stored or [started]))
    return seen


def _advance(moments: list[float], clock: float, done: int, total: int) -> None:
    """Note the clock for each tenth that has been passed; nothing before the beginning is noted."""
    while moments and len(moments) <= 10 and done * 10 >= total * len(moments):
        moments.append(clock)


def _place(pid: int, path: Path) -> int:
    """How far a process has read a file; 0 if it does not have it open."""
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if descriptor.readlink() == path:
                facts = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
                return int(facts.split()[1])
    return 0


def _resident(process: psutil.Process) -> int:
    """Bytes of a process and of those that it started."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            total += int(each.memory_info().rss)
    return total


def _newest_line(client: Client, earlier: str) -> int:
    """The last line stored of a batch that is newer than another."""
    query = select(func.max(jobs.c.line)).where(
        jobs.c.batch_id == select(batches.c.id).where(batches.c.id != earlier).order_by(batches.c.created_at.desc())
        .limit(1).scalar_subquery()
    )  # fmt: skip
    with client.gateway.db.read() as connection:  # type: ignore[attr-defined]
        return int(connection.execute(query).scalar() or 0)


def _gaps(moments: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(moments)]


def _status(bench: Bench, client: Client, big: str, count: int, scale: str) -> Measured:
    small = client.submit(no_ops(1000)).id
    gateway = client.gateway
    taken: dict[str, list[float]] = {big: [], small: []}
    with Load() as load:
        for _ in range(max(5, bench.plan.rounds)):
            for id_, times in taken.items():
                polls = []
                for _ in range(300):
                    started = time.perf_counter()
                    gateway.batch(id_)
                    polls.append(time.perf_counter() - started)
                times.append(statistics.median(polls))
    ratio, spread = middle([a / b for a, b in zip(taken[big], taken[small], strict=True)])
    ms = {id_: 1000 * statistics.median(times) for id_, times in taken.items()}
    return Measured(
        "status", ratio, spread, f"{ms[big]:.3f} ms against {ms[small]:.3f} ms",
        f"`batch.status()` of {count:,} and of 1,000 jobs in turn, 300 polls a round{scale}",
        {"big_s": taken[big], "small_s": taken[small]}, {"load": load.note},
    )  # fmt: skip
