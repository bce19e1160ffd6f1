"""The processes of a run, kept alive as an operator's supervisor would, and the servers that they stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import psutil
from fault_proxies import HttpFaultProxy, TcpFaultProxy
from servers import PostgresServer, RedisServer, Server, _watcher
from sqlalchemy import Row, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from swift_server import SwiftServer

import shared
from shared.database import Database
from shared.settings import Settings, load_settings

HERE = Path(__file__).resolve().parent
#: the tree whose code runs, which need not be the one of this file
ROOT = Path(shared.__file__).resolve().parent.parent

DatabaseKind = Literal["sqlite", "postgres"]

#: what makes a run quick to notice things
BRISK = {
    "AIGC_LEASE_S": "3",
    "AIGC_GRACE_S": "4",
    "AIGC_IDLE_LOOK_S": "0.5",
    "AIGC_KEEPER_INTERVAL_S": "0.3",
    "AIGC_STALL_S": "12",
    "AIGC_CONNECT_TIMEOUT_S": "3",
    "AIGC_MICROBATCH": "8",
    "AIGC_QUEUE_MESSAGES": "3",
    "AIGC_THREADS": "1",
}
WORKERS = ("worker-a", "worker-b", "worker-c")
KEEPERS = ("keeper-a", "keeper-b")
#: seconds before a process that ended is started again
RESTART_S = 0.5


@dataclass
class Kept:
    """A process that is started again whenever it ends."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    due: float = 0.0
    #: whether it is to run at all
    wanted: bool = True
    #: a process that ended with status 0 was meant to end
    ends: bool = False
    #: every process that was ever seen below it, as (pid, start)
    seen: set[tuple[int, float]] = field(default_factory=set)

    @property
    def done(self) -> bool:
        """Whether it ended as it was meant to."""
        return self.ends and self.process is not None and self.process.poll() == 0


class _Processes(Server):
    """Ends what we start also if we are killed: the watcher of the test servers knows of it."""

    def start(self) -> None:
        """Nothing runs before `run`."""

    def run(self, kept: Kept, log: Path) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own, with its output at the end of `log`."""
        self._processes = [process for process in self._processes if process.poll() is None]
        self._spawn(kept.command, str(log.absolute()), env=kept.environment, cwd=ROOT)
        return self._processes[-1]


class Crew:
    """Three workers, two keepers and a submitter, over real servers behind proxies. Use `with`."""

    def __init__(self, database: DatabaseKind, folder: Path, *, keepers: tuple[str, ...] = KEEPERS) -> None:
        """`folder` takes the logs, the plan and the ledger; the servers keep theirs elsewhere."""
        self.kind = database
        self.folder = folder
        self.logs = folder / "logs"
        self._keepers = keepers
        self._stack = ExitStack()
        self._frozen: list[psutil.Process] = []
        self.kept: dict[str, Kept] = {}
        self.tcp: dict[str, TcpFaultProxy] = {}
        #: most messages that were seen in a queue, by queue
        self.most_messages: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        enter = self._stack.enter_context
        try:
            self.redis = enter(RedisServer())
            self.swift = enter(SwiftServer())
            self.http = enter(HttpFaultProxy(self.swift.endpoint_url))
            self.postgres = enter(PostgresServer()) if self.kind == "postgres" else None
            self._processes = enter(_Processes())
            self._describe()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        finally:
            self.db.dispose()
            self._stack.close()

    def _describe(self) -> None:
        """Who runs with which environment; and the schema."""
        plugin = HERE / "plugin"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AIGC_", "PYTHON"))}
        bucket = self.swift.new_bucket()
        self._common = clean | BRISK | {
            "AIGC_DATA_DIR": str(self.folder / "data"),
            "AIGC_REDIS_URL": self.redis.url,
            "AIGC_REDIS_PREFIX": "chaos:",
            "AIGC_STORE_URL": f"s3://{bucket}/run",
            "AIGC_S3_ENDPOINT_URL": self.http.endpoint_url,
            "AIGC_S3_ACCESS_KEY_ID": self.swift.access_key,
            "AIGC_S3_SECRET_ACCESS_KEY": self.swift.secret_key,
            "AIGC_PARENT_PID": str(os.getpid()),
            "CHAOS_DIARY": str(self.folder / "diary.jsonl"),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(plugin))),
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        direct = {"AIGC_S3_ENDPOINT_URL": self.swift.endpoint_url}
        if self.postgres is not None:
            self._database_url = self.postgres.new_database()
            direct["AIGC_DATABASE_URL"] = self._database_url
            for name in (*WORKERS, "others"):
                self.tcp[name] = self._stack.enter_context(TcpFaultProxy("127.0.0.1", self.postgres.port))
        #: past every proxy, for those who judge
        self.settings: Settings = _settings(self._common | direct)
        self.db = Database(self.settings)
        self.db.migrate()
        hasty: dict[str, Any] = {"timeout": 0.1} if self.db.is_sqlite else {"connect_timeout": 2}
        self._hasty = create_engine(self.settings.sql_url, poolclass=NullPool, connect_args=hasty)
        worker = [sys.executable, "-m", "workers", "--devices", "cpu", "--queues", "gpu,cpu"]
        for name in WORKERS:
            self.kept[name] = Kept(name, worker, self._environment(name))
        for name in self._keepers:
            self.kept[name] = Kept(name, [sys.executable, "-m", "producer.cli", "keeper"], self._environment("others"))

    def _environment(self, name: str) -> dict[str, str]:
        environment = dict(self._common)
        if self.tcp:
            environment["AIGC_DATABASE_URL"] = self.tcp[name].url(self._database_url)
        return environment

    def set_clock_wrong(self, name: str) -> None:
        """From its next start on, the clock of this process and its children is an hour fast."""
        environment = self.kept[name].environment
        environment["PYTHONPATH"] = os.pathsep.join((str(HERE / "wrong_clock"), environment["PYTHONPATH"]))

    def start(self, name: str, command: list[str] | None = None, *, ends: bool = False) -> None:
        """Start a process, and keep it from now on."""
        if command is not None:
            self.kept[name] = Kept(name, command, self._environment("others"), ends=ends)
        kept = self.kept[name]
        kept.process = self._processes.run(kept, self.logs / f"{name}.log")

    def look_after(self) -> None:
        """Start again what ended, once its pause is over; note who is there."""
        for kept in self.kept.values():
            if kept.process is None or kept.done or not kept.wanted:
                continue
            if kept.process.poll() is None:
                kept.due = 0.0
                self._note(kept)
            elif kept.due == 0.0:
                kept.due = time.monotonic() + RESTART_S
            elif time.monotonic() >= kept.due:
                self.start(kept.name)

    def look_after_for_a_moment(self) -> None:
        """The same, and a short pause, for those who wait for something."""
        self.look_after()
        time.sleep(0.1)

    def _note(self, kept: Kept) -> None:
        for process in self.family(kept.name):
            with suppress(psutil.NoSuchProcess):
                kept.seen.add((process.pid, process.create_time()))

    def glance(self, statement: Any) -> list[Row[Any]]:
        """What a query finds; nothing if the database does not answer at once.

        Never `db.read` where something may be frozen: that waits, and we are the ones to thaw it.
        """
        try:
            with self._hasty.connect() as connection:
                return list(connection.execute(statement).all())
        except DBAPIError:
            return []

    # --- who is who ---

    def family(self, name: str) -> list[psutil.Process]:
        """Supervisor, Celery parent, child, where they are there; of a keeper only itself."""
        process = self.kept[name].process
        if process is None or process.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def member(self, name: str, role: Literal["supervisor", "parent", "child"]) -> psutil.Process | None:
        """One process of a worker; None if it is not there now."""
        family = self.family(name)
        if role == "supervisor" or not family:
            return family[0] if family else None
        for process in family[1:]:
            with suppress(psutil.NoSuchProcess):
                is_child = "spawn_main" in " ".join(process.cmdline())
                if is_child == (role == "child") and "resource_tracker" not in " ".join(process.cmdline()):
                    return process
        return None

    # --- freezing ---

    def freeze(self, processes: list[psutil.Process]) -> None:
        """Stop them where they are."""
        for process in processes:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                # Should we be killed meanwhile, they are too: a frozen process hears of no orphanage.
                _watcher.tell("hold", "group", os.getpgid(process.pid))
                process.suspend()
                self._frozen.append(process)

    def thaw(self, processes: list[psutil.Process] | None = None) -> None:
        """Let them go on; all that were ever frozen unless named."""
        for process in list(self._frozen) if processes is None else processes:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.resume()
                if os.getpgid(process.pid) not in self._processes.pids:
                    _watcher.tell("release", "group", os.getpgid(process.pid))
            with suppress(ValueError):
                self._frozen.remove(process)

    # --- the end ---

    def stop(self, names: Iterable[str]) -> None:
        """Tell these to end, and start them no more."""
        for kept in (self.kept[name] for name in names):
            self._note(kept)
            kept.wanted = False
            if kept.process is not None and kept.process.poll() is None:
                kept.process.send_signal(signal.SIGTERM)

    def gone(self, names: Iterable[str]) -> bool:
        """Whether nothing is left of these, nor of what they started."""
        for kept in (self.kept[name] for name in names):
            self._note(kept)
            if _alive(kept.seen):
                return False
        return True

    def end(self) -> None:
        """Tell all to end, thawed; kill what has not ended in time, orphans too."""
        self.thaw()
        for proxy in (self.http, *self.tcp.values()):
            proxy.heal()
        self.stop(self.kept)
        left = [process for kept in self.kept.values() for process in _alive(kept.seen)]
        _, left = psutil.wait_procs(left, timeout=15)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)


def _alive(seen: set[tuple[int, float]]) -> list[psutil.Process]:
    found = []
    for pid, start in seen:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == start and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _settings(environment: Mapping[str, str]) -> Settings:
    ours = {key[5:].lower(): value for key, value in environment.items() if key.startswith("AIGC_")}
    return load_settings(_env_file=None, **ours)
