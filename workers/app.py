"""The Celery application: `celery -A workers.app worker -Q gpu` starts a worker, and so does `aigc worker`.

The parent process speaks to Redis and never imports torch; its one child, started by spawn, does the work. A segfault
or an out-of-memory kill costs one child, and Celery starts another.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress
from typing import Any

from celery import signals

from shared.queue import TASK_NAME, make_celery
from shared.settings import load_settings
from workers.parent import stop_when_orphaned
from workers.threads import set_thread_policy
from workers.worker import Worker

settings = load_settings()
app = make_celery(settings)
set_thread_policy(settings)
log = logging.getLogger("aigc.worker")

#: in the parent: Celery's worker
_parent: Any = None
#: in the child: ours
_worker: Worker | None = None
_ended = threading.Event()


@app.task(name=TASK_NAME)
def generate(queue: str, batch_id: str, job_ids: list[str]) -> None:  # noqa: ARG001 - what people see in Celery's tools
    """Drain what can be claimed. The ids are hints for people: SQL decides what runs next."""
    if _worker is None:
        raise RuntimeError("this process is no child of a Celery worker")
    _worker.drain()


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in ("sqlalchemy", "botocore", "urllib3", "kombu", "amqp", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


@signals.celeryd_after_setup.connect
def _know_the_parent(instance: Any, **_: Any) -> None:
    """In the parent, before its child starts: the child learns its queues through the environment."""
    global _parent  # noqa: PLW0603 - one worker per process is the design
    _parent = instance
    os.environ["AIGC_QUEUES"] = ",".join(instance.app.amqp.queues.consume_from)
    stop_when_orphaned(settings)


@signals.worker_process_init.connect
def _start(**_: Any) -> None:
    """In the child: listen for the parent's word, look into SQL at once and then now and then."""
    global _worker  # noqa: PLW0603 - one worker per process is the design
    own = load_settings()
    _set_up_logging()
    _worker = Worker(own, device=own.worker_name or own.device, queues=own.queues or ("gpu",))
    signal.signal(signal.SIGUSR2, _asked_to_stop)
    threading.Thread(target=_look_now_and_then, args=(_worker, own.idle_look_s), name="idle-look", daemon=True).start()


def _asked_to_stop(*_: Any) -> None:
    if _worker is not None:
        _worker.ask_to_stop()


def _look_now_and_then(worker: Worker, every_s: float) -> None:
    while True:
        try:
            worker.idle_look()
        except Exception:
            log.exception("the idle look failed")
        if _ended.wait(every_s):
            return


@signals.worker_process_shutdown.connect
def _stop(**_: Any) -> None:
    _ended.set()
    if _worker is not None:
        _worker.ask_to_stop()  # what a message began is over by now; what the idle look began may not be
        _worker.close()


@signals.worker_shutting_down.connect
def _tell_child(**_: Any) -> None:
    """In the parent: Celery waits for the child's running task without telling it, so we do."""
    for pid in _parent.pool.info["processes"] if _parent is not None else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)
