"""Sharing: a small tenant behind a large one, and two workers on one queue."""

from __future__ import annotations

import statistics

from aigc import Client
from benchmarks.arms import Deployment, together, until
from benchmarks.measure import Bench, Measured
from benchmarks.work import no_ops
from shared.settings import load_settings

BACKLOG, FEW, SLEEP_S = 100_000, 50, 0.02


def tenants(bench: Bench) -> list[Measured]:
    """Fifty jobs of one tenant while another has 100,000 waiting, against the same fifty alone."""
    alone, behind = Deployment(bench.folder / "alone"), Deployment(bench.folder / "behind")
    with together(alone, behind):
        other = Client(load_settings(_env_file=None, data_dir=behind.folder / "data", tenant="large"))
        batch = other.submit(no_ops(BACKLOG, SLEEP_S))
        until(lambda: batch.status().counts["succeeded"], within_s=120, what="the backlog being worked on")
        jobs = no_ops(FEW, SLEEP_S)
        alone.run(jobs)
        rounds = bench.interleave_rounds(
            {"behind": lambda: behind.run(jobs).sample(), "alone": lambda: alone.run(jobs).sample()},
            rounds=bench.plan.rounds if bench.plan.quick else 15,
        )
        left = batch.status()
        if left.status == "done":
            raise RuntimeError("the backlog ended before the measurement did")
    ratios = [b.seconds / a.seconds for b, a in zip(rounds.taken["behind"], rounds.taken["alone"], strict=True)]
    medians = {arm: statistics.median(s.seconds for s in samples) for arm, samples in rounds.taken.items()}
    return [
        Measured(
            "tenants", statistics.median(ratios), (min(ratios), max(ratios)),
            f"{medians['behind']:.2f} s against {medians['alone']:.2f} s",
            f"{FEW} jobs of {1000 * SLEEP_S:.0f} ms each, from submit to last commit; the other tenant has "
            f"{BACKLOG:,} of the same waiting; {len(ratios)} rounds",
            {arm: [s.seconds for s in samples] for arm, samples in rounds.taken.items()}, {"load": dict(rounds.load)},
        )
    ]  # fmt: skip


def two_workers(bench: Bench) -> list[Measured]:
    """Jobs that sleep 50 ms, on one worker and on two."""
    one, two = Deployment(bench.folder / "one"), Deployment(bench.folder / "two", workers=2)
    with together(one, two):
        warm = no_ops(20, 0.05)
        one.run(warm)
        two.run(warm)
        jobs = no_ops(bench.plan.size(34, least=80, deal=10), 0.05)
        few = jobs[: len(jobs) // 2]
        rounds = bench.interleave({"two": lambda: two.run(jobs).sample(), "one": lambda: one.run(few).sample()})
    how = f"{len(jobs)} jobs ({len(few)} for one) that sleep 50 ms, from submit to last commit; SQLite"
    return [rounds.measured("two_workers", "two", "one", unit="jobs/s", how=how)]
