"""Remote services as a worker sees them: a kept client, what their answers mean, and how fast they may be asked."""

from __future__ import annotations

from workers.remote.client import Answer, RemoteClient, client_of
from workers.remote.meanings import Later, bad_answer

__all__ = ["Answer", "Later", "RemoteClient", "bad_answer", "client_of"]
