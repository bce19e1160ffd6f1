"""What a command that waits for a batch says while nothing moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shared.errors import NotFound

if TYPE_CHECKING:
    from producer.client import Client


def why_nothing_runs(client: Client, batch_id: str) -> Callable[[], str | None]:
    """A question that can be asked again and again: why the first job that is not done is not done."""

    def ask() -> str | None:
        first = client.gateway.jobs(batch_id, limit=1, states=("queued", "waiting"))
        try:
            return client.why(first[0].id) if first else None
        except NotFound:
            return None

    return ask
