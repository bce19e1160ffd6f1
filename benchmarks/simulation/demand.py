"""What an imagined cluster is made of, and what is asked of it: drawn by chance from a seed, or from a recording."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

#: name, megabytes for models, speed, share of all devices, queues that it serves
KINDS = (
    ("24 GB", 20_000, 1.0, 0.6, ("small",)),
    ("48 GB", 41_000, 1.8, 0.25, ("medium",)),
    ("80 GB", 68_000, 3.0, 0.15, ("large",)),
)
#: how the work is spread over the queues, about as the devices are
ASKED = {"small": 0.4, "medium": 0.3, "large": 0.3}
#: megabytes of weights, and seconds of one job at speed 1: speech, 1B to 34B texts, SD 1.5, SDXL, FLUX, music, video
SIZES = (
    (600, 0.3), (2_500, 1.5), (6_500, 3.0), (16_000, 6.0), (27_000, 9.0), (66_000, 20.0),
    (2_100, 2.5), (7_000, 6.0), (24_000, 12.0), (3_300, 4.0), (9_500, 40.0),
)  # fmt: skip
#: megabytes per second from a disk, and seconds that every load takes beside
DISK_MB_S, LOAD_S = 1_500.0, 2.0
#: seconds of one job on average, at speed 1 and in a full microbatch
JOB_S = 0.5


@dataclass(frozen=True, slots=True)
class Model:
    """One model, and the class of device that it needs."""

    name: str
    queue: str
    size_mb: float
    load_s: float


@dataclass(frozen=True, slots=True)
class Device:
    """One device."""

    kind: str
    room_mb: float
    speed: float
    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Submission:
    """Jobs of one tenant for one model."""

    at: float
    tenant: str
    model: Model
    jobs: int
    #: what its author reckons, and what it takes at speed 1
    estimated_s: float
    real_s: float
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A cluster, and what is asked of it."""

    devices: tuple[Device, ...]
    submissions: tuple[Submission, ...]


def drawn(*, seed: int, devices: int, models: int, jobs: int, tenants: int, load: float) -> Scenario:
    """Zipf demand over models and tenants; a third comes in bursts; `load` is the share of what the devices can do."""
    chance = random.Random(seed)
    cluster = tuple(
        Device(name, room, speed, queues)
        for name, room, speed, share, queues in KINDS
        for _ in range(max(1, round(devices * share)))
    )
    known = [_model(number, chance) for number in range(models)]
    chance.shuffle(known)
    by_queue = {queue: [pair for pair in known if pair[0].queue == queue] for queue in ASKED}
    by_model = {queue: list(accumulate(1 / (rank + 1) for rank in range(len(by_queue[queue])))) for queue in ASKED}
    by_tenant = list(accumulate(1 / (rank + 1) ** 0.7 for rank in range(tenants)))
    made: list[Submission] = []
    left, speed = jobs, sum(device.speed for device in cluster)
    horizon_s = jobs * JOB_S / (load * speed)
    while left > 0:
        burst = chance.random() < 0.02
        n = min(left, chance.randint(500, 5000) if burst else min(400, 1 + int(chance.expovariate(1 / 25))))
        queue = chance.choices(list(ASKED), list(ASKED.values()))[0]
        model, each_s = chance.choices(by_queue[queue], cum_weights=by_model[queue])[0]
        real_s = each_s * chance.lognormvariate(0, 0.5)
        tenant = f"tenant-{chance.choices(range(tenants), cum_weights=by_tenant)[0]}"
        estimate_s = real_s * chance.lognormvariate(0, 0.4)
        made.append(Submission(chance.uniform(0, horizon_s), tenant, model, n, estimate_s, real_s))
        left -= n
    # Work of each queue in its share, whatever the models drawn for it cost.
    scale = {
        queue: jobs * JOB_S * share / sum(one.jobs * one.real_s for one in made if one.model.queue == queue)
        for queue, share in ASKED.items()
    }
    scaled = (
        replace(one, estimated_s=one.estimated_s * scale[one.model.queue], real_s=one.real_s * scale[one.model.queue])
        for one in made
    )
    return Scenario(cluster, tuple(sorted(scaled, key=lambda one: one.at)))


def _model(number: int, chance: random.Random) -> tuple[Model, float]:
    size_mb, each_s = chance.choice(SIZES)
    queue = "small" if size_mb < KINDS[0][1] else "medium" if size_mb < KINDS[1][1] else "large"
    return Model(f"model-{number}", queue, size_mb, LOAD_S + size_mb / DISK_MB_S), each_s


def recorded(lines: Iterable[str], more: int = 0) -> Scenario:
    """What `simulate.py --record` has written; `more` devices of the kind that there are most of are added."""
    devices: list[Device] = []
    made: list[Submission] = []
    models: dict[str, Model] = {}
    for line in lines:
        row = json.loads(line)
        if row["what"] == "device":
            devices.append(Device(row["kind"], float(row["room_mb"]), 1.0, tuple(row["queues"])))
        elif row["what"] == "model":
            name = row["model"]
            models[name] = Model(name, row["queue"], float(row["size_mb"]), float(row["load_s"]))
        else:
            known = models.setdefault(row["model"], Model(row["model"], row["queue"], 0.0, 0.0))
            made.append(
                Submission(
                    row["at"], row["tenant"], known, row["jobs"], row["estimated_s"], row["real_s"], row["priority"]
                )
            )
    devices += [max(devices, key=devices.count)] * more
    begin = min(one.at for one in made)
    return Scenario(
        tuple(devices), tuple(sorted((replace(one, at=one.at - begin) for one in made), key=lambda one: one.at))
    )


def read(path: Path, more: int = 0) -> Scenario:
    """`recorded`, from a file."""
    with path.open(encoding="utf-8") as lines:
        return recorded(lines, more)
