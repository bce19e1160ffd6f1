"""The simulated cluster: workers that know what others hold load less, and nobody pays for it."""

from __future__ import annotations

import statistics

import pytest

from benchmarks.simulation.demand import drawn
from benchmarks.simulation.report import summary
from benchmarks.simulation.world import Policy, Seen, World

SCENARIO = drawn(seed=1, devices=40, models=120, jobs=40_000, tenants=40, load=0.5)


class Blind(World):
    """Workers that know of nobody else's models."""

    def _holders(self, *_: object) -> int:
        return 0


def ran(kind: type[World], policy: Policy = "ours") -> Seen:
    return kind(SCENARIO, seed=1, policy=policy, bound_s=30.0, failures_h=0.1).run()


def test_knowing_what_others_hold_saves_loads_and_costs_no_wait_and_no_work() -> None:
    knowing, blind, arrival = ran(World), ran(Blind), ran(World, "arrival")

    assert knowing.jobs == blind.jobs == arrival.jobs == 40_000
    assert knowing.loads < 0.9 * min(blind.loads, arrival.loads)
    assert statistics.median(knowing.waits) <= statistics.median(blind.waits) + 0.5
    assert sum(wait <= 30.0 for wait in knowing.waits) / len(knowing.waits) >= 0.9
    assert knowing.finished_at <= 1.1 * blind.finished_at


def test_jobs_are_counted_by_how_long_each_waited() -> None:
    world = World(SCENARIO, seed=1, policy="ours", bound_s=30.0, failures_h=0.0)
    seen = world.run()
    assert sum(n for _, n in seen.job_waits) == 40_000, "without failures each is claimed once"
    mean = sum(waited * n for waited, n in seen.job_waits) / 40_000
    [told] = [row for name, row in summary(SCENARIO, world, 30.0).items() if name.startswith("a job waited")]
    assert float(told.split(", ")[0].replace(",", "")) == pytest.approx(mean, abs=0.51)
