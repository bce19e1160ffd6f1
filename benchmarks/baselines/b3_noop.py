"""B3: a bare Celery worker with no-op tasks: no result, no status, nothing stored.

celery -A benchmarks.baselines.b3_noop worker --concurrency 1
"""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

_REDIS = os.environ.get("BASELINE_REDIS", "redis://127.0.0.1:1/0")

app = Celery("b3", broker=_REDIS, backend=_REDIS)
app.conf.update(task_ignore_result=True, accept_content=["json"], task_default_queue="b3")


@app.task(name="b3.no_op")
def no_op(message: str) -> None:
    """Do nothing."""


@app.task(name="b3.echo", ignore_result=False)
def echo(message: str) -> str:
    """Give the message back: for a round trip from client to client."""
    return message


@app.task(name="b3.mark")
def mark(path: str) -> None:
    """Leave a file: what was sent before has been taken by now."""
    Path(path).touch()
