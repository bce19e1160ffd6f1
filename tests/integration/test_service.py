"""What tenants are charged and what is corrected, in the very transactions of the transitions, on both databases."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import func, select, update

from shared import jobs
from shared.database import Database, now
from shared.ids import job_id, new_batch_id, new_session_id
from shared.jobs import ClaimedJob, Failure, Lane, NewBatch, Progress, Success
from shared.scheduling import Account
from shared.settings import Settings
from shared.tables import jobs as job_rows
from shared.tables import lanes, service, worker_sessions
from workers.claims import Claims, Taken
from workers.look import look
from workers.residency import Residency

LANE = Lane("cpu", "echo", "")
OTHER = Lane("cpu", "echo", "another")


def submit(db: Database, tenant: str, n: int, *, cost: float = 1.0, lane: Lane = LANE, priority: int = 0) -> list[str]:
    """The ids of jobs that are queued now."""
    batch = NewBatch(new_batch_id(), tenant, None, n, None, "digest")
    assert jobs.begin_batch(db, batch) == batch.id
    number = jobs.lane_ids(db, [lane])[lane]
    jobs.add_jobs(
        db,
        batch.id,
        [
            jobs.NewJob(
                line=line, custom_id=str(line), lane_id=number, priority=priority, params_json="{}", seed=line,
                metadata_json=None, cost=cost, timeout_s=None, expires_at=None, max_attempts=3,
            )
            for line in range(1, n + 1)
        ],
    )  # fmt: skip
    jobs.open_batch(db, batch, {(number, priority): n})
    return [job_id(batch.id, line) for line in range(1, n + 1)]


def session(db: Database) -> str:
    id_ = new_session_id()
    about = {"id": id_, "worker": "test", "host": "test", "pid": 1, "device": "cpu", "queues": "cpu"}
    jobs.open_session(db, {**about, "versions": {}, "condition": {}}, 600)
    return id_


class Hands:
    """A worker that claims as workers do, and says itself how long things took."""

    def __init__(self, db: Database, **settings: Any) -> None:
        made = Settings(_env_file=None, **{"microbatch": 4, **settings})
        self.db = db
        self.session = session(db)
        self.claims = Claims(db, made, ["cpu"])
        self.residency = Residency(made, lambda: pytest.fail("no model is loaded here"))

    def next(self) -> Taken | None:
        return self.claims.next(self.session, self.residency)

    def take(self) -> list[ClaimedJob]:
        taken = self.next()
        return taken.jobs if taken else []

    def done(self, taken: Sequence[ClaimedJob], *, each_s: float) -> None:
        jobs.succeed(self.db, self.session, [Success(job.id, job.epoch, [], each_s) for job in taken])


def account(db: Database, tenant: str, priority: int = 0) -> Account:
    c = service.c
    with db.read() as connection:
        row = connection.execute(select(service).where(c.tenant_id == tenant, c.priority == priority)).one()
    return Account(row.served_s, row.claimed_s, row.active)


def of(taken: Sequence[ClaimedJob]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for job in taken:
        counts[job.tenant_id] = counts.get(job.tenant_id, 0) + 1
    return counts


def test_a_claim_is_charged_by_estimate_and_an_end_corrects_it_to_what_was_measured(db: Database) -> None:
    submit(db, "ada", 4, cost=3.0)
    hands = Hands(db)
    taken = hands.take()
    assert account(db, "ada") == Account(0.0, 12.0, active=True)
    hands.done(taken[:1], each_s=5.0)
    assert account(db, "ada") == Account(5.0, 9.0, active=True)
    jobs.fail(db, hands.session, [Failure(taken[1].id, 1, "broken", "it broke", retryable=False, device_s=0.25)])
    assert account(db, "ada") == Account(5.25, 6.0, active=True)
    jobs.give_back(db, hands.session, [(taken[2].id, 1), (taken[3].id, 1)], "stop")
    assert account(db, "ada") == Account(5.25, 0.0, active=True), "nothing is owed for what never ran"


def test_a_charge_that_cannot_be_booked_leaves_no_claim_behind(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The charge is part of the claim's transaction, and the correction of that of the end."""
    [id_] = submit(db, "ada", 1)
    hands = Hands(db)

    def refused(*_: Any) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("shared.jobs.claim"), "charge", refused)
        with pytest.raises(RuntimeError, match="no"):
            hands.take()
    with db.read() as connection:
        assert connection.scalar(select(job_rows.c.state).where(job_rows.c.id == id_)) == "queued"
    taken = hands.take()
    with monkeypatch.context() as patch:
        patch.setattr("shared.jobs.outcome.correct", refused)
        with pytest.raises(RuntimeError, match="no"):
            hands.done(taken, each_s=1.0)
    with db.read() as connection:
        assert connection.scalar(select(job_rows.c.state).where(job_rows.c.id == id_)) == "running"
    assert account(db, "ada") == Account(0.0, 1.0, active=True)


def test_whoever_cancels_a_hundred_thousand_jobs_and_comes_back_with_ten_owes_nothing_for_what_never_ran(
    db: Database,
) -> None:
    """Given two tenants, of whom one cancels all that it has asked for, but for what ran; when it comes back, then it
    shares evenly. (A thousand stand for the hundred thousand: jobs are charged when they are claimed.)"""
    submit(db, "ada", 400, cost=0.1)
    flood = submit(db, "bob", 1000, cost=0.1)
    hands = Hands(db)
    taken = hands.take()
    assert of(taken) == {"ada": 5, "bob": 5}
    jobs.cancel_batch(db, "bob", flood[0].rpartition("-")[0])
    mine = [job for job in taken if job.tenant_id == "bob"]
    jobs.give_back(db, hands.session, [(job.id, job.epoch) for job in mine], "cancelled")
    hands.done([job for job in taken if job.tenant_id == "ada"], each_s=0.1)
    assert account(db, "bob").claimed_s == 0.0
    assert account(db, "bob").served_s == 0.0
    for _ in range(3):
        hands.done(hands.take(), each_s=0.1)
    assert not account(db, "bob").active

    submit(db, "bob", 10, cost=0.1)
    assert of(hands.take()) == {"ada": 5, "bob": 5}
    assert of(hands.take()) == {"ada": 5, "bob": 5}


def test_what_was_cancelled_in_the_middle_of_its_run_is_paid_for_as_far_as_it_ran(db: Database) -> None:
    """Else whoever cancels just before the end would have the workers for nothing."""
    [id_] = submit(db, "ada", 1, cost=100.0)
    hands = Hands(db)
    hands.take()
    jobs.enter(db, hands.session, [(id_, 1)], 1)
    entered = update(job_rows).where(job_rows.c.id == id_).values(entered_at=now() - 60)
    db.write(lambda connection: connection.execute(entered))
    jobs.cancel_jobs(db, "ada", [id_])
    jobs.give_back(db, hands.session, [(id_, 1)], "cancelled")
    assert account(db, "ada").served_s == pytest.approx(60.0, abs=5)
    assert account(db, "ada").claimed_s == 0.0


def test_whoever_comes_back_from_idleness_has_no_credit_and_no_debt(db: Database) -> None:
    """Given one tenant that worked alone; when another comes, or comes back, then both share from that moment on."""
    submit(db, "ada", 200)
    hands = Hands(db)
    for _ in range(10):
        hands.done(hands.take(), each_s=1.0)
    assert account(db, "ada").served_s == 40.0

    submit(db, "bob", 8)
    hands.done(hands.take(), each_s=1.0)
    assert account(db, "bob").served_s == 42.0
    assert account(db, "ada").served_s == 42.0
    while account(db, "bob").active:
        hands.done(hands.take(), each_s=1.0)
    for _ in range(10):
        hands.done(hands.take(), each_s=1.0)
    bob = account(db, "bob").served_s
    assert account(db, "ada").served_s > bob + 20

    submit(db, "bob", 8)
    assert of(hands.take()) == {"ada": 2, "bob": 2}


def test_a_newcomer_does_not_wait_for_what_others_have_claimed_already(db: Database) -> None:
    """Given a tenant of whom two windows are claimed and not done; then the next ones are the newcomer's."""
    submit(db, "ada", 100)
    hands = Hands(db)
    assert of(hands.take()) == {"ada": 4}
    assert of(hands.take()) == {"ada": 4}
    submit(db, "bob", 6)
    assert of(hands.take()) == {"bob": 4}
    assert of(hands.take()) == {"bob": 2, "ada": 2}


def test_priorities_and_queues_have_accounts_of_their_own(db: Database) -> None:
    submit(db, "ada", 8, priority=5)
    submit(db, "ada", 100)
    submit(db, "bob", 100)
    hands = Hands(db)
    for _ in range(2):
        assert of(hands.take()) == {"ada": 4}
    assert account(db, "ada", 5).claimed_s == 8.0
    assert of(hands.take()) == {"ada": 2, "bob": 2}
    assert account(db, "ada").claimed_s == account(db, "bob").claimed_s == 2.0


def test_jobs_that_a_worker_cannot_take_hold_nobodys_place(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a tenant that waits for a model which cannot be loaded; then newcomers do not begin where it stands."""
    submit(db, "eve", 5, lane=OTHER)
    submit(db, "ada", 100)
    hands = Hands(db)
    monkeypatch.setattr(Residency, "set_aside_for_now", {("echo", "another")})
    for _ in range(5):
        hands.done(hands.take(), each_s=1.0)
    submit(db, "bob", 100)
    assert of(hands.take()) == {"ada": 2, "bob": 2}


@pytest.mark.parametrize("tenants", [2, 7])
def test_backlogged_tenants_are_never_more_than_two_windows_apart(db: Database, tenants: int) -> None:
    """Whatever their jobs cost, however wrong the estimates are."""
    chance = random.Random(tenants)
    names = [f"tenant-{number}" for number in range(tenants)]
    for name in names:
        submit(db, name, 120, cost=chance.uniform(0.05, 0.5))
    hands, window_s = Hands(db), 0.0
    for _ in range(15):
        taken = hands.take()
        hands.done(taken, each_s=0.3)
        window_s = max(window_s, 0.3 * len(taken), sum(job.cost for job in taken))
        served = [account(db, name).served_s for name in names]
        assert max(served) - min(served) <= 2 * window_s
    assert all(account(db, name).served_s > 0 for name in names)


def test_what_is_claimed_of_a_tenant_is_what_its_running_jobs_were_estimated_at_whatever_becomes_of_them(
    db: Database,
) -> None:
    chance = random.Random(3)
    for name in ("ada", "bob", "eve"):
        submit(db, name, 60, cost=chance.uniform(0.1, 2))
    hands = Hands(db)
    held: list[ClaimedJob] = []
    for _ in range(40):
        held += hands.take()
        chance.shuffle(held)
        some, held = held[:3], held[3:]
        pairs = [(job.id, job.epoch) for job in some]
        what = chance.choice(["succeed", "fail", "give_back", "cancel", "reap"])
        if what == "succeed":
            hands.done(some, each_s=0.5)
        elif what == "fail":
            jobs.fail(db, hands.session, [Failure(id_, epoch, "x", "x", retryable=True) for id_, epoch in pairs])
        elif what == "reap":
            lapsed = update(worker_sessions).where(worker_sessions.c.id == hands.session)
            db.write(lambda connection, lapsed=lapsed: connection.execute(lapsed.values(lease_expires_at=now() - 1)))
            jobs.reap(db)
            hands, held = Hands(db), []
        else:
            if what == "cancel":
                jobs.cancel_jobs(db, some[0].tenant_id, [job.id for job in some])
            jobs.give_back(db, hands.session, pairs, "stop")
        _audit(db)


def _audit(db: Database) -> None:
    c = job_rows.c
    with db.read() as connection:
        running = connection.execute(
            select(c.tenant_id, func.sum(c.cost)).where(c.state == "running").group_by(c.tenant_id)
        )
        booked = connection.execute(select(service.c.tenant_id, service.c.claimed_s).where(service.c.claimed_s > 0))
        assert {row[0]: row[1] for row in booked} == pytest.approx({row[0]: row[1] for row in running})


def test_a_lane_waits_since_it_was_last_claimed_from(db: Database) -> None:
    submit(db, "ada", 100)
    hands = Hands(db)

    def seen() -> Any:
        return look(db, ["cpu"], lambda *_: True)

    opened = seen().waiting[0].since
    long_ago = update(lanes).values(claimed_at=opened - 1000)
    db.write(lambda connection: connection.execute(long_ago))
    assert seen().waiting[0].since == opened
    hands.take()
    now_seen = seen()
    assert opened < now_seen.waiting[0].since <= now_seen.clock


def test_windows_grow_with_the_pace_of_the_device(db: Database) -> None:
    """Given jobs that take a thousandth of what they are estimated at; then a claim takes as many as it may."""
    submit(db, "ada", 1500, cost=1.0)
    slow, fast = Hands(db), Hands(db)
    fast.claims = Claims(db, Settings(_env_file=None), ["cpu"], lambda task, model, cost: cost / 1000)
    assert len(slow.take()) == 4, "one microbatch, and not half of what two workers share"
    assert len(fast.take()) == 748, "a fair share of what is ready"


def test_a_refill_is_refused_when_it_is_another_lanes_turn(db: Database) -> None:
    submit(db, "ada", 10)
    hands = Hands(db)
    first = hands.next()
    assert first is not None
    mine = (first.lane_id, first.priority)
    assert first.full
    again = hands.claims.next(hands.session, hands.residency, only=mine, limit=2)
    assert again is not None
    assert len(again.jobs) == 2
    submit(db, "bob", 1, priority=9)
    assert hands.claims.next(hands.session, hands.residency, only=mine) is None
    assert hands.claims.next(hands.session, hands.residency, full=True) is None, "one job is no window"
    assert of(hands.take()) == {"bob": 1}


def test_who_has_work_yet_leaves_the_last_jobs_to_those_who_have_none(db: Database) -> None:
    hands, other = Hands(db, microbatch=4), Hands(db, microbatch=4)
    submit(db, "ada", 12)
    assert other.claims.next(other.session, other.residency, full=True) is not None
    assert hands.claims.next(hands.session, hands.residency, full=True) is None, "what is left is one for each"
    jobs.close_session(db, other.session)
    assert hands.claims.next(hands.session, hands.residency, full=True) is not None, "there is nobody else"


def test_a_claim_costs_the_same_however_many_tenants_have_ever_been_served(db: Database) -> None:
    """Given accounts of many who are idle; then a look reads those of whoever waits."""
    rows = [
        {"queue": "cpu", "priority": 0, "tenant_id": f"old-{n}", "served_s": 1.0, "claimed_s": 0.0, "active": False}
        for n in range(3000)
    ]
    db.write(lambda connection: connection.execute(service.insert(), rows))
    submit(db, "ada", 10)
    seen = look(db, ["cpu"], lambda *_: True)
    assert set(seen.standings["cpu", 0].virtual) == {"ada"}
    assert seen.standings["cpu", 0].floor == 1.0, "nobody else waits: it begins where the most served stands"


def test_renewals_and_entries_charge_nothing(db: Database) -> None:
    submit(db, "ada", 2)
    hands = Hands(db)
    taken = hands.take()
    before = account(db, "ada")
    jobs.enter(db, hands.session, [(job.id, job.epoch) for job in taken], 2)
    jobs.renew(db, hands.session, 60, {}, {taken[0].id: Progress(0.5)})
    assert account(db, "ada") == before
