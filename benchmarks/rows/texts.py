"""Mixed texts on 124M: this project against the model by hand (B0), a task per job (B1) and batches of 32 (B2)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.arms import CeleryWorker, Deployment, RedisServer, Resident, together
from benchmarks.measure import Bench, Measured, Sample
from benchmarks.models import model
from benchmarks.work import DEAL, Job, mixed_texts, quarter, short, tokens

HOW = "from the first submit to the last commit (B0: first prompt read to last text written), model warm; {}"
#: how B0 may run: name → what it is told
POLICIES: Mapping[str, Mapping[str, Any]] = {
    **{f"static {size}": {"policy": "static", "size": size} for size in (16, 32, 64)},
    **{
        f"continuous {size}/{most}": {"policy": "continuous", "size": size, "tokens": most}
        for size, most in ((16, 256), (32, 512), (64, 512))
    },
}


def texts(bench: Bench) -> list[Measured]:
    """All arms in one go."""
    name = "gpt2-7m" if bench.plan.trial else "gpt2-124m"
    folder = model(name)
    openmp = {arm: best_openmp(bench, name, arm, folder) for arm in ("pipeline", "b0", "b1", "b2")}
    policy = best_policy(bench, name, folder, openmp["b0"])
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        pipeline = Deployment(bench.folder / "pipeline", openmp=openmp["pipeline"])
        b0 = Resident("b0_text", "--model", str(folder), folder=bench.folder / "b0", openmp=openmp["b0"])
        b1 = CeleryWorker("b1_celery", bench.folder / "b1", redis.url, model=folder, openmp=openmp["b1"])
        b2 = CeleryWorker(
            "b2_celery_batches", bench.folder / "b2", redis.url, model=folder, openmp=openmp["b2"],
            pool=("--pool", "solo"),
        )  # fmt: skip
        stack.enter_context(together(pipeline, b0, b1, b2))
        # Quick: a few short texts, to have loaded everything; their rate is far too low, so that a round is one deal.
        warm = short(mixed_texts(folder, DEAL // 4, seed=9)) if bench.plan.quick else mixed_texts(folder, DEAL, seed=9)
        rate = Sample(tokens(warm), b0.run(warm, "warm.jsonl", **POLICIES[policy])["seconds"]).rate
        bench.say(f"B0, {policy}, warming up: {rate:.3g} tokens/s")
        pipeline.run(warm)
        b1.run(warm[:1])
        b2.run(warm[:1])
        each = tokens(mixed_texts(folder, 64)) / 64
        count = bench.plan.size(rate / each, deal=DEAL, least=DEAL if bench.plan.quick else 64)
        few, some = (DEAL // 2, DEAL // 2) if bench.plan.quick else (count // 8, count // 2)
        jobs = mixed_texts(folder, count)
        if bench.plan.quick:
            jobs = quarter(jobs)
        last: dict[str, list[str]] = {}

        def ours() -> Sample:
            ran = pipeline.run(jobs)
            last["pipeline"] = pipeline.texts(ran.batch)
            return ran.sample(tokens(jobs))

        def by_hand() -> Sample:
            seconds = b0.run(jobs, "texts.jsonl", **POLICIES[policy])["seconds"]
            lines = (b0.folder / "texts.jsonl").read_text().splitlines()
            last["b0"] = [json.loads(line)["text"] for line in lines]
            return Sample(tokens(jobs), seconds)

        rounds = bench.interleave(
            {
                "pipeline": ours,
                "b0": by_hand,
                "b1": lambda: by_celery(b1, jobs[:few], last, "b1"),
                "b2": lambda: by_celery(b2, jobs[:some], last, "b2"),
            }
        )
    equal = {arm: alike(last["pipeline"], last[arm]) for arm in ("b0", "b1", "b2")}
    mix = "; a quick run: a quarter of the new tokens" if bench.plan.quick else ""
    given = {"jobs": count, "jobs_of_b1": few, "jobs_of_b2": some}
    facts = {"openmp": openmp, "b0_policy": policy, "texts_equal": equal, **given}
    unit = "tokens/s"
    return [
        rounds.measured(
            "text_b0",
            "pipeline",
            "b0",
            unit=unit,
            how=HOW.format(f"{count} jobs, {policy}, {equal['b0']}{mix}"),
            **facts,
        ),
        rounds.measured(
            "text_b1",
            "pipeline",
            "b1",
            unit=unit,
            how=HOW.format(f"{few} of the jobs for B1, {equal['b1']}{mix}"),
            **facts,
        ),
        rounds.measured(
            "text_b2",
            "pipeline",
            "b2",
            unit=unit,
            how=HOW.format(f"{some} of the jobs for B2, {equal['b2']}{mix}"),
            **facts,
        ),
    ]


def by_celery(worker: CeleryWorker, jobs: Sequence[Job], last: dict[str, list[str]], arm: str) -> Sample:
    """A round of B1 or B2."""
    seconds, ids = worker.run(jobs)
    last[arm] = [path.read_text() for path in worker.outputs(ids)]
    return Sample(tokens(jobs), seconds)


def alike(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """In words, how many texts are equal."""
    same = sum(a == b for a, b in zip(ours, theirs, strict=False))
    return f"{same} of {min(len(ours), len(theirs))} texts equal"


def best_openmp(bench: Bench, name: str, arm: str, folder: Path) -> str:
    """Which OpenMP setting makes an arm fastest, by a short trial of one deal each."""

    def rate(openmp: str) -> float:
        jobs = mixed_texts(folder, DEAL, seed=9)
        place = bench.folder / f"trial-{arm}-{openmp}"
        with ExitStack() as stack:
            if arm == "pipeline":
                ours = stack.enter_context(Deployment(place, openmp=openmp))
                ours.run(jobs[:1])
                return ours.run(jobs).sample(tokens(jobs)).rate
            if arm == "b0":
                b0 = stack.enter_context(Resident("b0_text", "--model", str(folder), folder=place, openmp=openmp))
                b0.run(jobs[:1], "warm.jsonl", policy="static", size=8)
                return Sample(tokens(jobs), b0.run(jobs, "out.jsonl", policy="static", size=8)["seconds"]).rate
            redis = stack.enter_context(RedisServer())
            module, pool = (
                ("b1_celery", ("--concurrency", "1")) if arm == "b1" else ("b2_celery_batches", ("--pool", "solo"))
            )
            worker = stack.enter_context(CeleryWorker(module, place, redis.url, model=folder, openmp=openmp, pool=pool))
            worker.run(jobs[:1])
            return Sample(tokens(jobs), worker.run(jobs)[0]).rate

    return bench.openmp(f"{name} {arm}", rate)


def best_policy(bench: Bench, name: str, folder: Path, openmp: str, *arguments: str) -> str:
    """How B0 runs fastest, tried on as many jobs as fill the largest batch."""

    def trial() -> Mapping[str, float]:
        jobs = mixed_texts(folder, 64)
        rates = {}
        place = bench.folder / "trial-policy"
        with Resident("b0_text", "--model", str(folder), *arguments, folder=place, openmp=openmp) as b0:
            for way, told in POLICIES.items():
                b0.run(jobs[:DEAL], "warm.jsonl", **told)
                rates[way] = Sample(tokens(jobs), b0.run(jobs, "out.jsonl", **told)["seconds"]).rate
        return rates

    return bench.choice(f"b0 {name}", trial, "continuous 32/512")
