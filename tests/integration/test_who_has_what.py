"""What a worker sees of the models that other workers have, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event

from shared import jobs
from shared.database import Database
from shared.ids import job_id, new_batch_id, new_session_id
from shared.jobs import ClaimedJob, Lane, NewBatch
from shared.operators import drain
from shared.scheduling import Waiting
from shared.settings import Settings
from workers.claims import Claims
from workers.look import look
from workers.residency import Residency

LANE = Lane("gpu", "echo", "big")


def submit(db: Database, n: int, *, cost: float = 1.0, lane: Lane = LANE, priority: int = 0) -> None:
    """Jobs that are queued now."""
    batch = NewBatch(new_batch_id(), "ada", None, n, None, "digest")
    jobs.begin_batch(db, batch)
    number = jobs.lane_ids(db, [lane])[lane]
    made = [
        jobs.NewJob(
            line=line, custom_id=job_id(batch.id, line), lane_id=number, priority=priority, params_json="{}", seed=line,
            metadata_json=None, cost=cost, timeout_s=None, expires_at=None, max_attempts=3,
        )
        for line in range(1, n + 1)
    ]  # fmt: skip
    jobs.add_jobs(db, batch.id, made)
    jobs.open_batch(db, batch, {(number, priority): n})


def worker(db: Database, *models: str, queues: str = "gpu", lease_s: float = 600) -> str:
    """A worker session that says it has these models."""
    id_ = new_session_id()
    about = {"id": id_, "worker": id_, "host": "test", "pid": 1, "device": "cuda", "queues": queues}
    jobs.open_session(db, {**about, "versions": {}, "condition": {}}, lease_s)
    if models:
        jobs.renew(db, id_, lease_s, {"models": list(models)}, {})
    return id_


def busy(db: Database, session: str, lane: Lane) -> list[ClaimedJob]:
    """It has a job in hand."""
    submit(db, 1, lane=lane, priority=99)
    taken = jobs.claim(db, session=session, lane_id=jobs.lane_ids(db, [lane])[lane], priority=99, limit=1, window_s=1)
    assert len(taken) == 1
    return taken


def seen(db: Database, me: str, **what: Any) -> Waiting:
    [lane] = [lane for lane in look(db, ["gpu"], lambda *_: True, me=me, **what).waiting if lane.model == LANE.model]
    return lane


def test_workers_at_work_that_have_the_model_are_told_with_what_the_jobs_are_worth(db: Database) -> None:
    me = worker(db, LANE.model)
    for _ in range(2):
        busy(db, worker(db, LANE.model, "other", queues="cpu,gpu"), Lane("gpu", "echo", "other"))
    submit(db, 3, cost=2.5)
    assert (seen(db, me).holders, seen(db, me).work_s) == (2, 7.5), "this worker is none of them"
    assert seen(db, me, at_hand={("echo", LANE.model)}).holders == 0, "what is at hand is not asked for"


def test_a_worker_that_loads_the_model_counts_before_it_has_said_so(db: Database) -> None:
    busy(db, worker(db), LANE)
    submit(db, 1)
    assert seen(db, worker(db)).holders == 1


@pytest.mark.parametrize("why", ["idle", "drained", "lost", "elsewhere", "another model"])
def test_nothing_is_left_to_a_worker_that_will_not_take_it_soon(db: Database, why: str) -> None:
    queues, model = ("cpu" if why == "elsewhere" else "gpu"), ("x" if why == "another model" else LANE.model)
    holder = worker(db, model, queues=queues)
    if why != "idle":
        busy(db, holder, Lane(queues, "echo", "x"))
    submit(db, 1)
    me = worker(db)
    if why == "drained":
        drain(db, holder)
    if why == "lost":
        jobs.renew(db, holder, -1.0, {"models": [model]}, {})
    assert seen(db, me).holders == 0
    if why == "idle":
        busy(db, worker(db, LANE.model), Lane("gpu", "echo", "x"))
        assert seen(db, me).holders == 0, "one idle worker is enough: that one could have taken it"


def test_a_worker_leaves_a_few_jobs_to_another_that_has_their_model_and_helps_with_many(db: Database) -> None:
    holder, me = worker(db, LANE.model), worker(db)
    held = busy(db, holder, Lane("gpu", "echo", "x"))
    submit(db, 3)
    made = Settings(_env_file=None, microbatch=4)
    claims, residency = Claims(db, made, ["gpu"]), Residency(made, lambda: pytest.fail("no model is loaded here"))

    assert claims.next(me, residency) is None
    assert not claims.sees_work(residency), "and is not stuck for that"

    jobs.give_back(db, holder, [(job.id, job.epoch) for job in held], "it stopped")
    jobs.close_session(db, holder)
    taken = claims.next(me, residency)
    assert taken is not None, "nobody has it now"

    busy(db, worker(db, "big too"), Lane("gpu", "echo", "x"))
    submit(db, 500, lane=Lane("gpu", "echo", "big too"))
    assert claims.sees_work(residency)


def test_who_has_all_that_waits_in_memory_does_not_ask_what_others_have(db: Database) -> None:
    submit(db, 3)
    me, asked = worker(db), list[str]()
    event.listen(db.engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: asked.append(statement))
    seen(db, me, at_hand={("echo", LANE.model)})
    assert not any("condition" in statement for statement in asked)
    seen(db, me)
    assert any("condition" in statement for statement in asked)
