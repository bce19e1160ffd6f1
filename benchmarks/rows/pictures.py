"""Pictures: this project against the pipeline by hand (B0), and small latents against a task per job (B1)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.arms import CeleryWorker, Deployment, RedisServer, Resident, together
from benchmarks.measure import Bench, Measured, Sample
from benchmarks.models import model
from benchmarks.work import SIDES, STEPS, Job
from benchmarks.work import pictures as picture_jobs

#: pictures in a deal: every side with every number of steps
DEAL = len(SIDES) * len(STEPS)
BATCHES = (1, 2, 4, 8)


def pictures(bench: Bench) -> list[Measured]:
    """Three sizes, two numbers of steps, webp."""
    folder = model("unet-256")
    sides = SIDES[:1] if bench.plan.trial else SIDES
    steps = (2, 4) if bench.plan.quick else STEPS
    openmp = {arm: _best_openmp(bench, folder, arm) for arm in ("pipeline", "b0")}
    sizes = best_sizes(bench, folder, "unet-256", sides, openmp=openmp["b0"])
    pipeline = Deployment(bench.folder / "pipeline", openmp=openmp["pipeline"])
    b0 = Resident("b0_pictures", "--model", str(folder), folder=bench.folder / "b0", openmp=openmp["b0"])
    with together(pipeline, b0):
        # A warming round of every shape, as png: what both make can be compared to the last bit.
        check = picture_jobs(folder, DEAL, sides=sides, steps=steps, form="png")
        ran = pipeline.run(check)
        rate = Sample(DEAL, b0.run(check, "check", sizes=sizes)["seconds"]).rate
        drift = furthest(files_of(pipeline, ran.batch), [b0.folder / "check" / f"{i}.png" for i in range(DEAL)])
        bench.say(f"the pictures of both arms differ by at most {drift} of 255")
        if not bench.plan.quick:  # which has no time for a second look, and about a deal a round
            rate = max(rate, Sample(DEAL, b0.run(check, "check", sizes=sizes)["seconds"]).rate)
        count = bench.plan.size(rate, deal=DEAL, least=DEAL if bench.plan.quick else 4 * DEAL)
        jobs = picture_jobs(folder, count, sides=sides, steps=steps)
        rounds = bench.interleave(
            {
                "pipeline": lambda: pipeline.run(jobs).sample(),
                "b0": lambda: Sample(len(jobs), b0.run(jobs, "out", sizes=sizes)["seconds"]),
            }
        )
    how = (
        f"from the first submit to the last commit (B0: first call to last file), model warm; {len(jobs)} pictures of "
        f"{', '.join(map(str, sides))} px in {' or '.join(map(str, steps))} steps; B0's batches {sizes}; "
        f"pictures differ by at most {drift}/255"
    )
    return [
        rounds.measured(
            "pictures_b0", "pipeline", "b0", unit="pictures/s", how=how, openmp=openmp, drift=drift, b0_batches=sizes
        )
    ]


def small_latents(bench: Bench) -> list[Measured]:
    """8 by 8 latents: a batch of many costs hardly more than one."""
    folder = model("unet-small-latents")
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        pipeline = Deployment(bench.folder / "pipeline")
        b1 = CeleryWorker("b1_celery", bench.folder / "b1", redis.url, model=folder, kind="pictures")
        stack.enter_context(together(pipeline, b1))
        check = small_jobs(folder, 16 if bench.plan.quick else 32, "png")
        ran = pipeline.run(check)
        _, ids = b1.run(check)
        drift = furthest(files_of(pipeline, ran.batch), b1.outputs(ids))
        ours_rate = pipeline.run(check).sample().rate
        theirs_rate = Sample(len(check), b1.run(check)[0]).rate
        many = small_jobs(folder, bench.plan.size(ours_rate, deal=32, least=64), "webp")
        few = many[: bench.plan.size(theirs_rate, deal=8)]
        rounds = bench.interleave(
            {
                "pipeline": lambda: pipeline.run(many).sample(),
                "b1": lambda: Sample(len(few), b1.run(few)[0]),
            }
        )
    how = (
        f"from the first submit to the last commit, model warm; {len(many)} pictures ({len(few)} for B1) of 64 px in "
        f"8 steps; pictures differ by at most {drift}/255"
    )
    return [
        rounds.measured("small_latents_b1", "pipeline", "b1", unit="pictures/s", how=how, openmp="passive", drift=drift)
    ]


def small_jobs(folder: Path, count: int, form: str) -> list[Job]:
    """Pictures of 64 px."""
    return picture_jobs(folder, count, sides=(64,), steps=(8,), form=form)


def best_sizes(
    bench: Bench,
    folder: Path,
    name: str,
    sides: Sequence[int],
    *arguments: str,
    batches: Sequence[int] = BATCHES,
    openmp: str = "passive",
) -> Mapping[str, int]:
    """For each side, how many pictures together run fastest by hand."""

    def trial(side: int) -> Mapping[str, float]:
        rates = {}
        with Resident(
            "b0_pictures", "--model", str(folder), *arguments, folder=bench.folder / f"trial-{side}", openmp=openmp
        ) as b0:
            for size in batches:
                jobs = picture_jobs(folder, max(size, 4), sides=(side,), steps=STEPS[:1])
                b0.run(jobs[:size], "warm", sizes={str(side): size})
                rates[str(size)] = Sample(len(jobs), b0.run(jobs, "out", sizes={str(side): size})["seconds"]).rate
        return rates

    return {
        str(side): int(bench.choice(f"b0 {name} {side}px", lambda side=side: trial(side), "4"))  # type: ignore[misc]
        for side in sides
    }


def _best_openmp(bench: Bench, folder: Path, arm: str) -> str:
    """By one picture of each shape."""
    jobs = picture_jobs(folder, DEAL)

    def rate(openmp: str) -> float:
        place = bench.folder / f"trial-{arm}-{openmp}"
        if arm == "pipeline":
            with Deployment(place, openmp=openmp) as pipeline:
                pipeline.run(jobs[:1])
                return pipeline.run(jobs).sample().rate
        sizes = {str(side): 1 for side in SIDES}
        with Resident("b0_pictures", "--model", str(folder), folder=place, openmp=openmp) as b0:
            b0.run(jobs[:1], "warm", sizes=sizes)
            return Sample(DEAL, b0.run(jobs, "out", sizes=sizes)["seconds"]).rate

    return bench.openmp(f"unet-256 {arm}", rate)


def files_of(pipeline: Deployment, batch: object) -> list[bytes]:
    """The files of a batch, by line."""
    gateway = pipeline.client.gateway
    files = []
    for job in batch.jobs():  # type: ignore[attr-defined]
        with gateway.open(job.artifacts[0]) as stream:
            files.append(stream.read())
    return files


def furthest(ours: Sequence[bytes], theirs: Sequence[Path]) -> int:
    """By how much two arms' pictures differ at most, of 255."""
    import numpy as np
    from PIL import Image

    most = 0
    for body, path in zip(ours, theirs, strict=True):
        a = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"), dtype="int16")
        b = np.asarray(Image.open(path).convert("RGB"), dtype="int16")
        most = max(most, int(abs(a - b).max()))
    return most
