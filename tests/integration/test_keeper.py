"""The keeper takes back what dead workers held, soon, and never what a worker holds that is merely out of reach."""

from __future__ import annotations

import logging
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
from shared.database import Database, now
from shared.errors import Unavailable
from shared.keeper import DAY_S, Keeper, give_turn_back, take_turn
from shared.settings import Settings
from shared.tables import attempts, duties, events, worker_sessions
from shared.tables import jobs as table

LEASE_S, INTERVAL_S = 60.0, 2.0
TENANT = "default"


def beat(db: Database) -> jobs.Pulse:
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
    pulses: list[jobs.Pulse] = []
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
    assert "1 worker session(s) were extended" in told.message


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


def test_a_job_that_its_worker_does_not_end_in_time_is_taken_back_and_not_right_after_an_outage(
    settings: Settings, db: Database
) -> None:
    """After an outage a worker first has to tell what it finished meanwhile."""
    [id_] = submit(db)
    who = session(db)
    claim(db, who)
    change(db, update(table).values(deadline_at=now() - 1000))
    out_of_reach, at_hand = Keeper(settings, db), Keeper(settings, db)
    out_of_reach.reap()
    since_last_beat(db, 180)
    out_of_reach.reap()

    out_of_reach.look_at_the_clock()
    assert job(db, id_).state == "running"
    at_hand.look_at_the_clock()
    assert job(db, id_).state == "queued"
    audit(db)


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
        until(lambda: batch.status().counts["running"] == 1, what="running")

        outage(cluster)
        result = cluster.done(batch, within_s=60)["1"]

        assert (result["status"], result["attempts"]) == ("succeeded", 1)
        assert [event.kind for event in batch.events()] == ["submitted", "claimed", "succeeded"]
        assert [worker.session for worker in cluster.client.workers()] == [before.session]
