"""A small cluster for tests: real worker processes and a keeper, over whatever settings a test brings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from aigc import Batch, Client
from shared.database import Database
from shared.keeper import Keeper
from shared.settings import Settings, load_settings

T = TypeVar("T")

#: what makes a test's cluster quick to notice things
BRISK = {
    "AIGC_LEASE_S": "3",
    "AIGC_GRACE_S": "5",
    "AIGC_IDLE_LOOK_S": "0.5",
    "AIGC_KEEPER_INTERVAL_S": "0.3",
    "AIGC_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def until(find: Callable[[], T], *, within_s: float = 60, what: str = "it") -> T:
    """Wait for something to become true; returns what it is. Fails the test if it does not."""
    deadline = time.monotonic() + within_s
    while True:
        found = find()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen within {within_s} s"
        time.sleep(0.05)


class Cluster:
    """Workers as processes, the keeper as a thread. Everything ends with it (`with`)."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        """`environment` holds AIGC_* variables; nothing of ours leaks in from outside."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AIGC_")}
        self.environment = {**clean, **BRISK, **environment}
        self.log = log
        self.settings = self._settings()
        self.workers: list[subprocess.Popen[bytes]] = []
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None
        self._database = Database(self.settings)
        if not self._database.is_sqlite:
            self._database.migrate()
        self.client = Client(self.settings)

    def _settings(self) -> Settings:
        ours = {key[5:].lower(): value for key, value in self.environment.items() if key.startswith("AIGC_")}
        return load_settings(_env_file=None, **ours)

    def start_keeper(self) -> None:
        keeper = Keeper(self.settings, self._database)
        self._keeper = threading.Thread(target=keeper.run, args=(self._stop,), daemon=True)
        self._keeper.start()

    def start_worker(self, *, wait: bool = True, queues: str = "gpu,cpu") -> subprocess.Popen[bytes]:
        known = {worker.session for worker in self.client.workers()}
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers", "--devices", "cpu", "--queues", queues],
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.workers.append(process)
        if wait:
            until(lambda: {worker.session for worker in self.client.workers()} - known, what="a worker showing itself")
        return process

    def child(self, worker: subprocess.Popen[bytes]) -> psutil.Process:
        """The process that does the work: the child of the Celery worker."""

        def find() -> psutil.Process | None:
            for process in psutil.Process(worker.pid).children(recursive=True):
                if "spawn_main" in " ".join(process.cmdline()):
                    return process
            return None

        return until(find, what="the worker's child")

    def aigc(self, *arguments: str, stdin: bytes | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """The command line, in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "producer.cli", *arguments],
            env={**self.environment, **more},
            input=None if stdin is None else stdin.decode(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def done(self, batch: Batch, *, within_s: float = 120) -> dict[str, dict[str, Any]]:
        """Wait for a batch; returns its results by custom id."""
        batch.wait(within_s)
        return {result["custom_id"]: result for result in batch.results()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            self._end(worker)
        if self._keeper is not None:
            self._keeper.join(timeout=15)
        self._database.dispose()

    @staticmethod
    def _end(worker: subprocess.Popen[bytes]) -> None:
        try:
            worker.wait(timeout=20)
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
                process.kill()
            worker.wait(timeout=5)
