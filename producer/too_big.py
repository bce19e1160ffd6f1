"""Models that do not fit onto the devices there are: which workers that concerns, and how it is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from producer.records import JobRecord, ModelNeed, WorkerRecord
from shared.sizes import gigabytes


@dataclass(frozen=True, slots=True)
class Shortage:
    """What the model of a job takes on a worker, and what is there, in bytes: too little."""

    needed: int
    has: int


def shortages(job: JobRecord, serving: Sequence[WorkerRecord]) -> Mapping[str, Shortage]:
    """Of these workers, by session, those whose memory does not hold the model of a job.

    One that has not looked at it yet is judged by what another one says that computes in the same number type.
    """
    if job.model is None:
        return {}
    own = {worker.session: worker.need(job.model, job.task) for worker in serving}
    by_dtype: dict[str, ModelNeed] = {
        need.dtype: need for need in own.values() if need is not None and not need.on_host
    }
    found: dict[str, Shortage] = {}
    for worker in serving:
        need, memory = own[worker.session], worker.memory
        if need is not None:
            if need.bytes > need.has:
                found[worker.session] = Shortage(need.bytes, need.has)
        elif memory is not None and (others := by_dtype.get(memory[1])) is not None and others.bytes > memory[0]:
            found[worker.session] = Shortage(others.bytes, memory[0])
    return found


def nowhere(job: JobRecord, serving: Sequence[WorkerRecord], short: Mapping[str, Shortage]) -> str:
    """In words, that none of these workers has the memory for it."""
    largest = max(serving, key=lambda worker: short[worker.session].has)
    needed = min(shortage.needed for shortage in short.values())
    return (
        f"It is too big for every device: {job.model} needs about {gigabytes(needed)} of memory; the largest device "
        f"of queue {job.queue!r} has {gigabytes(short[largest.session].has)} ({largest.worker}). "
        "It waits for a worker with more memory. A smaller model would do, or one whose operator sets `quantization` "
        "or `offload` for it in models.toml."
    )


def here(job: JobRecord, short: Shortage) -> str:
    """The same of one worker."""
    return f"has {gigabytes(short.has)} of memory, and {job.model} needs about {gigabytes(short.needed)}"
