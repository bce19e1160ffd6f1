"""Commands for who runs the system: up, down, worker, keeper, migrate, doctor."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import Annotated

import typer

from producer.cli import JSON_OPTION, note, show, show_json
from shared.settings import load_settings

Devices = Annotated[str, typer.Option(help="all, cpu, or GPU indexes such as 0,2")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: aigc up --devices cpu")(up)
    app.command(epilog="Example: aigc down")(down)
    app.command(epilog="Example: aigc worker --devices 0,2")(worker)
    app.command(epilog="Example: aigc keeper")(keeper)
    app.command(epilog="Example: aigc migrate")(migrate)
    app.command(epilog="Example: aigc doctor --json")(doctor)


def up(
    devices: Devices = "all",
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="go on in the background; `aigc down` stops it")
    ] = False,
) -> None:
    """Everything on this machine (Redis, keeper, workers), until Ctrl-C."""
    from producer.up import AlreadyRunning, Up
    from producer.up import detach as start_detached

    settings = load_settings()
    logging.basicConfig(level=settings.log_level, format="%(levelname)s %(message)s")
    try:
        if detach:
            pid = start_detached(settings, devices)
            note(f"aigc is up in the background (process {pid}); `aigc down` stops it")
            return
        raise typer.Exit(Up(settings, devices=devices, say=note).run())
    except AlreadyRunning as error:
        note(str(error))


def down() -> None:
    """Stop the `aigc up` of this data folder, in good order."""
    from producer.up import down as stop

    note("stopped" if stop(load_settings()) else "nothing was running")


def worker(
    devices: Devices = "all",
    queues: Annotated[str, typer.Option(help="comma separated; default: gpu for GPUs, cpu for the CPU")] = "",
    grace: Annotated[float | None, typer.Option(help="seconds to finish what is held when told to stop")] = None,
) -> None:
    """Run jobs on this machine's devices, one worker per GPU, until told to stop."""
    arguments = [sys.executable, "-m", "workers", "--devices", devices]
    arguments += ["--queues", queues] if queues else []
    arguments += ["--grace", str(grace)] if grace is not None else []
    sys.stderr.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 - the worker side is another world: it imports torch


def keeper() -> None:
    """Ring, reap, release what is due and clear away, until told to stop. Any number may run."""
    from shared.database import Database
    from shared.keeper import Keeper

    settings = load_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    database = Database(settings)
    database.prepare()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Keeper(settings, database).run(stop)


def migrate() -> None:
    """Bring the database's schema to what this version needs."""
    from shared.database import Database

    database = Database(load_settings())
    before = database.revision()
    database.migrate()
    after = database.revision()
    note(f"schema {after}" + (" (as it was)" if before == after else f" (was {before or 'empty'})"))


def doctor(json: bool = JSON_OPTION) -> None:
    """What is configured, what answers, what is wrong and how to mend it; exit status 0 only when all is well."""
    from producer.doctor import examine

    checks = examine(load_settings())
    well = all(check.ok for check in checks)
    if json:
        show_json({"ok": well, "checks": [check.to_json() for check in checks]})
    else:
        for check in checks:
            show(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
            if check.advice:
                show(f"        → {check.advice}")
    raise typer.Exit(0 if well else 3)
