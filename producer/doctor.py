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

import urllib3
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource
from rapidfuzz import fuzz, process
from redis.exceptions import ResponseError
from sqlalchemy import false, update

from producer.gateway import DirectGateway
from producer.records import WorkerRecord
from producer.words import could_not_have, keeper, moment, paused, span
from shared.database import Database
from shared.errors import AigcError, RequestError, Unavailable
from shared.jobs import nothing_stored_yet
from shared.models_file import read_models_file
from shared.queue import Queue
from shared.services import Service, is_remote
from shared.settings import Settings, without_password
from shared.storage import FOLDER_MISSING, open_storage
from shared.tables import duties

#: how alike, of 100, a variable must be to a setting to be taken for a misspelt one
NEAR = 75
#: share of its memory from which on a Redis counts as full
FULL = 0.95
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
    for look in (_variables, _models_file, _data_folder, _database, _redis, _storage, _services, _system, _devices):
        checks += look(settings)
    return checks


def _profile(settings: Settings) -> Check:
    embedded = settings.database_url is None and settings.redis_url is None and settings.store_url is None
    sql, storage = without_password(settings.sql_url), without_password(settings.storage_url)
    kind = "embedded" if embedded else "cluster"
    return Check("profile", True, f"{kind}: SQL {sql}, storage {storage}, tenant {settings.tenant}")


def _variables(_: Settings) -> Iterator[Check]:
    """Variables that look like settings and are none: nothing else would ever say so."""
    known = {name.upper() for name in Settings.model_fields}
    try:
        given = {*EnvSettingsSource(Settings).env_vars, *DotEnvSettingsSource(Settings).env_vars}
    except (OSError, UnicodeDecodeError):
        return  # whoever reads the settings says so
    for name in sorted(name.upper() for name in given):
        own = name.removeprefix("AIGC_")
        if own == name or own in known:
            continue
        near = process.extractOne(own, known, scorer=fuzz.ratio, score_cutoff=NEAR)
        yield Check(
            f"variable {name}",
            near is None,  # one that resembles nothing may be somebody else's
            "is no setting of aigc, and has no effect",
            f"did you mean AIGC_{near[0]}?" if near else "docs/configuration.md lists what can be set",
        )


def _models_file(settings: Settings) -> Iterator[Check]:
    """The operator's word on models, where there is one."""
    try:
        models = read_models_file(settings).models
    except RequestError as error:
        yield Check("models file", False, str(error), "workers do not start with it; those that run keep what it said")
        return
    if models:
        yield Check("models file", True, f"{settings.models_path}: {', '.join(sorted(models))}")


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
        # A server that only reads looks well until somebody submits: a write that changes nothing tells.
        database.write(lambda connection: connection.execute(update(duties).where(false()).values(done_at=0.0)))
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
            memory = client.info("memory")
        detail = f"{queue.address}, version {release}"
        used, most = int(memory.get("used_memory") or 0), int(memory.get("maxmemory") or 0)
        if policy not in (None, "noeviction"):
            return Check(
                "redis", False, f"{detail}, maxmemory-policy {policy}: it may throw messages and bindings away",
                "set maxmemory-policy noeviction",
            )  # fmt: skip
        if most and used >= most * FULL:
            return Check(
                "redis", False, f"{detail}, {used / 2**20:.1f} of {most / 2**20:.1f} MiB used: it refuses messages",
                "give it more memory (maxmemory), or remove what else lies in it",
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


def _system(settings: Settings) -> Iterator[Check]:
    """Workers, queues and keepers, as the database knows them."""
    try:
        system = DirectGateway(settings).system()
    except AigcError:
        return  # the database's own check has said so
    pending = sum(system.ready.values())
    if system.workers:
        served = sorted({queue for worker in system.workers for queue in worker.queues})
        yield Check("workers", True, f"{len(system.workers)} alive, serving {', '.join(served)}")
    else:
        yield Check(
            "workers", False, f"none is alive, {pending} job(s) wait", "start one with `aigc up` or `aigc worker`"
        )
    for worker in system.workers:
        yield from _worker(worker)
    for queue in system.paused:
        yield Check(f"queue {queue.queue}", True, paused(queue), f"`aigc resume {queue.queue}` lets it go on")
    missing = keeper(system)
    if missing is None:
        yield Check("keeper", True, f"alive, seen {span(system.keeper_silent_s or 0.0)} ago")
    elif system.workers or pending or system.any_delayed:
        yield Check("keeper", False, missing, "start one with `aigc up` or `aigc keeper`")
    else:
        yield Check("keeper", True, "none is alive; nothing needs one now")


def _worker(worker: WorkerRecord) -> Iterator[Check]:
    name = f"worker {worker.worker}"
    if worker.storage_trouble:
        detail = f"cannot store results: {worker.storage_trouble}"
        yield Check(name, False, detail, "its jobs go on when that is mended")
    if worker.models_file_trouble:
        detail = f"keeps what its models.toml said before: {worker.models_file_trouble}"
        yield Check(name, False, detail, "mend the file; it is read again by itself")
    if worker.silent:
        detail = f"has not been heard of for {span(worker.silent_s)}"
        yield Check(name, False, detail, "see whether it is frozen, very busy or cut off from the database")
    if worker.draining_since is not None:
        yield Check(
            name, True, f"is draining since {moment(worker.draining_since)}: it takes no more jobs and will end"
        )
    for one in worker.set_aside:
        # No failure: a job that names a wrong model is its submitter's affair.
        yield Check(
            name,
            True,
            f"{could_not_have(one.model or one.task)} for {one.task} lately: {one.reason}",
            "its jobs go on when the service does"
            if is_remote(one.model or "")
            else "correct the model's name or its files, if it should be there",
        )


def _services(settings: Settings) -> Iterator[Check]:
    """Remote services, as this machine sees them; OpenAI's own only where there is a key for it."""
    for name, service in sorted(settings.remote_services.items()):
        if service.key is not None or not service.is_openai_itself:
            yield _service(f"service {name}", service, settings.connect_timeout_s)


def _service(name: str, service: Service, timeout_s: float) -> Check:
    headers = {"Authorization": f"Bearer {service.key.get_secret_value()}"} if service.key else {}
    at = f"{service.url}, {'with' if service.key else 'without'} a key"
    try:
        answer = urllib3.request(
            "GET", f"{service.url}/models", headers=headers, timeout=timeout_s, retries=False, redirect=False
        )
    except urllib3.exceptions.HTTPError as error:
        why = str(error).rpartition(">: ")[2]
        return Check(name, False, f"{at}: {why}", "its jobs wait until workers reach it")
    if answer.status in (401, 403):
        advice = "set AIGC_OPENAI_API_KEY, or the key in AIGC_SERVICES"
        return Check(name, False, f"{at}: it refuses that (status {answer.status})", advice)
    # Some have no list of models, and serve them all the same.
    well = answer.status in (200, 404, 405)
    return Check(name, well, f"{at}: answers with status {answer.status}", "" if well else "look at the service")


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
