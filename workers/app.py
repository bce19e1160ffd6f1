"""The Celery application: `celery -A workers.app worker -Q gpu` starts a worker, and so does `aigc worker`.

The parent process speaks to Redis and never imports torch; its one child, started by spawn, does the work. A segfault
or an out-of-memory kill costs one child, and Celery starts another; a child that is stuck is ended by the parent.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

from billiard.pool import EX_RECYCLE
from celery import signals

from shared.database import Database
from shared.errors import RequestError
from shared.queue import TASK_NAME, make_celery
from shared.settings import load_settings
from workers.cycles import look_for_cycles_less
from workers.parent import call_when_orphaned, stop_when_orphaned
from workers.pulse import Pulse
from workers.threads import set_thread_policy
from workers.watchdog import Watchdog
from workers.worker import Worker

settings = load_settings()
app = make_celery(settings)
set_thread_policy(settings)
log = logging.getLogger("aigc.worker")

#: in the parent: Celery's worker, and what looks after the child
_parent: Any = None
_watchdog: Watchdog | None = None
_pulse: Pulse | None = None
#: in the child: ours
_worker: Worker | None = None
_ended = threading.Event()


@app.task(name=TASK_NAME)
def generate(queue: str, batch_id: str, job_ids: list[str]) -> None:  # noqa: ARG001 - what people see in Celery's tools
    """Drain what can be claimed. The ids are hints for people: SQL decides what runs next."""
    if _worker is None:
        raise RuntimeError("this process is no child of a Celery worker")
    _worker.drain()
    _worker.sit_out_rest()  # or each message would be taken only to find that nothing is to be claimed


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in ("sqlalchemy", "botocore", "urllib3", "kombu", "amqp", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _or_exit(prepare: Callable[..., None]) -> Callable[..., None]:
    """Celery logs what a signal's receiver raises and goes on: a process that is half prepared must not."""

    @wraps(prepare)
    def prepared(**arguments: Any) -> None:
        try:
            prepare(**arguments)
        except RequestError as error:
            log.critical("%s", error)
            _exit(error.exit_status)
        except Exception:
            if settings.pulse_file is not None and not settings.pulse_file.exists():
                log.warning("whoever started this worker is gone: this process ends")
            else:
                log.exception("this process cannot be prepared, and ends")
            _exit(1)

    return prepared


# --- in the parent ---


@signals.celeryd_after_setup.connect
@_or_exit
def _look_after_child(instance: Any, **_: Any) -> None:
    """Before the child starts: it learns its queues and where its pulse is felt through the environment."""
    global _parent, _watchdog, _pulse  # noqa: PLW0603 - one worker per process is the design
    stop_when_orphaned(settings)
    _require_one_child(instance)
    _parent, _pulse = instance, Pulse(settings.pulse_file) if settings.pulse_file else Pulse.make()
    os.environ["AIGC_QUEUES"] = ",".join(instance.app.amqp.queues.consume_from)
    os.environ["AIGC_PULSE_FILE"] = str(_pulse.path)
    _watchdog = Watchdog(Database(settings), _pulse, on_stopped=_leave)
    _watchdog.start()


def _require_one_child(instance: Any) -> None:
    """Raises `RequestError` if Celery was told to have several children, or none that can be ended."""
    pool = instance.pool_cls if isinstance(instance.pool_cls, str) else instance.pool_cls.__module__
    if instance.concurrency != 1 or instance.autoscale or "prefork" not in pool:
        raise RequestError(
            "a worker has one child process, which owns its device: start it without --concurrency, --autoscale "
            "and --pool, and one more worker for each further device"
        )


@signals.worker_shutting_down.connect
def _tell_child(**_: Any) -> None:
    """Celery waits for the child's running task without telling it, so we do; and we do not wait for ever."""
    for pid in _parent.pool.info["processes"] if _parent is not None and _parent.pool is not None else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)
    if _watchdog is not None:
        grace = settings.grace_s
        # A message that comes in now is taken and never run, and Celery waits for it: then this ends the child.
        _watchdog.stop_within(grace - 2.0 if grace > 6 else grace * 0.7)


@signals.worker_shutdown.connect
def _clear_away(**_: Any) -> None:
    if _pulse is not None:
        _pulse.remove()


def _leave() -> None:
    """The child had to be ended, and what it held is back: nothing is left to wait for."""
    _clear_away()
    logging.shutdown()
    os._exit(0)


# --- in the child ---


@signals.worker_process_init.connect
@_or_exit
def _start(**_: Any) -> None:
    """Listen for the parent's word, look into SQL at once and then now and then."""
    global _worker  # noqa: PLW0603 - one worker per process is the design
    own = load_settings()
    _set_up_logging()
    look_for_cycles_less()
    parent = os.getppid()
    _worker = Worker(
        own,
        device=own.worker_name or own.device,
        queues=own.queues or ("gpu",),
        on_drain=lambda: os.kill(parent, signal.SIGTERM),
    )
    signal.signal(signal.SIGUSR2, _asked_to_stop)
    # Where the system does not do that by itself, as Linux does for Celery: leave the device to the next child.
    call_when_orphaned(parent, lambda: os._exit(1))
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
        if worker.worn_out and not worker.busy:
            worker.close()
            _exit(EX_RECYCLE)


def _exit(status: int) -> None:
    logging.shutdown()
    os._exit(status)


@signals.worker_process_shutdown.connect
def _stop(**_: Any) -> None:
    _ended.set()
    if _worker is not None:
        _worker.ask_to_stop()  # what a message began is over by now; what the idle look began may not be
        _worker.close()
