"""T13 to T15: identical work is done once, where its owner wants that (`cache`), for each tenant by itself.

Such a job carries a *fingerprint* of what it asks for: task, model, adapters, params, seed. What makes it is its
*maker*: the model's digest, number type, generator with its version, kind of device. Both together tell whether two
jobs have the same output, and only workers know a maker. So nothing is decided before one of them has said it:

* a job of which the same was made before by the same maker is given those files (T13, `served`);
* one that is identical to a job that is queued or running in its lane waits for that one (T14, `joined`);
* when that one has succeeded, those that wait for it are given its files (T13); if it came to nothing, one of them is
  queued in its place, and the others wait for that one (T15, `let_go`).

Nothing points from a job that waits to the one that it waits for: they have tenant, fingerprint and lane in common,
and the one that is waited for is marked (`awaited_at`). Of jobs with these in common, some wait only while one is
queued or running or, marked, has ended a moment ago: that is what `settle` looks for. Decisions about a tenant's
identical work are made one at a time (`_alone`), so that no two jobs come to wait for each other.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, func, literal, or_, select, text, update

from shared.counters import hold, moved
from shared.database import Database, now
from shared.errors import Unavailable
from shared.jobs.claim import ClaimedJob
from shared.jobs.giving import give
from shared.jobs.makers import maker_of
from shared.jobs.pieces import CHUNK, MOVED, by_line, end_attempts, held_by, take_back
from shared.many import listed
from shared.service import correct
from shared.tables import FINAL_STATES, batches, jobs

log = logging.getLogger("aigc.jobs")

#: what is read of jobs before anything is decided about them
_READ: tuple[ColumnElement[Any], ...] = (
    *MOVED,
    jobs.c.epoch,
    jobs.c.fingerprint,
    jobs.c.claimed_at,
    jobs.c.cancel_requested,
)
#: tenant, fingerprint, lane: jobs with these in common may wait for one another
_Group = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Shared:
    """What became of jobs that are identical to others."""

    #: were given files that were made before
    served: int
    #: wait for a job that is queued or running
    joined: int


# --- decisions ---


@dataclass
class _Plan:
    """Which jobs are given whose files, and which wait for whom; the others are to be made."""

    serve: dict[str, list[Row[Any]]] = field(default_factory=dict)
    join: dict[str, list[Row[Any]]] = field(default_factory=dict)

    def add(self, row: Row[Any], source: str | None, making: dict[_Group, tuple[str, float]], rank: float) -> None:
        """Decide about one job. `making` says who is to make it, and at which priority; `rank` is this job's own."""
        group = (row.tenant_id, row.fingerprint, row.lane_id)
        leader, its_rank = making.get(group, ("", -inf))
        if source is not None:
            self.serve.setdefault(source, []).append(row)
        elif leader and its_rank >= row.priority:
            self.join.setdefault(leader, []).append(row)
        else:  # nobody makes it, or only somebody whose turn comes later
            making[group] = (row.id, rank)


def sift(db: Database, session: str, claimed: Sequence[ClaimedJob], maker: str) -> set[str]:
    """T13, T14 at the door of the model: which of these jobs, just claimed, this maker still has to make.

    The others are in our hands no more: they were given what was made before, or wait for a job that the same maker
    makes right now, without a charge. Jobs without a fingerprint cost nothing here. Raises `Unavailable`.
    """
    asking = {job.id: n for n, job in enumerate(claimed) if job.fingerprint is not None}
    others = {job.id for job in claimed} - asking.keys()
    if not asking:
        return others
    held = [(job.id, job.epoch) for job in claimed if job.id in asking]
    c = jobs.c

    def work(connection: Connection) -> set[str]:
        _alone(connection, {job.tenant_id for job in claimed})
        mine = connection.execute(select(*_READ).where(held_by(session, held)).order_by(c.id).with_for_update()).all()
        made = _made(connection, mine, {maker})
        at_work = and_(c.state == literal("running", literal_execute=True), c.maker == maker)
        making = _making(connection, mine, and_(at_work, c.id.not_in(listed(asking))))
        plan = _Plan()
        for row in sorted(mine, key=lambda row: asking[row.id]):
            if not row.cancel_requested:
                plan.add(row, made.get((row.tenant_id, row.fingerprint, maker)), making, inf)
        served = give(connection, plan.serve, "running", session)
        joined = _put_behind(connection, plan.join, "running")
        end_attempts(connection, session, joined, "joined", {})
        _book(connection, "running", served, joined, session=session)
        rest = {row.id for row in mine} - {row.id for row in (*served, *joined)}
        connection.execute(update(jobs).where(held_by(session, held), c.id.in_(listed(rest))).values(maker=maker))
        return rest

    return others | db.write(work, replayable=True)


def match_batch(db: Database, batch_id: str, makers: Mapping[int, str]) -> Shared:
    """T13, T14 for a batch that has just opened: what is made or being made already need not wait for its turn.

    `makers` says of a lane by whom its jobs would be made, where that is known (`known_makers`). What is not settled
    here, for whatever reason, a worker settles when it has claimed it. Raises `Unavailable`.
    """
    served = joined = 0
    c = jobs.c
    asking = and_(c.fingerprint.is_not(None), _ready())
    for ids in by_line(db, batch_id, asking):
        done = db.write(partial(_match, batch_id=batch_id, ids=ids, makers=makers))
        served, joined = served + done.served, joined + done.joined
    return Shared(served, joined)


def _match(connection: Connection, *, batch_id: str, ids: Sequence[str], makers: Mapping[int, str]) -> Shared:
    c = jobs.c
    _alone(connection, connection.scalars(select(batches.c.tenant_id).where(batches.c.id == batch_id)).all())
    chosen = and_(c.id.in_(listed(ids)), _ready())
    mine = connection.execute(select(*_READ).where(chosen).order_by(c.id).with_for_update()).all()
    if not mine:
        return Shared(0, 0)
    made = _made(connection, mine, set(makers.values()))
    # The lines after these come with the next chunk.
    before = or_(c.batch_id != batch_id, c.line <= max(row.line for row in mine))
    making = _making(connection, mine, and_(_active(), before, c.id.not_in(listed(ids))))
    plan = _Plan()
    for row in sorted(mine, key=lambda row: (-row.priority, row.line)):
        source = made.get((row.tenant_id, row.fingerprint, makers.get(row.lane_id, "")))
        plan.add(row, source, making, row.priority)
    served = give(connection, plan.serve, "queued")
    joined = _put_behind(connection, plan.join, "queued")
    _book(connection, "queued", served, joined, ready=-1)
    return Shared(len(served), len(joined))


# --- the end of a job that others wait for ---


def note_makers(connection: Connection, rows: Sequence[Row[Any]], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Of jobs that have just succeeded, by their records: who made them, for those that ask for the same later."""
    c = jobs.c
    made_by: dict[str, list[str]] = {}
    for row in rows:
        if row.fingerprint is not None:
            made_by.setdefault(maker_of(records[row.id]), []).append(row.id)
    for maker, ids in sorted(made_by.items()):
        connection.execute(update(jobs).where(c.id.in_(listed(ids)), c.state == "succeeded").values(maker=maker))


def tell_waiting(db: Database, ids: Collection[str]) -> None:
    """Settle at once who waits for these, as far as that is quick; keepers do the rest, and what fails here."""
    if not ids:
        return
    try:
        settle(db, sorted(ids), at_most=CHUNK)
    except Unavailable as error:
        log.warning("jobs that are identical to others hear of them later, from a keeper: %s", error)


def settle(db: Database, ids: Sequence[str] | None = None, *, at_most: int | None = None) -> int:
    """T13, T15: let those know that wait for a job that has ended; returns how many went on.

    Looks at these jobs, or at all, and stops after about `at_most`: the rest is for the keepers. A look finds nothing
    where nobody uses it, and costs nothing then. Raises `Unavailable`.
    """
    which = ended_and_awaited() if ids is None else and_(ended_and_awaited(), jobs.c.id.in_(listed(ids)))
    total = 0
    while at_most is None or total < at_most:
        with db.read() as connection:
            found = connection.execute(select(jobs.c.id, jobs.c.tenant_id).where(which).limit(CHUNK)).all()
        if not found:
            break
        leaders, tenants = [row.id for row in found], {row.tenant_id for row in found}
        total += db.write(partial(_settle, ids=leaders, tenants=tenants))
    return total


def _settle(connection: Connection, *, ids: Sequence[str], tenants: Iterable[str]) -> int:
    """A chunk of it, over one job or many; a job is unmarked once nobody waits for it any more."""
    c = jobs.c
    _alone(connection, tenants)
    leaders = connection.execute(select(*_READ).where(ended_and_awaited(), c.id.in_(listed(ids))).order_by(c.id)).all()
    serve: dict[str, list[Row[Any]]] = {}
    let_go: list[Row[Any]] = []
    settled: list[str] = []
    room = CHUNK
    for leader in leaders:
        waiting = _waiting(connection, leader, room if leader.state == "succeeded" else 1)
        if leader.state == "succeeded" and waiting:
            serve[leader.id] = waiting
            room -= len(waiting)
            if room <= 0:
                break  # more may wait for it: it stays marked, and is looked at again
        elif waiting and not _passed_on(connection, leader, waiting[0]):
            let_go += _let_go(connection, waiting[0])
        settled.append(leader.id)
    connection.execute(update(jobs).where(c.id.in_(listed(settled)), ended_and_awaited()).values(awaited_at=None))
    served = give(connection, serve, "waiting")
    for leader_id, rows in serve.items():
        if not {row.id for row in rows} & {row.id for row in served}:  # its files are on their way out
            let_go += _let_go(connection, rows[0])
            connection.execute(update(jobs).where(c.id == leader_id).values(awaited_at=None))
    hold(connection, (row.batch_id for row in (*served, *let_go)))
    moved(connection, served, "waiting", "succeeded", "served")
    moved(connection, let_go, "waiting", "queued", "let_go", ready=1)
    return len(served) + len(let_go)


def _waiting(connection: Connection, leader: Row[Any], limit: int) -> list[Row[Any]]:
    """Who waits for what this job was to make, those of the highest priority first."""
    c = jobs.c
    alike = and_(c.tenant_id == leader.tenant_id, c.fingerprint == leader.fingerprint, c.lane_id == leader.lane_id)
    waits = and_(alike, c.same_as.is_(None), c.state == literal("waiting", literal_execute=True))
    chosen = select(*_READ).where(waits).order_by(c.priority.desc()).limit(limit).with_for_update()
    return list(connection.execute(chosen))


def _passed_on(connection: Connection, leader: Row[Any], first: Row[Any]) -> bool:
    """Whether another identical job is queued or running that they may wait for instead."""
    c = jobs.c
    following = _making(connection, [leader], and_(_active(), c.id != leader.id))
    heir, rank = following.get((leader.tenant_id, leader.fingerprint, leader.lane_id), ("", -inf))
    return bool(heir) and rank >= first.priority and heir in _marked(connection, [heir])


def _let_go(connection: Connection, row: Row[Any]) -> Sequence[Row[Any]]:
    """Queue a job that waited: it takes the place of the one that came to nothing, and others may wait for it."""
    c = jobs.c
    return connection.execute(
        update(jobs)
        .where(c.id == row.id, c.state == "waiting")
        .values(state="queued", blockers=0, awaited_at=now(), maker=None)
        .returning(*MOVED)
    ).all()


# --- what there is ---


def _ready() -> ColumnElement[bool]:
    return and_(jobs.c.state == literal("queued", literal_execute=True), jobs.c.available_at.is_(None))


def ended_and_awaited() -> ColumnElement[bool]:
    """Jobs that have ended, and of whom others wait to hear; in the words of the index."""
    ends: ColumnElement[Any] = bindparam("ends", FINAL_STATES, expanding=True, literal_execute=True)
    return and_(jobs.c.awaited_at.is_not(None), jobs.c.state.in_(ends))


def _active() -> ColumnElement[bool]:
    """Jobs that will be made, as far as anybody knows."""
    c = jobs.c
    at_work = c.state.in_(bindparam("at_work", ("queued", "running"), expanding=True, literal_execute=True))
    stands = select(batches.c.id).where(
        batches.c.id == c.batch_id, batches.c.state == "open", batches.c.cancelled_at.is_(None)
    )
    return and_(at_work, ~c.cancel_requested, stands.exists())


def _alike(rows: Sequence[Row[Any]]) -> ColumnElement[bool]:
    """Jobs that ask for the same as some of these, and were not given the files of others; as the index has it."""
    c = jobs.c
    tenants, asked = {row.tenant_id for row in rows}, {row.fingerprint for row in rows}
    return and_(c.tenant_id.in_(sorted(tenants)), c.fingerprint.in_(listed(sorted(asked))), c.same_as.is_(None))


def _made(connection: Connection, rows: Sequence[Row[Any]], makers: Collection[str]) -> dict[tuple[str, str, str], str]:
    """By (tenant, fingerprint, maker): a job that has the files already."""
    if not rows or not makers:
        return {}
    c = jobs.c
    done = c.state == literal("succeeded", literal_execute=True)
    found = connection.execute(
        select(c.tenant_id, c.fingerprint, c.maker, func.min(c.id).label("id"))
        .where(_alike(rows), done, c.maker.in_(sorted(makers)))
        .group_by(c.tenant_id, c.fingerprint, c.maker)
    )
    return {(row.tenant_id, row.fingerprint, row.maker): row.id for row in found}


def _making(
    connection: Connection, rows: Sequence[Row[Any]], which: ColumnElement[bool]
) -> dict[_Group, tuple[str, float]]:
    """By group: the job that makes it, or will first, and its priority; what runs already comes before everything."""
    if not rows:
        return {}
    c = jobs.c
    found: dict[_Group, tuple[str, float]] = {}
    for row in connection.execute(
        select(c.id, c.tenant_id, c.fingerprint, c.lane_id, c.state, c.priority)
        .where(_alike(rows), which, ~c.cancel_requested)
        .order_by(c.id)
    ):
        group = (row.tenant_id, row.fingerprint, row.lane_id)
        rank = inf if row.state == "running" else row.priority
        if group not in found or rank > found[group][1]:
            found[group] = (row.id, rank)
    return found


def awaited_by(connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, str]:
    """For status: of jobs that wait for an identical one, by id, which one that is. Only a look."""
    waiting = [row for row in rows if row.state == "waiting" and row.fingerprint is not None]
    ended = _making(connection, waiting, ended_and_awaited())
    making = ended | _making(connection, waiting, and_(_active(), jobs.c.awaited_at.is_not(None)))
    found = ((row.id, making.get((row.tenant_id, row.fingerprint, row.lane_id))) for row in waiting)
    return {id_: leader[0] for id_, leader in found if leader is not None}


# --- transitions ---


def _alone(connection: Connection, tenants: Iterable[str]) -> None:
    """Decide about the identical work of these tenants one transaction at a time; SQLite does that anyway."""
    if connection.dialect.name == "sqlite":
        return
    one_at_a_time = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
    for tenant in sorted(set(tenants)):
        connection.execute(one_at_a_time, {"name": f"aigc identical work of {tenant}"})


def _marked(connection: Connection, ids: Collection[str]) -> set[str]:
    """Note that others wait for these, if they have not ended meanwhile."""
    c = jobs.c
    at_work = c.state.in_(("queued", "running"))
    rows = connection.scalars(
        update(jobs)
        .where(c.id.in_(listed(sorted(ids))), at_work)
        .values(awaited_at=func.coalesce(c.awaited_at, now()))
        .returning(c.id)
    )
    return set(rows)


def _put_behind(connection: Connection, plan: Mapping[str, Sequence[Row[Any]]], source: str) -> Sequence[Row[Any]]:
    """T14: jobs in state `source`, locked by us, come to wait for those that they are planned behind."""
    if not plan:
        return []
    c = jobs.c
    marked = _marked(connection, plan)
    ids = [row.id for leader in sorted(marked) for row in plan[leader]]
    guard = and_(c.id.in_(listed(ids)), c.state == source)
    if source == "running":
        return take_back(connection, guard, state=literal("waiting"), blockers=1, available_at=None, maker=None)
    waits = update(jobs).where(guard, c.available_at.is_(None)).values(state="waiting", blockers=1)
    return connection.execute(waits.returning(*MOVED)).all()


def _book(
    connection: Connection, source: str, served: Sequence[Row[Any]], joined: Sequence[Row[Any]], *,
    ready: int = 0, session: str | None = None,
) -> None:  # fmt: skip
    hold(connection, (row.batch_id for row in (*served, *joined)))
    moved(connection, served, source, "succeeded", "served", ready=ready, session=session)
    moved(connection, joined, source, "waiting", "joined", ready=ready, session=session)
    if source == "running":  # they were charged when they were claimed, and took nothing
        correct(connection, (*served, *joined), {})
