"""Tiny texts on a 7M model: what storing and telling cost when the model costs next to nothing."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.arms import CeleryWorker, Deployment, RedisServer, together
from benchmarks.measure import Bench, Measured, Sample
from benchmarks.models import model
from benchmarks.rows.texts import alike, best_openmp, by_celery
from benchmarks.work import DEAL, tiny_texts


def tiny(bench: Bench) -> list[Measured]:
    """Pipeline against one Celery task per job."""
    folder = model("gpt2-7m")
    openmp = {arm: best_openmp(bench, "gpt2-7m", arm, folder) for arm in ("pipeline", "b1")}
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        pipeline = Deployment(bench.folder / "pipeline", openmp=openmp["pipeline"])
        b1 = CeleryWorker("b1_celery", bench.folder / "b1", redis.url, model=folder, openmp=openmp["b1"])
        stack.enter_context(together(pipeline, b1))
        warm = tiny_texts(folder, 64, seed=9)
        pipeline.run(warm)
        ours_rate = pipeline.run(warm).sample().rate
        b1.run(warm[:8])
        theirs_rate = Sample(len(warm), b1.run(warm)[0]).rate
        many = tiny_texts(folder, bench.plan.size(ours_rate, deal=DEAL, least=512))
        few = many[: bench.plan.size(theirs_rate, deal=DEAL)]
        last: dict[str, list[str]] = {}

        def ours() -> Sample:
            ran = pipeline.run(many)
            last["pipeline"] = pipeline.texts(ran.batch)[: len(few)]
            return ran.sample()

        def theirs() -> Sample:
            seconds = by_celery(b1, few, last, "b1").seconds
            return Sample(len(few), seconds)

        rounds = bench.interleave({"pipeline": ours, "b1": theirs})
    equal = alike(last["pipeline"], last["b1"])
    how = f"from the first submit to the last commit, model warm; {len(many)} jobs ({len(few)} for B1), {equal}"
    return [rounds.measured("tiny_b1", "pipeline", "b1", unit="jobs/s", how=how, openmp=openmp)]
