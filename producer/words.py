"""Moments, spans and the state of workers in words, as `status`, `why`, `events` and `doctor` say them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from producer.records import SystemRecord, WorkerRecord
from shared.operators import PausedQueue
from shared.services import is_remote


def moment(at: float) -> str:
    """`14:03:20`, with the date where that is not today's; in this machine's time zone."""
    there = time.localtime(at)
    today = time.localtime()
    same_day = (there.tm_year, there.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", there)


def span(seconds: float) -> str:
    """`25 s`, `4 min`, `2 h 5 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def paused(queue: PausedQueue) -> str:
    """Since when, and why."""
    return f"queue {queue.queue!r} is paused since {moment(queue.since)}" + (
        f": {queue.reason}" if queue.reason else ""
    )


def troubles(worker: WorkerRecord, *, models: bool = True) -> Iterator[str]:
    """What keeps a worker from taking jobs, or some of them, each in a few words; with `models`, those set aside."""
    if worker.draining_since is not None:
        yield f"is draining since {moment(worker.draining_since)}: it takes no more jobs and will end"
    if worker.silent:
        yield f"has not been heard of for {span(worker.silent_s)}: it is frozen, very busy or cut off from the database"
    if worker.storage_trouble:
        yield f"cannot store results: {worker.storage_trouble}"
    for one in worker.set_aside if models else ():
        since = f" since {moment(one.since)}" if one.since else ""
        again = f"; tried again at {moment(one.again_at)}" if one.again_at else ""
        yield f"{could_not_have(one.model)} for {one.task}{since}: {one.reason}{again}"


def could_not_have(model: str) -> str:
    """What a worker failed in: a remote model is not loaded."""
    return f"could not {'use' if is_remote(model) else 'load'} {model}"


def keeper(system: SystemRecord) -> str | None:
    """What is missing where no keeper is alive; None where one is."""
    if system.keeper_alive:
        return None
    seen = (
        "has ever been seen" if system.keeper_silent_s is None else f"has been seen for {span(system.keeper_silent_s)}"
    )
    return (
        f"no keeper {seen}: retries and the jobs of dead workers wait for one: start it with `aigc up` or `aigc keeper`"
    )


def several(n: int, what: str) -> str:
    """`1 job`, `2 jobs`, `1,200 jobs`."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def first_capital(sentence: str) -> str:
    """As a sentence begins."""
    return sentence[:1].upper() + sentence[1:]


def plain(text: str) -> str:
    """Names, reasons and messages are other people's: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def told_once(text: str, error: Mapping[str, str]) -> str:
    """A text that tells this error (`code`, `message`) in full the first time only."""
    message = error["message"]
    if not message:
        return text
    before, found, after = text.partition(message)
    return before + found + after.replace(f"{error['code']}: {message}", "the same").replace(message, "the same")
