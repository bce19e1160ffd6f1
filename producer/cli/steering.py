"""Commands by which owners steer what they submitted: cancel, retry."""

from __future__ import annotations

from typing import Annotated

import typer

from producer.cli import JSON_OPTION, show, show_json
from shared.errors import NotFound

Reference = Annotated[str, typer.Argument(help="a batch (id or name) or a job")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: aigc cancel spring")(cancel)
    app.command(epilog="Example: aigc retry spring")(retry)


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
