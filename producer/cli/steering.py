"""Commands that steer: cancel and retry what was submitted; pause and resume queues, drain workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from producer.cli import JSON_OPTION, note, show, show_json
from shared.errors import NotFound, RequestError

if TYPE_CHECKING:
    from producer.client import Client
    from shared.operators import Drain

#: seconds between two words about a worker that is not gone yet
WORD_S = 15.0

Queue = Annotated[str, typer.Argument(help="name of a queue: gpu, cpu or one of your own")]
Reference = Annotated[str, typer.Argument(help="a batch (id or name) or a job")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: aigc cancel spring")(cancel)
    app.command(epilog="Example: aigc retry spring")(retry)
    app.command(epilog="Example: aigc pause gpu --reason 'new driver'")(pause)
    app.command(epilog="Example: aigc resume gpu")(resume)
    app.command(epilog="Example: aigc drain gpu-host-3:0 --wait")(drain)


def cancel(reference: Reference, json: bool = JSON_OPTION) -> None:
    """Cancel a batch or a job: at once what waits, at its next step what runs."""
    from producer.client import Client

    client = Client()
    try:
        count = client.batch(reference).cancel()
    except NotFound:
        if "-" not in reference:
            raise
        count = client.cancel([client.job(reference).id])
    _say(count, "cancelled", json=json)


def retry(reference: Reference, json: bool = JSON_OPTION) -> None:
    """Put failed and cancelled jobs back with a fresh allowance."""
    from producer.client import Client

    client = Client()
    try:
        count = client.batch(reference).retry()
    except NotFound:
        if "-" not in reference:
            raise
        count = client.retry([client.job(reference).id])
    _say(count, "put back", json=json)


def _say(count: int, what: str, *, json: bool) -> None:
    if json:
        show_json({"jobs": count})
    else:
        show(f"{count} job(s) {what}")


def pause(
    queue: Queue,
    reason: Annotated[str | None, typer.Option(help="shown to whoever asks why a job waits")] = None,
    json: bool = JSON_OPTION,
) -> None:
    """Claim nothing of a queue any more, until it is resumed. What runs goes on, what waits is kept."""
    from producer.client import Client
    from producer.words import paused, plain

    client = Client()
    known = client.gateway.queues()
    record = client.pause(queue, reason=reason)
    if queue not in known:
        there = f"; known are: {', '.join(known)}" if known else ""
        note(f"aigc: note: no job and no worker has named queue {queue!r} so far{there}")
    if json:
        show_json({**record.to_json(), "known": queue in known})
    else:
        show(f"{plain(paused(record))}; what runs goes on, and `aigc resume {queue}` lets the rest go on")


def resume(queue: Queue, json: bool = JSON_OPTION) -> None:
    """Let a paused queue go on."""
    from producer.client import Client

    record = Client().resume(queue)
    for warning in record.warnings:
        note(f"aigc: warning: {warning}")
    if json:
        show_json(record.to_json())
    else:
        show(f"queue {queue!r} goes on" if record.was_paused else f"queue {queue!r} was not paused")


def drain(
    worker: Annotated[
        str,
        typer.Argument(help="a worker as `aigc status` names it, or the id of a session; a unique beginning is enough"),
    ],
    wait: Annotated[
        bool, typer.Option("--wait", help="wait until it is gone, and say what became of its jobs")
    ] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="with --wait: seconds to wait at most")] = None,
    json: bool = JSON_OPTION,
) -> None:
    """Ask a worker to finish or give back what it holds, and to end; it is not started again.

    With --wait the exit status is 0 once it has stopped in good order, 1 if it was lost or is not gone in time.
    """
    from producer.client import Client
    from producer.words import plain

    if timeout is not None and not wait:
        raise RequestError("--timeout goes with --wait")
    client = Client()
    drains = client.drain(worker)
    if wait:
        drains = _wait(client, drains, timeout)
    if json:
        show_json({"sessions": [one.to_json() for one in drains]})
    else:
        for one in drains:
            show(plain(_told(one)))
    raise typer.Exit(1 if wait and any(one.end != "stopped" for one in drains) else 0)


def _wait(client: Client, drains: list[Drain], timeout: float | None) -> list[Drain]:
    """Until they are gone, with a word now and then."""
    from producer.words import plain

    started = said = time.monotonic()
    while any(one.ended_at is None for one in drains) and (timeout is None or time.monotonic() < started + timeout):
        time.sleep(0.3)
        drains = client.gateway.drained(drains)
        if time.monotonic() >= said + WORD_S:
            said = time.monotonic()
            for one in drains:
                note(plain(_told(one)))
    return drains


def _told(drain: Drain) -> str:
    from producer.words import moment

    held = ", ".join(f"{n} {outcome.replace('_', ' ')}" for outcome, n in sorted(drain.outcomes.items()))
    jobs = f"; its jobs: {held}" if held else ""
    name = f"worker {drain.worker} ({drain.session})"
    if drain.ended_at is None:
        return f"{name} is draining since {moment(drain.requested_at)}{jobs}"
    how = "stopped in good order" if drain.end == "stopped" else "was lost: its lease ran out, its jobs were taken back"
    return f"{name} {how} at {moment(drain.ended_at)}{jobs}"
