"""`python -m workers`, called by `aigc worker`: one Celery worker per device, kept alive until told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from importlib.util import find_spec

from shared import jobs
from shared.database import Database
from shared.errors import AigcError, RequestError, Unavailable
from shared.models_file import read_models_file
from shared.settings import Settings, load_settings
from workers.devices import DeviceSlot, slots
from workers.parent import orphaned
from workers.pulse import Pulse, alive

log = logging.getLogger("aigc.worker")

#: seconds before a worker that ended is started again; doubled while it keeps ending at once
RESTART_S = 1.0
MAX_RESTART_S = 60.0


@dataclass
class _Kept:
    """A Celery worker that is kept running on one device, until it ends in good order."""

    slot: DeviceSlot
    #: how its child is, also after its death
    pulse: Pulse = field(default_factory=Pulse.make)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = RESTART_S
    due: float = field(default_factory=time.monotonic)
    #: it was told to end, by a drain or a signal of its own, and is not started again
    ended: bool = False


def main() -> int:
    """Entry point. Returns once every worker has ended in good order.

    Exit status as everywhere: 2 the request is wrong, 3 a part does not answer.
    """
    parser = argparse.ArgumentParser(prog="aigc worker", description="run jobs on this machine's devices")
    parser.add_argument("--devices", default="all", help="all, cpu, or GPU indexes such as 0,2")
    parser.add_argument("--queues", default="", help="comma separated; default: gpu for GPUs, cpu for the CPU")
    parser.add_argument("--grace", type=float, default=None, help="seconds to finish what is held when told to stop")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = load_settings(**({} if arguments.grace is None else {"grace_s": arguments.grace}))
        if find_spec("torch") is None:
            raise RequestError('a worker needs torch: pip install "aigc[worker]"')
        if settings.broker_url is None:
            raise RequestError("no Redis: start `aigc up`, or set AIGC_REDIS_URL")
        read_models_file(settings)  # each worker reads it itself; what is wrong with it is said here
        db = Database(settings)
        db.prepare()
        chosen = slots(arguments.devices, tuple(part for part in arguments.queues.split(",") if part))
    except AigcError as error:
        print(f"aigc worker: {error}", file=sys.stderr)  # noqa: T201 - the face of a command
        return error.exit_status
    return _keep([_Kept(slot) for slot in chosen], settings, db)


def _keep(workers: list[_Kept], settings: Settings, db: Database) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set() and not orphaned(settings) and not all(worker.ended for worker in workers):
        for worker in workers:
            _look_after(worker, settings)
        stop.wait(0.2)
    for worker in workers:
        if worker.process and worker.process.poll() is None:
            worker.process.terminate()
    deadline = time.monotonic() + settings.grace_s + 5.0
    for worker in workers:
        if worker.process:
            _wait_or_kill(worker.process, deadline)
            # Not for ever: a server that is frozen never answers.
            returning = threading.Thread(target=_return_leftovers, args=(worker, db), daemon=True)
            returning.start()
            returning.join(timeout=5.0)
    return 0


def _look_after(worker: _Kept, settings: Settings) -> None:
    if worker.ended:
        return
    if worker.process is not None:
        status = worker.process.poll()
        if status is None:
            return
        if status == 0:
            worker.process, worker.ended = None, True
            log.info("worker on %s ended in good order; it is not started again", worker.slot.name)
            return
        quick = time.monotonic() - worker.started < 10
        worker.pause = min(worker.pause * 2, MAX_RESTART_S) if quick else RESTART_S
        log.error(
            "worker on %s ended with status %s; starting it again in %g s", worker.slot.name, status, worker.pause
        )
        worker.process, worker.due = None, time.monotonic() + worker.pause
    if time.monotonic() >= worker.due:
        worker.process, worker.started = _start(worker, settings), time.monotonic()


def _return_leftovers(worker: _Kept, db: Database) -> None:
    """Take back what a worker held that had to be killed to stop it. One that died is its successor's affair."""
    last = worker.pulse.read()
    if last.session and not alive(last):
        try:
            jobs.bury(db, last.session, charged=False)
        except Unavailable as error:
            log.error("the jobs of a killed worker wait for its lease to lapse: %s", error)


def _start(worker: _Kept, settings: Settings) -> subprocess.Popen[bytes]:
    slot = worker.slot
    queues = ",".join(slot.queues)
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": slot.visible,
        "AIGC_DEVICE": "cuda" if slot.visible else "cpu",
        "AIGC_QUEUES": queues,
        "AIGC_WORKER_NAME": slot.name,
        "AIGC_GRACE_S": str(settings.grace_s),
        "AIGC_PARENT_PID": str(os.getpid()),
        "AIGC_PULSE_FILE": str(worker.pulse.path),
    }
    name = f"{slot.name}@{socket.gethostname()}"
    command = [
        sys.executable, "-m", "celery", "-A", "workers.app", "worker", "--queues", queues, "--hostname", name,
        "--without-mingle", "--without-gossip", "--loglevel", settings.log_level,
    ]  # fmt: skip
    # A group of its own: Ctrl-C reaches us alone, and we tell the workers in good order.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _wait_or_kill(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        log.error("worker %d did not stop in time: killing it", process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
