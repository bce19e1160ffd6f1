"""What is submitted in a run, and what its owners do to it: drawn from a seed, known before anything starts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: ways in which a worker that dies or stalls may end a job that is not to blame
WORKER_CODES = frozenset({"worker_died", "stalled"})

#: poison → the code that it ends with
POISON_CODES = {
    "segfault": "worker_died",
    "exit": "worker_died",
    "hang": "stalled",
    "raise": "generator_error",
    "oom": "out_of_memory",
}

#: queue that no worker serves
NOBODYS_QUEUE = "nobody"


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """One submission, under an idempotency key of its own."""

    key: str
    #: seconds after the start of the run
    at_s: float
    #: job → what it is for: plain, failing, poison, checkpointed, cancelled, doomed (by expiry)
    kinds: dict[str, str]
    lines: list[dict[str, Any]]
    expires_s: float | None = None
    #: seconds after the submission at which all of it is cancelled
    cancel_after_s: float | None = None
    #: the same for the jobs of kind `cancelled`
    cancel_some_after_s: float | None = None
    #: whether its owner retries once what has failed or was cancelled
    retry: bool = False
    #: whether the same request is sent again after it was accepted
    again: bool = False


@dataclass(slots=True)
class Plan:
    """All submissions of a run, by time."""

    seed: int
    batches: list[PlannedBatch] = field(default_factory=list)

    @property
    def jobs(self) -> int:
        """How many there are in all."""
        return sum(len(batch.lines) for batch in self.batches)

    def save(self, path: Path) -> None:
        """As JSON, for the submitter."""
        path.write_text(json.dumps(asdict(self)))


def load(path: Path) -> Plan:
    """What `save` wrote."""
    content = json.loads(path.read_text())
    return Plan(content["seed"], [PlannedBatch(**batch) for batch in content["batches"]])


def draw(seed: int, *, jobs: int, seconds: float, pace: float = 1.0, harmless: bool = False) -> Plan:
    """About `jobs` jobs within `seconds`; the special ones first, so that they have time to end.

    Each step of an ordinary job takes `pace` times as long as usual; a `harmless` plan has no poison.
    """
    rng = random.Random(f"plan {seed}")
    plan = Plan(seed)
    plan.batches += _special(rng, scale=max(1, round(jobs / 450)), seconds=seconds, harmless=harmless)
    number = 0
    left = jobs - plan.jobs
    count = max(6, round(left / 25))
    for number in range(count):
        size = max(1, left // (count - number))
        left -= size
        at_s = seconds * number / count
        plan.batches.append(_ordinary(rng, f"ordinary-{number}", at_s, size, pace))
    plan.batches.sort(key=lambda batch: batch.at_s)
    return plan


def _special(rng: random.Random, *, scale: int, seconds: float, harmless: bool) -> list[PlannedBatch]:
    made = []
    for round_ in range(scale):
        at_s = seconds * round_ / scale
        poison = [_job(rng, poison=kind, max_attempts=2 if kind in ("segfault", "exit") else 1)
                  for kind in ("segfault", "exit", "hang", "raise", "oom")]  # fmt: skip
        neighbours = [_job(rng) for _ in range(35)]
        mixed = neighbours if harmless else poison + neighbours
        rng.shuffle(mixed)
        made.append(_batch(f"poison-{round_}", at_s, mixed))
        # Whenever a fault looks for one that is on its way, there should be some.
        for part, (after_s, size) in enumerate(((1.0, 7), (0.35 * seconds / scale, 7), (0.75 * seconds / scale, 7)), 1):
            made.append(_batch(f"checkpoints-{round_}-{part}", at_s + after_s, [_long(rng) for _ in range(size)]))
        gone = [_job(rng) for _ in range(30)]
        made.append(_batch(f"withdrawn-{round_}", at_s + 2.0, gone, cancel_after_s=rng.uniform(0.1, 0.6)))
        late = [_job(rng, queue=NOBODYS_QUEUE) for _ in range(12)]
        made.append(_batch(f"doomed-{round_}", at_s + 3.0, late, kind="doomed", expires_s=2.0))
        again = [_job(rng, fail=n % 3 == 0) for n in range(18)]
        made.append(_batch(f"retried-{round_}", at_s + 4.0, again, cancel_after_s=1.0, retry=True))
    return made


def _long(rng: random.Random) -> dict[str, Any]:
    """A job with checkpoints that takes longer than most faults leave it in peace, and goes before all others."""
    return _job(rng, steps=rng.randint(20, 30), step_s=0.1, checkpoint_every=3) | {"priority": 5}


def _ordinary(rng: random.Random, key: str, at_s: float, size: int, pace: float) -> PlannedBatch:
    lines = [_job(rng, fail=rng.random() < 0.06) for _ in range(size)]
    for line in lines:
        line["params"]["step_s"] *= pace
    made = _batch(
        key, at_s, lines, again=rng.random() < 0.3, cancel_some_after_s=rng.uniform(0.0, 2.0), retry=rng.random() < 0.15
    )
    for custom_id, kind in made.kinds.items():
        if kind == "plain" and rng.random() < 0.06:
            made.kinds[custom_id] = "cancelled"
    return made


def _job(rng: random.Random, *, queue: str = "", **params: Any) -> dict[str, Any]:
    steps = params.pop("steps", rng.choice((1, 1, 2, 3)))
    step_s = params.pop("step_s", rng.choice((0.0, 0.05, 0.1)))
    job: dict[str, Any] = {"task": "chaos", "queue": queue or rng.choice(("gpu", "cpu")), "seed": rng.randrange(2**31)}
    if "max_attempts" in params:
        job["max_attempts"] = params.pop("max_attempts")
    outputs = rng.choice((1, 1, 1, 2))
    own = rng.random() < 0.3
    message = f"{rng.randrange(16**8):08x}"
    job["params"] = {"message": message, "steps": steps, "step_s": step_s, "outputs": outputs, "own_object": own}
    job["params"] |= params
    return job


def _batch(
    key: str, at_s: float, lines: Sequence[dict[str, Any]], *, kind: str | None = None, **more: Any
) -> PlannedBatch:
    numbered = [{"custom_id": f"{key}/{n}", **line} for n, line in enumerate(lines, 1)]
    kinds = {line["custom_id"]: kind or _kind(line["params"]) for line in numbered}
    return PlannedBatch(key, at_s, kinds, numbered, **more)


def _kind(params: dict[str, Any]) -> str:
    if params.get("poison", "none") != "none":
        return "poison"
    if params.get("fail"):
        return "failing"
    return "checkpointed" if params.get("checkpoint_every") else "plain"
