"""The books of a batch: held against the rows, set right if they are wrong, and events that no reader misses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from cluster import until
from sqlalchemy import Connection, Select, delete, insert, select, text, update
from sqlalchemy.exc import OperationalError
from test_transitions import audit as audited_by_the_tests
from test_transitions import change, claim, fail, load, new_batch, session, submit, success

from shared import jobs
from shared.audit import Auditor, audit, repair
from shared.counters import moved
from shared.database import Database
from shared.ids import batch_of
from shared.jobs import Failure
from shared.jobs.pieces import MOVED
from shared.tables import backlog, batch_counters, batch_errors, events
from shared.tables import jobs as table


@pytest.fixture
def batch(db: Database) -> str:
    """A batch with a job in each of several states."""
    ids = submit(db, 6)
    who = session(db)
    claim(db, who, 4)
    jobs.succeed(db, who, [success(db, who, ids[0], 1)])
    fail(db, who, ids[1], 1, retryable=False)
    fail(db, who, ids[2], 1)  # waits for its next try
    jobs.cancel_jobs(db, "default", [ids[5]])
    return batch_of(ids[0])


WRONG = {
    "a counter": update(batch_counters).values(running=batch_counters.c.running + 3),
    "all counters gone": delete(batch_counters),
    "a backlog too low": update(backlog).values(ready=0),
    "a backlog too high": update(backlog).values(ready=backlog.c.ready + 1),
    "a backlog row gone": delete(backlog),
    "a sum of errors": update(batch_errors).values(count=7),
    "a sum of errors gone": delete(batch_errors),
    "a sum of errors that never were": insert(batch_errors).from_select(
        ["batch_id", "code", "count", "example"],
        select(batch_counters.c.batch_id, text("'never'"), text("2"), text("'x'")),
    ),
}


def test_books_that_are_right_are_left_alone(db: Database, batch: str) -> None:
    assert audit(db, batch) == []
    assert repair(db, batch) == []
    assert "counters_repaired" not in kinds(db, batch)


@pytest.mark.parametrize("what", WRONG)
def test_whatever_is_wrong_is_found_said_and_set_right(
    db: Database, batch: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    change(db, WRONG[what])

    found = audit(db, batch)
    assert found
    assert all("booked" in words or "no counters" in words for words in found)
    with caplog.at_level(logging.ERROR, logger="aigc.keeper"):
        assert repair(db, batch) == found

    assert audit(db, batch) == []
    audited_by_the_tests(db)
    assert kinds(db, batch)[-1] == "counters_repaired"
    with db.read() as connection:
        last = connection.scalar(select(events.c.data).order_by(events.c.id.desc()).limit(1))
    assert last == {"differences": found}
    assert found[0] in caplog.text


def kinds(db: Database, batch_id: str) -> list[str]:
    with db.read() as connection:
        return list(
            connection.scalars(select(events.c.kind).where(events.c.batch_id == batch_id).order_by(events.c.id))
        )


def test_a_batch_that_is_loading_has_no_books_yet_and_none_that_are_wrong(db: Database) -> None:
    loading = new_batch(3)
    load(db, loading)
    assert audit(db, loading.id) == []
    assert repair(db, loading.id) == []
    assert audit(db, "b-that-never-was") == []


def test_the_keepers_walk_comes_round_to_every_open_batch_and_repairs_what_is_wrong_twice(db: Database) -> None:
    batches = [batch_of(submit(db, 2)[0]) for _ in range(5)]
    load(db, new_batch(2))
    auditor = Auditor(db)
    for batch_id in batches[1::2]:
        change(db, update(batch_counters).where(batch_counters.c.batch_id == batch_id).values(queued=9))

    repaired = [auditor.walk(for_s=0) for _ in range(7)]  # one batch at each step

    assert sum(repaired) == 2
    assert [audit(db, batch_id) for batch_id in batches] == [[]] * 5
    assert auditor.walk(for_s=10) == 0, "a whole walk ends, and finds nothing"


def test_what_is_wrong_once_and_right_the_next_time_is_left_alone(db: Database, batch: str) -> None:
    auditor = Auditor(db)
    change(db, update(batch_counters).values(running=batch_counters.c.running + 1))
    auditor.walk()
    change(db, update(batch_counters).values(running=batch_counters.c.running - 1))
    assert auditor.walk() == 0
    assert "counters_repaired" not in kinds(db, batch)


def test_a_repair_beside_transitions_leaves_the_books_right(db: Database) -> None:
    """Repairs, again and again, while others claim, succeed, fail and give back."""
    batch_id = batch_of(submit(db, 60)[0])
    errors: list[Exception] = []

    def work() -> None:
        try:
            who = session(db)
            for _ in range(12):
                for got in claim(db, who, 3):
                    jobs.succeed(db, who, [success(db, who, got.id, got.epoch)])
                for got in claim(db, who, 2):
                    jobs.give_back(db, who, [(got.id, got.epoch)], "no time")
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        change(db, update(batch_counters).values(succeeded=batch_counters.c.succeeded + 1))
        assert repair(db, batch_id)
    for thread in threads:
        thread.join()

    assert errors == []
    assert audit(db, batch_id) == []


@pytest.fixture
def postgres(postgres_settings: Any) -> Iterator[Database]:
    database = Database(postgres_settings)
    yield database
    database.dispose()


def test_a_repair_waits_for_a_transition_that_is_half_way(postgres: Database) -> None:
    db = postgres
    ids = submit(db, 3)
    batch_id = batch_of(ids[0])
    change(db, update(batch_counters).values(running=batch_counters.c.running + 1))
    repaired: list[list[str]] = []
    keeper = threading.Thread(target=lambda: repaired.append(repair(db, batch_id)))
    with db.engine.connect() as connection:
        rows = connection.execute(
            update(table).where(table.c.id == ids[0]).values(state="running").returning(*MOVED)
        ).all()
        moved(connection, rows, "queued", "running", "claimed", ready=-1)
        keeper.start()
        until(lambda: waits(db), within_s=10, what="the repair waiting")
        connection.commit()
    keeper.join(timeout=10)

    assert repaired == [["running: 2 booked, 1 there"]]
    assert audit(db, batch_id) == []


# --- the order of locks ---


def free(db: Database, statement: Select[Any]) -> bool:
    """Whether nobody holds these rows locked."""
    with db.engine.connect() as connection:
        try:
            return bool(connection.execute(statement.with_for_update(nowait=True)).all())
        except OperationalError:
            return False


def while_held(db: Database, held: Select[Any], act: Callable[[], Any], look: Callable[[], bool]) -> bool:
    """What a look says while this transition waits for these rows; afterwards it goes through."""
    thread = threading.Thread(target=act)
    with db.engine.connect() as other:
        other.execute(held.with_for_update())
        thread.start()
        until(lambda: waits(db), within_s=10, what="the transition waiting")
        seen = look()
        other.rollback()
    thread.join(timeout=10)
    assert not thread.is_alive()
    return seen


def counters_of(id_: str) -> Select[Any]:
    return select(batch_counters).where(batch_counters.c.batch_id == batch_of(id_))


def test_failures_of_several_kinds_take_all_their_jobs_in_order_before_any_counters(postgres: Database) -> None:
    db = postgres
    ids = submit(db, 2)
    who = session(db)
    claim(db, who)
    kinds = [Failure(ids[1], 1, "refused", "no", retryable=False), Failure(ids[0], 1, "broken", "it broke", True)]
    first, second = (select(table).where(table.c.id == id_) for id_ in ids)

    nothing_was_taken = while_held(
        db, first, lambda: jobs.fail(db, who, kinds), lambda: free(db, second) and free(db, counters_of(ids[0]))
    )

    assert nothing_was_taken
    assert audit(db, batch_of(ids[0])) == []


@pytest.mark.parametrize("way", ["fail", "give back", "reap", "overdue", "cancel"])
def test_counters_of_several_batches_are_taken_in_their_order_whatever_becomes_of_the_jobs(
    postgres: Database, way: str
) -> None:
    """Given a batch whose job is cancelled, which is booked last, and a later one whose job is queued again."""
    db = postgres
    first, second = sorted([submit(db), submit(db)])
    who = session(db, lease_s=-100)
    claim(db, who)
    held = [(*first, 1), (*second, 1)]
    if way == "cancel":
        jobs.give_back(db, who, held[1:], "stop")  # is ready again, and what runs is booked after it
        first, second = second, first
    else:
        jobs.cancel_jobs(db, "default", first)
    change(db, update(table).where(table.c.state == "running").values(deadline_at=1.0))
    act = {
        "fail": lambda: jobs.fail(db, who, [Failure(id_, n, "broken", "it broke", True) for id_, n in held]),
        "give back": lambda: jobs.give_back(db, who, held, "stop"),
        "reap": lambda: jobs.bury(db, who),
        "overdue": lambda: jobs.reap_overdue(db, 1),
        "cancel": lambda: jobs.cancel_jobs(db, "default", [*first, *second]),
    }[way]
    lower, higher = sorted([*first, *second])

    assert while_held(db, counters_of(lower), act, lambda: free(db, counters_of(higher)))

    assert [audit(db, batch_of(id_)) for id_ in (lower, higher)] == [[], []]


# --- the order of events ---


KINDS_THAT_COUNT_NOTHING = ("released", "cancel_requested", "published")


@pytest.mark.parametrize("kind", KINDS_THAT_COUNT_NOTHING)
def test_a_reader_that_has_read_up_to_an_event_has_missed_none_before_it(postgres: Database, kind: str) -> None:
    """Given two transactions about one batch: the one that wrote its event first, commits first."""
    db = postgres
    ids = submit(db, 2)
    order: list[str] = []

    def book(connection: Connection, which: Sequence[str]) -> None:
        rows = connection.execute(select(*MOVED).where(table.c.id.in_(which)).with_for_update()).all()
        moved(connection, rows, "queued", "queued", kind)

    def second() -> None:
        db.write(lambda connection: book(connection, ids[1:]))
        order.append("second")

    thread = threading.Thread(target=second)
    with db.engine.connect() as first:
        book(first, ids[:1])
        thread.start()
        until(lambda: not thread.is_alive() or waits(db), within_s=10, what="the second one waiting")
        assert thread.is_alive(), "it went past an event that is not to be seen yet"
        order.append("first")
        first.commit()
    thread.join(timeout=10)

    assert order == ["first", "second"]
    with db.read() as connection:
        seen = connection.scalars(select(events.c.jobs).where(events.c.kind == kind).order_by(events.c.id)).all()
    assert seen == [[[1, 1]], [[2, 2]]]


def waits(db: Database) -> bool:
    """Whether anybody waits for a lock."""
    with db.read() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))
