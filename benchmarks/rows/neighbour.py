"""A busy neighbour: what is left of the throughput while another process keeps one core busy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.arms import Deployment, end
from benchmarks.measure import Bench, Measured, Sample
from benchmarks.models import model
from benchmarks.work import DEAL, mixed_texts, tokens


def neighbour(bench: Bench) -> list[Measured]:
    """The same texts with and without a process that computes all the time."""
    folder = model("gpt2-7m")
    with Deployment(bench.folder / "pipeline") as pipeline:
        warm = mixed_texts(folder, (2 if bench.plan.quick else 4) * DEAL, seed=9)
        pipeline.run(warm)
        rate = pipeline.run(warm).sample().rate
        jobs = mixed_texts(folder, bench.plan.size(rate, deal=DEAL))

        def quiet() -> Sample:
            return pipeline.run(jobs).sample(tokens(jobs))

        def beside() -> Sample:
            with busy():
                return pipeline.run(jobs).sample(tokens(jobs))

        rounds = bench.interleave({"beside": beside, "quiet": quiet})
    how = f"{len(jobs)} mixed texts on 7M, from submit to last commit; the neighbour is one process that only computes"
    return [rounds.measured("neighbour", "beside", "quiet", unit="tokens/s", how=how, openmp="passive")]


@contextmanager
def busy() -> Iterator[None]:
    """Somebody else's process."""
    process = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10_000))"], start_new_session=True)
    try:
        yield
    finally:
        end(process, within_s=5)
