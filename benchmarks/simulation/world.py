"""A cluster in virtual time: devices claim by `shared.scheduling`, load by worth, work, and sometimes fail."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from benchmarks.simulation.demand import Device, Model, Scenario, Submission
from shared.scheduling import Account, Bounds, Memory, ModelKey, Standing, Waiting, choose, fill, standing, window
from workers.worth import Worth

Policy = Literal["ours", "arrival"]
#: seconds after which a keeper rings for what is ready, and jobs that one message wakes a worker for
RING_S, RUNG = 2.0, 64
#: a whole microbatch
LEAST = 32
TASK = "task"


@dataclass(slots=True)
class Lane:
    """Jobs of one model and priority, by tenant."""

    number: int
    model: Model
    priority: int
    #: [submission, jobs left]
    queued: dict[str, deque[list]] = field(default_factory=dict)
    ready: int = 0
    opened: float = 0.0
    claimed: float = 0.0

    @property
    def since(self) -> float:
        """Since when some of it waits while none of it is claimed."""
        return max(self.opened, self.claimed)

    @property
    def each_s(self) -> float:
        """What one job that is ready is estimated at."""
        return next(portions[0][0].estimated_s for portions in self.queued.values() if portions)


@dataclass(slots=True)
class Worker:
    """One device and what it has in memory."""

    device: Device
    number: int
    resident: OrderedDict[ModelKey, float] = field(default_factory=OrderedDict)
    worth: Worth = field(default_factory=Worth)
    current: int | None = None
    #: raised when it fails: what it was doing then comes to nothing
    life: int = 0
    held: list[tuple[Lane, str, list, int]] = field(default_factory=list)


@dataclass(slots=True)
class Seen:
    """What came of a run."""

    finished_at: float = 0.0
    jobs: int = 0
    work_s: float = 0.0
    load_s: float = 0.0
    loads: int = 0
    failures: int = 0
    #: seconds that a lane had waited when it was served, where its turn had come
    waits: list[float] = field(default_factory=list)
    #: seconds from a job's arrival to its claim, and how many waited for so long
    job_waits: list[tuple[float, int]] = field(default_factory=list)
    #: seconds between the most and the least served of those who wait, and the most that fairness allows
    apart: list[tuple[float, float, float]] = field(default_factory=list)
    #: (lanes that wait, seconds that the decision took here)
    decisions: list[tuple[int, float]] = field(default_factory=list)
    #: work that was done until then, at each decision
    progress: list[tuple[float, float]] = field(default_factory=list)


class World:
    """One run of a scenario. `arrival` serves lanes in order of arrival and drops the least recently used model."""

    def __init__(self, scenario: Scenario, *, seed: int, policy: Policy, bound_s: float, failures_h: float) -> None:
        self._chance = random.Random(seed)
        self._policy, self._bound_s, self._failures_h = policy, bound_s, failures_h
        self._workers = [Worker(device, number) for number, device in enumerate(scenario.devices)]
        self._submissions = scenario.submissions
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._accounts: dict[tuple[str, int], dict[str, Account]] = {}
        self._waiting: Counter[tuple[str, int, str]] = Counter()
        self._idle: dict[int, Worker] = {}
        #: numbers of the workers that have a model in memory
        self._holding: dict[str, set[int]] = {}
        self._sharing = Counter(queue for device in scenario.devices for queue in device.queues)
        self._load_s = {(TASK, one.model.name): one.model.load_s for one in scenario.submissions}
        self._events: list[tuple[float, int, str, object]] = []
        self._serial = count()
        self._left = sum(one.jobs for one in scenario.submissions)
        self.clock = 0.0
        self.seen = Seen()
        self.longest_window_s = 0.0

    def run(self) -> Seen:
        """Until the last job is done."""
        for one in self._submissions:
            self._at(one.at, "submit", one)
        for worker in self._workers:
            self._idle[worker.number] = worker
            if self._failures_h:
                self._at(self._chance.expovariate(self._failures_h / 3600), "fail", worker)
        self._at(RING_S, "ring", None)
        while self._left:
            self.clock, _, what, whom = heapq.heappop(self._events)
            getattr(self, f"_{what}")(whom)
        self.seen.finished_at = self.clock
        return self.seen

    def _at(self, when: float, what: str, whom: object) -> None:
        heapq.heappush(self._events, (when, next(self._serial), what, whom))

    # --- what happens ---

    def _submit(self, one: Submission) -> None:
        key = (one.model.name, one.priority)
        lane = self._lanes.setdefault(key, Lane(len(self._lanes), one.model, one.priority))
        self._queue(lane, one.tenant, [one, one.jobs], front=False)
        self._wake(one.model.queue, -(-one.jobs // RUNG))

    def _queue(self, lane: Lane, tenant: str, portion: list, *, front: bool) -> None:
        if not lane.ready:
            lane.opened = self.clock
        waits = lane.queued.setdefault(tenant, deque())
        (waits.appendleft if front else waits.append)(portion)
        lane.ready += portion[1]
        self._waiting[lane.model.queue, lane.priority, tenant] += portion[1]

    def _wake(self, queue: str, most: int) -> None:
        able = [number for number, worker in self._idle.items() if queue in worker.device.queues]
        for number in self._chance.sample(able, min(most, len(able))):
            self._drain(self._idle.pop(number))

    def _ring(self, _: object) -> None:
        for queue in sorted({lane.model.queue for lane in self._lanes.values() if lane.ready}):
            ready = sum(lane.ready for lane in self._lanes.values() if lane.model.queue == queue)
            self._wake(queue, -(-ready // RUNG))
        self._at(self.clock + RING_S, "ring", None)

    def _fail(self, worker: Worker) -> None:
        """Its jobs go back, uncharged, and it is away for a while."""
        self.seen.failures += 1
        worker.life += 1
        for lane, tenant, portion, n in worker.held:
            self._queue(lane, tenant, [portion[0], n], front=True)
            self._correct(lane, tenant, -n * portion[0].estimated_s, 0.0)
        worker.held, worker.current = [], None
        for _, model in worker.resident:
            self._holding[model].discard(worker.number)
        worker.resident.clear()
        self._idle.pop(worker.number, None)
        away_s = self._chance.expovariate(1 / 120)
        self._at(self.clock + away_s, "done", (worker, worker.life))
        self._at(self.clock + away_s + self._chance.expovariate(self._failures_h / 3600), "fail", worker)

    def _done(self, whom: tuple[Worker, int]) -> None:
        worker, life = whom
        if worker.life != life:
            return
        for lane, tenant, portion, n in worker.held:
            spent = n * portion[0].real_s / worker.device.speed
            self._correct(lane, tenant, -n * portion[0].estimated_s, spent)
            self.seen.work_s += spent
            self.seen.jobs += n
            self._left -= n
        worker.held = []
        self.seen.progress.append((self.clock, self.seen.work_s))
        self._drain(worker)

    def _correct(self, lane: Lane, tenant: str, claimed_s: float, served_s: float) -> None:
        accounts = self._accounts[lane.model.queue, lane.priority]
        known = accounts[tenant]
        accounts[tenant] = Account(known.served_s + served_s, max(0.0, known.claimed_s + claimed_s), known.active)

    # --- what a worker does ---

    def _drain(self, worker: Worker) -> None:
        began = time.perf_counter()
        waiting, standings = self._look(worker)
        found = self._choose(worker, waiting)
        self.seen.decisions.append((len(waiting), time.perf_counter() - began))
        if found is None:
            self._idle[worker.number] = worker
            return
        lane = next(lane for lane in self._lanes.values() if lane.number == found.lane_id)
        seen = standings[found.queue, found.priority]
        if len(seen.virtual) > 1:
            spread = max(seen.virtual.values()) - min(seen.virtual.values())
            self.seen.apart.append((spread, 0.0, self.clock))
        self.seen.waits.append(self.clock - found.since)
        everything = sum(one.ready for one in waiting if (one.queue, one.priority) == (found.queue, found.priority))
        load_s = self._load(worker, lane.model)
        self._take(
            worker, lane, found, seen, Bounds(window(everything, self._sharing[found.queue], 1024), load_s, LEAST)
        )
        worker.current = lane.number
        work_s = sum(n * portion[0].real_s for _, _, portion, n in worker.held) / worker.device.speed
        estimated_s = sum(n * portion[0].estimated_s for _, _, portion, n in worker.held)
        self.longest_window_s = max(self.longest_window_s, work_s, estimated_s)
        self._at(self.clock + load_s + work_s, "done", (worker, worker.life))

    def _look(self, worker: Worker) -> tuple[list[Waiting], dict[tuple[str, int], Standing]]:
        ready: dict[tuple[str, int], set[str]] = {}
        for (queue, priority, tenant), n in self._waiting.items():
            if n and queue in worker.device.queues:
                ready.setdefault((queue, priority), set()).add(tenant)
        standings = {}
        for share, tenants in ready.items():
            accounts = self._accounts.setdefault(share, {})
            last = max((one.served_s + one.claimed_s for one in accounts.values()), default=0.0)
            standings[share] = standing(accounts, frozenset(tenants), last=last)
        waiting = []
        for lane in self._lanes.values():
            if lane.ready and lane.model.queue in worker.device.queues:
                virtual = standings[lane.model.queue, lane.priority].virtual
                tenants = {name: virtual[name] for name, portions in lane.queued.items() if portions}
                waiting.append(
                    Waiting(
                        lane.number, lane.model.queue, TASK, lane.model.name, lane.priority, lane.since, lane.ready,
                        tenants, self._holders(lane, worker), lane.ready * lane.each_s / worker.device.speed,
                    )
                )  # fmt: skip
        return waiting, standings

    def _holders(self, lane: Lane, worker: Worker) -> int:
        """As `workers.look` tells it: others that have the model, all of them at work."""
        others = self._holding.get(lane.model.name, set()) - {worker.number}
        return 0 if any(number in self._idle for number in others) else len(others)

    def _choose(self, worker: Worker, waiting: list[Waiting]) -> Waiting | None:
        if self._policy == "arrival":
            return min(waiting, key=lambda lane: (-lane.priority, self._oldest(lane)), default=None)
        since = {key: self.clock - at for key, at in worker.resident.items()}
        used = sum(self._size(key) for key in worker.resident)
        steady = all(worker.worth.in_steady_use(key, self.clock, 6 * self._load_s[key]) for key in worker.resident)
        tight = steady and used > worker.device.room_mb / 2
        return choose(
            waiting, Memory(since, self._load_s, worker.current, tight), self.clock, age_bound_s=self._bound_s
        )

    def _oldest(self, waiting: Waiting) -> float:
        lane = self._lanes[waiting.model, waiting.priority]
        return min(portions[0][0].at for portions in lane.queued.values() if portions)

    def _size(self, key: ModelKey) -> float:
        return self._lanes[key[1], 0].model.size_mb if (key[1], 0) in self._lanes else 0.0

    def _load(self, worker: Worker, model: Model) -> float:
        key = (TASK, model.name)
        load_s = 0.0
        if key not in worker.resident:
            while worker.resident and model.size_mb + sum(map(self._size, worker.resident)) > worker.device.room_mb:
                victim = next(iter(worker.resident))
                if self._policy == "ours":
                    victim = worker.worth.least(worker.resident, ())
                worker.worth.dropped(victim)
                del worker.resident[victim]
                self._holding[victim[1]].discard(worker.number)
            load_s = model.load_s
            self.seen.loads += 1
            self.seen.load_s += load_s
            worker.resident[key] = self.clock + load_s
            self._holding.setdefault(model.name, set()).add(worker.number)
        worker.resident.move_to_end(key)
        worker.worth.used(key, self.clock, load_s=model.load_s, size_mb=model.size_mb)
        return load_s

    def _take(self, worker: Worker, lane: Lane, found: Waiting, seen: Standing, bounds: Bounds) -> None:
        tenants = found.tenants if self._policy == "ours" else {name: 0.0 for name in lane.queued if lane.queued[name]}
        taken = fill(tenants, {name: _each(lane.queued[name]) for name in tenants}, bounds)
        accounts = self._accounts[found.queue, found.priority]
        for name in seen.back:
            known = accounts.get(name, Account(0.0, 0.0, active=False))
            accounts[name] = Account(max(known.served_s, seen.floor), known.claimed_s, active=True)
        for name in seen.gone:
            accounts[name] = Account(accounts[name].served_s, accounts[name].claimed_s, active=False)
        for name, n in Counter(taken.values()).items():
            for portion, some in _cut(lane.queued[name], n):
                worker.held.append((lane, name, portion, some))
                self.seen.job_waits.append((self.clock - portion[0].at, some))
                self._correct(lane, name, some * portion[0].estimated_s, 0.0)
            self._waiting[found.queue, found.priority, name] -= n
            lane.ready -= n
        lane.claimed = self.clock


def _each(portions: deque[list]) -> Iterator[tuple[str, float]]:
    for portion in portions:
        one, n = portion
        for k in range(n):
            yield f"{id(portion)}-{k}", one.estimated_s


def _cut(portions: deque[list], n: int) -> Iterator[tuple[list, int]]:
    while n:
        first = portions[0]
        some = min(n, first[1])
        yield [first[0], some], some
        first[1] -= some
        n -= some
        if not first[1]:
            portions.popleft()
