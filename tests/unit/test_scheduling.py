"""The scheduler is a pure function: properties over many random situations and histories."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from shared.scheduling import (
    EARNED,
    LEFT_LOADS,
    LEFT_WORTH,
    LONGEST_S,
    SWAP_PATIENCE,
    TURN_S,
    Account,
    Bounds,
    Memory,
    Waiting,
    choose,
    fill,
    standing,
    window,
)

CLOCK = 1000.0
BOUND = 30.0


def lane(
    number: int,
    *,
    model: str = "",
    since: float = CLOCK,
    priority: int = 0,
    queue: str = "gpu",
    holders: int = 0,
    work_s: float = 0.0,
    **served: float,
) -> Waiting:
    return Waiting(number, queue, "task", model, priority, since, 10, served or {"ada": 0.0}, holders, work_s)


def memory(
    *resident: str, current: int | None = None, fresh_s: float = 1e9, load_s: float = 1.0, tight: bool = False
) -> Memory:
    known = {("task", name): load_s for name in ("a", "b", "c", "d")}
    return Memory({("task", name): fresh_s for name in resident}, known, current, tight)


def chosen(waiting: list[Waiting], what: Memory, now: float = CLOCK) -> int | None:
    found = choose(waiting, what, now, age_bound_s=BOUND)
    return None if found is None else found.lane_id


def situations(n: int = 500) -> list[tuple[list[Waiting], Memory]]:
    chance = random.Random(7)
    made = []
    for _ in range(n):
        lanes = [
            lane(
                number, model=chance.choice(["", "a", "b", "c"]), since=CLOCK - chance.choice([0, 1, 10, 29, 31, 100]),
                priority=chance.choice([-5, 0, 0, 7]), queue=chance.choice(["gpu", "gpu", "cpu"]),
                holders=chance.choice([0, 0, 1, 5]), work_s=chance.choice([0.1, 10.0, 1000.0]),
                **{name: chance.choice([0.0, 1.0, 20.0, 500.0]) for name in chance.sample(["ada", "bob", "eve"], 2)},
            )
            for number in range(chance.randint(1, 6))
        ]  # fmt: skip
        current = chance.choice([None, *range(6)])
        what = memory(
            *chance.sample(["a", "b", "c"], chance.randint(0, 2)), current=current, fresh_s=chance.choice([1.0, 1e9]),
            load_s=chance.choice([0.1, 8.0]), tight=chance.random() < 0.3,
        )  # fmt: skip
        made.append((lanes, what))
    return made


# --- one choice ---


def test_nothing_waits_nothing_is_chosen() -> None:
    assert chosen([], memory("a")) is None


def test_the_choice_does_not_depend_on_the_order_of_the_rows() -> None:
    for waiting, what in situations():
        assert chosen(waiting[::-1], what) == chosen(waiting, what)


def test_while_a_higher_priority_waits_nothing_lower_is_chosen() -> None:
    for waiting, what in situations():
        number = chosen(waiting, what)
        top = max(one.priority for one in waiting)
        assert number is None or waiting[number].priority == top


def test_nobody_is_served_who_is_more_than_a_turn_or_a_load_ahead_of_the_least_served() -> None:
    for waiting, what in situations():
        number = chosen(waiting, what)
        if number is None:
            continue
        # But those that others, who are at work, have the model of: they may be left to them for two loads.
        peers = [
            one for one in waiting if (one.priority, one.queue) == (waiting[number].priority, waiting[number].queue)
            and (one is waiting[number] or not one.holders or CLOCK - one.since >= LEFT_LOADS * 8.0)
        ]  # fmt: skip
        least = min(min(one.tenants.values()) for one in peers)
        assert min(waiting[number].tenants.values()) - least <= max(TURN_S, EARNED * 8.0)


def test_affinity_never_goes_beyond_the_age_bound() -> None:
    """Whoever has waited for so long is served now, unless a model that was just loaded has not worked yet."""
    for waiting, what in situations():
        number = chosen(waiting, what)
        late = [one for one in least_served(waiting) if CLOCK - one.since >= BOUND]
        if late and number != what.current:
            assert number is not None
            assert waiting[number].since <= min(one.since for one in late)


def least_served(waiting: list[Waiting]) -> list[Waiting]:
    """Lanes whose turn it is by priority and fairness, whatever a turn is."""
    top = [one for one in waiting if one.priority == max(other.priority for other in waiting)]
    served = {one: min(one.tenants.values()) for one in top}
    return [one for one in top if served[one] == min(served[peer] for peer in top if peer.queue == one.queue)]


def test_a_model_in_memory_is_preferred_until_another_has_waited_too_long() -> None:
    waits = lane(1, model="b", since=CLOCK - 10)
    assert chosen([lane(0, model="a"), waits], memory("a")) == 0
    assert chosen([lane(0, model="a"), waits], memory("a"), CLOCK + 20) == 1
    assert chosen([lane(0, model="a"), waits], memory()) == 1, "none is at hand: the oldest"


def test_a_lane_is_taken_up_early_enough_to_be_served_within_the_bound() -> None:
    """Given three lanes whose loading takes 4 s each; then the first of them does not wait until the bound is near."""
    others = [lane(number, model=model, since=CLOCK) for number, model in ((1, "b"), (2, "c"), (3, "d"))]
    what = memory("a", current=0, load_s=4.0)
    assert chosen([lane(0, model="a", since=CLOCK + 6), *others], what, CLOCK + 7) == 0
    assert chosen([lane(0, model="a", since=CLOCK + 7), *others], what, CLOCK + 8) == 1


def test_a_model_that_was_just_loaded_earns_its_load_before_another_is_loaded() -> None:
    """Given more models than can take turns within the bound: they are not loaded for a window each."""
    late = lane(1, model="b", since=CLOCK - 100)
    mine = lane(0, model="a", since=CLOCK)
    assert chosen([mine, late], memory("a", current=0, fresh_s=3.0, load_s=8.0)) == 0
    assert chosen([mine, late], memory("a", current=0, fresh_s=EARNED * 8.0, load_s=8.0)) == 1


def test_a_worker_stays_with_a_lane_for_a_turn_and_no_longer() -> None:
    """Else a stream of jobs would end with every claim."""
    current, other = lane(0, model="a", ada=4.0), lane(1, model="b", since=CLOCK, bob=0.0)
    what = memory("a", "b", current=0)
    assert chosen([current, other], what, CLOCK + TURN_S) == 0
    assert chosen([current, other], what, CLOCK + TURN_S + 0.1) == 1
    ahead = lane(0, model="a", ada=TURN_S + 0.1)
    assert chosen([ahead, other], what) == 1, "fairness comes first"


def test_a_model_in_steady_use_is_not_dropped_for_a_lane_that_has_not_waited_long() -> None:
    """And with room, or where nobody uses what would be dropped, nothing lingers."""
    waits = lane(1, model="b", since=CLOCK)
    assert chosen([waits], memory("a", tight=False)) == 1
    assert chosen([waits], memory("a", tight=True)) is None
    assert chosen([waits], memory("a", tight=True), CLOCK + SWAP_PATIENCE) == 1
    assert chosen([waits], memory("a", tight=True, load_s=60.0), CLOCK + BOUND) == 1
    low = lane(2, priority=-1)
    assert chosen([waits, low], memory("a", tight=True)) == 1, "nobody idles while something else could be done"


# --- what other workers have ---


def test_a_lane_is_left_to_a_busy_worker_that_has_its_model_for_as_long_as_loading_it_twice_takes() -> None:
    held = lane(0, model="a", since=CLOCK, holders=1)
    assert chosen([held], memory(load_s=5.0)) is None
    assert chosen([held], memory(load_s=5.0), CLOCK + LEFT_LOADS * 5.0 - 0.1) is None
    assert chosen([held], memory(load_s=5.0), CLOCK + LEFT_LOADS * 5.0) == 0
    assert chosen([held], memory("a", load_s=5.0)) == 0, "who has it too takes it at once"
    assert chosen([replace(held, holders=0)], memory(load_s=5.0)) == 0, "and where nobody at work has it, anybody"


def test_a_second_worker_loads_a_model_whose_jobs_are_too_many_for_those_who_have_it() -> None:
    def left(work_s: float, holders: int) -> bool:
        return chosen([lane(0, model="a", holders=holders, work_s=work_s)], memory(load_s=5.0)) is None

    assert left(LEFT_WORTH * 5.0, holders=1)
    assert not left(LEFT_WORTH * 5.0 + 1, holders=1)
    assert left(3 * LEFT_WORTH * 5.0, holders=3)
    assert not left(3 * LEFT_WORTH * 5.0 + 1, holders=3)


def test_what_is_left_to_others_holds_nobody_back_from_other_work() -> None:
    """Given the least served tenant's lane, which is left; then another tenant's is served, loading or not."""
    held = lane(0, model="a", holders=1, ada=0.0)
    ahead = lane(1, model="b", bob=1000.0)
    assert chosen([held, ahead], memory("b", load_s=5.0)) == 1
    assert chosen([held, ahead], memory(load_s=5.0)) == 1
    assert chosen([held, ahead], memory("b", load_s=5.0), CLOCK + 10) == 0, "until it has waited for long enough"


def test_for_a_load_nobody_idles_with_lower_work_at_hand_nor_takes_it_first() -> None:
    held, low = lane(0, model="a", holders=1), lane(1, model="b", priority=-1)
    assert chosen([held, low], memory("b", load_s=5.0)) == 0


def test_no_lane_starves_behind_a_worker_that_is_stuck_and_none_is_left_beyond_the_bound() -> None:
    """Given workers that have the model and never claim; then another one loads it, early enough where that can be."""
    chance = random.Random(11)
    for _ in range(500):
        load_s = chance.choice([0.1, 1.0, 5.0, 12.0, 25.0, 60.0])
        lanes = [
            lane(number, model=model, since=CLOCK - chance.uniform(0, 40), holders=chance.randint(1, 9))
            for number, model in enumerate(chance.sample(["a", "b", "c", "d"], chance.randint(1, 4)))
        ]
        waited = CLOCK - min(one.since for one in lanes)
        number = chosen(lanes, memory(load_s=load_s))
        if waited >= min(LEFT_LOADS * load_s, max(BOUND / 2, BOUND - load_s - 1)):
            assert number is not None
            assert lanes[number].since == min(one.since for one in lanes)
        else:
            assert number is None


def test_of_a_lane_only_those_are_served_whose_turn_it_is() -> None:
    """Given a lane chosen for a tenant with few jobs; then another one of it, long over-served, does not ride along."""
    found = choose([lane(0, ada=0.0, bob=TURN_S, eve=TURN_S + 1)], memory(), CLOCK, age_bound_s=BOUND)
    assert found is not None
    assert found.tenants == {"ada": 0.0, "bob": TURN_S}


# --- one window ---


@pytest.mark.parametrize("ready", [1, 3, 20, 1000])
@pytest.mark.parametrize("workers", [0, 1, 8, 64])
def test_a_window_is_a_fair_share_of_what_is_ready(ready: int, workers: int) -> None:
    size = window(ready, workers, 64)
    assert 1 <= size <= 64
    assert size * max(1, workers) >= min(ready, 64), "together they leave nothing lying"
    assert size - 1 < ready / max(1, workers), "nobody hoards"


def test_a_lone_worker_takes_all_and_eight_take_three_each() -> None:
    assert window(20, 1, 1024) == 20
    assert window(20, 8, 1024) == 3
    assert window(0, 1, 1024) == 1


def queue(name: str, n: int, cost: float) -> Iterator[tuple[str, float]]:
    return ((f"{name}-{k}", cost) for k in range(n))


def test_a_window_is_worth_so_many_seconds_but_never_less_than_a_microbatch_nor_more_than_the_longest() -> None:
    def size(cost: float, **bounds: float) -> int:
        made = Bounds(**{"limit": 1024, "least": 32, "window_s": 1.0, **bounds})  # type: ignore[arg-type]
        return len(fill({"ada": 0.0}, {"ada": queue("ada", 5000, cost)}, made))

    assert size(1e-4) == 1024
    assert size(0.0125) == 80
    assert size(5.0) == 32
    assert size(100.0) == LONGEST_S // 100
    assert size(10 * LONGEST_S) == 1
    assert size(5.0, limit=3) == 3
    assert size(0.5, limit=3, load_s=8.0) == 16, "a load has to be worth it"
    assert size(0.01, limit=3, load_s=8.0) == 800
    assert size(10.0, limit=3, load_s=8.0) == 3


def test_a_window_brings_tenants_level() -> None:
    """Seven seconds to share: the least served catches up first, then both get as much."""
    got = fill(
        {"ada": 0.0, "bob": 3.0},
        {"ada": queue("ada", 99, 0.5), "bob": queue("bob", 99, 0.25)},
        Bounds(99, window_s=7.0),
    )
    taken = Counter(got.values())
    assert taken["ada"] * 0.5 == pytest.approx(5.0, abs=0.5)
    assert taken["bob"] * 0.25 == pytest.approx(2.0, abs=0.5)
    assert [job for job, name in got.items() if name == "ada"] == [f"ada-{k}" for k in range(taken["ada"])], "in order"


def test_what_one_tenant_leaves_of_a_window_the_others_get() -> None:
    got = fill(
        {"ada": 0.0, "bob": 0.0}, {"ada": queue("ada", 3, 1.0), "bob": queue("bob", 99, 1.0)}, Bounds(99, window_s=20.0)
    )
    assert Counter(got.values()) == {"ada": 3, "bob": 17}
    assert fill({"ada": 0.0}, {"ada": queue("ada", 0, 1.0)}, Bounds(9)) == {}


# --- who stands where ---


def test_whoever_comes_back_begins_where_the_least_served_stands() -> None:
    accounts = {
        "ada": Account(100.0, 8.0, active=True), "bob": Account(90.0, 0.0, active=True),
        "eve": Account(10.0, 0.0, active=False), "dan": Account(500.0, 2.0, active=False),
        "out": Account(5.0, 0.0, active=True),
    }  # fmt: skip
    seen = standing(accounts, frozenset({"ada", "bob", "eve", "dan", "new"}), last=7777.0)
    assert seen.virtual == {"ada": 108.0, "bob": 90.0, "eve": 90.0, "dan": 502.0, "new": 90.0}
    assert (seen.floor, seen.back, seen.gone) == (90.0, {"eve", "dan", "new"}, {"out"})


def test_where_nobody_waited_all_begin_at_the_most_that_anybody_has() -> None:
    accounts = {"ada": Account(100.0, 0.0, active=False), "bob": Account(40.0, 0.0, active=False)}
    assert standing(accounts, frozenset({"bob", "new"}), last=100.0).virtual == {"bob": 100.0, "new": 100.0}


# --- histories ---


@dataclass
class World:
    """One worker and tenants with a lane each or one for all, in virtual time; estimates are wrong by up to twice."""

    chance: random.Random
    lanes: dict[int, str]
    room: int
    load_s: float
    clock: float = CLOCK
    #: jobs by (lane, tenant)
    queued: Counter[tuple[int, str]] = field(default_factory=Counter)
    accounts: dict[str, Account] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    resident: dict[str, float] = field(default_factory=dict)
    current: int | None = None
    #: seconds really served
    got: Counter[str] = field(default_factory=Counter)
    loads: int = 0
    worst_wait: float = 0.0
    longest_window: float = 0.0

    def submit(self, number: int, tenant: str, n: int) -> None:
        if not any(self.queued[number, name] for name in self.accounts | {tenant: None}):
            self.since[number] = self.clock
        self.queued[number, tenant] += n

    def step(self, cost: float = 0.5) -> int | None:
        """Choose, claim, run to the end; returns the lane."""
        ready = frozenset(name for (_, name), n in self.queued.items() if n)
        last = max((one.served_s for one in self.accounts.values()), default=0.0)
        seen = standing(self.accounts, ready, last=last)
        for name in seen.gone:
            self.accounts[name] = Account(self.accounts[name].served_s, 0.0, active=False)
        waiting = []
        for number, model in self.lanes.items():
            mine = {name: seen.virtual[name] for (k, name), n in self.queued.items() if k == number and n}
            if mine:
                waiting.append(Waiting(number, "gpu", "task", model, 0, self.since[number], 1, mine))
        since = {("task", model): self.clock - at for model, at in self.resident.items()}
        what = Memory(since, {("task", model): self.load_s for model in self.lanes.values()}, self.current)
        found = choose(waiting, what, self.clock, age_bound_s=BOUND)
        if found is None:
            return None
        self._load(found.model)
        self.worst_wait = max(self.worst_wait, self.clock - found.since)
        jobs = {name: queue(name, self.queued[found.lane_id, name], cost) for name in found.tenants}
        taken = Counter(fill(found.tenants, jobs, Bounds(1024, least=4, window_s=2.0)).values())
        spent = 0.0
        for name in seen.back:
            self.accounts[name] = Account(max(seen.floor, seen.virtual[name]), 0.0, active=True)
        for name, n in taken.items():
            took = n * cost * self.chance.uniform(0.5, 2)
            self.queued[found.lane_id, name] -= n
            self.accounts[name] = Account(self.accounts[name].served_s + took, 0.0, active=True)
            self.got[name] += took
            spent += took
        self.clock += spent
        self.since[found.lane_id], self.current = self.clock - spent, found.lane_id
        self.longest_window = max(self.longest_window, spent)
        return found.lane_id

    def _load(self, model: str) -> None:
        if model and model not in self.resident:
            if len(self.resident) >= self.room:
                self.resident.pop(min(self.resident, key=lambda name: self.resident[name]))
            self.clock += self.load_s
            self.loads += 1
            self.resident[model] = self.clock


@pytest.mark.parametrize("seed", range(20))
def test_backlogged_tenants_of_one_lane_stay_within_two_windows_of_each_other(seed: int) -> None:
    chance = random.Random(seed)
    names = [f"tenant-{k}" for k in range(chance.randint(2, 8))]
    world = World(chance, {0: "a"}, room=1, load_s=1.0)
    for name in names:
        world.submit(0, name, 10_000)
    for _ in range(200):
        world.step(chance.choice([0.1, 0.5, 3.0]))
        served = [world.got[name] for name in names]
        assert max(served) - min(served) <= 2 * world.longest_window
    assert min(world.got.values()) > 0


@pytest.mark.parametrize("seed", range(20))
def test_backlogged_tenants_with_a_model_each_stay_within_a_turn_and_two_windows(seed: int) -> None:
    """Where the memory holds one model and loading takes longer than a turn, a turn is as long as a load."""
    chance = random.Random(seed)
    load_s = chance.choice([0.5, 8.0])
    world = World(chance, {k: f"model-{k}" for k in range(chance.randint(2, 5))}, chance.randint(1, 2), load_s)
    for number in world.lanes:
        world.submit(number, f"tenant-{number}", 10_000)
    for _ in range(300):
        world.step()
        served = [world.got[f"tenant-{number}"] for number in world.lanes]
        assert max(served) - min(served) <= max(TURN_S, EARNED * load_s) + 2 * world.longest_window
    assert world.loads * load_s < 0.6 * sum(world.got.values()), "it does not load all the time"


@pytest.mark.parametrize("seed", range(20))
def test_a_tenant_that_comes_and_goes_gets_no_more_than_its_share_while_it_is_there(seed: int) -> None:
    chance = random.Random(seed)
    world = World(chance, {0: "a"}, room=1, load_s=1.0)
    world.submit(0, "always", 100_000)
    for _ in range(12):
        for _ in range(chance.randint(1, 20)):
            world.step()
        before = Counter(world.got)
        world.submit(0, "guest", chance.randint(20, 200))
        while world.queued[0, "guest"]:
            world.step()
        guest, host = world.got["guest"] - before["guest"], world.got["always"] - before["always"]
        assert guest <= host + 2 * world.longest_window, "no credit from its absence"
        assert host <= guest + 2 * world.longest_window, "and no debt"


@pytest.mark.parametrize("seed", range(20))
def test_no_lane_starves_and_none_waits_beyond_the_bound_where_that_is_possible(seed: int) -> None:
    """Given more models than fit, all of one tenant, with work for ever."""
    chance = random.Random(seed)
    lanes = {k: f"model-{k}" for k in range(chance.randint(3, 5))}
    world = World(chance, lanes, room=2, load_s=chance.choice([0.2, 1.0]))
    for number in lanes:
        world.submit(number, "ada", 100_000)
    served: Counter[int | None] = Counter(world.step() for _ in range(400))
    assert set(served) == set(lanes)
    assert world.worst_wait <= BOUND
    # In turns of that length there is no need to load more often.
    assert world.loads <= 2 * len(lanes) * (1 + (world.clock - CLOCK) / (BOUND / 4))


@pytest.mark.parametrize("models", [20, 100])
def test_with_far_too_many_models_for_the_bound_each_still_gets_its_turn_and_most_of_the_time_is_work(
    models: int,
) -> None:
    world = World(random.Random(1), {k: f"model-{k}" for k in range(models)}, room=2, load_s=8.0)
    for number in world.lanes:
        world.submit(number, "ada", 100_000)
    served = Counter(world.step() for _ in range(models * 30))
    assert set(served) == set(world.lanes)
    assert sum(world.got.values()) >= 0.6 * (world.clock - CLOCK)


def test_fifty_jobs_behind_another_tenants_hundred_thousand_take_about_twice_as_long_as_alone() -> None:
    def time(flood: int) -> float:
        world = World(random.Random(5), {0: "a"}, room=1, load_s=1.0, resident={"a": 0.0})
        if flood:
            world.submit(0, "flood", flood)
            for _ in range(100):
                world.step(0.05)
        begun = world.clock
        world.submit(0, "ada", 50)
        while world.queued[0, "ada"]:
            world.step(0.05)
        return world.clock - begun

    assert time(100_000) <= 2.5 * time(0)


def test_whoever_cancels_and_comes_back_owes_nothing_for_what_never_ran() -> None:
    world = World(random.Random(5), {0: "a"}, room=1, load_s=1.0)
    world.submit(0, "ada", 100_000)
    world.submit(0, "bob", 100_000)
    world.step()
    world.queued[0, "bob"] = 0
    for _ in range(50):
        world.step()
    before = Counter(world.got)
    world.submit(0, "bob", 10)
    world.step()
    assert world.got["bob"] - before["bob"] >= 0.5, "it has its part of the very next window"
