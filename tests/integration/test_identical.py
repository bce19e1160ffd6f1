"""Identical work is done once, where its owner wants that: on both databases, and with real workers."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, until
from servers import RedisServer
from sqlalchemy import func, select, update
from test_transitions import (
    ECHO,
    at_once,
    change,
    claim,
    count,
    due,
    fail,
    held,
    job,
    listening,
    new_batch,
    plan,
    rows,
    session,
    states,
)

from aigc import Client
from producer.client import Job
from producer.gateway import DirectGateway
from shared import garbage, jobs
from shared.audit import audit as audited
from shared.database import Database, now
from shared.errors import InvalidJobs, NotAllowed, Unavailable
from shared.ids import batch_of, job_id
from shared.jobs import ClaimedJob, Lane, NewBatch, StoredArtifact, Success, identical
from shared.keeper import Keeper
from shared.settings import Settings
from shared.storage import open_storage
from shared.tables import artifacts, attempts, batch_counters, batches, objects, worker_sessions
from shared.tables import jobs as table

TENANT = "default"
RECORD = {"generator": "Echo", "generator_version": 1, "revision": "r1", "dtype": "float32", "device": "cuda:0"}
MAKER = jobs.maker_of(RECORD)
OTHER_QUEUE = Lane("gpu", "echo", "")


# --- what a test says ---


def submit(
    db: Database, total: int = 1, *, asks: str | None = "same", priority: int = 0, lane: Lane = ECHO,
    tenant: str = TENANT, **columns: Any,
) -> list[str]:  # fmt: skip
    """The ids of jobs that are queued now, and ask for the same."""
    batch = NewBatch(new_batch(total).id, tenant, None, total, None, "digest")
    assert jobs.begin_batch(db, batch) == batch.id
    jobs.add_jobs(db, batch.id, rows(db, batch, lane=lane, priority=priority, fingerprint=asks, **columns))
    jobs.open_batch(db, batch, {(jobs.lane_ids(db, [lane])[lane], priority): total})
    return [job_id(batch.id, line) for line in range(1, total + 1)]


def take(
    db: Database, who: str, limit: int = 100, *, record: dict[str, Any] = RECORD, lane: Lane = ECHO, priority: int = 0
) -> list[ClaimedJob]:
    """Claim as a worker does; what it has to make."""
    claimed = claim(db, who, limit, lane=lane, priority=priority)
    ours = jobs.sift(db, who, claimed, jobs.maker_of(record))
    return [one for one in claimed if one.id in ours]


def finish(db: Database, who: str, one: ClaimedJob, *, record: dict[str, Any] = RECORD) -> set[str]:
    """It is made, and stored in an object of its own."""
    key = f"{one.tenant_id}/{one.id}/{who}/{one.epoch}"
    jobs.intend(db, who, one.tenant_id, [key])
    file = StoredArtifact(key, 5, "output", 0, 0, 5, "text/plain", "0" * 64, {"tokens": 3})
    return jobs.succeed(db, who, [Success(one.id, one.epoch, [file], device_s=0.5, record=record)])


def make(db: Database, who: str, **more: Any) -> str:
    """The id of a job that is made."""
    [id_] = submit(db, **more)
    [one] = take(db, who, lane=more.get("lane", ECHO), priority=more.get("priority", 0))
    assert finish(db, who, one) == {id_}
    return id_


def match(db: Database, ids: Sequence[str], *, makers: dict[int, str] | None = None) -> tuple[int, int]:
    shared = jobs.match_batch(db, batch_of(ids[0]), makers or {})
    return shared.served, shared.joined


def objects_of(db: Database, ids: Sequence[str]) -> list[list[str]]:
    with db.read() as connection:
        found = connection.execute(select(artifacts.c.job_id, artifacts.c.object_key)).all()
    return [sorted(row.object_key for row in found if row.job_id == id_) for id_ in ids]


def ends(db: Database, id_: str) -> list[str]:
    """How its attempts ended."""
    with db.read() as connection:
        chosen = select(attempts.c.outcome).where(attempts.c.job_id == id_).order_by(attempts.c.epoch)
        return list(connection.scalars(chosen))


def audit(db: Database) -> None:
    """The books are right, and each job that is done has one result, its own or that of the job it is the same as."""
    with db.read() as connection:
        ids = connection.scalars(select(batches.c.id)).all()
        done = connection.execute(select(table).where(table.c.state == "succeeded")).all()
        files = Counter(connection.scalars(select(artifacts.c.job_id)))
        won = connection.execute(select(attempts).where(attempts.c.outcome.in_(("succeeded", "served")))).all()
        loose = connection.scalars(
            select(artifacts.c.object_key).join(objects, objects.c.key == artifacts.c.object_key)
            .where(objects.c.state.not_in(("stored", "dropped")))
        ).all()  # fmt: skip
    assert [difference for id_ in ids for difference in audited(db, id_)] == []
    assert files == Counter(row.id for row in done)
    assert Counter((row.job_id, row.epoch) for row in won) == Counter((row.id, row.epoch) for row in done)
    assert {row.job_id: row.outcome == "served" for row in won} == {row.id: row.same_as is not None for row in done}
    assert loose == []


def nobody_waits_for_nothing(db: Database) -> None:
    """Where jobs wait, another of the same fingerprint and lane is queued, running, or has ended and is marked."""
    with db.read() as connection:
        asked = connection.execute(select(table).where(table.c.fingerprint.is_not(None))).all()
    for one in (row for row in asked if row.state == "waiting"):
        alike = [row for row in asked if (row.fingerprint, row.lane_id) == (one.fingerprint, one.lane_id)]
        assert any(
            row.awaited_at is not None and row.state != "waiting" and row.tenant_id == one.tenant_id for row in alike
        ), f"{one.id} waits for nobody"


# --- what was made before ---


def test_what_was_made_before_is_given_to_a_job_that_asks_for_the_same(db: Database) -> None:
    who, other = session(db), session(db)
    first = make(db, who)
    [second], [plain] = submit(db), submit(db, asks=None)

    assert [one.id for one in take(db, other)] == [plain]

    assert states(db, [first, second, plain]) == ["succeeded", "succeeded", "running"]
    assert objects_of(db, [second]) == objects_of(db, [first]) != [[]]
    assert job(db, second).same_as == first
    assert job(db, second).attempts == 0
    assert ends(db, second) == ["served"]
    with db.read() as connection:
        made = connection.execute(select(attempts).where(attempts.c.job_id == second)).one()
    assert made.device_s == 0
    assert made.record == {**RECORD, "identical_to": first, "versions": {}}
    audit(db)


@pytest.mark.parametrize("key", ["generator", "generator_version", "revision", "dtype", "device"])
def test_what_another_maker_has_made_is_made_again(db: Database, key: str) -> None:
    who = session(db)
    make(db, who)
    [second] = submit(db)
    [one] = take(db, who, record={**RECORD, key: "another"})
    assert one.id == second
    finish(db, who, one, record={**RECORD, key: "another"})
    assert job(db, second).same_as is None
    audit(db)


def test_the_same_device_of_another_number_is_the_same_maker(db: Database) -> None:
    who = session(db)
    make(db, who)
    submit(db)
    assert take(db, who, record={**RECORD, "device": "cuda:1"}) == []


def test_the_record_of_what_was_made_counts_not_what_was_announced(db: Database) -> None:
    """A worker that says one thing before and another after has made the other."""
    who = session(db)
    submit(db)
    [one] = take(db, who)
    finish(db, who, one, record={**RECORD, "revision": "r2"})
    submit(db)
    assert len(take(db, who)) == 1


def test_another_tenant_gets_nothing(db: Database) -> None:
    who = session(db)
    make(db, who)
    [theirs] = submit(db, tenant="someone")
    assert match(db, [theirs], makers={job(db, theirs).lane_id: MAKER}) == (0, 0)
    [one] = take(db, who)
    assert one.id == theirs
    [ours] = submit(db, asks="other")
    [again] = submit(db, asks="other", tenant="someone")
    assert match(db, [again]) == (0, 0)
    assert {one.id for one in take(db, who)} == {ours, again}


def test_whoever_asks_for_something_else_or_wants_its_own_is_left_alone(db: Database) -> None:
    who = session(db)
    make(db, who)
    [other], [own] = submit(db, asks="other"), submit(db, asks=None)
    assert {one.id for one in take(db, who)} == {other, own}


def test_files_that_an_earlier_attempt_left_make_room_for_what_is_given(db: Database) -> None:
    who, other = session(db), session(db)
    [second] = submit(db)
    [one] = take(db, other)
    jobs.intend(db, other, TENANT, ["metric"])
    jobs.publish(db, other, [jobs.Publication(second, one.epoch, StoredArtifact(
        "metric", 5, "metric", 0, 0, 5, "application/json", "0" * 64, {}))])  # fmt: skip
    fail(db, other, second, one.epoch)
    first = make(db, who)
    due(db)
    jobs.release_due(db)
    assert take(db, other) == []
    assert objects_of(db, [second]) == objects_of(db, [first])
    with db.read() as connection:
        assert connection.scalar(select(objects.c.state).where(objects.c.key == "metric")) == "dropped"
    audit(db)


def test_a_window_without_such_jobs_costs_no_statement(db: Database) -> None:
    submit(db, 3, asks=None)
    who = session(db)
    claimed = claim(db, who)
    with listening(db) as said:
        assert jobs.sift(db, who, claimed, MAKER) == {one.id for one in claimed}
        assert jobs.succeed(db, who, []) == set()
    assert [statement for statement in said if "fingerprint" in statement and "UPDATE" not in statement] == []


def test_every_look_is_answered_by_an_index(sqlite_settings: Settings) -> None:
    db = Database(sqlite_settings)
    who = session(db)
    make(db, who)
    [first], [second] = submit(db, asks="another"), submit(db, asks="another")
    claimed = claim(db, who, 1)
    steps = plan(db, lambda: (jobs.sift(db, who, claimed, MAKER), match(db, [second], makers={1: MAKER})))
    fail(db, who, first, claimed[0].epoch, retryable=False)
    steps += plan(db, lambda: jobs.settle(db))
    assert states(db, [first, second]) == ["failed", "queued"]
    assert [step for step in steps if step.startswith("SCAN jobs")] == []
    assert any("ix_jobs_alike" in step for step in steps)
    assert any("ix_jobs_awaited" in step for step in steps)
    db.dispose()


# --- what is being made ---


def test_a_job_that_is_identical_to_one_that_runs_waits_and_gets_the_same(db: Database) -> None:
    who, other = session(db), session(db)
    [first] = submit(db)
    [one] = take(db, who)
    [second] = submit(db)

    assert take(db, other) == []
    assert states(db, [first, second]) == ["running", "waiting"]
    assert job(db, second).blockers == 1
    assert ends(db, second) == ["joined"]
    assert job(db, second).attempts == 0
    nobody_waits_for_nothing(db)
    audit(db)

    finish(db, who, one)
    assert states(db, [first, second]) == ["succeeded", "succeeded"]
    assert objects_of(db, [second]) == objects_of(db, [first])
    assert ends(db, second) == ["joined", "served"]
    assert job(db, first).awaited_at is None
    audit(db)


def test_of_identical_jobs_in_one_window_one_is_made(db: Database) -> None:
    who = session(db)
    ids = submit(db, 5)
    [one] = take(db, who)
    assert one.id == ids[0]
    assert states(db, ids) == ["running", *["waiting"] * 4]
    finish(db, who, one)
    assert states(db, ids) == ["succeeded"] * 5
    assert [job(db, id_).same_as for id_ in ids] == [None, *[ids[0]] * 4]
    audit(db)


def test_a_job_does_not_wait_for_one_that_another_maker_makes(db: Database) -> None:
    who, other = session(db), session(db)
    submit(db)
    take(db, who)
    [second] = submit(db)
    assert [one.id for one in take(db, other, record={**RECORD, "dtype": "bfloat16"})] == [second]


def test_a_job_does_not_wait_for_one_in_another_queue(db: Database) -> None:
    who, other = session(db), session(db)
    submit(db)
    take(db, who)
    [second] = submit(db, lane=OTHER_QUEUE)
    assert [one.id for one in take(db, other, lane=OTHER_QUEUE)] == [second]


def test_those_of_another_queue_go_on_waiting_for_their_own(db: Database) -> None:
    who, other = session(db), session(db)
    submit(db)
    submit(db, lane=OTHER_QUEUE)
    [one], [theirs] = take(db, who), take(db, other, lane=OTHER_QUEUE)
    [second], [third] = submit(db), submit(db, lane=OTHER_QUEUE)
    assert (match(db, [second]), match(db, [third])) == ((0, 1), (0, 1))
    finish(db, who, one)
    assert states(db, [second, third]) == ["succeeded", "waiting"]
    finish(db, other, theirs, record={**RECORD, "device": "cpu"})
    assert job(db, third).same_as == theirs.id
    audit(db)


def test_a_job_does_not_wait_for_one_that_is_to_be_cancelled(db: Database) -> None:
    who, other = session(db), session(db)
    [first] = submit(db)
    take(db, who)
    jobs.cancel_jobs(db, TENANT, [first])
    [second] = submit(db)
    assert match(db, [second]) == (0, 0)
    [third] = submit(db)
    assert match(db, [third]) == (0, 1), "it waits for the second"
    assert [one.id for one in take(db, other)] == [second]


def test_a_claim_that_was_lost_meanwhile_decides_nothing(db: Database) -> None:
    who, other = session(db), session(db)
    first = make(db, who)
    [second] = submit(db)
    claimed = claim(db, who)
    jobs.bury(db, who)
    assert jobs.sift(db, who, claimed, MAKER) == set()
    assert states(db, [first, second]) == ["succeeded", "queued"]
    assert take(db, other) == []
    assert states(db, [second]) == ["succeeded"]
    audit(db)


def test_a_decision_may_be_repeated_when_the_answer_to_its_commit_was_lost(db: Database) -> None:
    who = session(db)
    ids = submit(db, 3)
    claimed = claim(db, who)
    assert [jobs.sift(db, who, claimed, MAKER) for _ in range(2)] == [{ids[0]}] * 2
    assert states(db, ids) == ["running", "waiting", "waiting"]
    audit(db)


def test_workers_that_race_never_wait_for_each_other(db: Database) -> None:
    for number in range(8):
        workers = [session(db) for _ in range(3)]
        ids = submit(db, 6, asks=f"asked {number}")
        claims = [claim(db, who, 2) for who in workers]
        ours = at_once([
            lambda who=who, some=some: jobs.sift(db, who, some, MAKER)
            for who, some in zip(workers, claims, strict=True)
        ])  # fmt: skip
        assert sum(len(some) for some in ours) == 1
        nobody_waits_for_nothing(db)
        for who, some, mine in zip(workers, claims, ours, strict=True):
            for one in some:
                if one.id in mine:
                    finish(db, who, one)
        assert states(db, ids) == ["succeeded"] * 6
        assert len({str(keys) for keys in objects_of(db, ids)}) == 1
    audit(db)


# --- at the moment of the submission ---


def test_a_batch_that_opens_waits_for_what_is_queued_or_running_already(db: Database) -> None:
    who = session(db)
    [first] = submit(db)
    ids = submit(db, 3)
    assert match(db, ids) == (0, 3)
    assert states(db, [first, *ids]) == ["queued", *["waiting"] * 3]
    nobody_waits_for_nothing(db)
    audit(db)
    [one] = take(db, who)
    assert one.id == first
    finish(db, who, one)
    assert states(db, ids) == ["succeeded"] * 3
    audit(db)


def test_of_identical_jobs_in_one_batch_the_first_is_made_whatever_the_size_of_the_chunks(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.jobs.pieces.CHUNK", 4)
    ids = submit(db, 10)
    assert match(db, ids) == (0, 9)
    assert states(db, ids) == ["queued", *["waiting"] * 9]
    audit(db)


def test_what_was_made_before_is_given_at_once_where_the_workers_agree_on_who_makes_it(db: Database) -> None:
    who, other = session(db), session(db)
    first = make(db, who)
    lane_id = job(db, first).lane_id
    name = jobs.made_with("echo", "")

    def say(whom: str, maker: str) -> None:
        told = {"makers": {name: maker}}
        change(db, update(worker_sessions).where(worker_sessions.c.id == whom).values(condition=told))

    assert jobs.known_makers(db, [lane_id]) == {}
    say(who, MAKER)
    assert jobs.known_makers(db, [lane_id]) == {lane_id: MAKER}
    say(other, "another")
    assert jobs.known_makers(db, [lane_id]) == {}
    say(other, MAKER)

    [second] = submit(db)
    assert match(db, [second], makers=jobs.known_makers(db, [lane_id])) == (1, 0)
    assert job(db, second).state == "succeeded"
    assert job(db, second).worker_session is None
    assert objects_of(db, [second]) == objects_of(db, [first])
    audit(db)
    for ended in (who, other):
        jobs.close_session(db, ended)
    assert jobs.known_makers(db, [lane_id]) == {}


def test_a_maker_counts_only_while_the_model_is_in_memory(db: Database) -> None:
    lane = Lane("cpu", "echo", "org/name")
    lane_id, who = jobs.lane_ids(db, [lane])[lane], session(db)
    told: dict[str, Any] = {"makers": {jobs.made_with("echo", "org/name"): MAKER}}
    for models, known in ((None, {}), (["another"], {}), (["org/name"], {lane_id: MAKER})):
        condition = told if models is None else {**told, "models": models}
        change(db, update(worker_sessions).where(worker_sessions.c.id == who).values(condition=condition))
        assert jobs.known_makers(db, [lane_id]) == known


def test_nobody_is_put_behind_a_job_of_lower_priority_that_has_not_begun(db: Database) -> None:
    who = session(db)
    [low] = submit(db)
    [high] = submit(db, priority=5)
    assert match(db, [high]) == (0, 0)
    [middle] = submit(db, priority=3)
    assert match(db, [middle]) == (0, 1)
    [one] = take(db, who, priority=5)
    assert one.id == high
    [higher] = submit(db, priority=9)
    assert match(db, [higher]) == (0, 1), "that one runs already"
    finish(db, who, one)
    assert states(db, [low, middle, high, higher]) == ["queued", "succeeded", "succeeded", "succeeded"]
    assert take(db, who) == []
    assert job(db, low).same_as == high
    audit(db)


def test_a_job_of_a_batch_that_is_loading_or_cancelled_is_waited_for_by_nobody(db: Database) -> None:
    batch = new_batch(1)
    jobs.begin_batch(db, batch)
    jobs.add_jobs(db, batch.id, rows(db, batch, fingerprint="same"))
    [first] = submit(db)
    change(db, update(batches).where(batches.c.id == batch_of(first)).values(cancelled_at=now()))
    [second] = submit(db)
    assert match(db, [second]) == (0, 0)


# --- a job that comes to nothing ---


def failed_for_good(db: Database, who: str, one: ClaimedJob) -> None:
    fail(db, who, one.id, one.epoch, retryable=False)


def cancelled(db: Database, who: str, one: ClaimedJob) -> None:
    jobs.cancel_jobs(db, TENANT, [one.id])
    jobs.give_back(db, who, [(one.id, one.epoch)], "it was to be cancelled")


def cancelled_with_its_batch(db: Database, who: str, one: ClaimedJob) -> None:
    jobs.cancel_batch(db, TENANT, one.batch_id)
    jobs.give_back(db, who, [(one.id, one.epoch)], "it was to be cancelled")


def expired(db: Database, who: str, one: ClaimedJob) -> None:
    jobs.give_back(db, who, [(one.id, one.epoch)], "stopped")
    change(db, update(table).where(table.c.id == one.id).values(expires_at=now() - 1))
    jobs.expire(db)


def died_with_its_worker(db: Database, who: str, one: ClaimedJob) -> None:
    change(db, update(table).where(table.c.id == one.id).values(attempts=2))
    jobs.enter(db, who, [(one.id, one.epoch)], 1)
    jobs.bury(db, who)


def ran_out_of_time(db: Database, who: str, one: ClaimedJob) -> None:
    change(db, update(table).where(table.c.id == one.id).values(attempts=2, deadline_at=now() - 100))
    jobs.reap_overdue(db, 1)


def given_back_too_often(db: Database, who: str, one: ClaimedJob) -> None:
    change(db, update(table).where(table.c.id == one.id).values(give_backs=50))
    jobs.give_back(db, who, [(one.id, one.epoch)], "again")


ENDS = (
    failed_for_good, cancelled, cancelled_with_its_batch, expired, died_with_its_worker, ran_out_of_time,
    given_back_too_often,
)  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_when_the_job_that_is_waited_for_comes_to_nothing_the_next_takes_its_place(
    db: Database, end: Callable[[Database, str, ClaimedJob], None]
) -> None:
    who, other = session(db), session(db)
    [first] = submit(db)
    [one] = take(db, who)
    [urgent], [*rest] = submit(db, priority=2), submit(db, 3)
    assert match(db, [urgent]) == (0, 1)
    assert match(db, rest) == (0, 3)

    end(db, who, one)
    assert job(db, first).state in ("failed", "cancelled")
    assert states(db, [urgent, *rest]) == ["waiting"] * 4

    assert jobs.settle(db) == 1
    assert states(db, [urgent, *rest]) == ["queued", *["waiting"] * 3]
    assert job(db, urgent).blockers == 0
    assert jobs.settle(db) == 0
    nobody_waits_for_nothing(db)
    audit(db)

    [again] = take(db, other, priority=2)
    assert again.id == urgent
    finish(db, other, again)
    assert states(db, [urgent, *rest]) == ["succeeded"] * 4
    assert objects_of(db, [first]) == [[]]
    audit(db)


def test_a_keeper_sees_to_it_in_each_round(settings: Settings, db: Database) -> None:
    who = session(db)
    submit(db)
    [one] = take(db, who)
    [second] = submit(db)
    match(db, [second])
    failed_for_good(db, who, one)
    Keeper(settings, db).look_at_the_clock()
    assert states(db, [second]) == ["queued"]


def test_those_that_wait_pass_on_to_another_that_makes_the_same(db: Database) -> None:
    who = session(db)
    [low] = submit(db)
    [high] = submit(db, priority=5)
    [waiting] = submit(db)
    assert (match(db, [high]), match(db, [waiting])) == ((0, 0), (0, 1))
    [one] = take(db, who, priority=5)
    failed_for_good(db, who, one)
    assert jobs.settle(db) == 0
    assert states(db, [low, high, waiting]) == ["queued", "failed", "waiting"]
    nobody_waits_for_nothing(db)
    [one] = take(db, who)
    finish(db, who, one)
    assert states(db, [low, waiting]) == ["succeeded", "succeeded"]
    audit(db)


def test_while_it_may_be_tried_again_everybody_goes_on_waiting(db: Database) -> None:
    who = session(db)
    [first] = submit(db)
    [one] = take(db, who)
    ids = submit(db, 2)
    match(db, ids)
    fail(db, who, first, one.epoch)
    assert jobs.settle(db) == 0
    assert states(db, [first, *ids]) == ["queued", "waiting", "waiting"]
    nobody_waits_for_nothing(db)
    due(db)
    jobs.release_due(db)
    [one] = take(db, who)
    finish(db, who, one)
    assert states(db, ids) == ["succeeded"] * 2
    audit(db)


def test_those_behind_a_job_that_is_itself_put_behind_another_lose_nothing(db: Database) -> None:
    """A leader that is claimed while another worker makes the same, as after a retry by its owner."""
    who, other = session(db), session(db)
    [first] = submit(db)
    [one] = take(db, who)
    ids = submit(db, 2)
    match(db, ids)
    fail(db, who, first, one.epoch, retryable=False)
    jobs.settle(db)  # one of them is queued, the other waits for it
    [running] = take(db, other)
    assert jobs.retry(db, TENANT, batch_of(first), [first]) == 1
    assert take(db, who) == []
    assert states(db, [first, running.id]) == ["waiting", "running"]
    assert sorted(states(db, ids)) == ["running", "waiting"]
    failed_for_good(db, other, running)
    assert jobs.settle(db) == 1
    nobody_waits_for_nothing(db)
    [last] = take(db, who)
    finish(db, who, last)
    assert sorted(states(db, [first, *ids])) == ["failed", "succeeded", "succeeded"]
    audit(db)


def test_a_worker_that_lost_the_job_gives_nothing_to_those_that_wait(db: Database) -> None:
    zombie, other = session(db), session(db)
    [first] = submit(db)
    [stale] = take(db, zombie)
    [second] = submit(db)
    match(db, [second])
    jobs.bury(db, zombie)
    [one] = take(db, other)
    assert (one.id, one.epoch > stale.epoch) == (first, True)
    assert finish(db, zombie, stale) == set()
    assert states(db, [first, second]) == ["running", "waiting"]
    assert objects_of(db, [second]) == [[]]
    finish(db, other, one)
    assert objects_of(db, [second]) == objects_of(db, [first])
    assert other in objects_of(db, [second])[0][0]
    audit(db)


@pytest.mark.parametrize("ends", ["cancelled", "expired"])
def test_a_job_that_waits_can_end_by_itself_and_be_retried(db: Database, ends: str) -> None:
    who, other = session(db), session(db)
    submit(db)
    [one] = take(db, who)
    [second] = submit(db)
    match(db, [second])
    if ends == "cancelled":
        jobs.cancel_jobs(db, TENANT, [second])
    else:
        change(db, update(table).where(table.c.id == second).values(expires_at=now() - 1))
        jobs.expire(db)
    audit(db)
    finish(db, who, one)
    assert job(db, second).state in ("cancelled", "failed")
    jobs.retry(db, TENANT, batch_of(second), [second])
    assert job(db, second).blockers == 0
    assert take(db, other) == []
    assert job(db, second).state == "succeeded"
    audit(db)


def test_very_many_that_wait_are_told_in_short_transactions(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identical, "CHUNK", 50)
    who = session(db)
    [first] = submit(db)
    ids = submit(db, 230)
    match(db, ids)
    [one] = take(db, who)
    finish(db, who, one)
    done = count_states(db, ids)["succeeded"]
    assert 0 < done <= 100, "whoever made it tells a few, and goes on"
    assert job(db, first).awaited_at is not None
    writes: list[int] = []
    monkeypatch.setattr(identical, "give", _counting(identical.give, writes))
    assert jobs.settle(db) == 230 - done
    assert max(writes) == 50
    assert count_states(db, ids) == {"succeeded": 230}
    audit(db)


def _counting(give: Callable[..., Any], writes: list[int]) -> Callable[..., Any]:
    def counted(*arguments: Any, **more: Any) -> Any:
        served = give(*arguments, **more)
        writes.append(len(served))
        return served

    return counted


def count_states(db: Database, ids: Sequence[str]) -> Counter[str]:
    with db.read() as connection:
        chosen = select(table.c.state, func.count()).where(table.c.id.in_(ids)).group_by(table.c.state)
        return Counter({row[0]: row[1] for row in connection.execute(chosen)})


def test_of_many_that_all_fail_each_failure_lets_one_go(db: Database) -> None:
    who = session(db)
    ids = submit(db, 8)
    match(db, ids)
    for turn in range(8):
        [one] = take(db, who)
        failed_for_good(db, who, one)
        assert jobs.settle(db) == (turn < 7)
    assert states(db, ids) == ["failed"] * 8
    audit(db)


# --- files that several jobs refer to ---


def test_deleting_the_batch_that_made_a_file_leaves_it_to_whoever_was_given_it(
    settings: Settings, db: Database, tmp_path: Path
) -> None:
    storage = open_storage(settings)
    who = session(db)
    first = make(db, who)
    [[key]] = objects_of(db, [first])
    storage.put(key, b"hello", media_type="text/plain")
    [second] = submit(db)
    take(db, who)
    change(db, update(batch_counters).where(batch_counters.c.batch_id == batch_of(first)).values(finished_at=1.0))

    assert jobs.retire_batches(db, 1000) == 1
    assert garbage.collect(db, storage) == 0
    [record] = DirectGateway(settings).jobs(batch_of(second))
    assert record.artifacts[0].key == key
    assert DirectGateway(settings).open(record.artifacts[0]).read() == b"hello"
    assert record.record is not None
    assert record.record["identical_to"] == record.identical_to == first
    audit(db)

    change(db, update(batch_counters).values(finished_at=1.0))
    assert jobs.retire_batches(db, 1000) == 1
    assert garbage.collect(db, storage) == 1
    assert count(db, objects) == 0


def test_what_was_deleted_is_made_again(db: Database) -> None:
    who = session(db)
    first = make(db, who)
    change(db, update(batch_counters).values(finished_at=1.0))
    jobs.retire_batches(db, 1000)
    [second] = submit(db)
    assert [one.id for one in take(db, who)] == [second]
    assert first != second


def test_a_batch_whose_files_others_are_about_to_get_is_not_deleted(db: Database) -> None:
    who = session(db)
    [first] = submit(db)
    [one] = take(db, who)
    [second] = submit(db)
    match(db, [second])
    failed_for_good(db, who, one)
    change(db, update(batch_counters).where(batch_counters.c.batch_id == batch_of(first)).values(finished_at=1.0))
    assert jobs.retire_batches(db, 1000) == 0
    jobs.settle(db)
    assert jobs.retire_batches(db, 1000) == 1
    assert job(db, second).state == "queued"


def test_files_on_their_way_out_are_given_to_nobody(db: Database) -> None:
    who = session(db)
    first = make(db, who)
    change(db, update(objects).values(state="dropped"))
    [second] = submit(db)
    take(db, who)
    assert states(db, [first, second]) == ["succeeded", "running"]
    assert objects_of(db, [second]) == [[]]


def test_an_owner_that_deletes_while_another_job_is_given_the_file_never_leaves_it_without(
    postgres_settings: Settings,
) -> None:
    """Both orders of two transactions that meet: the job has the file, or is made itself."""
    db, other = Database(postgres_settings), Database(postgres_settings)
    for _ in range(12):
        who = session(db)
        first = make(db, who)
        [second] = submit(db)
        claimed = claim(db, who)
        change(db, update(batch_counters).where(batch_counters.c.batch_id == batch_of(first)).values(finished_at=1.0))
        ours, _ = at_once([
            lambda who=who, claimed=claimed: jobs.sift(db, who, claimed, MAKER),
            lambda: jobs.retire_batches(other, 1000),
        ])  # fmt: skip
        assert job(db, second).state == ("running" if second in ours else "succeeded")
        if second in ours:
            finish(db, who, claimed[0])
        with db.read() as connection:
            states_ = connection.scalars(
                select(objects.c.state).join(artifacts, artifacts.c.object_key == objects.c.key)
                .where(artifacts.c.job_id == second)
            ).all()  # fmt: skip
        assert len(states_) == 1
        assert states_[0] in ("stored", "dropped")  # what is referred to is never condemned, whatever it is called
        change(db, update(batch_counters).values(finished_at=1.0))
        jobs.retire_batches(db, 1000)
    db.dispose()
    other.dispose()


# --- any order ---


class AnyOrder:
    """Whatever owners, workers and keepers may do next, at random."""

    def __init__(self, db: Database, seed: int) -> None:
        self.db = db
        self.rng = random.Random(seed)
        self.who = [session(db) for _ in range(3)]
        self.hands: list[tuple[str, ClaimedJob]] = []
        self.ids: list[str] = []

    def step(self) -> None:
        self.rng.choice([self.submit, self.take, self.take, self.end, self.end, self.steer, self.keep])()

    def submit(self) -> None:
        some = submit(self.db, self.rng.randint(1, 4), asks=self.rng.choice(["a", "b"]))
        self.ids.extend(some)
        if self.rng.random() < 0.8:
            match(self.db, some, makers=self.rng.choice([{}, {job(self.db, some[0]).lane_id: MAKER}]))

    def take(self) -> None:
        one = self.rng.choice(self.who)
        record = self.rng.choice([RECORD, RECORD, {**RECORD, "dtype": "bfloat16"}])
        self.hands.extend((one, claimed) for claimed in take(self.db, one, self.rng.randint(1, 3), record=record))

    def end(self) -> None:
        if not self.hands:
            return
        one, claimed = self.hands.pop(self.rng.randrange(len(self.hands)))
        choice = self.rng.random()
        if choice < 0.5:
            finish(self.db, one, claimed)
        elif choice < 0.7:
            fail(self.db, one, claimed.id, claimed.epoch, retryable=self.rng.random() < 0.5)
        elif choice < 0.85:
            jobs.give_back(self.db, one, held([claimed]), "stopped")
        else:
            jobs.bury(self.db, one)
            self.who[self.who.index(one)] = session(self.db)

    def steer(self) -> None:
        if not self.ids:
            return
        if self.rng.random() < 0.5:
            jobs.cancel_jobs(self.db, TENANT, [self.rng.choice(self.ids)])
        else:
            jobs.retry(self.db, TENANT, batch_of(self.rng.choice(self.ids)))

    def keep(self) -> None:
        due(self.db)
        jobs.release_due(self.db)
        jobs.settle(self.db)

    def to_the_end(self) -> None:
        for _ in range(60):
            for one, claimed in self.hands:
                finish(self.db, one, claimed)
            self.keep()
            self.hands = [(one, claimed) for one in self.who for claimed in take(self.db, one)]
            if not self.hands and not jobs.settle(self.db):
                return


@pytest.mark.parametrize("seed", range(3))
def test_after_any_sequence_the_books_are_right_and_nobody_waits_for_nothing(db: Database, seed: int) -> None:
    world = AnyOrder(db, seed)
    for _ in range(60):
        world.step()
        nobody_waits_for_nothing(db)
        audit(db)
    world.to_the_end()
    assert world.ids
    assert set(count_states(db, world.ids)) <= {"succeeded", "failed", "cancelled"}
    audit(db)


# --- as its owner sees it ---


def test_cache_needs_a_seed_and_is_a_part_of_the_request(settings: Settings, db: Database) -> None:
    client = Client(settings)
    with pytest.raises(InvalidJobs, match="cache: needs a seed"):
        client.submit(["hello"], task="echo", cache=True)
    alike = [Job("echo", {"message": "hello"}, seed=1), Job("echo", {"message": "hello"}, seed=2, cache=False)]
    first = client.submit(alike, cache=True, idempotency_key="k")
    assert client.submit(alike, cache=True, idempotency_key="k").id == first.id
    with pytest.raises(NotAllowed, match="something else"):
        client.submit(alike, idempotency_key="k")
    with db.read() as connection:
        told = connection.scalars(select(table.c.fingerprint).order_by(table.c.line)).all()
    assert [said is not None for said in told] == [True, False]


def test_only_what_decides_on_the_output_tells_jobs_apart(settings: Settings, db: Database, tmp_path: Path) -> None:
    base: dict[str, Any] = {"task": "echo", "params": {"message": "a"}, "seed": 1, "cache": True}
    same = [
        base, {**base, "params": {"steps": 1, "message": "a"}}, {**base, "custom_id": "x", "metadata": {"k": 1}},
        {**base, "queue": "gpu"}, {**base, "timeout_s": 5, "max_attempts": 1},
    ]  # fmt: skip
    others = [
        {**base, "seed": 2},
        {**base, "params": {"message": "b"}},
        {**base, "params": {"message": "a", "steps": 2}},
    ]
    Client(settings).submit([*same, *others])
    with db.read() as connection:
        told = connection.scalars(select(table.c.fingerprint).order_by(table.c.line)).all()
    assert len(set(told[: len(same)])) == 1
    assert len(set(told[len(same) :]) | {told[0]}) == len(others) + 1


def test_a_csv_says_it_in_a_column(settings: Settings, db: Database, tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("task,message,seed,cache\necho,a,1,true\necho,b,2,false\necho,c,3,\n")
    Client(settings).submit_file(path)
    with db.read() as connection:
        told = connection.scalars(select(table.c.fingerprint).order_by(table.c.line)).all()
    assert [said is not None for said in told] == [True, False, False]


def test_status_and_why_name_the_job_that_makes_the_same(settings: Settings, db: Database) -> None:
    client = Client(settings)
    who = session(db)
    request = {"task": "echo", "params": {"message": "a"}, "seed": 1, "cache": True}
    first, second = f"{client.submit([request]).id}-1", f"{client.submit([request]).id}-1"
    assert client.job(second).status == "waiting"
    assert client.job(second).to_json()["identical_to"] == first
    assert client.why(second).startswith(f"It waits for job {first}, which makes the same and is queued")
    assert client.job(first).identical_to is None
    [one] = take(db, who)
    assert f"job {first}, which makes the same and is running" in client.why(second)
    fail(db, who, one.id, one.epoch, retryable=False)
    assert f"waited for job {first}, which has ended; a keeper lets it go on" in client.why(second)
    jobs.settle(db)
    assert client.job(second).status == "queued"
    [one] = take(db, who)
    finish(db, who, one)
    third = f"{client.submit([request]).id}-1"
    assert take(db, who) == []
    assert client.job(third).identical_to == second
    assert client.job(third).attempt == 0
    assert client.why(third) == f"It is done: it asked for the same as job {second} and was given its files (`cache`)."


@pytest.fixture
def cluster(settings: Settings, redis_server: RedisServer, tmp_path: Path) -> Iterator[Cluster]:
    """A keeper over a database of this test alone."""
    environment = {
        "AIGC_DATA_DIR": str(settings.data_dir), "AIGC_REDIS_URL": redis_server.url, "AIGC_REDIS_PREFIX": tmp_path.name,
        **({"AIGC_DATABASE_URL": settings.sql_url} if settings.database_url else {}),
    }  # fmt: skip
    with Cluster(environment, tmp_path / "workers.log") as running:
        running.start_keeper()
        yield running


def test_what_could_not_be_matched_at_the_submission_is_found_by_the_worker(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("database", "here", "it went away")

    monkeypatch.setattr(jobs, "match_batch", away)
    line = {"task": "echo", "params": {"message": "hello", "signed": True}, "seed": 7}
    batches_ = [cluster.client.submit([line] * 3, cache=True) for _ in range(2)]
    assert [batch.status().counts["queued"] for batch in batches_] == [3, 3]
    cluster.start_worker()
    told = [result["record"] for batch in batches_ for result in cluster.done(batch).values()]
    assert [record.get("identical_to") for record in told] == [None, *[f"{batches_[0].id}-1"] * 5]


def test_from_the_command_line_identical_work_is_done_once(cluster: Cluster) -> None:
    line = {"task": "echo", "params": {"message": "hello", "signed": True}, "seed": 7}
    leader = f"{cluster.client.submit([line], cache=True).id}-1"
    lines = "\n".join(json.dumps(line) for _ in range(2)).encode()
    told = cluster.aigc("submit", "-", "--cache", "--json", stdin=lines)
    assert told.returncode == 0, told.stderr
    batch = cluster.client.batch(json.loads(told.stdout)["batch_id"])
    waiting = cluster.aigc("status", f"{batch.id}-2").stdout
    assert f"It waits for job {leader}, which makes the same and is queued" in waiting

    cluster.start_worker()
    results = cluster.done(batch)
    assert {result["status"] for result in results.values()} == {"succeeded"}
    [made] = cluster.client.batch(batch_of(leader)).results()
    assert [result["data"] for result in results.values()] == [made["data"]] * 2
    assert [job.identical_to for job in batch.jobs()] == [leader, leader]

    db = Database(cluster.settings)
    with db.read() as connection:
        lane_id = connection.execute(select(table.c.lane_id).where(table.c.id == leader)).scalar_one()
    until(lambda: jobs.known_makers(db, [lane_id]), what="the worker saying what it makes such jobs with")
    again = cluster.client.submit([line], cache=True)
    record = cluster.client.job(f"{again.id}-1")
    assert record.status == "succeeded", "what was made before is there with the submission"
    assert record.identical_to == leader
    assert record.record is not None
    assert record.record["generator"] == "Echo"
    assert "given its files" in cluster.aigc("status", record.id).stdout
    events = cluster.aigc("events", record.id).stdout
    assert "given the files of an identical job" in events
