"""Four models, memory for two, jobs that arrive interleaved: our choice of lanes against arrival order with an LRU."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.arms import Deployment, Resident, together, until
from benchmarks.machine import Load
from benchmarks.measure import Bench, Measured, middle
from benchmarks.models import model
from benchmarks.work import Job, mixed_texts
from shared.settings import Settings
from shared.tables import jobs as job_rows

MODELS, ROOM = 4, 2
#: seconds; as it is where nobody sets it
AGE_BOUND_S = float(Settings.model_fields["age_bound_s"].default)


def four_models(bench: Bench) -> list[Measured]:
    """Jobs arrive one by one, each for the next of four models of 124M; both sides get the same arrivals.

    Before the first, each has run one job of the first model, so that neither pays for importing torch; and each begins
    a round with what the one before has left in memory.
    """
    count, over_s = (8, 1.5) if bench.plan.quick else (240, 40.0)
    kind = "gpt2-7m" if bench.plan.trial else "gpt2-124m"
    jobs = _arrivals([model(f"{kind}.{copy + 1}") for copy in range(MODELS)], count, over_s)
    ours, theirs = [], []
    pipeline = Deployment(bench.folder / "pipeline", resident_models=str(ROOM))
    lru = Resident("lru", "--room", str(ROOM), folder=bench.folder / "lru")
    with Load() as load, together(pipeline, lru):
        _ours(pipeline, jobs[:1])
        lru.run(jobs[:1], "warm")
        for _ in range(bench.plan.rounds):
            ours.append(_ours(pipeline, jobs))
            bench.say(f"pipeline: {ours[-1]}")
            theirs.append(lru.run(jobs, "out"))
            bench.say(f"arrival order: {theirs[-1]}")
    how = (
        f"{count} short texts arriving over {over_s:g} s, each for the next of four models; {len(ours)} rounds of each "
        f"side; from the first arrival to the last commit"
    )
    details = {"load": load.note, "pipeline": ours, "arrival_order": theirs, "openmp": "passive"}

    def row(name: str, ratios: list[float], figures: str) -> Measured:
        return Measured(name, *middle(ratios), figures, how, details=details)

    def typical(samples: list[dict[str, Any]], key: str) -> float:
        return statistics.median(float(sample[key]) for sample in samples)

    return [
        row(
            "models_loads", [a["loads"] / b["loads"] for a, b in zip(ours, theirs, strict=True)],
            f"{typical(ours, 'loads'):.0f} loads against {typical(theirs, 'loads'):.0f}",
        ),
        row(
            "models_wall", [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)],
            f"{typical(ours, 'seconds'):.1f} s against {typical(theirs, 'seconds'):.1f} s",
        ),
        row(
            "models_wait", [a["worst_wait_s"] / AGE_BOUND_S for a in ours],
            f"{typical(ours, 'worst_wait_s'):.1f} s of {AGE_BOUND_S:g} s "
            f"({typical(theirs, 'worst_wait_s'):.1f} s in arrival order)",
        ),
    ]  # fmt: skip


def _arrivals(folders: list[Path], count: int, over_s: float) -> list[Job]:
    plain = mixed_texts(folders[0], count, seed=5)
    jobs = []
    for number, job in enumerate(plain):
        params = {**job["params"], "prompt": job["params"]["prompt"][:40], "max_new_tokens": 8}
        arrival = over_s * number / count
        jobs.append({**job, "params": params, "model": str(folders[number % len(folders)]), "at": arrival})
    return jobs


def _ours(pipeline: Deployment, jobs: list[Job]) -> dict[str, Any]:
    """Submit each job when it arrives; loads are what the worker's log says."""
    before = pipeline.worker_log.count("aigc.worker loaded ")
    started, wall = time.monotonic(), time.time()
    batches = []
    for job in jobs:
        time.sleep(max(0.0, job["at"] - (time.monotonic() - started)))
        batches.append(pipeline.client.submit([{key: value for key, value in job.items() if key != "at"}]))
    until(lambda: all(batch.status().status == "done" for batch in batches), within_s=900, what="every batch")
    columns = (job_rows.c.state, job_rows.c.created_at, job_rows.c.claimed_at, job_rows.c.finished_at)
    with pipeline.database.read() as connection:
        rows = connection.execute(
            select(*columns).where(job_rows.c.batch_id.in_([batch.id for batch in batches]))
        ).all()
    if any(row.state != "succeeded" for row in rows):
        raise RuntimeError("not every job succeeded")
    after = pipeline.worker_log.count("aigc.worker loaded ")
    return {
        "seconds": max(row.finished_at for row in rows) - wall,
        "loads": after - before,
        "worst_wait_s": max(row.claimed_at - row.created_at for row in rows),
    }
