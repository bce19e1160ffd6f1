"""A batch on a terminal: `aigc watch`, `aigc status`, `batch.wait(progress=True)`. All of it goes to stderr.

A poll is one small read, so watching costs the same for ten jobs or ten million.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from producer.records import BatchRecord
from producer.words import plain
from shared.errors import AigcError, Unavailable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

    from producer.gateway import Gateway

#: where nobody looks: seconds between two polls, at least and at most; else this share of what has been waited for
QUICKEST_POLL_S, SLOWEST_POLL_S, POLL_SHARE = 0.002, 2.0, 0.1
#: so long the database may be silent
PATIENCE_S = 60.0
#: after so long without anything running, and then again, it is asked why
HINT_AFTER_S, HINT_EVERY_S = 4.0, 10.0

#: state, colour: the segments of the bar in their order
_LOOKS = (
    ("succeeded", "green"),
    ("failed", "red"),
    ("cancelled", "yellow"),
    ("running", "blue"),
    ("queued", "bright_black"),
    ("waiting", "bright_black"),
)


def watch(
    gateway: Gateway,
    batch_id: str,
    *,
    quiet: bool | None = None,
    stop: Callable[[], bool] | None = None,
    poll_s: float = 0.5,
    hint: Callable[[], str | None] | None = None,
) -> BatchRecord:
    """Wait until every job of a batch is in a final state; returns the batch as it was read last.

    On a terminal (and in a notebook) a bar follows the counters, read every `poll_s`; elsewhere there is one line at
    the beginning and one at the end. `quiet=True` says nothing at all, `quiet=False` draws the bar wherever stderr
    leads. `stop` is asked between polls and ends the wait early. `hint` says why nothing runs; it is asked only when
    nothing has run for some seconds.

    If the database falls silent, that is said once, and it is tried again for 60 s before `Unavailable` is raised; a
    first poll that fails raises at once. Raises `NotFound`. `KeyboardInterrupt` goes through, with a word on how to
    look again.
    """
    batch = gateway.batch(batch_id)
    face = _face(quiet=quiet)
    began = time.monotonic()
    why = _Why(hint)
    with face.shown(batch):
        try:
            while batch.status != "done" and not (stop is not None and stop()):
                slowest = poll_s if face.live else max(poll_s, SLOWEST_POLL_S)
                time.sleep(min(max(QUICKEST_POLL_S, POLL_SHARE * (time.monotonic() - began)), slowest))
                batch = _patiently(lambda: gateway.batch(batch.id), face)  # noqa: B023 - called at once
                face.update(batch, why.of(batch))
        except KeyboardInterrupt:
            face.say(f"the batch goes on; watch it with `aigc watch {batch.id}`")
            raise
    if batch.status == "done":
        face.say(summary_line(batch))
    return batch


def summary_line(batch: BatchRecord) -> str:
    """`spring (b01…): done, 1,000 jobs, 990 succeeded, 10 failed, 12.3/s`."""
    name = f"{plain(batch.name)} ({batch.id})" if batch.name else batch.id
    parts = [f"{name}: {batch.status}", f"{batch.total:,} {'job' if batch.total == 1 else 'jobs'}"]
    parts += [f"{batch.counts[state]:,} {state}" for state, _ in _LOOKS if batch.counts.get(state)]
    if batch.rate_per_s:
        parts.append(rate(batch.rate_per_s))
    if batch.eta_s:
        parts.append(f"{hms(batch.eta_s)} left")
    return ", ".join(parts)


def status_table(batch: BatchRecord) -> RenderableType:
    """What `aigc status BATCH` shows: name, bar, counts, rate, time left, and how jobs failed."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [_title(batch), Bar(batch), _numbers(batch)]
    if batch.errors:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
        table.add_column("jobs", justify="right")
        table.add_column("error", style="red", no_wrap=True)
        table.add_column("for example", overflow="fold")
        for error in batch.errors:
            table.add_row(f"{error.count:,}", Text(plain(error.code)), Text(plain(error.example)[:500]))
        parts.append(Padding(table, (1, 0, 0, 0)))
    return Group(*parts)


def hms(seconds: float) -> str:
    """`h:mm:ss`, rounded up: work that is left never reads 0:00:00."""
    whole = int(seconds) + (seconds > int(seconds))
    return f"{whole // 3600:,}:{whole // 60 % 60:02}:{whole % 60:02}"


def rate(per_s: float) -> str:
    """Per second, minute or hour, whichever gives a number that one can read."""
    for factor, unit in ((1, "s"), (60, "min")):
        if per_s * factor >= 1:
            return f"{per_s * factor:,.{0 if per_s * factor >= 100 else 1}f}/{unit}"
    return f"{per_s * 3600:,.1f}/h"


class Bar:
    """A line as wide as the terminal, with a segment for each state; none that has a job is invisible."""

    def __init__(self, batch: BatchRecord) -> None:
        self._batch = batch

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="crop")
        glyph = "-" if options.ascii_only else "━"
        for (_, colour), width in zip(_LOOKS, self.widths(options.max_width), strict=True):
            text.append(glyph * width, style=colour)
        yield text

    def widths(self, cells: int) -> list[int]:
        """How many cells each state gets; together at most `cells`."""
        counts = [self._batch.counts.get(state, 0) for state, _ in _LOOKS]
        total = sum(counts)
        if not total:
            return [0] * (len(counts) - 2) + [cells, 0]  # still loading
        widths = [max(1, count * cells // total) if count else 0 for count in counts]
        widest = widths.index(max(widths))
        widths[widest] = max(0, widths[widest] + cells - sum(widths))
        return widths


def _title(batch: BatchRecord) -> Text:
    from rich.text import Text

    text = Text(plain(batch.name or batch.id), style="bold", overflow="ellipsis", no_wrap=True)
    if batch.name:
        text.append(f"  {batch.id}", style="not bold dim")
    colour = {"done": "green", "running": "blue"}.get(batch.status, "yellow")
    if batch.status == "done" and batch.counts.get("failed"):
        colour = "red"
    text.append(f"  {batch.status}", style=f"not bold {colour}")
    if batch.cancelled and batch.status != "done":
        text.append("  being cancelled", style="not bold yellow")
    return text


def _numbers(batch: BatchRecord) -> Text:
    """How far, how fast, how long; and below it a count for each colour of the bar."""
    from rich.text import Text

    text = Text(f"{batch.finished:,} of {batch.total:,}", style="bold")
    if batch.total:
        text.append(f"  {100 * batch.finished // batch.total} %", style="not bold dim")
    if batch.rate_per_s:
        text.append(f"  {rate(batch.rate_per_s)}", style="not bold cyan")
    if batch.eta_s:
        text.append(f"  {hms(batch.eta_s)} left", style="not bold cyan")
    present = [(state, colour) for state, colour in _LOOKS if batch.counts.get(state)]
    for n, (state, colour) in enumerate(present):
        text.append("   " if n else "\n").append("● ", style=f"not bold {colour}")
        text.append(f"{batch.counts[state]:,} {state}", style="not bold")
    return text


class _Why:
    """Asks for the reason once nothing has run for a while, and not too often."""

    def __init__(self, hint: Callable[[], str | None] | None) -> None:
        self._hint = hint
        self._idle_since: float | None = None
        self._next = 0.0
        self._finished = -1
        self._last: str | None = None

    def of(self, batch: BatchRecord) -> str | None:
        moved, self._finished = batch.finished != self._finished, batch.finished
        if self._hint is None or moved or batch.counts.get("running") or batch.status == "done":
            self._idle_since = self._last = None
            return None
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since, self._next = now, now + HINT_AFTER_S
        if now >= self._next:
            self._next = now + HINT_EVERY_S
            try:
                self._last = self._hint()
            except AigcError:
                self._last = None  # it is only a hint; a database that is silent is told elsewhere
        return self._last


def _patiently(poll: Callable[[], BatchRecord], face: _Face) -> BatchRecord:
    silent_since: float | None = None
    while True:
        try:
            batch = poll()
        except Unavailable as error:
            now = time.monotonic()
            if silent_since is None:
                silent_since = now
                face.say(f"{plain(str(error))}; trying again for {PATIENCE_S:.0f} s")
            elif now - silent_since > PATIENCE_S:
                raise
            time.sleep(1.0)
            continue
        if silent_since is not None:
            face.say("it answers again")
        return batch


class _Face(Protocol):
    """What the one who waits gets to see."""

    #: whether somebody watches it move
    live: bool

    @contextmanager
    def shown(self, batch: BatchRecord) -> Iterator[None]: ...

    def update(self, batch: BatchRecord, why: str | None) -> None: ...

    def say(self, line: str) -> None: ...


def _face(*, quiet: bool | None) -> _Face:
    if quiet:
        return _Silent()
    if quiet is None and not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        return _Lines()
    from rich.console import Console

    return _Live(Console(stderr=True, highlight=False, force_terminal=True if quiet is False else None))


class _Silent:
    live = False

    @contextmanager
    def shown(self, batch: BatchRecord) -> Iterator[None]:
        yield

    def update(self, batch: BatchRecord, why: str | None) -> None:
        pass

    def say(self, line: str) -> None:
        pass


class _Lines(_Silent):
    """For logs: a line at the beginning, one at the end, and a reason where nothing moves."""

    def __init__(self) -> None:
        self._why: str | None = None

    @contextmanager
    def shown(self, batch: BatchRecord) -> Iterator[None]:
        if batch.status != "done":
            self.say(summary_line(batch))
        yield

    def update(self, batch: BatchRecord, why: str | None) -> None:
        if why and why != self._why:
            self.say(f"{plain(batch.name or batch.id)}: {plain(why)}")
        self._why = why or self._why

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - where there is no terminal


class _Live:
    """The bar. It goes when the wait ends, and a line says how that was."""

    live = True

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._bar = Live(console=console, refresh_per_second=4, transient=True)

    @contextmanager
    def shown(self, batch: BatchRecord) -> Iterator[None]:
        self.update(batch, None)
        with self._bar:
            yield

    def update(self, batch: BatchRecord, why: str | None) -> None:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [_title(batch), Bar(batch), _numbers(batch)]
        if why:
            parts.append(Text(plain(why), style="yellow"))
        self._bar.update(Group(*parts))

    def say(self, line: str) -> None:
        from rich.text import Text

        self._console.print(Text(line))
