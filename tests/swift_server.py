"""OpenStack Swift with its S3 middleware: a real S3 server for tests, unprivileged, on loopback.

Unlike a test double it refuses wrong secrets and expired links. It is installed once, into a virtual environment
of its own (its dependencies need not meet ours): `AIGC_TEST_SWIFT_VENV`, or `.venv-swift` in the repository.
"""

from __future__ import annotations

import fcntl
import functools
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from servers import HOST, Server, ServerError, free_port

VERSION = "2.38.3"
_PARTS = ("account", "container", "object")

_MAKE_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, *parts = sys.argv[1:]
for part in parts:
    name, port = part.split("=")
    builder = RingBuilder(4, 1, 1)
    device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1.0}
    builder.add_dev(device | {"replication_ip": "127.0.0.1", "replication_port": int(port), "meta": ""})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""

_SWIFT_CONF = """
[swift-hash]
swift_hash_path_suffix = tests
swift_hash_path_prefix = tests
[storage-policy:0]
name = gold
default = yes
"""

# workers = 0: no forks, one process each, so that its id is all that is needed to end it.
_DEFAULTS = """
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}/etc
devices = {folder}/srv
mount_check = false
log_level = WARNING
"""

_PART_CONF = """
[pipeline:main]
pipeline = {part}-server
[app:{part}-server]
use = egg:swift#{part}
"""

_PROXY_CONF = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk s3api tempauth slo dlo \
versioned_writes symlink proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
memcache_servers = {host}:{memcache}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
check_bucket_owner = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""


class SwiftServer(Server):
    """Swift in four processes. What is stored survives `stop` and `start`."""

    def __init__(self) -> None:
        self._programs = installed()
        super().__init__()
        self.ports = {part: free_port() for part in (*_PARTS, "proxy")}
        self.endpoint_url = f"http://{HOST}:{self.ports['proxy']}"
        self.region = "us-east-1"
        self.access_key, self.secret_key = "test:tester", secrets.token_hex(16)

    def start(self) -> None:
        """Start on the same ports as before; the first time, write its configuration."""
        if not (self.folder / "etc").exists():
            self._configure()
        for part in (*_PARTS, "proxy"):
            config = self.folder / "etc" / f"{part}-server.conf"
            self._spawn([str(self._programs / f"swift-{part}-server"), str(config)], f"{part}.log")
        for part in (*_PARTS, "proxy"):
            self._await(lambda part=part: socket.create_connection((HOST, self.ports[part]), 1).close(), OSError)
        self._await(self._client.list_buckets, Exception)

    def new_bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self._client.create_bucket(Bucket=name)
        return name

    @functools.cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def _configure(self) -> None:
        etc = self.folder / "etc"
        etc.mkdir()
        (self.folder / "srv" / "d1").mkdir(parents=True)
        facts = {"host": HOST, "user": getpass.getuser(), "folder": self.folder, "secret": self.secret_key}
        (etc / "swift.conf").write_text(_SWIFT_CONF)
        for part, port in self.ports.items():
            text = _DEFAULTS + (_PROXY_CONF if part == "proxy" else _PART_CONF)
            # Nobody listens on the port of memcache: Swift does without.
            (etc / f"{part}-server.conf").write_text(text.format(**facts, part=part, port=port, memcache=free_port()))
        rings = [f"{part}={self.ports[part]}" for part in _PARTS]
        _run([str(self._programs / "python"), "-c", _MAKE_RINGS, str(etc), *rings])


def installed() -> Path:
    """The folder of Swift's programs, installed if need be; one process installs while others wait.

    Raises `ServerError` with what pip said.
    """
    repository = Path(__file__).resolve().parent.parent
    cache = Path(os.environ.get("AIGC_TEST_SWIFT_VENV") or repository / ".venv-swift").absolute()
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    environment = cache / f"swift-{VERSION}"
    done = environment / "installed"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(environment, ignore_errors=True)  # what an interrupted installation left
            _run([sys.executable, "-m", "venv", str(environment)])
            _run([str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", f"swift=={VERSION}"])
            done.touch()
    return environment / "bin"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        raise ServerError(f"{' '.join(command)[:200]}: {(done.stdout + done.stderr)[-3000:]}")
