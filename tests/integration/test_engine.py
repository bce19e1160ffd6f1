"""The worker's loop on a real database, in this process, with generators that misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from cluster import until
from servers import PostgresServer
from sqlalchemy import select, update

from aigc import Batch, Client
from shared.database import Database
from shared.errors import JobFailed, Unavailable
from shared.jobs import bury, reap, reap_overdue, release_due
from shared.settings import Settings
from shared.tables import artifacts, jobs, worker_sessions
from workers import residency
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.pulse import Reading
from workers.worker import Worker


class Scripted(Generator):
    """Runs what a test wrote; remembers which jobs met."""

    script: ClassVar[Callable[[Sequence[Work], Run], Iterator[Outcome]]]
    met: ClassVar[list[list[str]]]

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        return cls()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        type(self).met.append([job.custom_id for job in jobs])
        return type(self).script(jobs, run)


def well(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
    for job in jobs:
        run.step([job.job_id], 1, 1)
        yield Done(job.job_id, [Output("text/plain", f"made {job.params.message}".encode())])


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    more = {}
    if request.param == "postgres":
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        more["database_url"] = postgres.new_database()
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path,
        redis_url="redis://127.0.0.1:9/0",
        lease_s=2,
        keeper_interval_s=0.5,
        grace_s=3,
        idle_look_s=0.3,
        **more,
    )
    Database(settings).migrate()
    return settings


@pytest.fixture
def client(settings: Settings) -> Client:
    return Client(settings)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.met = []
    Scripted.script = staticmethod(well)
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Scripted)
    return Scripted


@pytest.fixture
def worker(settings: Settings, scripted: type[Scripted]) -> Iterator[Worker]:
    made = Worker(settings, device="cpu", queues=["cpu"])
    yield made
    made.close()


def submitted(client: Client, n: int, **more: Any) -> Batch:
    return client.submit([{"custom_id": f"j{k}", "params": {"message": k}} for k in range(n)], task="echo", **more)


def states(batch: Batch) -> dict[str, str]:
    return {job.custom_id: job.status for job in batch.jobs()}


def test_a_poison_job_fails_alone_and_its_neighbours_succeed_uncharged(
    client: Client, worker: Worker, scripted: type[Scripted]
) -> None:
    def poisoned(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        if any(job.custom_id == "j5" for job in jobs):
            raise ValueError("cannot swallow j5")
        yield from well(jobs, run)

    scripted.script = staticmethod(poisoned)
    batch = client.submit(
        [{"custom_id": f"j{k}", "params": {"message": k}, "max_attempts": 1} for k in range(32)], task="echo"
    )
    worker.drain()

    ended = {job.custom_id: job for job in batch.jobs()}
    assert {id_ for id_, job in ended.items() if job.status == "failed"} == {"j5"}
    assert ended["j5"].error == {"code": "generator_error", "message": "ValueError: cannot swallow j5"}
    assert all(job.attempt == 1 for job in ended.values())
    assert sum(map(len, scripted.met)) <= 3 * 32, "at most three times the work"


def test_out_of_memory_halves_the_microbatch(client: Client, worker: Worker, scripted: type[Scripted]) -> None:
    def small_memory(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        if len(jobs) > 8:
            raise MemoryError
        yield from well(jobs, run)

    scripted.script = staticmethod(small_memory)
    batch = submitted(client, 32)
    worker.drain()
    assert batch.status().counts["succeeded"] == 32


def test_what_ran_out_of_memory_is_remembered(client: Client, worker: Worker, scripted: type[Scripted]) -> None:
    def small_memory(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        if len(jobs) > 8:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        yield from well(jobs, run)

    scripted.script = staticmethod(small_memory)
    submitted(client, 32)
    worker.drain()
    again = submitted(client, 32)
    scripted.met.clear()
    worker.drain()

    assert again.status().counts["succeeded"] == 32
    assert [len(met) for met in scripted.met] == [8] * 4


def test_a_broken_device_ends_the_process_and_costs_nobody_who_had_company(
    client: Client, settings: Settings, scripted: type[Scripted]
) -> None:
    def broken(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        run.step([jobs[0].job_id], 1, 1)
        yield Done(jobs[0].job_id, [Output("text/plain", b"made before")])
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    scripted.script = staticmethod(broken)
    statuses: list[int] = []
    dying = Worker(settings, device="cpu", queues=["cpu"], abort=statuses.append)
    batch = submitted(client, 4)
    dying.drain()
    assert statuses == [70]
    session = dying.session_id
    assert session is not None
    bury(Database(settings), session)  # as its parent does

    ended = {job.custom_id: job for job in batch.jobs()}
    assert ended["j0"].status == "succeeded"
    assert [(ended[f"j{n}"].status, ended[f"j{n}"].attempt) for n in (1, 2, 3)] == [("queued", 0)] * 3
    scripted.script = staticmethod(well)
    fresh = Worker(settings, device="cpu", queues=["cpu"])
    fresh.drain()
    fresh.close()
    assert batch.status().counts["succeeded"] == 4


def test_a_worker_that_sees_ready_jobs_and_claims_none_wants_to_start_anew(
    client: Client, settings: Settings, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Worker(settings.model_copy(update={"stuck_s": 1.0}), device="cpu", queues=["cpu"])
    stuck.idle_look()
    monkeypatch.setattr("workers.worker.jobs.claim", lambda *_, **__: [])
    submitted(client, 1)

    def looked() -> bool:
        stuck.idle_look()
        return stuck.worn_out

    begun = time.monotonic()
    until(looked, within_s=10, what="it notices")
    assert time.monotonic() - begun >= 1.0
    stuck.close()


def test_an_idle_worker_without_work_never_wants_to_start_anew(worker: Worker) -> None:
    worker._settings = worker._settings.model_copy(update={"stuck_s": 1.0})
    for _ in range(15):
        worker.idle_look()
        time.sleep(0.1)  # the time that passes is the matter here
    assert not worker.worn_out


def test_a_worker_that_gathers_memory_ends_between_two_windows(
    client: Client, settings: Settings, scripted: type[Scripted]
) -> None:
    gathered: list[bytearray] = []

    def leaking(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        gathered.append(bytearray(b"x" * (20 * 2**20)))
        yield from well(jobs, run)

    scripted.script = staticmethod(leaking)
    small = settings.model_copy(update={"memory_growth_mb": 50, "microbatch": 1})
    leaky = Worker(small, device="cpu", queues=["cpu"])
    batch = submitted(client, 40)
    leaky.drain()
    assert leaky.worn_out
    counts = batch.status().counts
    assert counts["running"] == 0
    assert 0 < counts["succeeded"] < 40
    assert counts["succeeded"] + counts["queued"] == 40
    leaky.close()


def test_a_model_that_does_not_fit_beside_the_others_is_tried_alone(
    client: Client, worker: Worker, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs_all(cls: type[Scripted], files: ModelFiles | None, device: Device) -> Scripted:
        if worker._residency._resident:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return Scripted()

    worker._residency._resident["other", "model"] = residency.Resident(Scripted(), None)
    monkeypatch.setattr(Scripted, "load", classmethod(needs_all))
    batch = submitted(client, 2)
    worker.drain()
    assert batch.status().counts["succeeded"] == 2


def test_a_model_that_does_not_fit_at_all_costs_no_try_and_is_set_aside(
    client: Client, worker: Worker, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_big(cls: type[Scripted], files: ModelFiles | None, device: Device) -> Scripted:
        raise MemoryError("40 GB")

    monkeypatch.setattr(Scripted, "load", classmethod(too_big))
    batch = submitted(client, 1)
    worker.drain()
    job = client.job(f"{batch.id}-1")
    assert (job.status, job.attempt) == ("queued", 0)
    assert "does not fit into the memory" in client.why(job.id)


def test_while_a_model_is_loaded_its_parent_knows_for_how_long(
    client: Client, worker: Worker, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Reading] = []

    def slow(cls: type[Scripted], files: ModelFiles | None, device: Device) -> Scripted:
        seen.append(worker._pulse.read())
        return Scripted()

    monkeypatch.setattr(Scripted, "load", classmethod(slow))
    submitted(client, 1)
    worker.drain()
    assert seen[0].stepped_at > 0
    assert seen[0].patience_s == worker._settings.load_s
    assert worker._pulse.read().stepped_at == 0


def test_a_job_that_is_done_has_no_deadline_any_more(client: Client, worker: Worker, scripted: type[Scripted]) -> None:
    seen: list[Reading] = []

    def one_after_the_other(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        for job in jobs:
            run.step([job.job_id], 1, 1)
            seen.append(worker._pulse.read())
            yield Done(job.job_id, [Output("text/plain", b"made")])
            seen.append(worker._pulse.read())

    scripted.script = staticmethod(one_after_the_other)
    limited = {"params": {"message": 1}, "timeout_s": 5}
    batch = client.submit([limited, {"params": {"message": 2}}], task="echo")
    worker.drain()

    assert [reading.deadline > 0 for reading in seen] == [True, False, False, False]
    assert batch.status().counts["succeeded"] == 2


def test_a_finished_job_that_waits_for_its_upload_is_not_late(
    client: Client, settings: Settings, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Worker(settings, device="cpu", queues=["cpu"])
    slow.idle_look()
    storage = slow._depot.get()
    put, go_on = storage.put, threading.Event()

    def waiting(*arguments: Any, **more: Any) -> Any:
        go_on.wait(30)
        return put(*arguments, **more)

    monkeypatch.setattr(storage, "put", waiting)
    batch = client.submit([{"params": {"message": 1}, "timeout_s": 1}], task="echo")
    thread = threading.Thread(target=slow.drain)
    thread.start()
    db = Database(settings)

    def deadline() -> float | None:
        with db.read() as connection:
            row = connection.execute(select(jobs.c.deadline_at, jobs.c.progress)).one()
            return 0.0 if row.progress is None else row.deadline_at

    until(lambda: deadline() is None, within_s=10, what="the deadline being lifted")
    reap_overdue(db, 0.0)
    go_on.set()
    thread.join(20)
    slow.close()
    assert [(job.status, job.attempt) for job in batch.jobs()] == [("succeeded", 1)]


def test_one_failed_upload_costs_neither_the_later_checkpoints_nor_the_result(
    client: Client, settings: Settings, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Worker(settings.model_copy(update={"lease_s": 20.0}), device="cpu", queues=["cpu"])
    patient.idle_look()
    storage = type(patient._depot.get())
    put, failures = storage.put, iter([True, True])

    def failing(self: Any, key: str, *arguments: Any, **more: Any) -> Any:
        if "probe" not in key and next(failures, False):
            raise Unavailable("storage", "there", "a moment of weakness", "wait")
        return put(self, key, *arguments, **more)

    monkeypatch.setattr(storage, "put", failing)

    def publishing(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        for number in range(3):
            run.publish(jobs[0].job_id, Output("text/plain", str(number).encode(), role="metric"), position=number)
            run.step([jobs[0].job_id], number + 1, 3)
            time.sleep(0.4)  # longer than the pause after trouble
        yield Done(jobs[0].job_id, [Output("text/plain", b"result")])

    scripted.script = staticmethod(publishing)
    batch = submitted(client, 1)
    patient.drain()
    patient.close()
    [job] = batch.jobs()
    assert (job.status, job.attempt) == ("succeeded", 1)
    assert {artifact.role for artifact in job.artifacts} == {"metric", "output"}


def test_a_worker_at_rest_sits_its_rest_out_unless_it_is_to_stop(settings: Settings) -> None:
    resting = Worker(settings.model_copy(update={"idle_look_s": 1.0}), device="cpu", queues=["cpu"])
    begun = time.monotonic()
    resting.sit_out_rest()
    assert time.monotonic() - begun < 0.1, "it is not at rest"
    resting._failed(Unavailable("storage", "there", "a moment of weakness", "wait"))
    resting.sit_out_rest()
    assert time.monotonic() - begun > 0.9
    resting._failed(Unavailable("storage", "there", "a moment of weakness", "wait"))
    resting.ask_to_stop()
    begun = time.monotonic()
    resting.sit_out_rest()
    assert time.monotonic() - begun < 0.5
    resting.close()


def test_told_to_stop_while_it_gets_ready_a_worker_claims_nothing(
    client: Client, settings: Settings, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = Worker(settings, device="cpu", queues=["cpu"])
    opened = stopping._open_storage

    def told_meanwhile() -> Any:
        stopping.ask_to_stop()
        return opened()

    monkeypatch.setattr(stopping._depot, "_opened", told_meanwhile)
    batch = submitted(client, 1)
    assert stopping.drain() == 0
    stopping.close()
    assert batch.status().counts["queued"] == 1


def test_a_lane_that_gives_nothing_does_not_keep_the_others_waiting(
    client: Client, worker: Worker, settings: Settings
) -> None:
    gone = client.submit([{"params": {"message": 1}, "priority": 5}], task="echo")
    Database(settings).write(lambda c: c.execute(update(jobs).where(jobs.c.batch_id == gone.id).values(expires_at=1.0)))
    batch = submitted(client, 1)
    worker.drain()
    assert batch.status().counts["succeeded"] == 1
    assert gone.status().counts["queued"] == 1, "nobody has ended it yet"


def test_an_output_that_cannot_be_encoded_fails_its_own_job(
    client: Client, worker: Worker, scripted: type[Scripted]
) -> None:
    def broken() -> bytes:
        raise OSError("no such colour")

    def one_bad(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        for job in jobs:
            yield Done(job.job_id, [Output("image/png", broken if job.custom_id == "j1" else b"picture")])

    scripted.script = staticmethod(one_bad)
    batch = client.submit(
        [{"custom_id": f"j{k}", "params": {"message": k}, "max_attempts": 1} for k in range(3)], task="echo"
    )
    worker.drain()
    assert states(batch) == {"j0": "succeeded", "j1": "failed", "j2": "succeeded"}
    assert batch.status().errors[0].code == "encoding_failed"


def test_a_job_that_takes_too_long_ends_between_two_steps(
    client: Client, worker: Worker, scripted: type[Scripted]
) -> None:
    def endless(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        for step in range(100_000):
            time.sleep(0.01)
            run.step([job.job_id for job in jobs], step, 100_000)
        yield from well(jobs, run)

    scripted.script = staticmethod(endless)
    batch = client.submit([{"params": {"message": 1}, "timeout_s": 0.2, "max_attempts": 1}], task="echo")
    worker.drain()
    assert batch.status().errors[0].code == "timed_out"


def test_a_failure_that_may_pass_is_tried_again_later_and_its_attempts_are_counted(
    client: Client, worker: Worker, scripted: type[Scripted]
) -> None:
    def fails(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        for job in jobs:
            yield Failed(job.job_id, JobFailed("passing", "not now", retryable=True))

    scripted.script = staticmethod(fails)
    batch = submitted(client, 1)
    worker.drain()
    job = client.job(f"{batch.id}-1")
    assert (job.status, job.attempt) == ("queued", 1)
    assert "next try" in client.why(job.id)
    assert "not now" in client.why(job.id)


def test_a_result_of_a_job_that_was_taken_away_is_never_visible(
    client: Client, worker: Worker, scripted: type[Scripted], settings: Settings
) -> None:
    """A frozen worker wakes: its lease has lapsed, a keeper gave its job to somebody else."""

    def frozen(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        database = Database(settings)

        def lapsed() -> bool:  # a renewal may come between the two
            database.write(lambda c: c.execute(update(worker_sessions).values(lease_expires_at=0)))
            return reap(database) == [worker.session_id]

        until(lapsed, what="a keeper taking the worker for dead")
        scripted.script = staticmethod(well)
        for job in jobs:
            yield Done(job.job_id, [Output("text/plain", b"from the grave")])

    scripted.script = staticmethod(frozen)
    worker.idle_look()
    dead = worker.session_id
    batch = submitted(client, 2)
    worker.drain()
    until(lambda: (worker.idle_look(), batch.status().status == "done")[1], within_s=20, what="the second run")

    assert {result["text"] for result in batch.results()} == {"made 0", "made 1"}
    assert worker.session_id != dead, "it began anew"
    with Database(settings).read() as connection:
        assert len(connection.execute(select(artifacts)).all()) == 2


def test_told_to_stop_it_gives_back_what_is_not_finished(
    client: Client, worker: Worker, scripted: type[Scripted]
) -> None:
    entered = threading.Event()

    def long(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        yield Done(jobs[0].job_id, [Output("text/plain", b"quick")])
        entered.set()
        while True:
            time.sleep(0.01)
            run.step([job.job_id for job in jobs], 1, 100)

    scripted.script = staticmethod(long)
    batch = submitted(client, 3)
    thread = threading.Thread(target=worker.drain)
    thread.start()
    assert entered.wait(20)
    worker.ask_to_stop(0.4)
    thread.join(10)

    assert not thread.is_alive()
    assert states(batch) == {"j0": "succeeded", "j1": "queued", "j2": "queued"}
    assert all(job.attempt == (1 if job.custom_id == "j0" else 0) for job in batch.jobs())


def test_a_cancelled_job_in_a_microbatch_leaves_its_neighbours_alone(
    client: Client, worker: Worker, scripted: type[Scripted]
) -> None:
    entered = threading.Event()

    def patient(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        entered.set()
        until(lambda: (run.step([j.job_id for j in jobs], 1, 2), not run.wanted(jobs[0].job_id))[1], what="the cancel")
        yield from well(jobs[1:], run)

    scripted.script = staticmethod(patient)
    batch = submitted(client, 3)
    thread = threading.Thread(target=worker.drain)
    thread.start()
    assert entered.wait(20)
    client.cancel([f"{batch.id}-1"])
    thread.join(20)
    assert states(batch) == {"j0": "cancelled", "j1": "succeeded", "j2": "succeeded"}


def test_higher_priority_goes_first(client: Client, worker: Worker, scripted: type[Scripted]) -> None:
    submitted(client, 2, name="low")
    client.submit([{"custom_id": "urgent", "params": {"message": 1}, "priority": 5}], task="echo")
    worker.drain()
    assert scripted.met[0] == ["urgent"]


def test_jobs_that_were_in_company_when_a_worker_died_meet_fewer_next_time(
    client: Client, worker: Worker, scripted: type[Scripted], settings: Settings
) -> None:
    batch = submitted(client, 8)
    Database(settings).write(lambda c: c.execute(update(jobs).values(max_company=1)))
    worker.drain()
    assert batch.status().counts["succeeded"] == 8
    assert {len(group) for group in scripted.met} == {1}


def test_a_database_that_vanishes_for_a_while_costs_no_job(
    client: Client, worker: Worker, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was doing when the answers stopped: nothing stays in its hands for ever."""
    away = threading.Event()
    write = Database.write

    def flaky(self: Database, work: Any, **more: Any) -> Any:
        if away.is_set():
            raise Unavailable("database", "here", "gone")
        return write(self, work, **more)

    def vanishing(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        if not away.is_set() and len(scripted.met) == 1:
            away.set()
            threading.Timer(0.6, away.clear).start()
        yield from well(jobs, run)

    monkeypatch.setattr(Database, "write", flaky)
    scripted.script = staticmethod(vanishing)
    batch = submitted(client, 70)
    worker.drain()
    until(lambda: (worker.idle_look(), batch.status().status == "done")[1], within_s=30, what="the end")
    assert batch.status().counts["succeeded"] == 70


def test_a_storage_that_is_away_for_long_fails_no_job_and_is_not_computed_for_in_vain(
    client: Client, worker: Worker, scripted: type[Scripted], settings: Settings
) -> None:
    assert settings.storage_url.startswith("file:")
    folder = Path(settings.storage_url.removeprefix("file://"))
    done = submitted(client, 1)
    worker.drain()
    assert done.status().counts["succeeded"] == 1

    folder.rename(folder.with_name("away"))
    folder.write_text("no folder")
    batch = submitted(client, 2)
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        worker.drain()
        worker.idle_look()
        release_due(Database(settings))
        time.sleep(0.02)
    assert set(states(batch).values()) == {"queued"}
    assert len(scripted.met) <= 3, "one try, and then nothing is claimed before the storage answers"
    until(lambda: client.workers()[0].condition.get("storage"), what="the operator being told")

    folder.unlink()
    folder.with_name("away").rename(folder)
    until(
        lambda: (release_due(Database(settings)), worker.idle_look(), batch.status().status == "done")[2],
        what="the end",
    )
    assert [job.attempt for job in batch.jobs()] == [1, 1]


def test_a_worker_that_starts_while_the_storage_is_away_serves_once_it_is_back(
    client: Client, settings: Settings, scripted: type[Scripted]
) -> None:
    folder = Path(settings.storage_url.removeprefix("file://"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("no folder")
    worker = Worker(settings, device="cpu", queues=["cpu"])
    batch = submitted(client, 1)
    worker.idle_look()
    worker.drain()
    assert states(batch) == {"j0": "queued"}
    folder.unlink()
    until(lambda: (worker.idle_look(), batch.status().status == "done")[1], what="the end")
    worker.close()


def test_a_model_that_cannot_be_had_for_now_costs_no_attempt(
    client: Client, worker: Worker, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "SET_ASIDE_S", 0.4)
    loads: list[float] = []

    def load(cls: type[Scripted], files: ModelFiles | None, device: Device) -> Scripted:
        loads.append(time.monotonic())
        if len(loads) < 4:
            raise JobFailed("model_unreachable", "the hub hiccups", retryable=True)
        return cls()

    monkeypatch.setattr(Scripted, "load", classmethod(load))
    batch = submitted(client, 40)
    worker.drain()
    assert batch.status().counts["queued"] == 40
    assert len(loads) == 1
    settings = client.settings
    until(
        lambda: (release_due(Database(settings)), worker.idle_look(), batch.status().status == "done")[2],
        what="the end",
    )
    assert {job.attempt for job in batch.jobs()} == {1}


def test_a_generator_that_cannot_cut_runs_each_job_alone(
    client: Client, worker: Worker, scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(self: Scripted, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        raise ValueError("one of them is odd")

    monkeypatch.setattr(Scripted, "cut", cut)
    batch = submitted(client, 4)
    worker.drain()
    assert batch.status().counts["succeeded"] == 4
    assert [len(group) for group in scripted.met] == [1, 1, 1, 1]


def test_facts_that_no_database_takes_fail_their_own_job(
    client: Client, worker: Worker, scripted: type[Scripted]
) -> None:
    def odd(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        for job in jobs:
            facts = {"made": object()} if job.custom_id == "j1" else {}
            yield Done(job.job_id, [Output("text/plain", b"x", facts)])

    scripted.script = staticmethod(odd)
    batch = client.submit(
        [{"custom_id": f"j{k}", "params": {"message": k}, "max_attempts": 1} for k in range(3)], task="echo"
    )
    session = worker.session_id
    worker.drain()
    assert states(batch) == {"j0": "succeeded", "j1": "failed", "j2": "succeeded"}
    assert session in (None, worker.session_id), "the worker went on"


def test_each_job_has_its_own_clock(client: Client, worker: Worker, scripted: type[Scripted]) -> None:
    def one_after_the_other(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        for job in jobs:
            for step in range(10):
                run.step([job.job_id], step, 10)
                time.sleep(0.03)
            if run.wanted(job.job_id):
                yield Done(job.job_id, [Output("text/plain", b"in time")])

    scripted.script = staticmethod(one_after_the_other)
    batch = client.submit([{"params": {"message": k}, "timeout_s": 1.2} for k in range(8)], task="echo")
    worker.drain()
    assert batch.status().counts["succeeded"] == 8
    spent = sum(job.timings["device_s"] or 0 for job in batch.jobs())
    assert spent >= 8 * 0.3, "what was spent on the device is booked"


def test_a_job_that_is_late_or_cancelled_does_not_end_its_neighbours(
    client: Client, worker: Worker, scripted: type[Scripted]
) -> None:
    def one_after_the_other(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        for job in jobs:
            for step in range(40 if job.custom_id == "j1" else 2):
                time.sleep(0.01)
                run.step([job.job_id], step, 40)
                if not run.wanted(job.job_id):
                    break
            if run.wanted(job.job_id):
                yield Done(job.job_id, [Output("text/plain", b"well")])

    scripted.script = staticmethod(one_after_the_other)
    limits = {"j1": {"timeout_s": 0.1, "max_attempts": 1}}
    batch = client.submit(
        [{"custom_id": f"j{k}", "params": {"message": k}, **limits.get(f"j{k}", {})} for k in range(4)], task="echo"
    )
    worker.drain()
    assert states(batch) == {"j0": "succeeded", "j1": "failed", "j2": "succeeded", "j3": "succeeded"}
    assert len(scripted.met) == 1, "nothing was done twice"


def test_closing_waits_for_a_drain_within_the_grace(client: Client, worker: Worker, scripted: type[Scripted]) -> None:
    entered = threading.Event()

    def takes_a_moment(jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        entered.set()
        for step in range(30):
            time.sleep(0.01)
            run.step([job.job_id for job in jobs], step, 30)
        yield from well(jobs, run)

    scripted.script = staticmethod(takes_a_moment)
    batch = submitted(client, 1)
    thread = threading.Thread(target=worker.idle_look)
    thread.start()
    assert entered.wait(20)
    worker.ask_to_stop(5)
    worker.close()
    thread.join(5)
    assert states(batch) == {"j0": "succeeded"}
