"""`aigc up`: everything on this machine (Redis, keeper, workers) until it is told to stop. One per data folder."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from producer.embedded_redis import EmbeddedRedis
from shared.database import Database
from shared.errors import RequestError, Unavailable
from shared.keeper import Keeper
from shared.models_file import read_models_file
from shared.settings import Settings, make_private

log = logging.getLogger("aigc.up")

#: seconds between two looks at the children
LOOK_S = 0.3
#: seconds that workers may take to show themselves
READY_S = 180.0


class AlreadyRunning(RequestError):
    """`aigc up` runs on this data folder; carries its process id."""

    exit_status = 0

    def __init__(self, pid: int | None, data_dir: Path) -> None:
        self.pid = pid
        super().__init__(f"aigc is already running on {data_dir}" + (f" (process {pid})" if pid else ""))


class Up:
    """The supervisor. Everything it started ends with it, and the next one clears away what a killed one left."""

    def __init__(self, settings: Settings, *, devices: str, say: Callable[[str], None]) -> None:
        """Raises `AlreadyRunning`, or `Unavailable` if the data folder cannot be written."""
        self._settings = settings
        self._devices = devices
        self._say = say
        self._stop = threading.Event()
        self._redis = EmbeddedRedis(settings) if settings.redis_url is None else None
        self._workers: subprocess.Popen[bytes] | None = None
        self._lock = _lock(settings)

    def run(self) -> int:
        """Until SIGINT or SIGTERM; returns the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop.set())
        database = Database(self._settings)
        try:
            read_models_file(self._settings)
            _end_leftovers(self._settings.run_dir)
            database.prepare()
            if self._redis:
                self._redis.start()
            keeper = threading.Thread(
                target=Keeper(self._settings, database).run, args=(self._stop,), name="keeper", daemon=True
            )
            keeper.start()
            self._start_workers()
            self._announce(database)
            self._look_after()
            keeper.join(timeout=10)
        finally:
            self._stop.set()
            self._end_workers()
            if self._redis:
                self._redis.stop()
            (self._settings.run_dir / "processes.json").unlink(missing_ok=True)
            database.dispose()
            self._lock.close()
        self._say("stopped; what was queued goes on with the next `aigc up`")
        return 0

    def _start_workers(self) -> None:
        environment = dict(os.environ)
        if self._redis:
            environment["AIGC_REDIS_URL"] = self._redis.url
        environment["AIGC_PARENT_PID"] = str(os.getpid())
        environment["AIGC_DATA_DIR"] = str(self._settings.data_dir)
        with _writing(self._settings), (self._settings.run_dir / "worker.log").open("ab") as output:
            self._workers = subprocess.Popen(
                [sys.executable, "-m", "workers", "--devices", self._devices],
                env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._note_processes()

    def _announce(self, database: Database) -> None:
        """Say when the first worker is there; a worker that cannot start says why in its log."""
        from producer.gateway import DirectGateway

        started = database.clock()
        deadline = time.monotonic() + READY_S
        gateway = DirectGateway(self._settings)
        while not self._stop.is_set() and time.monotonic() < deadline:
            fresh = [worker for worker in gateway.workers() if worker.started_at >= started - 1]
            if fresh:
                served = ", ".join(f"{worker.worker.split(':')[-1]} ({'+'.join(worker.queues)})" for worker in fresh)
                self._say(f"aigc is up: worker on {served}; data in {self._settings.data_dir}; Ctrl-C stops it")
                return
            if self._workers is not None and self._workers.poll() is not None:
                break
            self._stop.wait(LOOK_S)
        if not self._stop.is_set():
            self._say(f"no worker has started yet; see {self._settings.run_dir / 'worker.log'}")

    def _look_after(self) -> None:
        """Start again what ended without being told to."""
        pause, since = 1.0, time.monotonic()
        while not self._stop.wait(LOOK_S):
            if self._redis and self._redis.process and self._redis.process.poll() is not None:
                log.error("Redis ended with status %s; starting it again", self._redis.process.returncode)
                self._restart(self._redis.start)
            if self._workers and self._workers.poll() == 0:
                self._say("every worker was told to end; start some with `aigc worker`, or aigc up anew")
                self._workers = None
            if self._workers and (status := self._workers.poll()) is not None:
                log.error("the workers ended with status %s; starting them again in %g s", status, pause)
                if self._stop.wait(pause):
                    return
                pause = min(pause * 2, 60.0) if time.monotonic() - since < 60 else 1.0
                since = time.monotonic()
                self._restart(self._start_workers)

    def _restart(self, start: Callable[[], None]) -> None:
        try:
            start()
            self._note_processes()
        except Unavailable as error:
            log.error("%s", error)
            self._stop.wait(1.0)

    def _end_workers(self) -> None:
        if self._workers is None or self._workers.poll() is not None:
            return
        self._workers.terminate()
        try:
            self._workers.wait(timeout=self._settings.grace_s + 15)
        except subprocess.TimeoutExpired:
            log.error("the workers did not stop in time: killing them")
            _kill_tree(self._workers.pid)

    def _note_processes(self) -> None:
        """Leave word of our children for the `up` after one that was killed."""
        pids = [p.pid for p in (self._workers, self._redis.process if self._redis else None) if p is not None]
        noted = [[pid, psutil.Process(pid).create_time()] for pid in pids if psutil.pid_exists(pid)]
        with _writing(self._settings):
            (self._settings.run_dir / "processes.json").write_text(json.dumps(noted), encoding="utf-8")


@contextmanager
def _writing(settings: Settings) -> Iterator[None]:
    """What the disk refuses, as a sentence."""
    try:
        yield
    except OSError as error:
        advice = "free some space there, or set AIGC_DATA_DIR elsewhere"
        raise Unavailable(
            "data folder", str(settings.data_dir), f"cannot be written: {error.strerror}", advice
        ) from None


def _lock(settings: Settings) -> IO[str]:
    with _writing(settings):
        settings.make_data_dir()
        make_private(settings.run_dir)
        lock = (settings.run_dir / "up.lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise AlreadyRunning(running_pid(settings), settings.data_dir) from None
    try:
        with _writing(settings):
            lock.seek(0)
            lock.truncate()
            lock.write(str(os.getpid()))
            lock.flush()
    except BaseException:
        with suppress(OSError):  # a full disk says so a second time
            lock.close()
        raise
    return lock


def running_pid(settings: Settings) -> int | None:
    """Process id of the `aigc up` on this data folder, or None if none runs."""
    path = settings.run_dir / "up.lock"
    try:
        with path.open("r+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return int(lock.read().strip() or 0) or None
    except (OSError, ValueError):
        return None
    return None


def down(settings: Settings) -> bool:
    """Stop the `aigc up` on this data folder and wait until it is gone; False if none ran."""
    pid = running_pid(settings)
    if pid is None:
        return False
    try:
        process = psutil.Process(pid)
        process.terminate()
        process.wait(timeout=settings.grace_s + 30)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        raise Unavailable("aigc up", f"process {pid}", "did not stop in time", f"kill {pid} ends it") from None
    return True


def detach(settings: Settings, devices: str) -> int:
    """Start `aigc up` in the background and wait until it is ready; returns its process id. Raises `AlreadyRunning`."""
    _lock(settings).close()
    log_file = settings.run_dir / "up.log"
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "producer.cli", "up", "--devices", devices],
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + READY_S + 10
    while time.monotonic() < deadline:
        said = log_file.read_text(encoding="utf-8", errors="replace")
        if "aigc is up" in said:
            return process.pid
        if process.poll() is not None or "no worker has started" in said:
            process.terminate()
            process.wait()
            raise Unavailable("aigc up", str(settings.data_dir), said.strip() or "it ended at once", f"see {log_file}")
        time.sleep(0.1)
    raise Unavailable("aigc up", str(settings.data_dir), "it was not ready in time", f"see {log_file}")


def _end_leftovers(run_dir: Path) -> None:
    """End what a killed `up` left behind, recognised by process id and start time."""
    try:
        noted = json.loads((run_dir / "processes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for pid, created in noted:
        try:
            if abs(psutil.Process(pid).create_time() - created) < 1:
                log.warning("ending process %d, left behind by an earlier run", pid)
                _kill_tree(pid)
        except psutil.NoSuchProcess:
            continue


def _kill_tree(pid: int) -> None:
    try:
        parent = psutil.Process(pid)
        tree = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=5)
