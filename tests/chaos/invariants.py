"""What must hold after a run, each a question to the database, the real store or the logs, and a precise complaint.

An invariant is a function of `Evidence` that returns a list of complaints; an empty one says that it holds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import plan
from evidence import Evidence
from plan import PlannedBatch
from sqlalchemy import Row, func, select

from shared import garbage
from shared.jobs.outcome import MAX_GIVE_BACKS
from shared.tables import (
    FINAL_STATES,
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

_FENCED = re.compile(r"fenced: (\d+) job\(s\) of session (\w+) had another owner \((T\d+)\)")
_AMBIGUOUS = "the answer to a COMMIT was lost"
_REAPED = re.compile(r"worker session (\w+) lost its lease")
_DEFECT = "defect of ours"
_OURS = re.compile(r" (WARNING|ERROR|CRITICAL) (aigc|chaos)\.")


# --- nothing lost ---


def every_batch_was_accepted_once(seen: Evidence) -> list[str]:
    """What the owner submitted is there under the id that it was told, and nothing else is."""
    wrong = [f"batch {batch.key} was never accepted" for batch in seen.plan.batches if batch.key not in seen.accepted]
    there = {row.id: row.name for row in seen.rows(select(batches).where(batches.c.state == "open"))}
    told = {id_: key for key, id_ in seen.accepted.items()}
    wrong += [f"batch {told[id_]} was accepted as {id_}, which is not there" for id_ in sorted(told.keys() - there)]
    wrong += [f"batch {there[id_]} is there as {id_} too" for id_ in sorted(there.keys() - told)]
    return wrong


def every_job_is_terminal(seen: Evidence) -> list[str]:
    """No accepted job is lost or stuck."""
    wrong = []
    for id_, kind, _, _ in seen.planned():
        row = seen.jobs.get(id_)
        if row is None:
            wrong.append(f"{kind} job {id_} was accepted and is not there")
        elif row.state not in FINAL_STATES:
            wrong.append(f"{kind} job {id_} is {row.state} (epoch {row.epoch}, {row.give_backs} give-backs)")
    return wrong


def every_job_ended_as_it_had_to(seen: Evidence) -> list[str]:
    """Plain jobs succeed whatever was done to their workers; failing, poison and doomed ones say why they failed."""
    wrong = []
    for id_, kind, batch, line in seen.planned():
        row = seen.jobs.get(id_)
        if row is None or row.state not in FINAL_STATES:
            continue
        end = row.state if row.state != "failed" else f"failed: {row.error_code}"
        if end not in _allowed(kind, batch, line["params"]):
            wrong.append(f"{kind} job {id_} ended as {end} ({row.error_message})")
    return wrong


def _allowed(kind: str, batch: PlannedBatch, params: dict[str, Any]) -> set[str]:
    if kind == "doomed":
        return {"failed: expired"}
    ends = {"succeeded"}
    if kind in ("failing", "poison"):
        codes = {"chaos_failed"} if kind == "failing" else {plan.POISON_CODES[params["poison"]]}
        # A job that was alone in the model when its worker was killed, each time, may say so instead.
        ends = {f"failed: {code}" for code in codes | plan.WORKER_CODES}
    if kind == "cancelled" or batch.cancel_after_s is not None:
        ends.add("cancelled")
    return ends


# --- nothing doubled ---


def every_success_has_one_result(seen: Evidence) -> list[str]:
    """One attempt of a succeeded job has succeeded, under its last epoch, and its outputs are complete and of it."""
    wrong = []
    for id_, _, _, line in seen.planned():
        row = seen.jobs.get(id_)
        if row is None or row.state != "succeeded":
            continue
        wins = seen.wins.get(id_, [])
        if [win.epoch for win in wins] != [row.epoch]:
            wrong.append(f"job {id_} succeeded under epoch {row.epoch}; its successes are {[w.epoch for w in wins]}")
            continue
        positions = [output.position for output in seen.outputs.get(id_, [])]
        if positions != list(range(line["params"]["outputs"])):
            wrong.append(f"job {id_} has outputs {positions} where {line['params']['outputs']} were to be")
        session = wins[0].worker_session
        if row.worker_session != session:
            wrong.append(f"job {id_} names session {row.worker_session}, its success names {session}")
        for output in seen.outputs.get(id_, []):
            wrong += _signed_by(seen, output, line, session)
    return wrong


def _signed_by(seen: Evidence, output: Row[Any], line: dict[str, Any], session: str) -> list[str]:
    name = f"output {output.position} of job {output.job_id}"
    if session not in output.object_key:
        return [f"{name} lies in {output.object_key}, which is not of session {session}"]
    body = seen.contents[output.id]
    if body is None:
        return []  # `every_artifact_is_whole` says so
    try:
        content = json.loads(body)
    except ValueError:
        return [f"{name} holds {body[:60]!r}"]
    expected = {"custom_id": line["custom_id"], "message": line["params"]["message"], "position": output.position}
    found = {key: content.get(key) for key in expected}
    if found != expected:
        return [f"{name} holds {found}, not {expected}"]
    if content["session"] != session:
        return [f"{name} was made by session {content['session']} and is shown as made by {session}"]
    return []


def every_success_was_told_once(seen: Evidence) -> list[str]:
    """The events know one success of each succeeded job, and none of another."""
    told: Counter[str] = Counter()
    for event in seen.rows(select(events).where(events.c.kind == "succeeded")):
        for first, last in event.jobs:
            told.update(f"{event.batch_id}-{line}" for line in range(first, last + 1))
    wrong = []
    for id_, row in seen.jobs.items():
        expected = int(row.state == "succeeded")
        if told[id_] != expected:
            wrong.append(f"job {id_} is {row.state} and has {told[id_]} events of success")
    return wrong


def only_successes_have_outputs(seen: Evidence) -> list[str]:
    """A failed or cancelled job shows nothing."""
    return [
        f"job {id_} is {seen.jobs[id_].state} and has {len(rows)} output(s)"
        for id_, rows in seen.outputs.items()
        if seen.jobs[id_].state != "succeeded"
    ]


def every_artifact_is_whole(seen: Evidence) -> list[str]:
    """Its object is in the store, and what lies there is what was recorded."""
    wrong = []
    for row in (row for rows in seen.outputs.values() for row in rows):
        body = seen.contents[row.id]
        if body is None:
            wrong.append(f"object {row.object_key} of job {row.job_id} is missing from the store")
        elif hashlib.sha256(body).hexdigest() != row.sha256:
            wrong.append(f"output {row.position} of job {row.job_id} is damaged in {row.object_key}")
    return wrong


def every_claim_has_its_end(seen: Evidence) -> list[str]:
    """Each claim of a job raised its epoch, and how that attempt ended is written down under it, once."""
    claims: Counter[str] = Counter()
    for event in seen.rows(select(events).where(events.c.kind == "claimed")):
        for first, last in event.jobs:
            claims.update(f"{event.batch_id}-{line}" for line in range(first, last + 1))
    ends: dict[str, list[int]] = {}
    for row in seen.rows(select(attempts.c.job_id, attempts.c.epoch).order_by(attempts.c.epoch)):
        ends.setdefault(row.job_id, []).append(row.epoch)
    wrong = []
    for id_, row in seen.jobs.items():
        epochs = ends.get(id_, [])
        if row.state in FINAL_STATES and len(epochs) != claims[id_]:
            wrong.append(f"job {id_} was claimed {claims[id_]} time(s), and {len(epochs)} attempt(s) have an end")
        if epochs and (epochs[0] < 1 or epochs[-1] > row.epoch):
            wrong.append(f"job {id_} has epoch {row.epoch} and attempts under {epochs}")
    return wrong


def whoever_was_fenced_had_lost_its_jobs(seen: Evidence) -> list[str]:
    """A result is refused only where others had been given the job: never to the one who stored it a moment ago."""
    fenced: Counter[str] = Counter()
    for line in seen.log_lines("worker*.log"):
        if (match := _FENCED.search(line)) and match[3] == "T5":
            fenced[match[2]] += int(match[1])
    ended = {row.id: row.end for row in seen.rows(select(worker_sessions.c.id, worker_sessions.c.end))}
    taken = Counter(
        row.worker_session
        for row in seen.rows(select(attempts.c.worker_session).where(attempts.c.outcome != "succeeded"))
    )
    return [
        f"session {session} (end: {ended.get(session)}) was fenced for {n} job(s), and {taken[session]} were taken"
        for session, n in fenced.items()
        if ended.get(session) != "lost" or n > taken[session]
    ]


# --- nobody harmed ---


def neighbours_of_poison_are_not_charged(seen: Evidence) -> list[str]:
    """A job is charged for the death of its worker only where no poison job was the cause.

    The diary says which sessions a poison job ended. Jobs that do not fail by themselves have no other charges.
    """
    poisoned = {entry["session"] for entry in seen.diary if entry["poison"] in ("segfault", "exit", "hang")}
    culprits = {(entry["session"], entry["job"]) for entry in seen.diary}
    due: Counter[str] = Counter()
    for attempt in seen.rows(select(attempts).where(attempts.c.error_code.is_not(None))):
        if attempt.error_code in plan.WORKER_CODES:
            due[attempt.job_id] += (
                attempt.worker_session not in poisoned or (attempt.worker_session, attempt.job_id) in culprits
            )
        else:
            due[attempt.job_id] += attempt.error_code == "chaos_failed"
    return [
        f"job {id_} was charged {row.attempts} attempt(s), and {due[id_]} could be its own doing"
        for id_, kind, _, _ in seen.planned()
        if kind != "poison"
        and id_ not in seen.revived
        and (row := seen.jobs.get(id_)) is not None
        and row.attempts > due[id_]
    ]


def an_outage_of_all_reaps_nobody(seen: Evidence) -> list[str]:
    """Where the database was away for everybody, and nothing else happened, no living worker lost its lease."""
    if not seen.only_outages:
        return []
    return [f"session {match[1]} lost its lease" for line in seen.log_lines() if (match := _REAPED.search(line))]


def nobody_was_given_back_too_often(seen: Evidence) -> list[str]:
    """Trouble of the surroundings alone never fails a job."""
    return [
        f"job {id_} was given back {row.give_backs} times"
        for id_, row in seen.jobs.items()
        if row.give_backs >= MAX_GIVE_BACKS or row.error_code == "given_back_too_often"
    ]


# --- books ---


def counters_equal_rows(seen: Evidence) -> list[str]:
    """Counters, backlog and sums of errors say what the rows say, and no keeper had to repair them."""
    states: dict[str, Counter[str]] = {}
    codes: Counter[tuple[str, str]] = Counter()
    ready: Counter[tuple[str, int, int]] = Counter()
    for row in seen.jobs.values():
        states.setdefault(row.batch_id, Counter())[row.state] += 1
        if row.state == "failed":
            codes[row.batch_id, row.error_code] += 1
        if row.state == "queued" and row.available_at is None:
            ready[row.batch_id, row.lane_id, row.priority] += 1
    wrong = []
    for row in seen.rows(select(batch_counters)):
        told = {state: getattr(row, state) for state in JOB_STATES}
        true = {state: states.get(row.batch_id, Counter())[state] for state in JOB_STATES}
        if told != true:
            wrong.append(f"the counters of batch {row.batch_id} say {told}, its rows {true}")
    for row in seen.rows(select(backlog)):
        true_ready = ready[row.batch_id, row.lane_id, row.priority]
        if row.ready != true_ready:
            wrong.append(f"the backlog of batch {row.batch_id} says {row.ready} ready, its rows {true_ready}")
    told_codes = {(row.batch_id, row.code): row._mapping["count"] for row in seen.rows(select(batch_errors))}
    for key in sorted(told_codes.keys() | codes.keys()):
        if told_codes.get(key, 0) != codes[key]:
            wrong.append(f"the errors of batch {key[0]} count {told_codes.get(key, 0)} {key[1]}, its rows {codes[key]}")
    repaired = seen.rows(select(func.count()).select_from(events).where(events.c.kind == "counters_repaired"))[0][0]
    if repaired:
        wrong.append(f"keepers repaired counters {repaired} time(s)")
    return wrong


def nobody_lives_after_the_end(seen: Evidence) -> list[str]:
    """Once every worker was told to stop and has, no session is open for longer than its lease."""
    lost = seen.rows(select(worker_sessions).where(worker_sessions.c.ended_at.is_(None)))
    return [f"session {row.id} (process {row.pid}) is still open" for row in lost]


def queues_in_redis_are_bounded(seen: Evidence) -> list[str]:
    """Each queue held few messages at any time, however many jobs waited."""
    return [
        f"queue {queue} held {n} messages where {seen.messages_allowed} are allowed"
        for queue, n in seen.most_messages.items()
        if n > seen.messages_allowed
    ]


def only_what_is_referred_to_is_stored(seen: Evidence) -> list[str]:
    """After a collection the store holds the objects of the artifacts, and no others."""
    garbage.collect(seen.db, seen.storage)
    garbage.collect_strays(seen.db, seen.storage, older_than_s=0)
    referred = {row.object_key for row in seen.rows(select(artifacts.c.object_key))}
    stored = {entry.key for entry in seen.storage.list() if not entry.key.startswith("probe/")}
    known = {row.key for row in seen.rows(select(objects.c.key))}
    wrong = [f"object {key} is referred to and not in the store" for key in sorted(referred - stored)]
    wrong += [f"object {key} is in the store, and nothing refers to it" for key in sorted(stored - referred)]
    wrong += [f"object {key} has a row, and nothing refers to it" for key in sorted(known - referred)]
    return wrong


def no_defect_was_logged(seen: Evidence) -> list[str]:
    """No process of ours met an error that it did not expect; generators that poison jobs break are expected."""
    wrong, before = [], ""
    for line in seen.log_lines():
        unexpected = line.startswith("Traceback") and _OURS.search(before) and "a generator failed" not in before
        if _DEFECT in line or (unexpected and _DEFECT not in before):
            wrong.append((line if _DEFECT in line else before).strip())
        before = line
    return wrong


# --- the faults bit ---


def counts(seen: Evidence) -> dict[str, int]:
    """How often what the promises are about was put to the test, from the logs and the books."""
    found: Counter[str] = Counter(fenced=0, ambiguous=0, reaped=0, resumed=0, attempts=0)
    for line in seen.log_lines():
        if match := _FENCED.search(line):
            found["fenced"] += int(match[1])
        found["ambiguous"] += _AMBIGUOUS in line
        found["reaped"] += _REAPED.search(line) is not None
    for row in (row for rows in seen.outputs.values() for row in rows):
        body = seen.contents[row.id]
        found["resumed"] += body is not None and b'"began_at_step": 0' not in body
    found["attempts"] = seen.rows(select(func.count()).select_from(attempts))[0][0]
    found["by_wrong_clock"] = seen.rows(
        select(func.count())
        .select_from(attempts.join(worker_sessions, worker_sessions.c.id == attempts.c.worker_session))
        .where(attempts.c.outcome == "succeeded", worker_sessions.c.pid.in_(seen.wrong_clocks))
    )[0][0]
    found["lost"] = seen.rows(select(func.count()).select_from(attempts).where(attempts.c.outcome == "lost"))[0][0]
    return dict(found)


def the_faults_bit(seen: Evidence) -> list[str]:
    """A run in which nothing was fenced, reaped or resumed has proved nothing."""
    if not seen.every_kind:
        return []
    found = counts(seen)
    wanted = ["fenced", "reaped", "resumed"]
    if not seen.db.is_sqlite:
        wanted += ["ambiguous", "by_wrong_clock"]
    return [f"{what}: 0" for what in wanted if not found[what]]


Invariant = Callable[[Evidence], list[str]]

INVARIANTS: tuple[Invariant, ...] = (
    every_batch_was_accepted_once,
    every_job_is_terminal,
    every_job_ended_as_it_had_to,
    every_success_has_one_result,
    every_success_was_told_once,
    every_claim_has_its_end,
    whoever_was_fenced_had_lost_its_jobs,
    only_successes_have_outputs,
    every_artifact_is_whole,
    neighbours_of_poison_are_not_charged,
    an_outage_of_all_reaps_nobody,
    nobody_was_given_back_too_often,
    counters_equal_rows,
    nobody_lives_after_the_end,
    queues_in_redis_are_bounded,
    only_what_is_referred_to_is_stored,
    no_defect_was_logged,
    the_faults_bit,
)
