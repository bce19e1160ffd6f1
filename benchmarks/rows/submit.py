"""Durable submit: a batch of jobs, accepted, against `.delay()` and a row for each."""

from __future__ import annotations

import json
import time

from sqlalchemy.orm import Session

from aigc import Client
from benchmarks.arms import RedisServer, point
from benchmarks.baselines import b1_celery
from benchmarks.baselines.status_rows import Base, JobRow, engine
from benchmarks.measure import Bench, Measured, Sample
from shared.settings import load_settings

JOBS = 100_000
PARAMS = {"prompt": "New shoes for every road, and a hat:", "max_new_tokens": 40, "temperature": 0.8}


def submit(bench: Bench) -> list[Measured]:
    """No worker runs: both only store and ring. Ours reads a file of JSON Lines and validates every line."""
    lines = bench.folder / "jobs.jsonl"
    with lines.open("w") as file:
        for seed in range(JOBS):
            job = {"task": "text-generation", "model": "starter/ads-gpt2", "params": PARAMS, "seed": seed}
            file.write(json.dumps(job) + "\n")
    url = f"sqlite:///{bench.folder / 'status.db'}"
    Base.metadata.create_all(engine(url))
    with RedisServer() as redis:
        point(b1_celery.app, redis.url)
        settings = load_settings(_env_file=None, data_dir=bench.folder / "data", redis_url=redis.url)
        client = Client(settings)
        client.submit([{"task": "echo", "params": {"message": "warm"}}])

        def ours() -> Sample:
            started = time.monotonic()
            client.submit_file(lines)
            return Sample(JOBS, time.monotonic() - started)

        def theirs(few: int) -> Sample:
            started = time.monotonic()
            with Session(engine(url)) as session:
                for seed in range(few):
                    row = JobRow(params=PARAMS, seed=seed)
                    session.add(row)
                    session.commit()
                    b1_celery.generate.delay(row.id)
            return Sample(few, time.monotonic() - started)

        few = min(JOBS, bench.plan.size(theirs(500).rate, deal=500))
        rounds = bench.interleave({"pipeline": ours, "delay": lambda: theirs(few)})
    how = (
        f"`client.submit_file` of {JOBS:,} lines, from the call to its return (every line validated, all committed, "
        f"rung); {few:,} rows with `.delay()` each; SQLite with synchronous=FULL on both sides, no worker running"
    )
    return [rounds.measured("submit", "pipeline", "delay", unit="jobs/s", how=how)]
