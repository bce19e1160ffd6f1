"""The same on a GPU: larger models with random weights. Without an NVIDIA GPU and a CUDA torch nothing is measured."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.arms import CeleryWorker, Deployment, RedisServer, Resident, environment
from benchmarks.machine import gpus
from benchmarks.measure import Bench, Measured, NotMeasured, Sample, middle
from benchmarks.models import model
from benchmarks.rows.pictures import best_sizes
from benchmarks.rows.texts import POLICIES, best_policy
from benchmarks.work import DEAL, mixed_texts, tokens
from benchmarks.work import pictures as picture_jobs

_ON_GPU = ("--device", "cuda", "--dtype", "bfloat16")
#: microbatches that the sweep tries
SWEEP = (8, 16, 32, 64, 128, 256)


def _require_gpu() -> None:
    if not gpus():
        raise NotMeasured("no NVIDIA GPU on this machine")
    probe = [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        raise NotMeasured("there is a GPU, and torch cannot use it: a CUDA build is needed")


def texts(bench: Bench) -> list[Measured]:
    """1B, bfloat16: B0, B1, how busy the device is, and what a fixed microbatch would reach."""
    _require_gpu()
    folder = model("llama-1b")
    policy = best_policy(bench, "llama-1b cuda", folder, "passive", *_ON_GPU)
    warm = mixed_texts(folder, 8 * DEAL, seed=9)
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        pipeline = stack.enter_context(Deployment(bench.folder / "pipeline", devices="0"))
        b0 = stack.enter_context(Resident("b0_text", "--model", str(folder), *_ON_GPU, folder=bench.folder / "b0"))
        b1 = stack.enter_context(
            CeleryWorker("b1_celery", bench.folder / "b1", redis.url, model=folder, device="cuda", dtype="bfloat16")
        )
        pipeline.run(warm)
        rate = Sample(tokens(warm), b0.run(warm, "warm", **POLICIES[policy])["seconds"]).rate
        b1.run(warm[:2])
        jobs = mixed_texts(folder, bench.plan.size(rate / (tokens(warm) / len(warm)), deal=DEAL, least=256))
        few = jobs[: max(DEAL, len(jobs) // 16 // DEAL * DEAL)]
        busy: list[float] = []

        def ours() -> Sample:
            with _watched(busy):
                return pipeline.run(jobs).sample(tokens(jobs))

        rounds = bench.interleave(
            {
                "pipeline": ours,
                "b0": lambda: Sample(tokens(jobs), b0.run(jobs, "out", **POLICIES[policy])["seconds"]),
                "b1": lambda: Sample(tokens(few), b1.run(few)[0]),
            }
        )
    how = f"{len(jobs)} mixed texts ({len(few)} for B1), bfloat16, random weights; B0: {policy}"
    share, spread = middle(busy)
    sweep = _sweep(bench, folder, len(jobs))
    best = max(sweep, key=lambda size: sweep[size])
    found = rounds.rate("pipeline") / sweep[best]
    return [
        rounds.measured("gpu_text_b0", "pipeline", "b0", unit="tokens/s", how=how),
        rounds.measured("gpu_text_b1", "pipeline", "b1", unit="tokens/s", how=how),
        Measured("gpu_busy", share, spread, f"{share:.3f}", "utilisation as the driver tells it, middle of each round"),
        Measured(
            "gpu_sweep", found, (found, found), f"best with AIGC_MICROBATCH={best}",
            "the default against fixed sizes, one run each", details={"sweep": sweep},
        ),
    ]  # fmt: skip


def _sweep(bench: Bench, folder: Path, count: int) -> dict[int, float]:
    """Tokens per second with each size as the most that may run together."""
    rates = {}
    jobs = mixed_texts(folder, count)
    for size in SWEEP:
        with Deployment(bench.folder / f"sweep-{size}", devices="0", microbatch=str(size)) as pipeline:
            pipeline.run(jobs[: 8 * DEAL])
            rates[size] = pipeline.run(jobs).sample(tokens(jobs)).rate
    return rates


@contextmanager
def _watched(busy: list[float]) -> Iterator[None]:
    """Note the share of time in which the device was busy, over the middle half of what runs meanwhile."""
    over = threading.Event()
    seen: list[float] = []

    def look() -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not over.wait(0.2):
            told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            if told.isdigit():
                seen.append(int(told) / 100)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        inner = seen[len(seen) // 4 : -len(seen) // 4 or None]
        if inner:
            busy.append(statistics.mean(inner))


def pictures(bench: Bench) -> list[Measured]:
    """512 px, 20 steps, a UNet of SD 1.5's size."""
    _require_gpu()
    folder = model("unet-sd15")
    sizes = best_sizes(bench, folder, "unet-sd15 cuda", (512,), *_ON_GPU, batches=(1, 2, 4, 8, 16, 32))
    jobs = picture_jobs(folder, 32, sides=(512,), steps=(20,))
    with (
        Deployment(bench.folder / "pipeline", devices="0") as pipeline,
        Resident("b0_pictures", "--model", str(folder), *_ON_GPU, folder=bench.folder / "b0") as b0,
    ):
        pipeline.run(jobs)
        rate = Sample(len(jobs), b0.run(jobs, "warm", sizes=sizes)["seconds"]).rate
        jobs = picture_jobs(folder, bench.plan.size(rate, deal=32), sides=(512,), steps=(20,))
        rounds = bench.interleave(
            {
                "pipeline": lambda: pipeline.run(jobs).sample(),
                "b0": lambda: Sample(len(jobs), b0.run(jobs, "out", sizes=sizes)["seconds"]),
            }
        )
    how = f"{len(jobs)} pictures of 512 px in 20 steps, webp, bfloat16; B0's batches {sizes}"
    return [rounds.measured("gpu_pictures_b0", "pipeline", "b0", unit="pictures/s", how=how)]


_LOAD = """
import sys, time, torch
from transformers import AutoModelForCausalLM
torch.zeros(1, device="cuda")
for folder in sys.argv[1:]:
    started = time.monotonic()
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to("cuda")
    torch.cuda.synchronize()
    print(time.monotonic() - started)
"""


def switch(bench: Bench) -> list[Measured]:
    """Two models of 1B with room for one: the time of a job after a switch, less that of one without."""
    _require_gpu()
    folders = [model(f"llama-1b.{copy}") for copy in (1, 2)]
    one = [mixed_texts(folder, 1, seed=4) for folder in folders]
    cold, extra = [], []
    with Deployment(bench.folder / "pipeline", devices="0", resident_models="1") as pipeline:
        for jobs in one:
            pipeline.run(jobs)
        for _ in range(bench.plan.rounds):
            told = subprocess.run(
                [sys.executable, "-c", _LOAD, *map(str, folders)], env=environment(), capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            cold += [float(line) for line in told.stdout.split()]
            for jobs in one:
                switched = pipeline.run(jobs).drain_s
                extra.append(max(0.001, switched - pipeline.run(jobs).drain_s))
    ratio = statistics.median(cold) / statistics.median(extra)
    return [
        Measured(
            "gpu_switch", ratio, (min(cold) / max(extra), max(cold) / min(extra)),
            f"{statistics.median(cold):.2f} s against {statistics.median(extra):.2f} s",
            "`from_pretrained` of 1B to the GPU, files cached, against what a job takes longer after a switch",
            {"from_pretrained_s": cold, "switch_s": extra},
        )
    ]  # fmt: skip
