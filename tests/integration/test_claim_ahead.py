"""The device never waits for SQL or for the storage: windows are claimed, run and stored beside each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import pytest
from cluster import until
from sqlalchemy import select

from aigc import Batch, Client
from shared import jobs as transitions
from shared.database import Database
from shared.settings import Settings
from shared.tables import jobs as rows
from workers import claims, residency
from workers.costs import Costs
from workers.generators import Device, Done, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.pool import PASSED_OVER, Pool
from workers.worker import Worker


class Gated(Generator):
    """Each microbatch waits until the test lets it go on; jobs meet their like only, told by `message`."""

    met: ClassVar[list[list[Any]]]
    gate: ClassVar[threading.Event]

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        return cls()

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        kinds: dict[Any, list[Work]] = {}
        for job in jobs:
            kinds.setdefault(job.params.message, []).append(job)
        return [alike[at : at + limit] for alike in kinds.values() for at in range(0, len(alike), limit)]

    def shape(self, jobs: Sequence[Work]) -> Any:
        return jobs[0].params.message

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        type(self).met.append([job.params.message for job in jobs])
        while not type(self).gate.wait(0.01):
            run.step([job.job_id for job in jobs], 1, 2)
        for job in jobs:
            yield Done(job.job_id, [Output("text/plain", b"made")])


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> type[Gated]:
    Gated.met, Gated.gate = [], threading.Event()
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Gated)
    return Gated


@pytest.fixture
def client(settings: Settings) -> Client:
    return Client(settings)


@pytest.fixture
def worker(settings: Settings, gated: type[Gated], monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    # Which size is worth it is another matter, and what a job costs too: a claim takes a microbatch of these.
    monkeypatch.setattr(Costs, "suggested", lambda self, kind, most: most)
    monkeypatch.setattr(Costs, "seconds", lambda self, task, model, cost: cost)
    made = Worker(settings.model_copy(update={"microbatch": 8, "grace_s": 3.0}), device="cpu", queues=["cpu"])
    yield made
    made.close()


@pytest.fixture
def draining(worker: Worker, gated: type[Gated]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=worker.drain)
    yield thread
    worker.ask_to_stop(0)
    gated.gate.set()
    thread.join(30)
    assert not thread.is_alive()


def submitted(client: Client, n: int, kinds: int = 1) -> Batch:
    """Jobs that are worth a second each, so that a claim takes one microbatch of them."""
    lines = [{"params": {"message": k % kinds, "step_s": 1.0}} for k in range(n)]
    return client.submit(lines, task="echo")


def running(batch: Batch) -> int:
    return batch.status().counts["running"]


def test_while_the_device_works_the_next_window_is_claimed(
    client: Client, gated: type[Gated], draining: threading.Thread
) -> None:
    batch = submitted(client, 40)
    draining.start()
    until(lambda: running(batch) == 16 and gated.met, within_s=20, what="the next window")
    assert len(gated.met) == 1, "the first is still in the model"
    gated.gate.set()
    draining.join(30)
    assert batch.status().counts["succeeded"] == 40
    assert [len(met) for met in gated.met] == [8] * 5


def test_a_lone_job_of_an_idle_worker_enters_the_model_with_its_claim(
    client: Client, worker: Worker, gated: type[Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[int] = []
    enter = transitions.enter

    def counted(db: Database, session: str, held: Sequence[tuple[str, int]], company: int, **more: Any) -> set[str]:
        entries.append(company)
        return enter(db, session, held, company, **more)

    monkeypatch.setattr(transitions, "enter", counted)
    gated.gate.set()
    for n, transactions in ((1, []), (1, []), (2, [2])):
        batch = submitted(client, n)
        worker.drain()
        assert batch.status().counts["succeeded"] == n
        assert entries == transactions


def test_jobs_that_are_left_alone_for_a_while_are_looked_at_again_without_anybody_ringing(
    client: Client, worker: Worker, gated: type[Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    choose = claims.choose

    def not_yet(waiting: Any, *rest: Any, **more: Any) -> Any:
        looks.append(len(waiting))
        return None if len(looks) <= 3 else choose(waiting, *rest, **more)

    monkeypatch.setattr(claims, "choose", not_yet)
    gated.gate.set()
    batch = submitted(client, 1)
    assert worker.drain() == 1
    assert batch.status().counts["succeeded"] == 1
    assert looks == [1, 1, 1, 1, 0]


def test_few_jobs_are_not_claimed_ahead_so_that_more_can_come_together(
    client: Client, gated: type[Gated], draining: threading.Thread
) -> None:
    batch = submitted(client, 8 + 3)
    draining.start()
    until(lambda: gated.met, what="the first is in the model")
    more = submitted(client, 5)
    assert running(batch) == 8
    gated.gate.set()
    draining.join(30)
    assert batch.status().counts["succeeded"] + more.status().counts["succeeded"] == 16
    assert [len(met) for met in gated.met] == [8, 8]


def test_told_to_stop_what_was_claimed_ahead_goes_back_as_it_was(
    client: Client, worker: Worker, gated: type[Gated], draining: threading.Thread
) -> None:
    batch = submitted(client, 40)
    draining.start()
    until(lambda: running(batch) == 16, within_s=20, what="the next window")
    with Database(client.settings).read() as connection:
        entered = connection.execute(select(rows.c.id).where(rows.c.entered_at.is_not(None))).all()
    assert len(entered) == 8
    worker.ask_to_stop(0.2)
    draining.join(10)
    assert not draining.is_alive()
    counts = batch.status().counts
    assert (counts["queued"], counts["running"]) == (40, 0)
    with Database(client.settings).read() as connection:
        after = connection.execute(select(rows.c.attempts, rows.c.give_backs, rows.c.max_company)).all()
    assert {row.attempts for row in after} == {0}
    assert [row.give_backs for row in after].count(1) == 8, "only what was in the model counts as given back"
    assert {row.max_company for row in after} == {None}


def test_kinds_that_may_not_meet_are_gathered_until_their_microbatches_are_full(
    client: Client, worker: Worker, gated: type[Gated]
) -> None:
    gated.gate.set()
    batch = submitted(client, 96, kinds=3)
    worker.drain()
    assert batch.status().counts["succeeded"] == 96
    assert all(len(set(met)) == 1 for met in gated.met)
    assert [len(met) for met in gated.met].count(8) >= 10, "of twelve that are possible"


def test_a_kind_that_never_fills_a_microbatch_is_passed_over_so_often_and_not_more() -> None:
    def of_a_kind(works: Sequence[Work]) -> list[list[Work]]:
        kinds: dict[int, list[Work]] = {}
        for work in works:
            kinds.setdefault(work.params, []).append(work)
        return list(kinds.values())

    pool = Pool([Work("rare", "echo", 0, 1)])
    for turn in range(PASSED_OVER + 1):
        pool.add(Work(f"{turn}-{n}", "echo", 1, 1) for n in range(4))
        part, full = pool.fullest(of_a_kind, lambda works: 4)
        assert full
        assert ([work.job_id for work in part] == ["rare"]) == (turn == PASSED_OVER)
        pool.remove(part)


def test_the_next_window_does_not_wait_until_the_one_before_is_stored(
    client: Client, worker: Worker, gated: type[Gated], draining: threading.Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.idle_look()
    storage = worker._depot.get()
    put, go_on = storage.put, threading.Event()

    def slow(*arguments: Any, **more: Any) -> Any:
        go_on.wait(30)
        return put(*arguments, **more)

    monkeypatch.setattr(storage, "put", slow)
    gated.gate.set()
    batch = submitted(client, 24)
    draining.start()
    until(lambda: sum(map(len, gated.met)) == 24, within_s=20, what="all windows went through the model")
    assert batch.status().counts["succeeded"] == 0
    assert draining.is_alive(), "what is handed over is settled before a drain is over"
    go_on.set()
    draining.join(20)
    assert batch.status().counts["succeeded"] == 24
