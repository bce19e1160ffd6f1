"""No-op jobs: what the queue itself costs, with durable status, against Celery with none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis as redis_client

from benchmarks.arms import Deployment, PostgresServer, RedisServer, end, environment, point, together, until
from benchmarks.baselines import b3_noop
from benchmarks.measure import Bench, Measured, Sample
from benchmarks.work import no_ops

HOW = (
    "between two moments inside: all jobs are there and a worker may take them, to the last one taken (ours: committed "
    "as succeeded, its output stored); {} jobs, {} tasks with {} worker process(es)"
)


def noop(bench: Bench) -> list[Measured]:
    """The embedded profile, PostgreSQL with fsync on, and B3, in turn."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        postgres = stack.enter_context(PostgresServer())
        processes = bench.choice("b3", lambda: _best_concurrency(bench, redis), "1")
        bare = stack.enter_context(worker(redis, processes, bench.folder / "b3"))
        few = bench.plan.size(bare.drained(1000).rate, deal=500)
        arms = {
            "sqlite": Deployment(bench.folder / "sqlite"),
            "postgres": Deployment(bench.folder / "postgres", database_url=postgres.new_database()),
        }
        stack.enter_context(together(*arms.values()))
        ours = {arm: _ours(bench, pipeline) for arm, pipeline in arms.items()}
        rounds = bench.interleave({**ours, "b3": lambda: bare.drained(few)})
    return [
        rounds.measured(
            f"noop_{arm}", arm, "b3", unit="jobs/s",
            how=HOW.format(f"{rounds.taken[arm][0].units:,.0f}", f"{few:,}", processes),
            with_submit_per_s=[sample.more["with_submit"] for sample in rounds.taken[arm]],
        )
        for arm in ours
    ]  # fmt: skip


def _ours(bench: Bench, pipeline: Deployment) -> Callable[[], Sample]:
    """An arm of ours, warm, with as many jobs as a round must have."""
    pipeline.run(no_ops(1000))
    count = bench.plan.size(2000 / pipeline.run(no_ops(2000)).drain_s, deal=1000)
    jobs = no_ops(count)

    def drained() -> Sample:
        ran = pipeline.run(jobs)
        return Sample(count, ran.drain_s, {"with_submit": count / ran.whole_s})

    return drained


def _best_concurrency(bench: Bench, redis: RedisServer) -> dict[str, float]:
    rates = {}
    for processes in ("1", "2"):
        with worker(redis, processes, bench.folder / f"trial-b3-{processes}") as bare:
            bare.drained(500)
            rates[processes] = bare.drained(3000).rate
    return rates


class Bare:
    """A B3 worker that can be held while its queue fills."""

    def __init__(self, redis: RedisServer, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._redis, self._process, self._folder = redis, process, folder
        b3_noop.app.conf.result_backend = redis.url
        point(b3_noop.app, redis.url)
        self._client = redis_client.Redis.from_url(redis.url)

    def drained(self, count: int) -> Sample:
        """Fill the queue while the worker is frozen, and see how long it takes to empty it."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        marks = [self._folder / f"mark-{time.monotonic_ns()}-{n}" for n in range(2)]
        for _ in range(count):
            b3_noop.no_op.delay("hello")
        for mark in marks:
            b3_noop.mark.delay(str(mark))
        started = time.monotonic()
        os.killpg(self._process.pid, signal.SIGCONT)
        until(lambda: all(mark.exists() for mark in marks), within_s=600, what="the last no-op", every_s=0.005)
        return Sample(count, time.monotonic() - started)


@contextmanager
def worker(redis: RedisServer, processes: str, folder: Path) -> Iterator[Bare]:
    """A bare Celery worker, ready."""
    folder.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "benchmarks.baselines.b3_noop",
        "worker",
        "--concurrency",
        processes,
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--without-mingle", "--without-gossip", "--loglevel", "WARNING"],
            env=environment(BASELINE_REDIS=redis.url), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        bare = Bare(redis, process, folder)
        ready = folder / "ready"
        b3_noop.mark.delay(str(ready))
        until(ready.exists, within_s=60, what="the bare worker's first task")
        yield bare
    finally:
        end(process, within_s=15)
