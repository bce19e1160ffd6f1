"""`aigc doctor`: what is configured, what answers, what is wrong, and how to mend it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from redis.exceptions import ResponseError
from sqlalchemy import func, select

from producer.gateway import DirectGateway
from shared.database import Database
from shared.errors import AigcError, Unavailable
from shared.jobs import nothing_stored_yet
from shared.queue import Queue
from shared.settings import Settings, without_password
from shared.storage import FOLDER_MISSING, open_storage
from shared.tables import backlog, batches

#: free bytes under which a folder storage or a SQLite file is in danger
LOW_DISK = 1024**3


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str
    #: what to do; also given where all is well but could be better
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {"name": self.name, "ok": self.ok, "detail": self.detail, "advice": self.advice}


def examine(settings: Settings) -> list[Check]:
    """Every check, each on its own: one part that is down does not hide another."""
    checks = [_profile(settings)]
    for look in (_data_folder, _database, _redis, _storage, _workers, _devices):
        checks += look(settings)
    return checks


def _profile(settings: Settings) -> Check:
    embedded = settings.database_url is None and settings.redis_url is None and settings.store_url is None
    sql, storage = without_password(settings.sql_url), without_password(settings.storage_url)
    kind = "embedded" if embedded else "cluster"
    return Check("profile", True, f"{kind}: SQL {sql}, storage {storage}, tenant {settings.tenant}")


def _data_folder(settings: Settings) -> Iterator[Check]:
    try:
        settings.make_data_dir()
        probe = settings.data_dir / ".doctor"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        yield Check(
            "data folder",
            False,
            f"{settings.data_dir} cannot be written: {error.strerror}",
            "set AIGC_DATA_DIR elsewhere",
        )
        return
    free = shutil.disk_usage(settings.data_dir).free
    detail = f"{settings.data_dir}, {free / 1024**3:.1f} GiB free"
    yield Check(
        "data folder", free >= LOW_DISK, detail, "" if free >= LOW_DISK else "free some space, or move AIGC_DATA_DIR"
    )


def _answering(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except Unavailable as error:
        return Check(name, False, f"{error.address}: {error.reason}", error.advice)
    except AigcError as error:
        return Check(name, False, str(error))


def _database(settings: Settings) -> Iterator[Check]:
    def look() -> Check:
        database = Database(settings)
        database.prepare()
        kind = "SQLite" if database.is_sqlite else "PostgreSQL"
        return Check("database", True, f"{kind} at {database.address}, schema {database.revision()}")

    yield _answering("database", look)


def _redis(settings: Settings) -> Iterator[Check]:
    def look() -> Check:
        queue = Queue(settings)
        with queue.answering() as client:
            try:
                policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
            except ResponseError:
                policy = None  # a hosted Redis does not say
            release = client.info("server").get("redis_version")
        detail = f"{queue.address}, version {release}"
        if policy not in (None, "noeviction"):
            return Check(
                "redis", False, f"{detail}, maxmemory-policy {policy}: it may throw messages and bindings away",
                "set maxmemory-policy noeviction",
            )  # fmt: skip
        return Check("redis", True, detail)

    yield _answering("redis", look)


def _nothing_stored_yet(settings: Settings) -> bool | None:
    """None where the database cannot say: its own check tells."""
    try:
        database = Database(settings)
        database.prepare()
        return nothing_stored_yet(database)
    except AigcError:
        return None


def _storage(settings: Settings) -> Iterator[Check]:
    def look() -> Check:
        fresh = _nothing_stored_yet(settings)
        try:
            storage = open_storage(settings, create=bool(fresh))
        except Unavailable as error:
            if fresh is None and error.reason == FOLDER_MISSING:
                return Check("storage", True, f"{error.address}: not there; whether it has to be, the database knows")
            raise
        storage.check()
        return Check("storage", True, f"{storage.url}: written, read and deleted a probe")

    check = _answering("storage", look)
    yield check
    if check.ok and settings.storage_url.startswith("file:"):
        folder = Path(url2pathname(urlsplit(settings.storage_url).path))
        free = shutil.disk_usage(folder).free if folder.is_dir() else LOW_DISK
        if free < LOW_DISK:
            yield Check(
                "storage space", False, f"{free / 1024**2:.0f} MiB free", "free some space where the storage lies"
            )


def _workers(settings: Settings) -> Iterator[Check]:
    try:
        gateway = DirectGateway(settings)
        workers = gateway.workers()
        pending = _waiting(gateway.db)
    except AigcError:
        return  # the database's own check has said so
    if not workers:
        yield Check(
            "workers", False, f"none is alive, {pending} job(s) wait", "start one with `aigc up` or `aigc worker`"
        )
        return
    served = sorted({queue for worker in workers for queue in worker.queues})
    yield Check("workers", True, f"{len(workers)} alive, serving {', '.join(served)}")
    for worker in workers:
        if trouble := worker.condition.get("storage"):
            yield Check(
                f"worker {worker.worker}",
                False,
                f"cannot store results: {trouble}",
                "its jobs go on when that is mended",
            )
        for model, reason in (worker.condition.get("set_aside") or {}).items():
            yield Check(
                f"worker {worker.worker}",
                True,  # a job that names a wrong model is its submitter's affair
                f"could not load {model} lately: {reason}",
                "correct the model's name or its files, if it should be there",
            )


def _waiting(db: Database) -> int:
    """Jobs that a worker could take now, of every batch."""
    ready = (
        select(func.coalesce(func.sum(backlog.c.ready), 0))
        .join(batches, batches.c.id == backlog.c.batch_id)
        .where(backlog.c.ready > 0, batches.c.cancelled_at.is_(None))
    )
    with db.read() as connection:
        return int(connection.scalar(ready) or 0)


def _devices(_: Settings) -> Iterator[Check]:
    torch = _version("torch")
    gpus = _gpu_names()
    if torch is None:
        yield Check(
            "torch",
            True,
            "not installed: this machine can submit and poll, not run jobs",
            'pip install "aigc[worker]" to run jobs here',
        )
        return
    if gpus and "+cpu" in torch:
        yield Check(
            "torch",
            False,
            f"torch {torch} computes on the CPU only, beside {', '.join(gpus)}",
            "install a CUDA build of torch",
        )
        return
    detail = f"torch {torch}, transformers {_version('transformers')}, diffusers {_version('diffusers')}"
    yield Check("torch", True, f"{detail}; {', '.join(gpus) if gpus else 'no NVIDIA GPU'}")
    if _version("torchvision") and "+cpu" in torch:
        yield Check(
            "torchvision",
            True,
            "is installed",
            "aigc does without it, and builds that do not match torch break transformers",
        )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu_names() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listed = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()]
