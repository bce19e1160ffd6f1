"""The two sides of each comparison, as processes on this machine: everything listens on 127.0.0.1 alone.

`Deployment` is this project as a user starts it, by `aigc up`. `Resident` is a baseline without a queue, `CeleryWorker`
one with. Each ends by process id with its `with`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import IO, Any, Self

import psutil
from kombu import pools
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from aigc import Batch, Client
from benchmarks.baselines.status_rows import Base, JobRow, engine
from benchmarks.machine import THREADS
from benchmarks.measure import OPENMP, Sample
from benchmarks.models import ROOT
from benchmarks.work import Job
from shared.database import Database
from shared.settings import load_settings
from shared.tables import batch_counters, batches

sys.path.insert(0, str(ROOT / "tests"))
from servers import PostgresServer, RedisServer

__all__ = [
    "CeleryWorker", "Deployment", "PostgresServer", "RedisServer", "Resident", "environment", "together", "until",
]  # fmt: skip

AIGC = Path(sys.executable).with_name("aigc")


def environment(openmp: str = "passive", **more: str) -> dict[str, str]:
    """Of a process that is measured: nothing of ours leaks in, the same threads for each."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AIGC_", "OMP_", "GOMP_"))}
    own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false"}
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return {**clean, **own, "PYTHONPATH": path, **OPENMP[openmp], **more}


def until(find: Callable[[], Any], *, within_s: float, what: str, every_s: float = 0.05) -> Any:
    """Wait for something to become true; returns what it is. Raises `TimeoutError`."""
    deadline = time.monotonic() + within_s
    while not (found := find()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {within_s:g} s")
        time.sleep(every_s)
    return found


def end(process: subprocess.Popen[Any], *, within_s: float = 45) -> None:
    """End a process and all below it, gently first."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for left in below:
        if left.is_running():
            left.send_signal(signal.SIGKILL)


@contextmanager
def together(*arms: AbstractContextManager[Any]) -> Iterator[None]:
    """Start several arms at once, and end them at once: most of either is waiting for imports and for loops to end."""
    with ThreadPoolExecutor(len(arms)) as pool:
        starts = [(arm, pool.submit(arm.__enter__)) for arm in arms]
        try:
            for _, start in starts:
                start.result()
            yield
        finally:
            ends = [pool.submit(arm.__exit__, None, None, None) for arm, start in starts if not start.exception()]
            for end_ in ends:
                end_.result()


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch that is done."""

    batch: Batch
    total: int
    #: from the call of `submit` to its return
    submit_s: float
    #: from the moment in which workers may claim to the last commit, by the database's clock
    drain_s: float
    #: from the call of `submit` to the last commit
    whole_s: float

    def sample(self, units: float | None = None) -> Sample:
        """From the call of `submit` to the last commit."""
        return Sample(self.total if units is None else units, self.whole_s)


class Deployment:
    """`aigc up` on a data folder of its own: Redis, keeper and one worker on the CPU (or the GPU)."""

    def __init__(
        self, folder: Path, *, openmp: str = "passive", devices: str = "cpu", workers: int = 1, **settings: str
    ) -> None:
        """`settings` are AIGC_* variables without the prefix, in small letters."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        own = {"data_dir": str(folder / "data"), "threads": str(THREADS), **settings}
        self._own = own
        self.environment = environment(openmp, **{f"AIGC_{name.upper()}": value for name, value in own.items()})
        self._devices, self._workers = devices, workers
        self._processes: list[subprocess.Popen[Any]] = []
        self.client: Client

    def __enter__(self) -> Self:
        settings = load_settings(_env_file=None, **self._own)
        database = Database(settings)
        if not database.is_sqlite:
            database.migrate()
        try:
            log = self._start([str(AIGC), "up", "--devices", self._devices], "up.log")
            until(lambda: "aigc is up" in log.read_text(), within_s=180, what="aigc up")
            for number in range(1, self._workers):
                more = [str(AIGC), "worker", "--devices", self._devices, "--queues", "gpu,cpu"]
                self._start(more, f"worker-{number}.log", broker=load_settings(_env_file=None, **self._own).broker_url)
            self.client = Client(settings)
            until(lambda: len(self.client.workers()) >= self._workers, within_s=180, what="every worker showing itself")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, command: list[str], log: str, broker: str | None = None) -> Path:
        path = self.folder / log
        more = {"AIGC_REDIS_URL": broker, "AIGC_WORKER_NAME": log} if broker else {}
        with path.open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    command,
                    env={**self.environment, **more},
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    cwd=self.folder,
                    start_new_session=True,
                )
            )
        return path

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            end(process)
        self._processes.clear()

    @property
    def worker_log(self) -> str:
        """What the workers have said so far."""
        path = self.folder / "data" / "run" / "worker.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def worker_processes(self) -> list[psutil.Process]:
        """The processes that compute."""
        below = [child for p in self._processes for child in psutil.Process(p.pid).children(recursive=True)]
        return [child for child in below if "spawn_main" in " ".join(child.cmdline())]

    @property
    def database(self) -> Database:
        """The database behind the client."""
        return self.client.gateway.db  # type: ignore[attr-defined, no-any-return]

    def run(self, jobs: Sequence[Job], *, within_s: float = 900) -> Ran:
        """Submit and wait for the last commit. Raises `RuntimeError` unless every job succeeds."""
        started_wall, started = time.time(), time.monotonic()
        batch = self.client.submit(jobs)
        submit_s = time.monotonic() - started
        until(lambda: batch.status().status == "done", within_s=within_s, what="the batch", every_s=0.1)
        record = batch.status()
        if record.counts["succeeded"] != len(jobs):
            raise RuntimeError(f"not every job succeeded: {record.to_json()}")
        opened, finished = self.times(batch.id)
        return Ran(batch, len(jobs), submit_s, finished - opened, finished - started_wall)

    def times(self, batch_id: str) -> tuple[float, float]:
        """When a batch was opened, and when its last job was committed."""
        query = (
            select(batches.c.opened_at, batch_counters.c.finished_at)
            .join(batch_counters, batch_counters.c.batch_id == batches.c.id)
            .where(batches.c.id == batch_id)
        )
        with self.database.read() as connection:
            row = connection.execute(query).one()
        return float(row.opened_at), float(row.finished_at)

    def texts(self, batch: Batch) -> list[str]:
        """The outputs by line."""
        return [result["text"] for result in batch.results()]


class Resident:
    """A baseline that stays in memory and is told by lines of JSON what to do."""

    def __init__(self, module: str, *arguments: str, folder: Path, openmp: str = "passive") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / "log").open("wb")
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.baselines.{module}", *arguments],
            env=environment(openmp), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process, within_s=5)
        self._log.close()

    def run(self, jobs: Sequence[Job], out: str, **command: Any) -> dict[str, Any]:
        """Have it do some jobs, into `out` below its folder; returns its answer."""
        path = self.folder / "jobs.jsonl"
        path.write_text("".join(json.dumps(job) + "\n" for job in jobs))
        stdin: IO[str] = self._process.stdin  # type: ignore[assignment]
        stdin.write(json.dumps({"jobs": str(path), "out": str(self.folder / out), **command}) + "\n")
        stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout: IO[str] = self._process.stdout  # type: ignore[assignment]
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"a baseline ended:\n{Path(self._log.name).read_text()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def point(app: Any, redis_url: str) -> None:
    """Have a baseline's application send to this server: connections to the one of an earlier row are of no use."""
    app.conf.broker_url = redis_url
    pools.reset()
    app._after_fork()  # forgets its own references to them
    app._local.__dict__.pop("backend", None)  # so that results are awaited at the new one, too


class CeleryWorker:
    """B1 or B2: a Celery worker with a status table of its own."""

    def __init__(
        self, module: str, folder: Path, redis_url: str, *, model: Path, kind: str = "text", openmp: str = "passive",
        device: str = "cpu", dtype: str = "float32", pool: Sequence[str] = ("--concurrency", "1"),
        s3: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.url = f"sqlite:///{folder / 'status.db'}"
        self._redis_url, self._folder = redis_url, folder
        self._module = f"benchmarks.baselines.{module}"
        settings = {
            "REDIS": redis_url, "DATABASE": self.url, "OUT": str(folder / "out"), "KIND": kind, "MODEL": str(model),
            "DEVICE": device, "DTYPE": dtype, **(s3 or {}),
        }  # fmt: skip
        self._environment = environment(openmp, **{f"BASELINE_{name}": value for name, value in settings.items()})
        self._pool = list(pool)
        Base.metadata.create_all(engine(self.url))
        self.task = importlib.import_module(self._module)
        point(self.task.app, redis_url)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "celery", "-A", self._module, "worker", *self._pool, "--loglevel", "INFO"]
        with (self._folder / "worker.log").open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--without-mingle", "--without-gossip"], env=self._environment, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process, within_s=15)

    def run(self, jobs: Sequence[Job], *, within_s: float = 900) -> tuple[float, list[int]]:
        """Store a row and send a task for each, and wait for the last row: seconds in all, and ids of the rows."""
        wall = time.time()
        ids = []
        with Session(engine(self.url)) as session:
            for job in jobs:
                row = JobRow(params=job["params"], seed=job.get("seed", 0))
                session.add(row)
                session.commit()
                ids.append(row.id)
                self.task.generate.delay(row.id)
        left = select(func.count()).where(JobRow.state.in_(("queued", "running")))

        def over() -> bool:
            with engine(self.url).connect() as connection:
                return connection.execute(left).scalar_one() == 0 or self._ended()

        until(over, within_s=within_s, what="the baseline's last row", every_s=0.1)
        with engine(self.url).connect() as connection:
            bad = connection.execute(select(JobRow.error).where(JobRow.state == "failed").limit(1)).scalar()
            last = connection.execute(select(func.max(JobRow.finished_at)).where(JobRow.id.in_(ids))).scalar_one()
        if bad:
            raise RuntimeError(f"the baseline failed: {bad}")
        assert last is not None
        return last.replace(tzinfo=UTC).timestamp() - wall, ids

    def _ended(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"the baseline ended:\n{(self._folder / 'worker.log').read_text()[-3000:]}")
        return False

    def outputs(self, ids: Sequence[int]) -> list[Path]:
        """Where the outputs of these rows lie."""
        with engine(self.url).connect() as connection:
            found = dict(connection.execute(select(JobRow.id, JobRow.output).where(JobRow.id.in_(ids))).all())
        return [Path(found[id_] or "") for id_ in ids]
