"""The scheduler in virtual time: how busy devices are, what is loaded how often, who waits, and who gets what.

python -m benchmarks.simulate                                  40 devices, 200,000 jobs; under a minute
python -m benchmarks.simulate --devices 1000 --jobs 1000000 --tenants 500
python -m benchmarks.simulate --record > history.jsonl         what happened in the database of AIGC_DATABASE_URL
python -m benchmarks.simulate --replay history.jsonl           … and that once more; with four more devices: --more 4
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.simulation.demand import Scenario, drawn, read
from benchmarks.simulation.report import plot, summary
from benchmarks.simulation.world import Policy, World


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="benchmarks.simulate", description="the scheduler in virtual time")
    parser.add_argument("--devices", type=int, default=40)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--load", type=float, default=0.7, help="share of what the devices can do, without loading")
    parser.add_argument("--failures", type=float, default=0.1, help="of each device, by the hour")
    parser.add_argument("--bound", type=float, default=30.0, help="AIGC_AGE_BOUND_S")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="where to leave a picture (PNG)")
    parser.add_argument("--record", action="store_true", help="write down what the database knows, as JSON Lines")
    parser.add_argument("--replay", type=Path, help="what --record wrote, instead of a drawn scenario")
    parser.add_argument("--more", type=int, default=0, help="devices that a replay has more")
    wants = parser.parse_args()
    if wants.record:
        from benchmarks.simulation.recording import record

        for row in record():
            print(json.dumps(row))
        return
    scenario = (
        read(wants.replay, wants.more)
        if wants.replay
        else drawn(
            seed=wants.seed, devices=wants.devices, models=wants.models, jobs=wants.jobs, tenants=wants.tenants,
            load=wants.load,
        )
    )  # fmt: skip
    policies: tuple[Policy, ...] = ("ours", "arrival")
    runs = {policy: _run(scenario, policy, wants) for policy in policies}
    if wants.plot:
        plot(runs["ours"], runs["arrival"], wants.bound, wants.plot)


def _run(scenario: Scenario, policy: Policy, wants: argparse.Namespace) -> World:
    began = time.monotonic()
    world = World(scenario, seed=wants.seed, policy=policy, bound_s=wants.bound, failures_h=wants.failures)
    world.run()
    print(f"{policy} ({time.monotonic() - began:.0f} s to simulate)")
    for name, figure in summary(scenario, world, wants.bound).items():
        print(f"  {name:55} {figure}")
    return world


if __name__ == "__main__":
    main()
