"""Every change of a job's state, on both databases: guarded, counted, and never at a neighbour's cost."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, func, select, text, update

from shared import jobs
from shared.database import Database, now
from shared.errors import NotAllowed, NotFound
from shared.ids import job_id, new_batch_id, new_session_id
from shared.jobs import Failure, Lane, NewBatch, SessionLost, StoredArtifact, Success, owner, pieces, submission
from shared.settings import Settings
from shared.tables import (
    JOB_STATES,
    artifacts,
    attempts,
    backlog,
    batch_counters,
    batch_errors,
    batches,
    events,
    objects,
    worker_sessions,
)
from shared.tables import jobs as table

TENANT = "default"
ECHO = Lane("cpu", "echo", "")
OTHER = Lane("cpu", "echo", "another")


# --- what a test says ---


def new_batch(total: int, *, key: str | None = None, digest: str = "digest") -> NewBatch:
    return NewBatch(new_batch_id(), TENANT, None, total, key, digest)


def load(db: Database, batch: NewBatch, *, lane: Lane = ECHO, priority: int = 0, **columns: Any) -> None:
    """The batch is stored, and not yet open."""
    assert jobs.begin_batch(db, batch) == batch.id
    new = {name: columns.pop(name) for name in jobs.NewJob._fields if name in columns}
    jobs.add_jobs(db, batch.id, rows(db, batch, lane=lane, priority=priority, **new))
    if columns:
        change(db, update(table).where(table.c.batch_id == batch.id).values(columns))


def rows(db: Database, batch: NewBatch, *, lane: Lane = ECHO, priority: int = 0, **columns: Any) -> list[jobs.NewJob]:
    lane_id = jobs.lane_ids(db, [lane])[lane]
    return [
        jobs.NewJob(
            **{
                "line": line, "custom_id": str(line), "lane_id": lane_id, "priority": priority, "params_json": "{}",
                "seed": line, "metadata_json": None, "cost": 1.0, "timeout_s": None, "expires_at": None,
                "max_attempts": 3, **columns,
            }
        )
        for line in range(1, batch.total + 1)
    ]  # fmt: skip


def submit(db: Database, total: int = 1, *, lane: Lane = ECHO, priority: int = 0, **columns: Any) -> list[str]:
    """The ids of jobs that are queued now."""
    batch = new_batch(total)
    load(db, batch, lane=lane, priority=priority, **columns)
    jobs.open_batch(db, batch, {(jobs.lane_ids(db, [lane])[lane], priority): total})
    return [job_id(batch.id, line) for line in range(1, total + 1)]


def session(db: Database, lease_s: float = 600) -> str:
    id_ = new_session_id()
    about = {"id": id_, "worker": "test", "host": "test", "pid": 1, "device": "cpu", "queues": "cpu"}
    jobs.open_session(db, {**about, "versions": {}, "condition": {}}, lease_s)
    return id_


def claim(
    db: Database, who: str, limit: int = 100, *, lane: Lane = ECHO, priority: int = 0, window_s: float = 1e9
) -> list[jobs.ClaimedJob]:
    number = jobs.lane_ids(db, [lane])[lane]
    return jobs.claim(db, session=who, lane_id=number, priority=priority, limit=limit, window_s=window_s)


def held(claimed: Sequence[jobs.ClaimedJob]) -> list[tuple[str, int]]:
    return [(job.id, job.epoch) for job in claimed]


def success(db: Database, who: str, id_: str, epoch: int) -> Success:
    """A result whose object was announced, as the finisher does it."""
    key = f"{TENANT}/{id_}/{who}/{epoch}"
    jobs.intend(db, who, TENANT, [key])
    file = StoredArtifact(key, 5, "output", 0, 0, 5, "text/plain", "0" * 64, {"tokens": 3})
    return Success(id_, epoch, [file], device_s=0.5, record={"dtype": "float32"})


def fail(db: Database, who: str, id_: str, epoch: int, *, retryable: bool = True, code: str = "broken") -> set[str]:
    return jobs.fail(db, who, [Failure(id_, epoch, code, "it broke", retryable)])


def lapse(db: Database, who: str) -> None:
    """Its lease runs out."""
    change(db, update(worker_sessions).where(worker_sessions.c.id == who).values(lease_expires_at=now() - 1))


def due(db: Database) -> None:
    """The time that delayed jobs wait for has come."""
    change(db, update(table).where(table.c.available_at.is_not(None)).values(available_at=now() - 1))


def change(db: Database, statement: Any) -> None:
    db.write(lambda connection: connection.execute(statement))


def job(db: Database, id_: str) -> Any:
    with db.read() as connection:
        return connection.execute(select(table).where(table.c.id == id_)).one()


def states(db: Database, ids: Sequence[str]) -> list[str]:
    return [job(db, id_).state for id_ in ids]


def count(db: Database, what: Any) -> int:
    with db.read() as connection:
        return connection.scalar(select(func.count()).select_from(what)) or 0


@contextmanager
def listening(db: Database) -> Iterator[list[str]]:
    """The statements that go to the driver meanwhile, a batch of parameters once."""
    said: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(" ".join(statement.split()))

    event.listen(db.engine, "before_cursor_execute", listen)
    yield said
    event.remove(db.engine, "before_cursor_execute", listen)


def plan(db: Database, act: Callable[[], Any]) -> list[str]:
    """The steps by which SQLite answers what is asked of it meanwhile."""
    steps: list[str] = []

    def listen(_connection: Any, cursor: Any, text: str, parameters: Any, *_: Any) -> None:
        steps.extend(row[3] for row in cursor.connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters))

    event.listen(db.engine, "before_cursor_execute", listen)
    act()
    event.remove(db.engine, "before_cursor_execute", listen)
    return steps


def audit(db: Database) -> None:
    """The books agree with the rows: counters, backlog, sums of errors, and what a success has left behind."""
    with db.read() as connection:
        opened = select(batches.c.id).where(batches.c.state == "open")
        counted: dict[str, Counter[str]] = {id_: Counter() for id_ in connection.scalars(opened)}
        for id_, state, n in connection.execute(
            select(table.c.batch_id, table.c.state, func.count()).group_by(table.c.batch_id, table.c.state)
        ):
            if id_ in counted:
                counted[id_][state] = n
        booked = {
            row.batch_id: Counter({state: n for state in JOB_STATES if (n := getattr(row, state))})
            for row in connection.execute(select(batch_counters))
        }
        assert booked == counted

        claimable = connection.execute(
            select(table.c.batch_id, table.c.lane_id, table.c.priority, func.count())
            .where(table.c.state == "queued", table.c.available_at.is_(None), table.c.batch_id.in_(opened))
            .group_by(table.c.batch_id, table.c.lane_id, table.c.priority)
        )
        ready = connection.execute(
            select(backlog.c.batch_id, backlog.c.lane_id, backlog.c.priority, backlog.c.ready).where(
                backlog.c.ready != 0
            )
        )
        assert {tuple(row) for row in ready} == {tuple(row) for row in claimable}

        failed = connection.execute(
            select(table.c.batch_id, table.c.error_code, func.count())
            .where(table.c.state == "failed")
            .group_by(table.c.batch_id, table.c.error_code)
        )
        sums = connection.execute(
            select(batch_errors.c.batch_id, batch_errors.c.code, batch_errors.c["count"]).where(
                batch_errors.c["count"] != 0
            )
        )
        assert {tuple(row) for row in sums} == {tuple(row) for row in failed}

        succeeded = set(connection.scalars(select(table.c.id).where(table.c.state == "succeeded")))
        assert sorted(connection.scalars(select(artifacts.c.job_id))) == sorted(succeeded)
        won = select(attempts.c.job_id).where(attempts.c.outcome == "succeeded")
        assert sorted(connection.scalars(won)) == sorted(succeeded)
        idle = select(func.count()).where(table.c.state != "running", table.c.progress < 1)
        assert connection.scalar(idle) == 0, "progress of a job that does not run"


# --- T1: submit ---


def test_jobs_of_a_batch_that_is_loading_are_invisible_until_it_opens(db: Database) -> None:
    batch, who = new_batch(3), session(db)
    load(db, batch)
    assert claim(db, who) == []
    assert jobs.cancel_jobs(db, TENANT, [job_id(batch.id, 1)]) == 0
    with pytest.raises(NotAllowed, match="still being submitted"):
        jobs.cancel_batch(db, TENANT, batch.id)
    with pytest.raises(NotFound):
        jobs.cancel_batch(db, "someone", batch.id)

    jobs.open_batch(db, batch, {(jobs.lane_ids(db, [ECHO])[ECHO], 0): 3})

    audit(db)
    assert len(claim(db, who)) == 3
    audit(db)


def test_every_step_of_a_submission_may_be_repeated(db: Database) -> None:
    batch = new_batch(2, key="k")
    lane_id = jobs.lane_ids(db, [ECHO])[ECHO]
    for _ in range(2):
        assert jobs.begin_batch(db, batch) == batch.id
    for _ in range(2):
        jobs.add_jobs(db, batch.id, rows(db, batch))
    for _ in range(2):
        jobs.open_batch(db, batch, {(lane_id, 0): 2})
    assert jobs.begin_batch(db, batch) == batch.id
    assert count(db, table) == 2
    assert count(db, events) == 1
    audit(db)


def test_the_same_request_under_one_key_is_the_first_batch_and_another_request_is_refused(db: Database) -> None:
    first = new_batch(1, key="k")
    load(db, first)
    with pytest.raises(NotAllowed, match="right now"):
        jobs.begin_batch(db, new_batch(1, key="k"))
    jobs.open_batch(db, first, {(jobs.lane_ids(db, [ECHO])[ECHO], 0): 1})

    assert jobs.begin_batch(db, new_batch(1, key="k")) == first.id
    with pytest.raises(NotAllowed, match="something else"):
        jobs.begin_batch(db, new_batch(1, key="k", digest="another"))
    other_tenant = NewBatch(new_batch_id(), "someone", None, 1, "k", "another")
    assert jobs.begin_batch(db, other_tenant) == other_tenant.id
    assert count(db, table) == 1


@pytest.mark.parametrize("digest", ["digest", "a corrected file"])
def test_an_attempt_that_died_while_loading_is_replaced_under_its_key(db: Database, digest: str) -> None:
    dead = new_batch(2, key="k")
    load(db, dead)
    change(db, update(batches).values(touched_at=now() - 31))

    second = new_batch(1, key="k", digest=digest)
    load(db, second)
    jobs.open_batch(db, second, {(jobs.lane_ids(db, [ECHO])[ECHO], 0): 1})

    for late in (
        lambda: jobs.add_jobs(db, dead.id, rows(db, dead)),
        lambda: jobs.open_batch(db, dead, {}),
    ):
        with pytest.raises(NotAllowed, match="submit it again"):
            late()
    assert jobs.abandon_silent_batches(db) == 1
    assert count(db, table) == 1
    audit(db)


def test_requests_with_one_key_at_the_same_moment_make_one_batch(db: Database) -> None:
    for number in range(10):
        rivals = [new_batch(1, key=f"k{number}") for _ in range(4)]
        outcomes = at_once([lambda batch=batch: _begun(db, batch) for batch in rivals])
        assert len({outcome for outcome in outcomes if outcome}) == 1
    assert count(db, batches) == 10


def _begun(db: Database, batch: NewBatch) -> str | None:
    try:
        return jobs.begin_batch(db, batch)
    except NotAllowed:
        return None


def test_what_a_dead_submission_left_is_cleared_away_after_an_hour_and_nothing_else(db: Database) -> None:
    dead, alive, opened = new_batch(3), new_batch(2), submit(db, 2)
    load(db, dead)
    load(db, alive)
    change(db, update(batches).where(batches.c.id != alive.id).values(touched_at=now() - 3601))
    assert jobs.abandon_silent_batches(db) == 1
    assert count(db, table) == 4
    jobs.abandon_batch(db, opened[0].rpartition("-")[0])
    assert count(db, table) == 4, "a batch that is open was cleared away"
    jobs.abandon_batch(db, alive.id)
    assert count(db, table) == 2
    audit(db)


def test_a_large_dead_submission_is_cleared_away_in_chunks_and_cannot_come_back_between_them(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.jobs.pieces.CHUNK", 3)
    opened, dead = submit(db, 2), new_batch(10)
    load(db, dead)
    deleted: list[int] = []
    write, remove = Database.write, submission._remove

    def between(self: Database, work: Any, **options: Any) -> Any:
        if getattr(work, "func", None) is remove:
            if not deleted:
                with pytest.raises(NotAllowed, match="submit it again"):
                    jobs.open_batch(db, dead, {})
                with pytest.raises(NotAllowed, match="submit it again"):
                    jobs.add_jobs(db, dead.id, rows(db, dead))
            deleted.append(write(self, work, **options))
            return deleted[-1]
        return write(self, work, **options)

    monkeypatch.setattr(Database, "write", between)
    assert jobs.abandon_batch(db, dead.id) == 1
    assert deleted == [3, 3, 3, 1, 1]
    assert count(db, table) == len(opened)
    assert count(db, batches) == 1
    audit(db)


def test_jobs_that_expire_while_their_batch_is_loading_are_counted_once_it_is_open(db: Database) -> None:
    batch = new_batch(2)
    load(db, batch, expires_at=1.0)
    assert jobs.expire(db) == 0
    jobs.open_batch(db, batch, {(jobs.lane_ids(db, [ECHO])[ECHO], 0): 2})
    assert jobs.expire(db) == 2
    audit(db)


# --- T3: claim ---


def test_a_claim_takes_the_oldest_batch_first_and_lines_in_their_order(db: Database) -> None:
    first, second = submit(db, 3), submit(db, 3)
    who = session(db)
    assert [job.id for job in claim(db, who, 4)] == [*first, second[0]]
    assert [job.id for job in claim(db, who, 4)] == second[1:]
    assert claim(db, who) == []
    audit(db)


def test_a_claim_takes_one_lane_and_one_priority(db: Database) -> None:
    submit(db, 2)
    urgent, other = submit(db, 2, priority=5), submit(db, 2, lane=OTHER)
    who = session(db)
    assert [job.id for job in claim(db, who, priority=5)] == urgent
    assert [(job.id, job.model) for job in claim(db, who, lane=OTHER)] == [(id_, "another") for id_ in other]
    audit(db)


@pytest.mark.parametrize(("window_s", "taken"), [(0.5, 1), (3.0, 3), (3.5, 3), (100.0, 5)])
def test_a_claim_is_worth_no_more_than_its_window_and_at_least_one_job(
    db: Database, window_s: float, taken: int
) -> None:
    submit(db, 5, cost=1.0)
    assert len(claim(db, session(db), window_s=window_s)) == taken
    audit(db)


def test_what_may_not_be_claimed_is_not(db: Database) -> None:
    who = session(db)
    submit(db, 1, expires_at=1.0)
    marked = submit(db, 2)
    change(db, update(batches).where(batches.c.id == marked[0].rpartition("-")[0]).values(cancelled_at=now()))
    delayed = submit(db, 1)
    [taken] = claim(db, who)
    assert taken.id == delayed[0]
    jobs.give_back(db, who, held([taken]), "later", delay_s=60)
    assert claim(db, who) == []
    audit(db)


def test_a_session_that_is_over_claims_and_renews_nothing(db: Database) -> None:
    submit(db, 1)
    who = session(db)
    jobs.close_session(db, who)
    for lost in (lambda: claim(db, who), lambda: jobs.renew(db, who, 60, {}, {})):
        with pytest.raises(SessionLost):
            lost()
    audit(db)


def test_claims_at_the_same_time_never_take_the_same_job(db: Database) -> None:
    """Given 60 jobs and four workers that claim at once, each job goes to exactly one of them."""
    ids = submit(db, 60)
    who = [session(db) for _ in range(4)]

    def work(me: str) -> list[tuple[str, int]]:
        mine: list[tuple[str, int]] = []
        empty = 0
        while empty < 3:
            got = claim(db, me, 3)
            empty = 0 if got else empty + 1
            mine += held(got)
        return mine

    taken = [pair for pairs in at_once([lambda me=me: work(me) for me in who]) for pair in pairs]
    assert Counter(taken) == Counter((id_, 1) for id_ in ids)
    audit(db)


# --- T4 to T7: in the hands of a worker ---


def test_a_renewal_tells_what_is_still_ours_and_what_is_to_be_cancelled(db: Database) -> None:
    ids = submit(db, 3)
    who = session(db)
    claim(db, who)
    jobs.cancel_jobs(db, TENANT, [ids[1]])
    jobs.give_back(db, who, [(ids[2], 1)], "no time")
    ours = jobs.renew(db, who, 60, {"models": ["m"]}, {ids[0]: jobs.Progress(0.5), ids[2]: jobs.Progress(0.9)}).held
    assert {id_: (known.epoch, known.cancel_requested) for id_, known in ours.items()} == {
        ids[0]: (1, False),
        ids[1]: (1, True),
    }
    assert [job(db, id_).progress for id_ in ids] == [0.5, None, None]
    audit(db)


def test_a_result_becomes_visible_with_its_files_its_attempt_and_its_event(db: Database) -> None:
    [id_] = submit(db)
    who = session(db)
    claim(db, who)
    assert jobs.enter(db, who, [(id_, 1)], 1) == {id_}
    assert jobs.succeed(db, who, [success(db, who, id_, 1)]) == {id_}
    done = job(db, id_)
    assert (done.state, done.progress, done.error_code) == ("succeeded", 1.0, None)
    with db.read() as connection:
        assert connection.execute(select(artifacts.c.job_id, artifacts.c.facts)).all() == [(id_, {"tokens": 3})]
        assert connection.scalars(select(objects.c.state)).all() == ["stored"]
        assert connection.execute(select(attempts.c.outcome, attempts.c.device_s)).all() == [("succeeded", 0.5)]
        assert connection.scalars(select(events.c.kind).order_by(events.c.id)).all() == [
            "submitted", "claimed", "succeeded",
        ]  # fmt: skip
    audit(db)


def test_a_success_may_be_repeated_when_the_answer_to_its_commit_was_lost(db: Database) -> None:
    [id_] = submit(db)
    who = session(db)
    claim(db, who)
    result = success(db, who, id_, 1)
    assert jobs.succeed(db, who, [result]) == {id_}
    assert jobs.succeed(db, who, [result]) == {id_}
    assert count(db, artifacts) == 1
    assert count(db, attempts) == 1
    audit(db)


def test_a_result_of_a_job_that_was_taken_away_is_left_out_and_its_neighbours_stand(db: Database) -> None:
    """Fenced in every way: a stale epoch, another's session, another state."""
    ids = submit(db, 5)
    mine, other = session(db), session(db)
    claim(db, mine, 4)
    claim(db, other, 1)
    jobs.give_back(db, mine, [(ids[0], 1)], "stop")  # queued
    jobs.give_back(db, mine, [(ids[1], 1)], "stop")
    claim(db, mine, 2)  # both again, under epoch 2
    fail(db, mine, ids[0], 2, retryable=False)  # failed
    results = [success(db, mine, id_, 1) for id_ in ids]

    assert jobs.succeed(db, mine, results) == {ids[2], ids[3]}

    assert states(db, ids) == ["failed", "running", "succeeded", "succeeded", "running"]
    with db.read() as connection:
        assert sorted(connection.scalars(select(artifacts.c.job_id))) == [ids[2], ids[3]]
        assert Counter(connection.scalars(select(objects.c.state))) == {"intended": 3, "stored": 2}
    assert jobs.succeed(db, other, [success(db, other, ids[4], 1)]) == {ids[4]}
    audit(db)


@pytest.mark.parametrize("ended", ["succeed", "fail", "give_back", "enter", "cancel then give_back"])
def test_whoever_lost_a_job_can_do_nothing_to_it(db: Database, ended: str) -> None:
    [id_] = submit(db)
    zombie, owner = session(db), session(db)
    claim(db, zombie)
    lapse(db, zombie)
    assert jobs.reap(db) == [zombie]
    due(db)
    jobs.release_due(db)
    [taken] = claim(db, owner)
    before = job(db, id_)
    if ended.startswith("cancel"):
        jobs.cancel_jobs(db, TENANT, [id_])
        before = job(db, id_)
    for epoch in (1, 2, taken.epoch):
        late = {
            "succeed": lambda epoch=epoch: jobs.succeed(db, zombie, [success(db, zombie, id_, epoch)]),
            "fail": lambda epoch=epoch: fail(db, zombie, id_, epoch),
            "give_back": lambda epoch=epoch: jobs.give_back(db, zombie, [(id_, epoch)], "stop"),
            "enter": lambda epoch=epoch: jobs.enter(db, zombie, [(id_, epoch)], 1),
        }[ended.rpartition(" ")[2]]
        assert late() == set()
    assert job(db, id_) == before
    audit(db)


def test_a_failure_that_may_pass_is_tried_again_later_until_its_attempts_are_spent(db: Database) -> None:
    [id_] = submit(db, max_attempts=2)
    who = session(db)
    claim(db, who)
    before = db.clock()
    assert fail(db, who, id_, 1) == {id_}
    after, again = db.clock(), job(db, id_)
    assert (again.state, again.attempts, again.error_code) == ("queued", 1, "broken")
    assert before + 1.5 <= again.available_at <= after + 2.5
    assert jobs.release_due(db) == 0
    assert claim(db, who) == []
    audit(db)

    due(db)
    assert jobs.release_due(db) == 1
    audit(db)
    [second] = claim(db, who)
    assert (second.epoch, second.attempt) == (2, 2)
    fail(db, who, id_, 2)
    assert (job(db, id_).state, job(db, id_).error_message) == ("failed", "it broke")
    audit(db)


def test_a_failure_that_will_not_pass_is_final_at_once(db: Database) -> None:
    [id_] = submit(db)
    who = session(db)
    claim(db, who)
    fail(db, who, id_, 1, retryable=False)
    assert (job(db, id_).state, job(db, id_).attempts) == ("failed", 1)
    audit(db)


def test_whatever_a_message_holds_it_can_be_stored(db: Database) -> None:
    ids = submit(db, 3)
    who = session(db)
    claim(db, who)
    bad = "NUL \x00, half a pair \ud800, and long"
    assert jobs.fail(db, who, [Failure(ids[0], 1, "c" * 100, bad * 1000, retryable=False)]) == {ids[0]}
    assert jobs.give_back(db, who, [(ids[1], 1)], bad) == {ids[1]}
    odd = Success(ids[2], 1, [], 0.0, {"loss": float("nan"), "text": "\x00\ud800"})
    assert jobs.succeed(db, who, [odd]) == {ids[2]}
    with db.read() as connection:
        [record] = connection.scalars(select(attempts.c.record).where(attempts.c.job_id == ids[2]))
    assert record["loss"] is None
    assert job(db, ids[0]).error_message.startswith("NUL \ufffd, half a pair ?")


def test_what_is_given_back_is_not_charged_and_ready_at_once_or_when_it_is_said(db: Database) -> None:
    ids = submit(db, 2)
    who = session(db)
    claim(db, who)
    assert jobs.give_back(db, who, [(ids[0], 1)], "stop") == {ids[0]}
    assert jobs.give_back(db, who, [(ids[1], 1)], "disk full", delay_s=60) == {ids[1]}
    audit(db)
    assert [taken.id for taken in claim(db, who)] == [ids[0]]
    assert [job(db, id_).attempts for id_ in ids] == [0, 0]


def test_a_job_that_is_given_back_for_ever_fails_and_says_why(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.jobs.outcome.MAX_GIVE_BACKS", 2)
    [id_] = submit(db)
    who = session(db)
    for epoch in (1, 2, 3):
        claim(db, who)
        jobs.give_back(db, who, [(id_, epoch)], "disk full")
        audit(db)
    assert (job(db, id_).state, job(db, id_).error_code) == ("failed", "given_back_too_often")
    assert "disk full" in job(db, id_).error_message


def test_jobs_of_a_dead_worker_are_taken_back_at_once_and_fenced(db: Database) -> None:
    ids = submit(db, 3)
    dead, alive = session(db), session(db)
    claim(db, dead, 2)
    claim(db, alive, 1)
    assert jobs.reap(db) == []
    lapse(db, dead)
    assert jobs.reap(db) == [dead]
    assert jobs.reap(db) == []
    assert states(db, ids) == ["queued", "queued", "running"]
    assert [job(db, id_).epoch for id_ in ids] == [2, 2, 1]
    assert [job(db, id_).attempts for id_ in ids] == [0, 0, 0], "they had not entered the model"
    with pytest.raises(SessionLost):
        jobs.renew(db, dead, 60, {}, {})
    audit(db)


def test_after_a_lapsed_lease_the_first_retry_is_due_at_once_and_the_next_one_waits(db: Database) -> None:
    (lone,) = submit(db, 1)
    for attempt, waits in ((1, False), (2, True)):
        who = session(db)
        jobs.enter(db, who, held(claim(db, who)), 1)
        lapse(db, who)
        assert jobs.reap(db) == [who]
        assert (job(db, lone).state, job(db, lone).attempts) == ("queued", attempt)
        assert (job(db, lone).available_at is not None) == waits
        audit(db)


def test_a_job_that_is_claimed_alone_may_enter_the_model_at_once_and_several_never(db: Database) -> None:
    (lone,), who, lane = submit(db, 1, max_attempts=1), session(db), jobs.lane_ids(db, [ECHO])[ECHO]
    [taken] = jobs.claim(db, session=who, lane_id=lane, priority=0, limit=9, window_s=60, begin=True)
    assert taken.entered
    assert job(db, lone).company == 1
    assert job(db, lone).entered_at >= job(db, lone).claimed_at
    lapse(db, who)
    jobs.reap(db)
    assert states(db, [lone]) == ["failed"], "it was alone in the model when its worker died"
    submit(db, 2)
    pair = jobs.claim(db, session=session(db), lane_id=lane, priority=0, limit=9, window_s=60, begin=True)
    assert [taken.entered for taken in pair] == [False, False]
    assert [(job(db, taken.id).company, job(db, taken.id).entered_at) for taken in pair] == [(None, None)] * 2
    audit(db)


def test_a_crash_is_charged_to_a_job_that_was_alone_and_shrinks_the_company_of_others(db: Database) -> None:
    ids = submit(db, 1, max_attempts=1) + submit(db, 3)
    loner, crowd = session(db), session(db)
    claim(db, loner, 1)
    jobs.enter(db, loner, [(ids[0], 1)], 1)
    claim(db, crowd, 3)
    jobs.enter(db, crowd, [(id_, 1) for id_ in ids[1:3]], 32)
    lapse(db, loner)
    lapse(db, crowd)
    assert set(jobs.reap(db)) == {loner, crowd}
    assert states(db, ids) == ["failed", "queued", "queued", "queued"]
    assert [job(db, id_).max_company for id_ in ids] == [None, 8, 8, None]
    assert job(db, ids[0]).error_code == "worker_died"
    audit(db)
    again = session(db)
    for company, allowed in ((8, 1), (1, 1)):
        taken = claim(db, again, 2)
        jobs.enter(db, again, held(taken), company)
        lapse(db, again)
        jobs.reap(db)
        due(db)
        jobs.release_due(db)
        assert job(db, ids[1]).max_company == allowed
        again = session(db)
        audit(db)
    assert job(db, ids[1]).attempts == 1


def test_a_job_that_waits_for_its_upload_is_not_charged_for_the_crash_of_its_successor(db: Database) -> None:
    ids = submit(db, 3, max_attempts=1)
    who = session(db)
    claim(db, who)
    for id_ in ids[:2]:
        assert jobs.enter(db, who, [(id_, 1)], 1) == {id_}
    assert job(db, ids[0]).entered_at is not None, "when it was in the model is still told"
    lapse(db, who)
    jobs.reap(db)
    assert states(db, ids) == ["queued", "failed", "queued"]
    assert [job(db, id_).attempts for id_ in ids] == [0, 1, 0]
    audit(db)


def test_a_job_that_has_left_the_model_has_no_deadline_and_one_that_enters_has_none_yet(db: Database) -> None:
    """Given two jobs, one after the other, and a storage so slow that the first still waits for it."""
    first, second = submit(db, 2)
    who = session(db)
    claim(db, who)
    left = {id_: jobs.Progress(0.9, left_s=-100.0) for id_ in (first, second)}
    jobs.enter(db, who, [(first, 1)], 1)
    jobs.renew(db, who, 60, {}, left)
    assert None not in (job(db, first).deadline_at, job(db, second).deadline_at)

    jobs.enter(db, who, [(second, 1)], 1)

    assert (job(db, first).deadline_at, job(db, second).deadline_at) == (None, None)
    assert jobs.reap_overdue(db, 10) == 0
    assert jobs.succeed(db, who, [success(db, who, first, 1)]) == {first}
    audit(db)


def test_a_renewal_writes_all_progress_in_one_call_to_the_driver(db: Database) -> None:
    ids = submit(db, 50)
    who = session(db)
    claim(db, who)
    with listening(db) as said:
        jobs.renew(db, who, 60, {}, dict.fromkeys(ids, jobs.Progress(0.25)))
    assert len([statement for statement in said if statement.startswith("UPDATE jobs")]) == 1
    assert {job(db, id_).progress for id_ in ids} == {0.25}


def test_a_session_that_ended_with_jobs_in_hand_loses_them_to_the_keeper(db: Database) -> None:
    [id_] = submit(db)
    who = session(db)
    claim(db, who)
    jobs.close_session(db, who)
    assert jobs.reap(db) == [who]
    assert job(db, id_).state == "queued"
    audit(db)


# --- T8, T10, T11: what owners and the clock decide ---


def test_cancel_ends_what_waits_and_marks_what_runs(db: Database) -> None:
    ids = submit(db, 4)
    who = session(db)
    claim(db, who, 3)
    fail(db, who, ids[0], 1)  # waits for its next try
    assert jobs.cancel_batch(db, TENANT, ids[0].rpartition("-")[0]) == 4
    assert states(db, ids) == ["cancelled", "running", "running", "cancelled"]
    audit(db)
    assert jobs.cancel_batch(db, TENANT, ids[0].rpartition("-")[0]) == 0
    assert jobs.succeed(db, who, [success(db, who, ids[1], 1)]) == {ids[1]}, "finished under its guard: it stands"
    assert jobs.give_back(db, who, [(ids[2], 1)], "stop") == {ids[2]}
    assert states(db, ids) == ["cancelled", "succeeded", "cancelled", "cancelled"]
    audit(db)


@pytest.mark.parametrize("way", ["fail", "give_back", "reap"])
def test_a_running_job_that_is_to_be_cancelled_ends_so_however_it_leaves_its_worker(db: Database, way: str) -> None:
    [id_] = submit(db)
    who = session(db)
    claim(db, who)
    jobs.enter(db, who, [(id_, 1)], 1)
    jobs.cancel_jobs(db, TENANT, [id_])
    if way == "fail":
        fail(db, who, id_, 1)
    elif way == "give_back":
        jobs.give_back(db, who, [(id_, 1)], "stop", delay_s=5)
    else:
        lapse(db, who)
        jobs.reap(db)
    assert job(db, id_).state == "cancelled"
    audit(db)


def test_a_cancelled_batch_vanishes_from_claims_before_its_rows_follow(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given whoever cancels it dies after the mark: nothing is claimed, and a keeper ends it."""
    ids = submit(db, 5)
    who = session(db)
    [taken] = claim(db, who, 1)
    monkeypatch.setattr("shared.jobs.owner._cancel", lambda *_, **__: 0)
    jobs.cancel_batch(db, TENANT, ids[0].rpartition("-")[0])
    monkeypatch.undo()

    assert states(db, ids) == ["running", *["queued"] * 4]
    assert claim(db, who) == []
    jobs.give_back(db, who, held([taken]), "stop")
    assert claim(db, who) == []
    audit(db)
    assert jobs.finish_cancelled(db) == 5
    assert states(db, ids) == ["cancelled"] * 5
    assert jobs.finish_cancelled(db) == 0
    audit(db)


def test_many_jobs_are_cancelled_and_retried_in_chunks_to_the_last(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("owner", "clock", "pieces"):
        monkeypatch.setattr(f"shared.jobs.{room}.CHUNK", 3)
    ids = submit(db, 10)
    batch_id = ids[0].rpartition("-")[0]
    assert jobs.cancel_batch(db, TENANT, batch_id) == 10
    assert jobs.retry(db, TENANT, batch_id) == 10
    audit(db)
    assert jobs.cancel_jobs(db, TENANT, [*ids, *ids]) == 10
    assert jobs.retry(db, TENANT, batch_id, ids[:7]) == 7
    audit(db)
    change(db, update(table).values(expires_at=1.0))
    assert jobs.expire(db) == 7
    audit(db)


def test_a_retried_job_starts_afresh_and_its_batch_is_open_again(db: Database) -> None:
    ids = submit(db, 3, max_attempts=1)
    who = session(db)
    claim(db, who, 2)
    fail(db, who, ids[0], 1)
    jobs.succeed(db, who, [success(db, who, ids[1], 1)])
    batch_id = ids[0].rpartition("-")[0]
    jobs.cancel_batch(db, TENANT, batch_id)
    assert states(db, ids) == ["failed", "succeeded", "cancelled"]
    change(db, update(table).values(max_company=1, give_backs=7))
    assert jobs.retry(db, TENANT, batch_id, cancelled=False) == 1
    audit(db)
    assert jobs.retry(db, TENANT, batch_id) == 1
    assert {(job(db, id_).max_company, job(db, id_).give_backs) for id_ in (ids[0], ids[2])} == {(None, 0)}
    audit(db)
    assert jobs.retry(db, TENANT, batch_id) == 0
    assert states(db, ids) == ["queued", "succeeded", "queued"]
    fresh = claim(db, who)
    assert [(taken.id, taken.attempt) for taken in fresh] == [(ids[0], 1), (ids[2], 1)]
    assert fail(db, who, ids[0], 1) == set(), "the epoch of its first life"
    jobs.succeed(db, who, [success(db, who, taken.id, taken.epoch) for taken in fresh])
    audit(db)


def test_others_can_neither_cancel_nor_retry(db: Database) -> None:
    ids = submit(db, 2)
    batch_id = ids[0].rpartition("-")[0]
    with pytest.raises(NotFound):
        jobs.cancel_batch(db, "someone", batch_id)
    assert jobs.cancel_jobs(db, "someone", ids) == 0
    jobs.cancel_jobs(db, TENANT, ids)
    assert jobs.retry(db, "someone", batch_id) == 0
    assert states(db, ids) == ["cancelled", "cancelled"]
    audit(db)


def test_what_nobody_started_in_time_fails_and_says_so(db: Database) -> None:
    late, fine = submit(db, 2, expires_at=1.0), submit(db, 1, expires_at=4e9)
    assert jobs.expire(db) == 2
    assert jobs.expire(db) == 0
    assert states(db, late + fine) == ["failed", "failed", "queued"]
    assert job(db, late[0]).error_code == "expired"
    audit(db)


def test_a_job_that_expires_before_another_try_keeps_its_last_error(db: Database) -> None:
    tried, untried = submit(db, 2)
    who = session(db)
    claim(db, who, 1)
    fail(db, who, tried, 1)
    change(db, update(table).values(expires_at=1.0))
    assert jobs.expire(db) == 2
    assert job(db, tried).error_message == (
        "the time that was set for it (--expires) ran out before another try; the last one failed: it broke"
    )
    assert job(db, untried).error_message == "it was not started within the time that was set for it (--expires)"
    assert {job(db, id_).error_code for id_ in (tried, untried)} == {"expired"}
    audit(db)


def test_a_keeper_with_nothing_to_do_writes_nothing(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(db, 2, expires_at=4e9)
    monkeypatch.setattr(Database, "write", None)
    assert (jobs.expire(db), jobs.release_due(db), jobs.sweep_backlog(db)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("duty", "index"), [(jobs.expire, "ix_jobs_perishable"), (jobs.release_due, "ix_jobs_delayed")]
)
def test_what_the_clock_decides_is_found_by_an_index(
    sqlite_settings: Settings, duty: Callable[[Database], int], index: str
) -> None:
    db = Database(sqlite_settings)
    submit(db, 3, expires_at=1.0)
    change(db, update(table).where(table.c.line == 1).values(available_at=1.0))
    walks = [step for step in plan(db, lambda: duty(db)) if "jobs" in step]
    assert all(index in step or "(id=?)" in step for step in walks), walks
    assert len([step for step in walks if index in step]) >= 2, "the look, and the one who takes"


@pytest.mark.parametrize(
    ("duty", "condition"),
    [
        (jobs.expire, "expires_at <="),
        (jobs.release_due, "available_at <="),
        (lambda db: jobs.reap_overdue(db, 10), "deadline_at <"),
        (jobs.reap, "lease_expires_at <"),
    ],
    ids=["expire", "release_due", "reap_overdue", "reap"],
)
def test_what_the_clock_decides_is_found_by_an_index_on_postgresql_too(
    postgres_settings: Settings, duty: Callable[[Database], Any], condition: str
) -> None:
    db = Database(postgres_settings)
    submit(db, 500)
    claim(db, session(db, lease_s=-100), 250)
    change(db, update(table).where(table.c.line <= 2).values(deadline_at=1.0))
    submit(db, 2, expires_at=1.0)
    submit(db, 2, available_at=1.0)
    with db.read() as connection:
        connection.execute(text("ANALYZE"))
    looks = [steps for steps in explained(db, lambda: duty(db)) if condition in steps]
    db.dispose()
    assert looks
    for steps in looks:
        # The statements that take a row by its id look the condition up on that row alone.
        by_id = "Index Cond: ((id)::text =" in steps or "Tid" in steps
        assert re.search(rf"Index Cond: [^\n]*{condition}", steps) or by_id, steps
    assert any(re.search(rf"Index Cond: [^\n]*{condition}", steps) for steps in looks)


def explained(db: Database, act: Callable[[], Any]) -> list[str]:
    """How PostgreSQL, on large tables, would do each statement that goes to it meanwhile."""
    plans: list[str] = []

    def listen(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith(("SELECT jobs", "SELECT worker_sessions", "UPDATE")):
            return
        with cursor.connection.cursor() as asking:
            asking.execute("SET enable_seqscan = off")
            asking.execute(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(row[0] for row in asking.fetchall()))
            asking.execute("RESET enable_seqscan")

    event.listen(db.engine, "before_cursor_execute", listen)
    act()
    event.remove(db.engine, "before_cursor_execute", listen)
    return plans


@pytest.mark.parametrize("which", [owner._cancellable(), table.c.state.in_(("failed", "cancelled"))])
def test_a_batch_is_walked_by_line_without_sorting_it(sqlite_settings: Settings, which: Any) -> None:
    db = Database(sqlite_settings)
    steps = plan(db, lambda: list(pieces.by_line(db, "a batch", which)))
    assert ["(batch_id=? AND line>?)" in step for step in steps] == [True], steps


def test_cancelling_and_retrying_a_batch_reads_each_line_about_once(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given chunks of 5, the walk over 50 jobs asks for what comes after the last one, and once more from the start."""
    monkeypatch.setattr("shared.jobs.pieces.CHUNK", 5)
    ids = submit(db, 50)
    batch_id = ids[0].rpartition("-")[0]
    with listening(db) as said:
        assert jobs.cancel_batch(db, TENANT, batch_id) == 50
    assert len([statement for statement in said if "line > " in statement]) == 12
    with listening(db) as said:
        assert jobs.retry(db, TENANT, batch_id) == 50
    assert len([statement for statement in said if "line > " in statement]) == 12
    audit(db)


def test_a_job_that_becomes_ready_behind_the_walk_is_cancelled_too(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.jobs.pieces.CHUNK", 3)
    ids = submit(db, 9)
    batch_id = ids[0].rpartition("-")[0]
    cancel, done = owner._cancel, iter(range(100))

    def and_one_comes_back(connection: Any, which: Any) -> int:
        number = cancel(connection, which)
        if next(done) == 1:
            owner._retry(connection, batch_id=batch_id, which=table.c.id == ids[0], states=("cancelled",))
            connection.execute(update(batches).values(cancelled_at=now()))
        return number

    monkeypatch.setattr(owner, "_cancel", and_one_comes_back)
    assert jobs.cancel_batch(db, TENANT, batch_id) == 10
    assert set(states(db, ids)) == {"cancelled"}
    audit(db)


def test_a_retry_in_a_batch_whose_cancellation_is_under_way_revives_no_other(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = submit(db, 4)
    batch_id = ids[0].rpartition("-")[0]
    jobs.cancel_jobs(db, TENANT, ids[:1])
    with monkeypatch.context() as patch:
        patch.setattr("shared.jobs.owner._cancel", lambda *_, **__: 0)
        jobs.cancel_batch(db, TENANT, batch_id)  # and whoever does it dies after the mark
    assert states(db, ids) == ["cancelled", *["queued"] * 3]

    assert jobs.retry(db, TENANT, batch_id, ids[:1]) == 1

    assert states(db, ids) == ["queued", *["cancelled"] * 3]
    assert [taken.id for taken in claim(db, session(db))] == ids[:1]
    audit(db)


def test_the_backlog_of_a_batch_that_has_ended_is_swept_out_and_comes_back_with_a_retry(db: Database) -> None:
    ended, running, delayed = submit(db), submit(db), submit(db)
    who = session(db)
    claim(db, who)
    fail(db, who, ended[0], 1, retryable=False)
    fail(db, who, delayed[0], 1)
    assert jobs.sweep_backlog(db) == 1
    assert jobs.sweep_backlog(db) == 0
    with db.read() as connection:
        left = set(connection.scalars(select(backlog.c.batch_id)))
    assert left == {id_.rpartition("-")[0] for id_ in (*running, *delayed)}
    audit(db)
    assert jobs.retry(db, TENANT, ended[0].rpartition("-")[0]) == 1
    audit(db)
    assert [taken.id for taken in claim(db, who)] == ended


# --- all of it, in any order ---


class Anything:
    """Transitions in a random order: honest workers, zombies that repeat what they once held, owners, keepers."""

    def __init__(self, db: Database, seed: int) -> None:
        self._db = db
        self._chance = random.Random(seed)
        self._sessions = [session(db) for _ in range(3)]
        #: everything that was ever claimed: (session, id, epoch)
        self._seen: list[tuple[str, str, int]] = []
        self._ids: list[str] = []
        self._submit()

    def step(self) -> str:
        weighted = {
            self._submit: 2, self._claim: 8, self._enter: 3, self._succeed: 5, self._fail: 4, self._give_back: 3,
            self._die: 1, self._renew: 1, self._cancel_some: 1, self._cancel_batch: 1, self._retry: 2, self._expire: 1,
            self._time_passes: 3, self._half_submit: 1, self._keeper: 2,
        }  # fmt: skip
        [act] = self._chance.choices(list(weighted), list(weighted.values()))
        act()
        return act.__name__

    def _held(self, most: int = 4) -> tuple[str, list[tuple[str, int]]]:
        """Jobs that a session held once, and may hold still; sometimes they were another's."""
        who = self._chance.choice(self._sessions)
        mine = [(id_, epoch) for owner, id_, epoch in self._seen[-40:] if owner == who or self._chance.random() < 0.1]
        chosen = {id_: (id_, epoch) for id_, epoch in self._chance.sample(mine, min(len(mine), most))}
        return who, list(chosen.values())

    def _submit(self) -> None:
        lane, priority = self._chance.choice([ECHO, OTHER]), self._chance.choice([0, 5])
        new = submit(self._db, self._chance.randint(1, 6), lane=lane, priority=priority, max_attempts=2)
        self._ids += new

    def _half_submit(self) -> None:
        load(self._db, new_batch(2), expires_at=1.0)

    def _claim(self) -> None:
        who = self._chance.choice(self._sessions)
        lane, priority = self._chance.choice([ECHO, OTHER]), self._chance.choice([0, 5])
        try:
            claimed = claim(self._db, who, self._chance.randint(1, 5), lane=lane, priority=priority)
        except SessionLost:
            return
        self._seen += [(who, taken.id, taken.epoch) for taken in claimed]

    def _enter(self) -> None:
        who, mine = self._held()
        if mine:
            jobs.enter(self._db, who, mine, self._chance.choice([1, 4, 32]))

    def _succeed(self) -> None:
        who, mine = self._held()
        if mine:
            jobs.succeed(self._db, who, [success(self._db, who, id_, epoch) for id_, epoch in mine])

    def _fail(self) -> None:
        who, mine = self._held()
        codes = [("broken", True), ("refused", False)]
        failures = [Failure(id_, epoch, *self._reason(codes)) for id_, epoch in mine]
        if failures:
            jobs.fail(self._db, who, failures)

    def _reason(self, codes: list[tuple[str, bool]]) -> tuple[str, str, bool]:
        code, retryable = self._chance.choice(codes)
        return code, "it broke", retryable

    def _give_back(self) -> None:
        who, mine = self._held()
        if mine:
            jobs.give_back(self._db, who, mine, "stop", delay_s=self._chance.choice([0, 30]))

    def _die(self) -> None:
        number = self._chance.randrange(len(self._sessions))
        lapse(self._db, self._sessions[number])
        jobs.reap(self._db)
        if self._chance.random() < 0.7:  # else it is a zombie that goes on
            self._sessions[number] = session(self._db)

    def _renew(self) -> None:
        who, mine = self._held()
        try:
            jobs.renew(self._db, who, 600, {}, {id_: jobs.Progress(self._chance.random() * 0.9) for id_, _ in mine})
        except SessionLost:
            self._sessions[self._sessions.index(who)] = session(self._db)

    def _some(self) -> list[str]:
        return self._chance.sample(self._ids[-30:], min(len(self._ids), 30, self._chance.randint(1, 5)))

    def _cancel_some(self) -> None:
        jobs.cancel_jobs(self._db, TENANT, self._some())

    def _cancel_batch(self) -> None:
        jobs.cancel_batch(self._db, TENANT, self._some()[0].rpartition("-")[0])

    def _retry(self) -> None:
        some = self._some()
        jobs.retry(self._db, TENANT, some[0].rpartition("-")[0], self._chance.choice([None, some]))

    def _expire(self) -> None:
        change(self._db, update(table).where(table.c.id.in_(self._some())).values(expires_at=now() - 1))
        jobs.expire(self._db)

    def _time_passes(self) -> None:
        due(self._db)
        jobs.release_due(self._db)

    def _keeper(self) -> None:
        jobs.reap(self._db)
        jobs.release_due(self._db)
        jobs.expire(self._db)
        jobs.finish_cancelled(self._db)
        jobs.sweep_backlog(self._db)

    def finish(self) -> None:
        """Whatever happened, an honest worker can still end every job."""
        for who in self._sessions:
            lapse(self._db, who)
        jobs.reap(self._db)
        change(self._db, update(table).values(expires_at=None))
        self._time_passes()
        who = session(self._db)
        for lane in (ECHO, OTHER):
            for priority in (0, 5):
                while claimed := claim(self._db, who, lane=lane, priority=priority):
                    jobs.succeed(self._db, who, [success(self._db, who, *pair) for pair in held(claimed)])


def finished(db: Database) -> None:
    audit(db)
    opened = select(batches.c.id).where(batches.c.state == "open")
    with db.read() as connection:
        left = select(table.c.state).where(table.c.batch_id.in_(opened), table.c.state.in_(["queued", "running"]))
        assert connection.scalars(left).all() == []


@pytest.mark.parametrize("seed", [1])
def test_the_books_are_right_after_every_step_of_any_order(db: Database, seed: int) -> None:
    anything = Anything(db, seed)
    succeeded: dict[str, Any] = {}
    for number in range(300):
        act = anything.step()
        try:
            audit(db)
        except AssertionError as error:
            raise AssertionError(f"after step {number}, {act}: {error}") from error
        with db.read() as connection:
            query = select(table.c.id, table.c.epoch, table.c.finished_at).where(table.c.state == "succeeded")
            stand = {row.id: row for row in connection.execute(query)}
        assert {id_: stand.get(id_) for id_ in succeeded} == succeeded, f"a success changed in {act}"
        succeeded = stand
    anything.finish()
    finished(db)


def test_the_books_are_right_when_two_do_anything_at_the_same_time(db: Database) -> None:
    """Both claim from the same lanes, cancel and retry each other's batches, and reap each other's sessions."""
    both = [Anything(db, 11), Anything(db, 12)]
    both[0]._ids = both[1]._ids

    def act(anything: Anything) -> None:
        for _ in range(150):
            anything.step()

    at_once([lambda anything=anything: act(anything) for anything in both])
    audit(db)
    for anything in both:
        anything.finish()
    finished(db)


def at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run these in threads that start together; what they return. Raises what one of them raised."""
    barrier = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)
    errors: list[Exception] = []

    def run(number: int) -> None:
        try:
            barrier.wait(timeout=30)
            results[number] = works[number]()
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=150)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)
    return results


def test_the_settings_of_both_databases_are_what_they_say(settings: Settings, db: Database) -> None:
    assert db.is_sqlite == (settings.database_url is None)
    assert db.revision() is not None
