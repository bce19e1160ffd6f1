"""Jobs join a running stream and leave it when they are done: on a real database, with a stream made for the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import pytest
from cluster import until
from sqlalchemy import select, update

from aigc import Batch, Client
from shared.database import Database
from shared.ids import new_session_id
from shared.jobs import bury, claim, enter, open_session
from shared.settings import Settings
from shared.tables import jobs as rows
from workers import residency, stream
from workers.generators import Device, Done, Feed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.worker import Worker

ROOM = 8


class Flow(Generator):
    """A job is in the stream for as many steps as it says, and gives its message back."""

    #: called at every step with the ids in the stream
    each_step: ClassVar[Callable[[list[str]], None]]
    #: what `generate` was given, by custom id
    met: ClassVar[list[list[str]]]
    #: how many jobs were in the stream, step by step
    company: ClassVar[list[int]]
    #: streams that were begun
    begun: ClassVar[int]

    @classmethod
    def serve(cls, monkeypatch: pytest.MonkeyPatch) -> type[Self]:
        """From now on every job is served by it; nothing is remembered yet."""
        cls.met, cls.company, cls.begun = [], [], 0
        cls.each_step = staticmethod(lambda ids: None)
        monkeypatch.setattr(residency, "_generator_for", lambda task, files: cls)
        return cls

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        return cls()

    def streams(self, job: Work) -> bool:
        return job.params.message != "static"

    def room(self) -> int:
        return ROOM

    def stream(self, jobs: Sequence[Work], feed: Feed, run: Run) -> Iterator[Outcome]:
        kind = type(self)
        kind.begun += 1
        running = {job.job_id: (job, 0) for job in jobs}
        while running or feed.open:
            running |= {job.job_id: (job, 0) for job in feed.take(ROOM - len(running))}
            time.sleep(0.003)
            kind.each_step(list(running))
            kind.company.append(len(running))
            running = {id_: (job, step + 1) for id_, (job, step) in running.items() if run.wanted(id_)}
            run.advance({id_: (step, job.params.steps) for id_, (job, step) in running.items()})
            for id_, (job, step) in list(running.items()):
                if step >= job.params.steps:
                    del running[id_]
                    yield _made(job)

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        type(self).met.append([job.custom_id for job in jobs])
        for job in jobs:
            if job.params.fail:
                raise ValueError(f"cannot swallow {job.custom_id}")
        for job in jobs:
            run.step([job.job_id], 1, 1)
            yield _made(job)


def _made(job: Work) -> Done:
    return Done(job.job_id, [Output("text/plain", f"made {job.params.message}".encode())])


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch) -> type[Flow]:
    return Flow.serve(monkeypatch)


@pytest.fixture
def client(settings: Settings) -> Client:
    return Client(settings)


@pytest.fixture
def worker(settings: Settings, flow: type[Flow]) -> Iterator[Worker]:
    brisk = settings.model_copy(update={"lease_s": 2.0, "keeper_interval_s": 0.5, "grace_s": 3.0, "idle_look_s": 0.3})
    made = Worker(brisk, device="cpu", queues=["cpu"])
    yield made
    made.close()


@contextmanager
def draining(worker: Worker) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=worker.drain)
    thread.start()
    try:
        yield thread
    finally:
        worker.ask_to_stop(0)
        thread.join(30)
        assert not thread.is_alive()


def lines(n: int, *, steps: int = 1, name: str = "j", **more: Any) -> list[dict[str, Any]]:
    return [{"custom_id": f"{name}{k}", "params": {"message": f"{name}{k}", "steps": steps}, **more} for k in range(n)]


def long_one(**more: Any) -> dict[str, Any]:
    return {"custom_id": "long", "params": {"message": "long", "steps": 1_000_000}, **more}


def submitted(client: Client, jobs: Sequence[dict[str, Any]], **more: Any) -> Batch:
    return client.submit(jobs, task="echo", **more)


def succeeded(batch: Batch, n: int) -> None:
    until(lambda: batch.status().counts["succeeded"] == n, within_s=20, what=f"{n} done")


def states(batch: Batch) -> dict[str, str]:
    return {job.custom_id: job.status for job in batch.jobs()}


def test_every_job_of_a_lane_goes_through_one_stream_and_no_more_are_in_it_than_there_is_room(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    batch = submitted(client, lines(100, steps=10))
    worker.drain()
    assert batch.status().counts["succeeded"] == 100
    assert {result["text"] for result in batch.results()} == {f"made j{k}" for k in range(100)}
    assert flow.begun == 1, "it is refilled"
    assert max(flow.company) == ROOM
    full = [n for n in flow.company if n == ROOM]
    assert len(full) > 0.5 * len(flow.company), "it is kept full while jobs wait"


def test_short_jobs_are_done_while_a_long_one_beside_them_goes_on(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    batch = submitted(client, [long_one(), *lines(40)])
    with draining(worker):
        succeeded(batch, 40)
        assert states(batch)["long"] == "running"


def test_jobs_that_are_submitted_later_join_the_stream_that_runs(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    first = submitted(client, [long_one()])
    with draining(worker):
        until(lambda: flow.company, what="the stream runs")
        later = submitted(client, lines(20))
        succeeded(later, 20)
        assert states(first)["long"] == "running"
    assert flow.begun == 1
    assert not flow.met, "none of them went another way"


def test_what_cannot_be_in_a_stream_goes_through_the_model_by_itself_and_does_not_wait_until_the_end(
    client: Client, worker: Worker, flow: type[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ASIDE_S", 0.0)
    beam = {"custom_id": "beam", "params": {"message": "static"}}
    # More than one claim takes come before it, so that it joins those that are in the stream already.
    batch = submitted(client, [*lines(1100), beam, *lines(1500, name="more")])
    waiting: list[int] = []
    run = flow.generate

    def noted(self: Flow, jobs: Sequence[Work], run_: Run) -> Iterator[Outcome]:
        waiting.append(batch.status().counts["queued"])
        return run(self, jobs, run_)

    monkeypatch.setattr(flow, "generate", noted)
    worker.drain()
    assert batch.status().counts["succeeded"] == 2601
    assert flow.met == [["beam"]]
    assert waiting[0] > 0, "it went before others that came later"


def test_when_a_stream_breaks_its_jobs_go_in_halves_and_only_the_one_that_broke_it_fails(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    batch = submitted(client, [*lines(12, steps=2), {"custom_id": "bad", "params": {"message": "bad", "fail": True}}])
    with Database(client.settings).read() as connection:
        bad = connection.scalar(select(rows.c.id).where(rows.c.custom_id == "bad"))

    def breaks(ids: list[str]) -> None:
        if bad in ids:
            raise RuntimeError("one of them is odd")

    flow.each_step = staticmethod(breaks)
    worker.drain()
    ended = states(batch)
    assert {name for name, state in ended.items() if state != "succeeded"} == {"bad"}
    assert all(job.attempt == (1 if job.custom_id != "bad" else job.attempt) for job in batch.jobs())
    assert ["bad"] in flow.met


def test_told_to_stop_it_gives_back_what_is_not_finished_uncharged_and_claims_nothing_more(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    batch = submitted(client, [*(long_one() | {"custom_id": f"long{k}"} for k in range(ROOM)), *lines(30)])
    thread = threading.Thread(target=worker.drain)
    thread.start()
    until(lambda: flow.company and flow.company[-1] == ROOM, what="the stream is full")
    worker.ask_to_stop(0.3)
    thread.join(10)
    assert not thread.is_alive()
    counts = batch.status().counts
    assert (counts["running"], counts["queued"]) == (0, 30 + ROOM)
    assert {job.attempt for job in batch.jobs()} == {0}


def test_a_cancelled_job_leaves_the_stream_at_once_and_alone(client: Client, worker: Worker, flow: type[Flow]) -> None:
    batch = submitted(client, [long_one(), long_one() | {"custom_id": "other"}])
    with draining(worker):
        until(lambda: 2 in flow.company, what="both are in")
        client.cancel([f"{batch.id}-1"])
        until(lambda: states(batch)["long"] == "cancelled", within_s=20, what="cancelled")
        assert states(batch)["other"] == "running"


def test_a_job_that_takes_too_long_fails_at_once_and_alone(client: Client, worker: Worker, flow: type[Flow]) -> None:
    limited = long_one(timeout_s=0.3, max_attempts=1)
    batch = submitted(client, [limited, long_one() | {"custom_id": "other"}])
    with draining(worker):
        until(lambda: states(batch)["long"] == "failed", within_s=20, what="late")
        assert states(batch)["other"] == "running"
    assert batch.status().errors[0].code == "timed_out"


def test_when_a_more_urgent_lane_waits_the_stream_runs_dry_for_it(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    many = submitted(client, lines(4000, steps=4))
    with draining(worker):
        until(lambda: many.status().counts["succeeded"] > 10, what="it runs")
        urgent = submitted(client, lines(1, name="urgent"), priority=5)
        succeeded(urgent, 1)
        assert many.status().counts["queued"] > 0, "it did not wait for the others"
        assert flow.begun >= 2, "it was not let in among them"


def test_a_job_that_may_not_have_so_much_company_never_joins(client: Client, worker: Worker, flow: type[Flow]) -> None:
    batch = submitted(client, lines(6))
    Database(client.settings).write(lambda c: c.execute(update(rows).values(max_company=2)))
    worker.drain()
    assert batch.status().counts["succeeded"] == 6
    assert flow.begun == 0
    assert {len(group) for group in flow.met} == {2}


def test_who_is_in_the_stream_when_its_worker_dies_gets_less_company_and_who_is_not_goes_back_as_it_was(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    dying = threading.Event()
    go_on = threading.Event()

    def hangs(ids: list[str]) -> None:
        if len(ids) == ROOM and not dying.is_set():
            dying.set()
            go_on.wait(20)

    flow.each_step = staticmethod(hangs)
    batch = submitted(client, lines(40, steps=50))
    thread = threading.Thread(target=worker.drain)
    thread.start()
    assert dying.wait(20)
    session = worker.session_id
    assert session is not None
    db = Database(client.settings)
    with db.read() as connection:
        inside = {row.id for row in connection.execute(select(rows.c.id).where(rows.c.company.is_not(None)))}
        assert min(connection.scalars(select(rows.c.company).where(rows.c.company.is_not(None)))) >= ROOM
    bury(db, session)
    with db.read() as connection:
        after = connection.execute(select(rows.c.id, rows.c.max_company, rows.c.state, rows.c.attempts)).all()
    assert {(row.state, row.attempts) for row in after} == {("queued", 0)}
    assert {row.id for row in after if row.max_company is not None} == inside
    assert ROOM <= len(inside) <= 2 * ROOM
    worker.ask_to_stop(0)
    go_on.set()
    thread.join(20)
    assert batch.status().counts["succeeded"] == 0, "what a dead session makes does not count"


def test_a_database_that_is_away_for_a_moment_does_not_end_the_stream(
    client: Client, worker: Worker, flow: type[Flow], away: threading.Event
) -> None:
    batch = submitted(client, [long_one(), *lines(60, steps=3)])
    with draining(worker):
        until(lambda: batch.status().counts["succeeded"] >= 5, what="it runs")
        away.set()
        before = len(flow.company)
        until(lambda: len(flow.company) > before + 50, what="the model goes on")
        away.clear()
        succeeded(batch, 60)
        assert states(batch)["long"] == "running"
    assert flow.begun == 1


def test_what_was_spent_on_the_device_is_shared_out_among_those_who_were_there(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    batch = submitted(client, lines(30, steps=5))
    worker.drain()
    spent = [job.timings["device_s"] or 0.0 for job in batch.jobs()]
    assert min(spent) > 0
    steps = len(flow.company)
    assert steps * 0.003 * 0.9 <= sum(spent), "every moment of the model is booked"
    assert max(spent) < 0.7 * sum(spent)


def test_who_joins_changes_the_company_of_those_who_stay_and_nothing_else(client: Client) -> None:
    batch = submitted(client, lines(4, timeout_s=60))
    db, who = Database(client.settings), new_session_id()
    facts = {"worker": "w", "host": "h", "pid": 1, "device": "cpu", "queues": "cpu", "versions": {}, "condition": {}}
    open_session(db, {"id": who, **facts}, 60)
    with db.read() as connection:
        lane = connection.scalar(select(rows.c.lane_id))
    held = [(job.id, job.epoch) for job in claim(db, session=who, lane_id=lane, priority=0, limit=4, window_s=600)]
    assert enter(db, who, held[:3], 3) == {id_ for id_, _ in held[:3]}
    db.write(
        lambda c: c.execute(update(rows).where(rows.c.company.is_not(None)).values(entered_at=1.0, deadline_at=9e9))
    )

    gone, stays = held[0], held[2]
    lost = [(held[1][0], held[1][1] - 1)]
    assert enter(db, who, held[3:], 2, gone=[gone, *lost]) == {held[3][0]}
    with db.read() as connection:
        after = {row.id: row for row in connection.execute(select(rows))}
    assert (after[gone[0]].company, after[gone[0]].deadline_at) == (None, None)
    assert (after[stays[0]].company, after[stays[0]].entered_at, after[stays[0]].deadline_at) == (2, 1.0, 9e9)
    assert after[held[1][0]].company == 2, "under another epoch nobody has left"
    assert after[held[3][0]].company == 2
    assert after[held[3][0]].entered_at > 1.0
    assert batch.status().counts["running"] == 4
