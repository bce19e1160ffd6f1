"""In words, why a job is not done: every reason that holds, the one that weighs most first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, and_, func, literal, or_, select

from producer.records import JobRecord, SystemRecord, WorkerRecord
from producer.too_big import Shortage, here, nowhere, shortages
from producer.words import could_not_have, first_capital, keeper, moment, paused, several, span, told_once, troubles
from shared.database import Database, now
from shared.jobs import BY_AGE
from shared.queue import Queue
from shared.tables import artifacts, attempts, backlog, batches, jobs, lanes, objects, worker_sessions

#: error code of a job that does not fit into a device's memory even alone
TOO_BIG = "out_of_memory"
#: sentences that cost something to find
_Told = Callable[[], Iterator[str]]

#: workers, and troubles of workers, that are named at most
NAMED = 4


def why(db: Database, queue: Queue, job: JobRecord, system: SystemRecord, *, idle_look_s: float) -> str:
    """A few sentences; for a finished job, how it ended. Redis is asked only where it may explain a delay.

    `idle_look_s` is the time between two looks of an idle worker, as whoever asks has it set.
    """
    unwoken = partial(_unwoken, queue, idle_look_s)
    with db.read() as connection:
        facts = connection.execute(
            select(
                jobs, batches.c.state.label("batch_state"), batches.c.cancelled_at.label("batch_cancelled_at"),
                batches.c.opened_at, now().label("now"),
            ).join(batches, batches.c.id == jobs.c.batch_id).where(jobs.c.id == job.id)
        ).one()  # fmt: skip
        if job.status == "failed":
            said = list(_failed(connection, job, facts))
        elif job.status == "running":
            said = [*_running(connection, job, facts, system), *_past(connection, facts)]
        elif job.status == "queued":
            said = [*_queued(connection, unwoken, job, facts, system), *_past(connection, facts)]
        elif job.identical_to is not None:
            said = [*_identical(connection, job, system)]
        else:
            said = [_PLAIN[job.status]]
    told = " ".join(first_capital(sentence) for sentence in said)
    return told_once(told, job.error) if job.error else told


_PLAIN = {
    "succeeded": "It is done.",
    "cancelled": "It was cancelled.",
    "waiting": "It waits for another job.",
}


def _identical(connection: Connection, job: JobRecord, system: SystemRecord) -> Iterator[str]:
    """It was given the files of another job, or waits for them."""
    other = f"job {job.identical_to}"
    if job.status == "succeeded":
        yield f"It is done: it asked for the same as {other} and was given its files (`cache`)."
        return
    state = connection.scalar(select(jobs.c.state).where(jobs.c.id == job.identical_to))
    if state in ("queued", "running"):
        yield f"It waits for {other}, which makes the same and is {state} (`cache`)."
        if state == "queued":
            yield f"`aigc why {job.identical_to}` tells why that one does not start."
    else:
        yield f"It waited for {other}, which has ended; a keeper lets it go on. {_keeper(system)}".strip()


def _failed(connection: Connection, job: JobRecord, facts: Row[Any]) -> Iterator[str]:
    yield f"It failed: {_stop(job.error['message'] if job.error else 'nobody knows why')}"
    if facts.attempts > 1:
        yield f"It was tried {facts.attempts} times."
    yield from _too_big(connection, job)


# --- running ---


def _running(connection: Connection, job: JobRecord, facts: Row[Any], system: SystemRecord) -> Iterator[str]:
    if facts.cancel_requested or facts.batch_cancelled_at is not None:
        yield "It is marked for cancel, and ends at its next step."
    session = connection.execute(
        select(worker_sessions.c.worker).where(worker_sessions.c.id == facts.worker_session)
    ).first()
    where = f" on {session.worker}" if session else ""
    since = facts.entered_at or facts.claimed_at
    of = f"attempt {facts.attempts + 1} of {facts.max_attempts}"
    running = f"It is running{where} since {moment(since)} ({span(facts.now - since)}), {of}"
    if facts.entered_at is None:
        yield f"{running}: claimed, and waiting there for its model or for its turn."
    else:
        progress = f", {job.progress:.0%} of its steps are done" if job.progress else ""
        company = f", together with {several(facts.company - 1, 'other job')}" if (facts.company or 1) > 1 else ""
        yield f"{running}{company}{progress}."
    worker = next((worker for worker in system.workers if worker.session == facts.worker_session), None)
    if worker is None:
        yield f"That worker's lease is over: its jobs are taken back by a keeper. {_keeper(system)}".strip()
    else:
        yield from (f"That worker {trouble}." for trouble in troubles(worker, models=False))


# --- queued ---


def _queued(
    connection: Connection, unwoken: _Told, job: JobRecord, facts: Row[Any], system: SystemRecord
) -> Iterator[str]:
    if facts.batch_state == "loading":
        yield "Its batch is still being submitted."
        return
    if facts.batch_cancelled_at is not None:
        yield "Its batch is being cancelled."
        return
    if facts.expires_at is not None and facts.expires_at <= facts.now:
        late = f"It was not started before {moment(facts.expires_at)}, as it had to be, and a keeper fails it."
        yield f"{late} {_keeper(system)}".strip()
        return
    delay = list(_delay(connection, job, facts, system))
    pause = [
        f"{_stop(paused(one))} `aigc resume {one.queue}` lets it go on."
        for one in system.paused
        if one.queue == job.queue
    ]
    serving = [worker for worker in system.workers if job.queue in worker.queues]
    short = shortages(job, serving)
    hindered = [
        (worker.worker, trouble)
        for worker in serving
        if (trouble := _hindrance(worker, job, short.get(worker.session)))
    ]
    yield from delay
    yield from pause
    if not serving:
        alive = len(system.workers)
        serve = "the one that is alive serves" if alive == 1 else f"the {alive} that are alive serve"
        others = f"; {serve} other queues" if alive else ""
        yield f"No worker serves queue {job.queue!r}{others}: start one with `aigc up` or `aigc worker`."
        return
    if len(short) == len(serving):
        yield nowhere(job, serving, short)
        return
    if hindered:
        yield _of_the_workers(hindered, len(serving))
    if len(hindered) == len(serving) or delay or pause:
        return
    yield from _turn(connection, unwoken, job, facts, serving)


def _delay(connection: Connection, job: JobRecord, facts: Row[Any], system: SystemRecord) -> Iterator[str]:
    """It was tried, and the next try has a time."""
    if facts.available_at is None:
        return
    after = f", after {job.error['code']}: {job.error['message']}" if job.error else ""
    of = f"attempt {facts.attempts + 1} of {facts.max_attempts}"
    left = facts.available_at - facts.now
    if left > 0:
        yield _stop(f"It waits for its next try at {moment(facts.available_at)} (in {span(left)}), {of}{after}")
    else:
        due = f"Its next try was due at {moment(facts.available_at)}; a keeper lets it go with its next round"
        yield f"{_stop(due + f', {of}{after}')} {_keeper(system)}".strip()
    yield from _too_big(connection, job)


def _hindrance(worker: WorkerRecord, job: JobRecord, short: Shortage | None) -> str | None:
    """What keeps this worker from taking this job."""
    first = next(troubles(worker, models=False), None)
    if first is not None:
        return first
    if short is not None:
        return here(job, short)
    for one in worker.set_aside:
        if (one.model, one.task) == (job.model or "", job.task):
            since = f" since {moment(one.since)}" if one.since else " lately"
            again = f"; it tries again at {moment(one.again_at)}" if one.again_at else ""
            return f"{could_not_have(one.model or one.task)}{since}: {one.reason}{again}"
    return None


def _of_the_workers(hindered: Sequence[tuple[str, str]], serving: int) -> str:
    """Workers whose trouble is the same are told of together."""
    by_trouble: dict[str, list[str]] = {}
    for worker, trouble in hindered:
        by_trouble.setdefault(trouble, []).append(worker)
    several = [f"{', '.join(workers[:NAMED])}{_more(workers)} {trouble}" for trouble, workers in by_trouble.items()]
    told = "; ".join(several[:NAMED]) + _more(several)
    if len(hindered) == serving:
        return _stop(f"No worker can take it now: {told}")
    return _stop(f"{len(hindered)} of {serving} workers cannot take it: {told}")


def _more(told: Sequence[str]) -> str:
    return f" and {len(told) - NAMED} more" if len(told) > NAMED else ""


def _turn(
    connection: Connection, unwoken: _Told, job: JobRecord, facts: Row[Any], serving: list[WorkerRecord]
) -> Iterator[str]:
    """Nothing stands in its way but others."""
    ahead = _ahead(connection, job, facts)
    running = sum(worker.running for worker in serving)
    if ahead or running:
        stand = f"{several(ahead, 'job')} {'stands' if ahead == 1 else 'stand'}"
        on = f"{running:,} {'is' if running == 1 else 'are'} running on {several(len(serving), 'worker')}"
        yield f"{stand} before it in queue {job.queue!r}, {on}."
    else:
        serve = "serves" if len(serving) == 1 else "serve"
        yield f"It is next; {several(len(serving), 'worker')} {serve} queue {job.queue!r}."
    if not running:
        yield from unwoken()


def _unwoken(queue: Queue, idle_look_s: float) -> Iterator[str]:
    """No reason by itself, if Redis is away: SQL decides, and idle workers look there."""
    if (trouble := queue.trouble()) is not None:
        often = f"every {idle_look_s:g} s"
        yield f"Redis does not wake the workers ({trouble.reason}); they look by themselves {often}."


def _ahead(connection: Connection, job: JobRecord, facts: Row[Any]) -> int:
    """Ready jobs of higher priority, of the same in batches opened earlier, and the lines before its own."""
    opened_at = facts.opened_at or time.time()
    others = connection.scalar(
        select(func.coalesce(func.sum(backlog.c.ready), 0))
        .join(lanes, lanes.c.id == backlog.c.lane_id)
        .join(batches, batches.c.id == backlog.c.batch_id)
        .where(
            batches.c.cancelled_at.is_(None),
            lanes.c.queue == job.queue,
            backlog.c.batch_id != job.batch_id,
            or_(
                backlog.c.priority > job.priority,
                and_(backlog.c.priority == job.priority, backlog.c.opened_at < opened_at),
            ),
        )
    )
    own = connection.scalar(
        select(func.coalesce(func.sum(backlog.c.ready), 0)).where(
            backlog.c.batch_id == job.batch_id, backlog.c.priority > job.priority
        )
    )
    first = _first_ready(connection, job)
    return int(others or 0) + int(own or 0) + max(0, job.line - (first or job.line))


def _first_ready(connection: Connection, job: JobRecord) -> int | None:
    """The first line of its batch that waits at its priority: one look into the index of ready jobs for each lane."""
    waiting = select(backlog.c.lane_id).where(
        backlog.c.batch_id == job.batch_id, backlog.c.priority == job.priority, backlog.c.ready > 0
    )
    firsts = [
        connection.scalar(
            select(jobs.c.line)
            .where(
                jobs.c.batch_id == job.batch_id,
                jobs.c.lane_id == lane_id,
                jobs.c.priority == job.priority,
                jobs.c.state == literal("queued", literal_execute=True),
                jobs.c.available_at.is_(None),
            )
            .order_by(jobs.c.line)
            .limit(1)
        )
        for lane_id in connection.scalars(waiting).all()
    ]
    return min((line for line in firsts if line is not None), default=None)


# --- what it has been through ---


def _past(connection: Connection, facts: Row[Any]) -> Iterator[str]:
    """Marks that earlier attempts have left on a job that is not done."""
    if facts.max_company is not None:
        most = "alone" if facts.max_company <= 1 else f"beside at most {several(facts.max_company - 1, 'other')}"
        yield f"It runs {most}, because a worker died while it ran beside others."
    if facts.give_backs:
        last = connection.scalar(
            select(attempts.c.error_message)
            .where(attempts.c.job_id == facts.id, attempts.c.outcome == "given_back")
            .order_by(attempts.c.epoch.desc())
            .limit(1)
        )
        yield _stop(
            f"It was given back {several(facts.give_backs, 'time')}, which does not count as a try"
            + (f"; last: {last}" if last else "")
        )
    checkpoint = connection.execute(
        select(artifacts.c.facts, objects.c.created_at)
        .join(objects, objects.c.key == artifacts.c.object_key)
        .where(artifacts.c.job_id == facts.id, artifacts.c.role == "checkpoint")
        .order_by(*(column.desc() for column in BY_AGE))
        .limit(1)
    ).first()
    if checkpoint is not None:
        about = ", ".join(f"{key} {value}" for key, value in (checkpoint.facts or {}).items())
        which = f"checkpoint of {moment(checkpoint.created_at)}" + (f" ({about})" if about else "")
        if facts.state != "running":
            yield f"Its next attempt goes on from its {which}."
        elif facts.claimed_at is not None and checkpoint.created_at < facts.claimed_at:
            yield f"It goes on from the {which} of an earlier attempt."
        else:
            yield f"Another attempt would go on from its {which}."


def _too_big(connection: Connection, job: JobRecord) -> Iterator[str]:
    """Where it did not fit, and what to do."""
    if job.error is None or job.error["code"] != TOO_BIG:
        return
    tried = connection.execute(
        select(worker_sessions.c.worker)
        .join(attempts, attempts.c.worker_session == worker_sessions.c.id)
        .where(attempts.c.job_id == job.id, attempts.c.error_code == TOO_BIG)
        .order_by(attempts.c.epoch)
    )
    places = list(dict.fromkeys(row.worker for row in tried))
    where = f" It did not fit on {', '.join(places)}." if places else ""
    yield f"It is too big for the memory of every device that has tried it.{where}"
    again = f", then `aigc retry {job.id}`" if job.status == "failed" else ""
    yield f"Ask for fewer or smaller outputs or fewer tokens in a new job, or start a worker with more memory{again}."


def _keeper(system: SystemRecord) -> str:
    missing = keeper(system)
    return f"{first_capital(missing)}." if missing else ""


def _stop(sentence: str) -> str:
    """With one full stop at its end."""
    return sentence.strip().rstrip(".") + "."
