"""One job on an idle system: from the client that submits to the same client seeing it done."""

from __future__ import annotations

import statistics
import time

from benchmarks.arms import Deployment, RedisServer
from benchmarks.baselines import b3_noop
from benchmarks.measure import Bench, Measured, Sample
from benchmarks.rows.noop import worker
from benchmarks.work import no_ops

#: jobs in a round
EACH = 10


def idle(bench: Bench) -> list[Measured]:
    """`submit` and `wait` against `delay` and `get`; the model's own time is next to nothing in both."""
    with (
        RedisServer() as redis,
        Deployment(bench.folder / "pipeline") as pipeline,
        worker(redis, "1", bench.folder / "b3"),
    ):
        job = no_ops(1)

        def ours() -> Sample:
            times = []
            for _ in range(EACH):
                started = time.monotonic()
                pipeline.client.submit(job).wait(60)
                times.append(time.monotonic() - started)
                time.sleep(0.1)  # idle again
            return Sample(1, statistics.median(times), {"all": times})

        def theirs() -> Sample:
            times = []
            for _ in range(EACH):
                started = time.monotonic()
                b3_noop.echo.delay("hello").get(timeout=60)
                times.append(time.monotonic() - started)
                time.sleep(0.1)
            return Sample(1, statistics.median(times), {"all": times})

        ours(), theirs()
        rounds = bench.interleave_rounds({"pipeline": ours, "celery": theirs}, rounds=bench.plan.rounds)
    pairs = list(zip(rounds.taken["pipeline"], rounds.taken["celery"], strict=True))
    ratios = [a.seconds / b.seconds for a, b in pairs]
    ours_ms, theirs_ms = (
        1000 * statistics.median(sample.seconds for sample in rounds.taken[arm]) for arm in ("pipeline", "celery")
    )
    return [
        Measured(
            "idle",
            statistics.median(ratios),
            (min(ratios), max(ratios)),
            f"{ours_ms:.1f} ms against {theirs_ms:.1f} ms",
            f"`client.submit` and `batch.wait` against `delay` and `get` (prefork, one process); {len(ratios)} rounds "
            f"of {EACH} jobs each, 0.1 s between them",
            {arm: [sample.seconds for sample in samples] for arm, samples in rounds.taken.items()},
            {"load": dict(rounds.load)},
        )
    ]
