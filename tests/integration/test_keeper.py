"""The keeper takes back what dead workers held, soon, and never what a worker holds that is merely out of reach."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import BRISK, Cluster, until
from servers import PostgresServer, RedisServer
from sqlalchemy import select, text, update
from test_transitions import at_once, audit, change, claim, job, lapse, session, states, submit, success

from shared import jobs, keeper
from shared.database import Database, RowsLocked, now
from shared.errors import RequestError, Unavailable
from shared.keeper import DAY_S, Keeper, give_turn_back, take_turn
from shared.settings import Settings, load_settings
from shared.tables import attempts, duties, events, worker_sessions
from shared.tables import jobs as table

LEASE_S, INTERVAL_S = 60.0, 2.0
TENANT = "default"


def beat(db: Database) -> jobs.Beat:
    return jobs.beat(db, lease_s=LEASE_S, interval_s=INTERVAL_S)


def since_last_beat(db: Database, seconds: float) -> None:
    """No keeper has reached the database for so long."""
    change(db, update(duties).where(duties.c.name == "pulse").values(done_at=now() - seconds))


def lease_left(db: Database, who: str) -> float:
    with db.read() as connection:
        return float(
            connection.execute(
                select(worker_sessions.c.lease_expires_at - now()).where(worker_sessions.c.id == who)
            ).scalar_one()
        )


def leave(db: Database, who: str, seconds: float) -> None:
    """Its lease ends so many seconds from now."""
    change(db, update(worker_sessions).where(worker_sessions.c.id == who).values(lease_expires_at=now() + seconds))


def ended(db: Database, who: str) -> str | None:
    with db.read() as connection:
        return connection.scalar(select(worker_sessions.c.end).where(worker_sessions.c.id == who))


# --- a worker that is known to be dead ---


def in_the_model(db: Database) -> tuple[str, list[str]]:
    """A session with a job alone in the model, and another with two in company and one that has not entered."""
    ids = submit(db, 4, max_attempts=2)
    who = session(db)
    claim(db, who)
    jobs.enter(db, who, [(ids[0], 1), (ids[1], 1)], 20)
    return who, ids


def test_the_jobs_of_a_dead_child_go_back_at_once_and_only_who_was_alone_is_charged(db: Database) -> None:
    [loner] = submit(db, max_attempts=1)
    alone = session(db)
    claim(db, alone, 1)
    jobs.enter(db, alone, [(loner, 1)], 1)
    crowd, ids = in_the_model(db)

    assert jobs.bury(db, alone, code="stalled", message="no step for 600 s")
    assert jobs.bury(db, crowd, code="stalled", message="no step for 600 s")

    failed = job(db, loner)
    assert (failed.state, failed.error_code, failed.error_message) == ("failed", "stalled", "no step for 600 s")
    assert states(db, ids) == ["queued"] * 4
    assert [job(db, id_).max_company for id_ in ids] == [8, 8, None, None]
    assert [job(db, id_).attempts for id_ in ids] == [0] * 4
    assert [job(db, id_).epoch for id_ in ids] == [2] * 4
    assert (ended(db, alone), ended(db, crowd)) == ("lost", "lost")
    with db.read() as connection:
        codes = connection.scalars(select(attempts.c.error_code)).all()
        kinds = connection.scalars(select(events.c.kind).where(events.c.kind != "submitted")).all()
    assert codes == ["stalled"] * 5
    assert sorted(kinds) == ["claimed", "claimed", "failed", "lost"]
    assert jobs.succeed(db, crowd, [success(db, crowd, id_, 1) for id_ in ids]) == set(), "fenced"
    audit(db)


def test_an_orderly_stop_that_ran_out_of_time_costs_nobody_anything(db: Database) -> None:
    [loner] = submit(db, max_attempts=1)
    alone = session(db)
    claim(db, alone, 1)
    jobs.enter(db, alone, [(loner, 1)], 1)
    who, ids = in_the_model(db)
    jobs.cancel_jobs(db, TENANT, [ids[1]])

    assert jobs.bury(db, alone, charged=False)
    assert jobs.bury(db, who, charged=False)

    assert states(db, [loner, *ids]) == ["queued", "queued", "cancelled", "queued", "queued"]
    after = [job(db, id_) for id_ in (loner, *ids)]
    assert [(row.attempts, row.max_company, row.available_at, row.error_code) for row in after] == [
        (0, None, None, None)
    ] * 5
    assert (ended(db, alone), ended(db, who)) == ("stopped", "stopped")
    assert len(claim(db, session(db))) == 4, "ready at once"
    audit(db)


def test_burying_may_be_repeated_and_harms_no_other(db: Database) -> None:
    who, _ = in_the_model(db)
    [others] = submit(db)
    alive = session(db)
    claim(db, alive)

    assert jobs.bury(db, who)
    assert not jobs.bury(db, who)
    assert not jobs.bury(db, "w-that-never-was")

    assert job(db, others).state == "running"
    assert ended(db, alive) is None
    audit(db)


# --- leases and outages ---


def test_the_first_pulse_of_a_database_reaps_nothing_and_the_next_one_does(settings: Settings, db: Database) -> None:
    submit(db)
    who = session(db)
    claim(db, who)
    lapse(db, who)
    first = Keeper(settings, db)

    first.reap()
    assert ended(db, who) is None
    first.reap()
    assert ended(db, who) == "lost"


def test_an_outage_extends_the_leases_that_were_good_when_it_began_and_no_others(db: Database) -> None:
    beat(db)
    good, fresh, long, dead = (session(db) for _ in range(4))
    since_last_beat(db, 180)
    leave(db, good, -150)  # it was good for 30 s more
    leave(db, fresh, 40)  # renewed a moment ago
    leave(db, long, 500)
    leave(db, dead, -190)  # lapsed before the outage

    pulse = beat(db)

    assert (round(pulse.gap_s), pulse.extended) == (180, 3)
    assert lease_left(db, good) == pytest.approx(30, abs=2), "the gap, no more"
    assert lease_left(db, fresh) == pytest.approx(LEASE_S, abs=2), "never more than a lease from now"
    assert lease_left(db, long) == pytest.approx(500, abs=2), "and never less than it had"
    assert jobs.reap(db) == [dead]


def test_a_pause_that_is_usual_extends_nothing(db: Database) -> None:
    beat(db)
    who = session(db)
    leave(db, who, -1)
    since_last_beat(db, LEASE_S / 3 - 2)

    assert beat(db).extended == 0
    assert jobs.reap(db) == [who]


def test_keepers_that_come_back_at_once_extend_for_one_gap_once(db: Database) -> None:
    beat(db)
    who = session(db)
    leave(db, who, -150)
    since_last_beat(db, 180)

    pulses = at_once([lambda: beat(db) for _ in range(4)])

    assert sorted(pulse.extended for pulse in pulses) == [0, 0, 0, 1]
    assert lease_left(db, who) == pytest.approx(30, abs=2)


def test_keepers_that_wait_for_each_other_see_what_the_first_one_did(postgres_settings: Settings) -> None:
    db = Database(postgres_settings)
    beat(db)
    who = session(db)
    leave(db, who, -150)
    since_last_beat(db, 180)
    pulses: list[jobs.Beat] = []
    keepers = [threading.Thread(target=lambda: pulses.append(beat(db))) for _ in range(3)]
    with db.engine.connect() as connection:
        connection.execute(select(duties).with_for_update())
        for thread in keepers:
            thread.start()
        until(lambda: waiting(db) == 3, within_s=10, what="all three waiting")
        connection.rollback()
    for thread in keepers:
        thread.join(timeout=10)
    db.dispose()

    assert sorted(pulse.extended for pulse in pulses) == [0, 0, 1]


def waiting(db: Database) -> int:
    """How many connections to this database wait for a lock."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with db.read() as connection:
        return int(connection.execute(text(asked)).scalar_one())


def test_a_keeper_that_was_frozen_before_it_writes_takes_nobody_for_dead(db: Database) -> None:
    """Everything on the host was frozen: the keeper wakes first, before any worker can renew."""
    who = session(db)
    beat(db)
    leave(db, who, 0.05)
    beat(db)
    until(lambda: lease_left(db, who) < 0, what="the lease running out")

    assert jobs.reap(db) == [], "at the last pulse it was good"
    since_last_beat(db, 180)
    leave(db, who, -175)
    assert jobs.reap(db) == []
    assert beat(db).extended == 1
    assert jobs.reap(db) == []
    jobs.renew(db, who, LEASE_S, {}, {})


def test_what_was_lapsed_at_the_look_and_is_renewed_before_the_write_lives_on(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = session(db)
    lapse(db, who)
    beat(db)
    write = Database.write

    def meanwhile(self: Database, work: Any, **options: Any) -> Any:
        monkeypatch.setattr(Database, "write", write)
        jobs.renew(db, who, LEASE_S, {}, {})
        return write(self, work, **options)

    monkeypatch.setattr(Database, "write", meanwhile)
    assert jobs.reap(db) == []
    assert ended(db, who) is None


def test_the_operator_is_told_that_leases_were_extended(
    settings: Settings, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    beat(db)
    session(db)
    since_last_beat(db, 180)
    with caplog.at_level(logging.INFO, logger="aigc.keeper"):
        Keeper(settings, db).reap()
    [told] = caplog.records
    assert told.levelno == logging.ERROR
    assert re.match(r"for 180\.\d s no keeper had reached the database: a worker has longer to show", told.message)


# --- threads ---


@contextmanager
def running(settings: Settings, db: Database) -> Iterator[Keeper]:
    brisk = settings.model_copy(update={"keeper_interval_s": 0.1})
    made, stop = Keeper(brisk, db), threading.Event()
    thread = threading.Thread(target=made.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_a_clean_up_that_hangs_holds_up_neither_reaping_nor_the_clock(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang(_: Database) -> int:
        begun.set()
        go_on.wait(30)
        return 0

    monkeypatch.setattr(jobs, "sweep_backlog", hang)
    with running(settings, db):
        assert begun.wait(10)
        dead, [late] = session(db), submit(db, expires_at=1.0)
        lapse(db, dead)
        until(lambda: ended(db, dead) == "lost", within_s=5, what="reaping")
        until(lambda: job(db, late).state == "failed", within_s=5, what="the clock")
        go_on.set()


def test_a_reaper_that_waits_does_not_read_like_an_outage(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, waits = threading.Event(), threading.Event()

    def wait(_: Database) -> list[str]:
        waits.set()
        go_on.wait(30)
        return []

    monkeypatch.setattr(jobs, "reap", wait)
    with running(settings, db):
        assert waits.wait(10)
        for _ in range(3):
            before = pulse_at(db)
            until(lambda before=before: pulse_at(db) > before, within_s=5, what="another pulse")
        go_on.set()


def pulse_at(db: Database) -> float:
    with db.read() as connection:
        return float(connection.scalar(select(duties.c.done_at).where(duties.c.name == "pulse")) or 0)


def test_a_defect_in_one_clean_up_leaves_the_others_their_turn_and_trouble_is_said_once(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled: list[str] = []
    monkeypatch.setattr(jobs, "abandon_silent_batches", lambda _: 1 // 0)
    monkeypatch.setattr(jobs, "sweep_backlog", lambda _: cancelled.append("swept") or 0)
    submit(db)
    who = session(db)
    jobs.intend(db, who, TENANT, ["a/b"])  # something was to be stored, and there is no storage
    made = Keeper(settings, db)
    with caplog.at_level(logging.INFO, logger="aigc.keeper"):
        made.keep_house()
        made.keep_house()
    assert cancelled == ["swept", "swept"]
    told = [record.message for record in caplog.records]
    assert sum("a defect of ours" in message for message in told) == 2
    assert sum("storage at" in message for message in told) == 1, "said once"


def test_a_database_that_is_away_is_said_once_for_the_whole_house(tmp_path: Path) -> None:
    nowhere = Settings(
        _env_file=None, data_dir=tmp_path, database_url="postgresql+psycopg://postgres:x@127.0.0.1:9/none"
    )
    with pytest.raises(Unavailable, match="database at"):
        Keeper(nowhere, Database(nowhere)).keep_house()


def timed(db: Database, ends_in_s: float) -> str:
    """A running job whose time in the model is up so many seconds from now."""
    [id_] = submit(db)
    claim(db, session(db))
    change(db, update(table).where(table.c.id == id_).values(deadline_at=now() + ends_in_s))
    return id_


def test_a_job_that_its_worker_does_not_end_in_time_is_taken_back(settings: Settings, db: Database) -> None:
    late, in_time = timed(db, -1.5 * LEASE_S), timed(db, -0.5 * LEASE_S)
    at_hand = Keeper(settings, db)
    at_hand.reap()
    at_hand.look_at_the_clock()
    assert (job(db, late).state, job(db, late).error_code, job(db, late).attempts) == ("queued", "timed_out", 1)
    assert job(db, in_time).state == "running", "its worker has a lease to end it"
    audit(db)


def test_no_keeper_charges_a_job_for_a_time_without_the_database(settings: Settings, db: Database) -> None:
    """Given two keepers and one gap: whichever comes first, its reaping or its clock, the worker may tell first."""
    first, second = Keeper(settings, db), Keeper(settings, db)
    first.reap()
    second.reap()
    was_late, ended_meanwhile = timed(db, -180 - 1.1 * LEASE_S), timed(db, -150)
    was_about_to_tell = timed(db, -185)
    before = {id_: job(db, id_).deadline_at for id_ in (was_late, ended_meanwhile, was_about_to_tell)}
    since_last_beat(db, 180)

    second.look_at_the_clock()
    assert job(db, ended_meanwhile).state == "running", "before any pulse nothing is known of the gap"
    first.reap()
    second.reap()
    for each in (second, first):
        each.look_at_the_clock()

    assert job(db, ended_meanwhile).state == "running"
    assert job(db, was_about_to_tell).state == "running"
    moved = [job(db, id_).deadline_at - before[id_] for id_ in (ended_meanwhile, was_about_to_tell)]
    assert moved == [pytest.approx(180, abs=2)] * 2, "by the gap, once"
    assert job(db, was_late).state == "queued", "what was to be taken back before the gap is"
    audit(db)


def test_a_pulse_waits_for_no_row_that_somebody_holds(postgres_settings: Settings) -> None:
    db = Database(postgres_settings)
    beat(db)
    id_, who = timed(db, -10), session(db)
    leave(db, who, -150)
    since_last_beat(db, 180)
    with db.engine.connect() as frozen:
        frozen.execute(select(table).where(table.c.id == id_).with_for_update())
        frozen.execute(select(worker_sessions).where(worker_sessions.c.id == who).with_for_update())
        began = time.monotonic()
        assert beat(db).extended == 1, "that of the job"
        assert time.monotonic() - began < 1
        frozen.rollback()
    db.dispose()


def test_a_dead_worker_whose_rows_are_locked_holds_up_no_other(postgres_settings: Settings) -> None:
    """A worker that was frozen in the middle of a transaction: its connection lives on, with its locks."""
    db = Database(postgres_settings)
    dead = []
    for _ in range(3):
        [id_] = submit(db)
        dead.append((session(db), id_))
        claim(db, dead[-1][0])
    dead.sort()
    for who, _ in dead:
        lapse(db, who)
    (held, its_job), *others = dead
    with db.engine.connect() as frozen:
        frozen.execute(select(table).where(table.c.id == its_job).with_for_update())
        began = time.monotonic()
        assert jobs.reap(db) == [who for who, _ in others]
        took = time.monotonic() - began
        assert took < 2.0, f"{took:.2f} s"
        assert states(db, [id_ for _, id_ in dead]) == ["running", "queued", "queued"]
        with pytest.raises(RowsLocked, match=held):
            jobs.reap(db)
        frozen.rollback()
    assert jobs.reap(db) == [held]
    audit(db)
    db.dispose()


@pytest.mark.parametrize(("interval_s", "lease_s"), [(10, 5), (20.1, 60)])
def test_a_keeper_too_slow_for_the_lease_is_refused_with_both_names_and_no_password(
    interval_s: float, lease_s: float
) -> None:
    url = "postgresql+psycopg://aigc:secret@127.0.0.1/aigc"
    with pytest.raises(RequestError) as refused:
        load_settings(_env_file=None, keeper_interval_s=interval_s, lease_s=lease_s, database_url=url)
    told = str(refused.value)
    assert f"AIGC_KEEPER_INTERVAL_S is {interval_s:g}, and may be at most a third of AIGC_LEASE_S ({lease_s:g})" in told
    assert f"set AIGC_KEEPER_INTERVAL_S to {lease_s / 3:.4g} or less, or AIGC_LEASE_S to {3 * interval_s:g}" in told
    assert "secret" not in told


@pytest.mark.parametrize(("interval_s", "lease_s"), [(20, 60), (0.3, 3), (0.3, 1)])
def test_after_any_outage_of_two_thirds_of_a_lease_leases_are_extended(
    db: Database, interval_s: float, lease_s: float
) -> None:
    jobs.beat(db, lease_s=lease_s, interval_s=interval_s)
    session(db)
    since_last_beat(db, lease_s * 0.7 + 0.1)
    assert jobs.beat(db, lease_s=lease_s, interval_s=interval_s).extended == 1


# --- duties that one keeper does at a time ---


def test_a_daily_duty_is_one_keepers_and_due_again_after_its_time_or_its_failure(db: Database) -> None:
    assert sum(at_once([lambda: take_turn(db, "strays", DAY_S) for _ in range(4)])) == 1
    assert not take_turn(db, "strays", DAY_S)
    change(db, update(duties).where(duties.c.name == "strays").values(done_at=now() - DAY_S - 1))
    assert take_turn(db, "strays", DAY_S)
    give_turn_back(db, "strays")
    assert take_turn(db, "strays", DAY_S)


def test_the_daily_walk_through_the_storage_is_tried_again_when_it_failed(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = settings.data_dir / "store"
    store.mkdir(parents=True)
    submit(db)
    jobs.intend(db, session(db), TENANT, ["a/b"])
    walks: list[str] = []

    def walk(*_: Any, **__: Any) -> int:
        walks.append("begun")
        if len(walks) == 1:
            raise Unavailable("storage", "somewhere", "it broke")
        return 0

    monkeypatch.setattr(keeper, "collect_strays", walk)
    for _ in range(3):
        Keeper(settings, db).keep_house()
    assert walks == ["begun", "begun"], "again after it failed, and not again after it was done"


# --- real workers ---


@pytest.fixture
def environment(tmp_path: Path, redis_server: RedisServer) -> dict[str, str]:
    return {
        "AIGC_DATA_DIR": str(tmp_path / "data"),
        "AIGC_STORE_URL": (tmp_path / "store").as_uri(),
        "AIGC_REDIS_URL": redis_server.url,
        "AIGC_REDIS_PREFIX": tmp_path.name,
    }


def slow(seconds: float) -> list[dict[str, Any]]:
    return [{"task": "echo", "params": {"message": "slow", "steps": int(seconds / 0.05), "step_s": 0.05}}]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_jobs_of_a_killed_worker_are_queued_within_a_lease_and_two_keeper_intervals(
    kind: str, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "postgres":
        environment["AIGC_DATABASE_URL"] = request.getfixturevalue("postgres_server").new_database()
    bound = float(BRISK["AIGC_LEASE_S"]) + 2 * float(BRISK["AIGC_KEEPER_INTERVAL_S"])
    with Cluster(environment, tmp_path / "worker.log") as cluster:
        cluster.start_keeper()
        worker = cluster.start_worker()
        batch = cluster.client.submit(slow(60))
        until(lambda: batch.status().counts["running"] == 1, what="running")

        kill(worker.pid)
        killed = time.monotonic()
        until(lambda: batch.status().counts["queued"] == 1, what="queued again")

        took = time.monotonic() - killed
        assert took <= bound + 0.5, f"{took:.2f} s; 0.5 s are ours, for looking"
        assert "lost" in {event.kind for event in batch.events()}


def kill(pid: int) -> None:
    """All processes of a worker at once, so that no parent tells of its child."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in tree:
        process.send_signal(signal.SIGSTOP)
    for process in tree:
        process.kill()


def away_postgres(server: PostgresServer, seconds: float) -> None:
    server.stop()
    time.sleep(seconds)
    server.start()


def away_sqlite(database: Database, seconds: float) -> None:
    with database.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.exec_driver_sql("ROLLBACK")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_database_that_is_away_for_three_leases_costs_no_living_worker_its_jobs(
    kind: str, environment: dict[str, str], tmp_path: Path
) -> None:
    outage_s = 3 * float(BRISK["AIGC_LEASE_S"])
    if kind == "postgres":
        with PostgresServer() as server:
            environment["AIGC_DATABASE_URL"] = server.new_database()
            _survives(environment, tmp_path, lambda _: away_postgres(server, outage_s), outage_s)
    else:
        _survives(environment, tmp_path, lambda cluster: away_sqlite(cluster._database, outage_s), outage_s)


def _survives(environment: dict[str, str], tmp_path: Path, outage: Callable[[Cluster], None], outage_s: float) -> None:
    with Cluster(environment, tmp_path / "worker.log") as cluster:
        cluster.start_keeper()
        cluster.start_worker()
        [before] = cluster.client.workers()
        batch = cluster.client.submit(slow(outage_s + 6))
        # Claimed is not enough: a job that has not begun may be given back, at no cost.
        until(lambda: cluster.client.job(f"{batch.id}-1").timings["entered_at"], what="a job in the model")

        outage(cluster)
        result = cluster.done(batch, within_s=60)["1"]

        assert (result["status"], result["attempts"]) == ("succeeded", 1)
        assert [event.kind for event in batch.events()] == ["submitted", "claimed", "succeeded"]
        assert [worker.session for worker in cluster.client.workers()] == [before.session]
