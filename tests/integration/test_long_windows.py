"""A window or a stream that goes on for hours: who leaves it early ends then, and trouble does not wait for its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest
from cluster import until
from sqlalchemy import select, update
from test_claim_ahead import Gated
from test_streams import ROOM, Flow, draining, lines, long_one, states, submitted, succeeded

from aigc import Batch, Client
from shared import jobs
from shared.database import Database
from shared.errors import Unavailable
from shared.settings import Settings
from shared.tables import jobs as rows
from workers import residency, window
from workers.costs import Costs
from workers.generators import Done, Feed, Outcome, Output, Run, Work
from workers.steps import Steps
from workers.worker import Worker

MICROBATCH = 8


class Brief(Flow):
    """Asks for more jobs only as long as more may come."""

    def stream(self, jobs: Sequence[Work], feed: Feed, run: Run) -> Iterator[Outcome]:
        running = {job.job_id: job for job in jobs}
        while running or feed.open:
            type(self).each_step(list(running))
            run.advance(dict.fromkeys(running, (1, 2)))
            running = {id_: job for id_, job in running.items() if run.wanted(id_)}
            if feed.open:
                running |= {job.job_id: job for job in feed.take(ROOM - len(running))}
        yield from ()


class Turns(Gated):
    """Each microbatch waits until the test gives one more of them leave to go on."""

    leave: ClassVar[threading.Semaphore]
    #: what the next microbatch that has leave comes to instead of outcomes
    trouble: ClassVar[list[Exception]]

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        kind = type(self)
        kind.met.append([job.job_id for job in jobs])
        while not kind.leave.acquire(timeout=0.01):
            run.step([job.job_id for job in jobs], 1, 2)
        if kind.trouble:
            raise kind.trouble.pop()
        for job in jobs:
            if run.wanted(job.job_id):
                yield Done(job.job_id, [Output("text/plain", b"made")])


class Forgetful(Turns):
    """Gives some of its jobs to no microbatch."""

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        kept = [job for job in jobs if job.params.message == 0]
        return [kept[at : at + limit] for at in range(0, len(kept), limit)]


@pytest.fixture
def settings(sqlite_settings: Settings) -> Settings:
    brisk = {"lease_s": 2.0, "keeper_interval_s": 0.5, "grace_s": 3.0, "idle_look_s": 0.3, "microbatch": MICROBATCH}
    return sqlite_settings.model_copy(update=brisk)


@pytest.fixture(autouse=True)
def estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which size is worth it is another matter, and what a job costs too: a claim takes a microbatch `of_kinds`."""
    monkeypatch.setattr(Costs, "suggested", lambda self, kind, most: most)
    monkeypatch.setattr(Costs, "seconds", lambda self, task, model, cost: cost)


@pytest.fixture
def client(settings: Settings) -> Client:
    return Client(settings)


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch) -> type[Flow]:
    return Flow.serve(monkeypatch)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> type[Turns]:
    Turns.met, Turns.leave, Turns.trouble = [], threading.Semaphore(0), []
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Turns)
    return Turns


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    made = Worker(settings, device="cpu", queues=["cpu"])
    yield made
    made.close()


@pytest.fixture
def patient(settings: Settings) -> Iterator[Worker]:
    """A worker whose claims rest for longer than a test takes."""
    made = Worker(settings.model_copy(update={"idle_look_s": 30.0}), device="cpu", queues=["cpu"])
    yield made
    made.close()


def of_kinds(client: Client, n: int, kinds: int = 1) -> Batch:
    """Jobs that meet their like only, and are worth a second each."""
    return submitted(client, [{"params": {"message": k % kinds, "step_s": 1.0}} for k in range(n)])


def noticed(worker: Worker, ids: Sequence[str]) -> None:
    """Wait until the worker has heard that nobody wants these any more."""
    session = worker._session
    assert session is not None
    until(lambda: not any(session.wanted(id_) for id_ in ids), within_s=20, what="the worker hears of it")


def state_of(client: Client, ids: Sequence[str]) -> set[str]:
    with Database(client.settings).read() as connection:
        return set(connection.scalars(select(rows.c.state).where(rows.c.id.in_(ids))))


def ended(client: Client, ids: Sequence[str], state: str = "cancelled") -> None:
    until(lambda: state_of(client, ids) == {state}, within_s=4, what=f"{state}, while the others go on")


def cancelled_on_the_way_in(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch, which: Callable[[str], bool]
) -> list[str]:
    """From now on these jobs are cancelled between SQL's leave to enter the model and their entry; returns them."""
    enter, cancelled = jobs.enter, list[str]()

    def slowly(*arguments: Any, **more: Any) -> set[str]:
        ours = enter(*arguments, **more)
        if mine := [id_ for id_ in ours if which(id_)]:
            client.cancel(mine)
            noticed(worker, mine)
            cancelled.extend(mine)
        return ours

    monkeypatch.setattr(jobs, "enter", slowly)
    return cancelled


# --- streams ---


def test_a_job_that_took_too_long_has_all_its_time_again_when_it_comes_back_to_the_same_stream(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    limited = {"custom_id": "limited", "params": {"message": "limited", "steps": 3}, "timeout_s": 0.5}
    batch = submitted(client, [long_one(), limited | {"max_attempts": 2}])
    db, id_, hung = Database(client.settings), f"{batch.id}-2", threading.Event()
    steps: list[str] = []

    def hangs_once(ids: list[str]) -> None:
        steps.extend(ids)
        if steps.count(id_) == 2 and not hung.is_set():
            hung.set()
            time.sleep(0.6)

    flow.each_step = staticmethod(hangs_once)
    with draining(worker):
        until(hung.is_set, what="its first attempt hung")
        ended(client, [id_], "queued")
        db.write(lambda c: c.execute(update(rows).where(rows.c.id == id_).values(available_at=1.0)))
        jobs.release_due(db)
        until(lambda: job_of(batch, "limited").status in ("succeeded", "failed"), within_s=20, what="its second end")
        assert states(batch) == {"long": "running", "limited": "succeeded"}
    assert flow.begun == 1


def job_of(batch: Batch, name: str) -> Any:
    return next(job for job in batch.jobs() if job.custom_id == name)


def test_a_cancelled_job_is_not_in_the_model_any_more_once_it_has_ended(
    client: Client, worker: Worker, flow: type[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submitted(client, [long_one(), long_one() | {"custom_id": "other"}])
    inside, advance, cancelled = list[list[str]](), Steps.advance, list[int]()

    def slowly(self: Steps, progress: Mapping[str, tuple[int, int]]) -> None:
        advance(self, progress)
        # The worker hears of it after the generator has asked whether it is wanted, and before it asks for more.
        if len(progress) == 2 and not cancelled:
            cancelled.append(client.cancel([f"{batch.id}-1"]))
            noticed(worker, [f"{batch.id}-1"])

    monkeypatch.setattr(Steps, "advance", slowly)
    flow.each_step = staticmethod(inside.append)
    with draining(worker):
        until(lambda: cancelled, within_s=20, what="one of two is cancelled")
        ended(client, [f"{batch.id}-1"])
        until(lambda: inside[-1] == [f"{batch.id}-2"], within_s=4, what="it left the model")


def test_a_job_cancelled_while_it_joins_a_stream_ends_at_once(
    client: Client, worker: Worker, flow: type[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submitted(client, [long_one()])
    with draining(worker):
        until(lambda: flow.company, what="the stream runs")
        cancelled_on_the_way_in(client, worker, monkeypatch, lambda id_: not id_.startswith(first.id))
        later = submitted(client, lines(1, steps=1_000_000))
        ended(client, [f"{later.id}-1"])
        assert states(first) == {"long": "running"}


def test_when_all_that_are_to_begin_a_stream_are_cancelled_they_end_while_others_stream(
    client: Client, worker: Worker, flow: type[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submitted(client, [*lines(ROOM + 1, steps=1_000_000), long_one()])
    unlucky = [f"{batch.id}-{line}" for line in range(1, ROOM + 2)]
    cancelled = cancelled_on_the_way_in(client, worker, monkeypatch, lambda id_: id_ in unlucky)
    with draining(worker):
        until(lambda: flow.company, within_s=20, what="the one that is left")
        assert sorted(cancelled) == sorted(unlucky)
        ended(client, unlucky)
        assert states(batch)["long"] == "running"


def test_a_cancelled_job_that_waits_beside_a_stream_which_it_cannot_join_ends_at_once(
    client: Client, worker: Worker, flow: type[Flow]
) -> None:
    first = submitted(client, [long_one()])
    with draining(worker):
        until(lambda: flow.company, what="the stream runs")
        beside = submitted(client, [{"custom_id": "beam", "params": {"message": "static"}}])
        until(lambda: states(beside)["beam"] == "running", within_s=20, what="it was claimed")
        beside.cancel()
        ended(client, [f"{beside.id}-1"])
        assert states(first) == {"long": "running"}
    assert not flow.met


def test_a_cancelled_job_that_could_not_be_given_back_is_given_back_when_the_database_answers(
    client: Client, worker: Worker, flow: type[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_back, tried = jobs.give_back, list[int]()

    def fails_at_first(*arguments: Any, **more: Any) -> Any:
        tried.append(1)
        if len(tried) == 1:
            raise Unavailable("database", "here", "gone")
        return give_back(*arguments, **more)

    batch = submitted(client, [long_one(), long_one() | {"custom_id": "other"}])
    with draining(worker):
        until(lambda: 2 in flow.company, what="both are in")
        monkeypatch.setattr(jobs, "give_back", fails_at_first)
        client.cancel([f"{batch.id}-1"])
        ended(client, [f"{batch.id}-1"])
        assert states(batch)["other"] == "running"


def test_a_stream_with_nothing_in_the_model_ends_when_the_database_is_away_and_its_jobs_are_done_later(
    client: Client, worker: Worker, flow: type[Flow], away: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, asked = jobs.enter, list[int]()

    def breaks_down(*arguments: Any, **more: Any) -> set[str]:
        asked.append(1)
        away.set()
        return enter(*arguments, **more)

    batch = submitted(client, lines(4))
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "enter", breaks_down)
        thread = threading.Thread(target=worker.drain)
        thread.start()
        until(lambda: not thread.is_alive() or len(asked) > 20, within_s=20, what="the end of the drain")
        often = len(asked)
    away.clear()
    if often > 20:
        worker.ask_to_stop(0)
        thread.join(20)
    assert often == 1, "claims rest before it is asked again"

    def looked() -> bool:
        worker.idle_look()
        return batch.status().counts["succeeded"] == 4

    until(looked, within_s=10, what="all of them")
    assert {job.attempt for job in batch.jobs()} == {1}


def test_a_late_job_fails_for_it_even_if_its_stream_ends_before_it_is_asked_for_more(
    client: Client, worker: Worker, flow: type[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Brief)
    batch = submitted(client, [long_one(timeout_s=0.3, max_attempts=1)])

    def closes(ids: list[str]) -> None:
        worker.ask_to_stop(10)  # nothing joins any more, and there is time to finish what is in the model
        time.sleep(0.003)

    monkeypatch.setattr(Brief, "each_step", staticmethod(closes))
    worker.drain()
    assert states(batch) == {"long": "failed"}
    assert batch.status().errors[0].code == "timed_out"
    assert job_of(batch, "long").attempt == 1


def test_a_job_that_has_left_the_model_is_no_company_in_it_even_if_the_database_was_away_just_then(
    client: Client, worker: Worker, flow: type[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.idle_look()
    storage, enter, stored, failed = worker._depot.get(), jobs.enter, threading.Event(), list[int]()
    put = storage.put

    def slow(*arguments: Any, **more: Any) -> Any:
        stored.wait(20)  # meanwhile what is made stays in hand
        return put(*arguments, **more)

    def fails_once(*arguments: Any, gone: Any = None, **more: Any) -> set[str]:
        if gone and not failed:
            failed.append(len(gone))
            raise Unavailable("database", "here", "gone")
        return enter(*arguments, gone=gone, **more)

    monkeypatch.setattr(storage, "put", slow)
    monkeypatch.setattr(jobs, "enter", fails_once)
    batch = submitted(client, [long_one(), *lines(ROOM - 1)])
    with draining(worker):
        until(lambda: flow.company and max(flow.company) == ROOM and flow.company[-1] == 1, what="only one is left")
        submitted(client, [long_one() | {"custom_id": "joins"}])
        until(lambda: flow.company[-1] == 2, within_s=20, what="another one joins")
        with Database(client.settings).read() as connection:
            after = connection.execute(
                select(rows.c.custom_id, rows.c.state, rows.c.company).order_by(rows.c.batch_id, rows.c.line)
            ).all()
        stored.set()
        assert failed == [ROOM - 1]
        assert {row.state for row in after} == {"running"}
        assert {row.custom_id for row in after if row.company is not None} == {"long", "joins"}
        succeeded(batch, ROOM - 1)


# --- windows that refill themselves ---


def test_a_job_that_is_cancelled_in_the_model_or_before_it_ends_while_its_window_goes_on(
    client: Client, worker: Worker, turns: type[Turns]
) -> None:
    batch = of_kinds(client, 3 * MICROBATCH, kinds=3)
    with draining(worker):
        until(lambda: turns.met, within_s=20, what="the first microbatch is in the model")
        everyone = [f"{batch.id}-{line + 1}" for line in range(3 * MICROBATCH)]
        waits = next(id_ for id_ in everyone if id_ not in turns.met[0])
        unwanted = [turns.met[0][0], waits]
        assert state_of(client, unwanted) == {"running"}
        client.cancel(unwanted)
        noticed(worker, unwanted)
        turns.leave.release()
        ended(client, unwanted)
        until(lambda: len(turns.met) == 2, within_s=20, what="the second microbatch")
        assert worker.busy
        assert not set(unwanted) & set(turns.met[1])
        turns.leave.release(10)
        succeeded(batch, len(everyone) - len(unwanted))


def test_a_job_cancelled_while_its_microbatch_enters_the_model_ends_while_the_others_are_in_it(
    client: Client, worker: Worker, turns: type[Turns], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = of_kinds(client, MICROBATCH)
    cancelled_on_the_way_in(client, worker, monkeypatch, lambda id_: id_ == f"{batch.id}-3")
    with draining(worker):
        until(lambda: turns.met, within_s=20, what="the microbatch is in the model")
        assert len(turns.met[0]) == MICROBATCH - 1
        ended(client, [f"{batch.id}-3"])
        assert state_of(client, turns.met[0]) == {"running"}


@pytest.mark.parametrize("kinds", [3, 5], ids=["whole microbatches", "kinds that never come out even"])
def test_while_the_storage_is_away_a_window_claims_nothing_more(
    client: Client, patient: Worker, turns: type[Turns], kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: Any, **more: Any) -> Any:
        raise Unavailable("storage", "here", "gone")

    claim, claimed = jobs.claim, list[int]()

    def counted(*arguments: Any, **more: Any) -> Any:
        taken = claim(*arguments, **more)
        claimed.append(len(taken))
        return taken

    patient.idle_look()
    monkeypatch.setattr(patient._depot.get(), "put", gone)
    monkeypatch.setattr(jobs, "claim", counted)
    batch = of_kinds(client, 30 * MICROBATCH, kinds=kinds)
    with draining(patient) as thread:
        turns.leave.release()
        until(lambda: len(turns.met) == 2 and patient._resting, within_s=20, what="the first could not be stored")
        assert patient._ahead is not None
        beside = patient._ahead._beside
        until(lambda: beside.done or not beside.going, within_s=20, what="the end of a claim that was begun before")
        before = sum(claimed)
        turns.leave.release(1000)
        thread.join(20)
        assert not thread.is_alive()
        assert sum(claimed) == before
        assert sum(map(len, turns.met)) == before, "what was claimed went through the model"
        counts = batch.status().counts
        assert (counts["running"], counts["queued"]) == (0, 30 * MICROBATCH), "and is tried again later"
        assert patient._session is not None
        assert "storage" in patient._session._condition, "operators see why nothing is claimed"


def test_who_came_second_to_a_lane_looks_there_again_while_its_stream_goes_on(
    client: Client, worker: Worker, flow: type[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, lost = jobs.claim, list[int]()

    def second_at_first(*arguments: Any, **more: Any) -> Any:
        if not lost:
            lost.append(1)
            return []
        return claim(*arguments, **more)

    first = submitted(client, [long_one()])
    with draining(worker):
        until(lambda: flow.company, what="the stream runs")
        monkeypatch.setattr(jobs, "claim", second_at_first)
        later = submitted(client, lines(5))
        until(lambda: later.status().counts["succeeded"] == 5, within_s=5, what="the jobs that came later")
        assert lost
        assert states(first) == {"long": "running"}


def test_a_defect_on_the_way_to_the_model_leaves_no_job_in_hand(
    client: Client, worker: Worker, turns: type[Turns], monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(*arguments: Any) -> Any:
        raise RuntimeError("a defect of ours")

    batch = of_kinds(client, MICROBATCH)
    with monkeypatch.context() as patched:
        patched.setattr(window, "yet_to_make", defective)
        with pytest.raises(RuntimeError, match="a defect of ours"):
            worker.drain()
    counts = batch.status().counts
    assert (counts["running"], counts["queued"]) == (0, MICROBATCH)
    turns.leave.release(10)
    assert worker.drain() == MICROBATCH
    assert batch.status().counts["succeeded"] == MICROBATCH
    assert {job.attempt for job in batch.jobs()} == {1}


def test_what_was_claimed_ahead_and_given_back_after_trouble_is_not_begun_before_it_is_claimed_anew(
    client: Client, settings: Settings, turns: type[Turns]
) -> None:
    # Its rest is over before it asks, as it is when something is stored just then.
    restless = Worker(settings.model_copy(update={"idle_look_s": 0.0}), device="cpu", queues=["cpu"])
    batch, taken = of_kinds(client, 2 * MICROBATCH), list[int]()
    thread = threading.Thread(target=lambda: taken.append(restless.drain()))
    thread.start()
    try:
        until(lambda: batch.status().counts["running"] == 2 * MICROBATCH, within_s=20, what="the next window")
        turns.trouble.append(Unavailable("storage", "here", "a checkpoint could not be read"))
        turns.leave.release(10)
        thread.join(20)
        assert batch.status().counts["succeeded"] == 2 * MICROBATCH
        assert taken == [2 * MICROBATCH], "each was taken once after the trouble"
    finally:
        restless.ask_to_stop(0)
        thread.join(20)
        restless.close()


def test_a_generator_that_gives_a_job_to_no_microbatch_gets_it_alone(
    client: Client, worker: Worker, turns: type[Turns], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Forgetful)
    turns.leave.release(100)
    batch = of_kinds(client, 6, kinds=2)
    with draining(worker):
        succeeded(batch, 6)
    assert sorted(map(len, turns.met)) == [1, 1, 1, 3]
