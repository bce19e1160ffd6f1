"""A stream of jobs as texts that join and leave an engine: the same for every engine that can be stepped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shared.errors import JobFailed
from workers.generators import Done, Failed, Feed, Outcome, Run, Work
from workers.generators.text_rows import Row, Texts


@dataclass(slots=True, eq=False)
class Going:
    """A text on its way."""

    row: Row
    #: ids generated so far
    tokens: list[int] = field(default_factory=list)
    #: whether it has ended
    done: bool = False


class Flow(Protocol):
    """An engine that texts join and leave between two steps."""

    @property
    def room(self) -> int:
        """How many more texts could be in the model."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""

    @property
    def going(self) -> Sequence[Going]:
        """The texts in the model."""

    def add(self, rows: Iterable[Row]) -> Sequence[Going]:
        """Have these texts join as soon as there is room for each."""

    def drop(self, goings: Iterable[Going]) -> None:
        """Forget these texts, wherever they are."""

    def step(self) -> Sequence[Going]:
        """One token for each text in the model; returns those that have ended, which have left."""

    def clear(self) -> None:
        """Forget all texts, and give back what they took."""


def stream_texts(
    flow: Flow,
    texts: Texts,
    jobs: Sequence[Work],
    feed: Feed,
    run: Run,
    *,
    rows: Callable[[Work], Sequence[Row]],
) -> Iterator[Outcome]:
    """What `Generator.stream` promises, by an engine that can be stepped: a job leaves with its last sequence.

    `rows` makes the texts of a job; raises `JobFailed` for one that cannot run.
    """
    parts: dict[str, Sequence[Going]] = {}
    try:
        while True:
            for job in jobs:
                try:
                    parts[job.job_id] = flow.add(rows(job))
                except JobFailed as error:
                    yield Failed(job.job_id, error)
            if flow.idle and not feed.open:
                return
            for job_id in () if flow.idle else _step(flow, parts, run):
                outputs = [texts.output(going.row, going.tokens, going.row.index) for going in parts.pop(job_id)]
                yield Done(job_id, outputs)
            for job_id in [job_id for job_id in parts if not run.wanted(job_id)]:
                flow.drop(parts.pop(job_id))
            jobs = feed.take(flow.room) if feed.open else ()
    finally:
        flow.clear()


class NoFeed:
    """The feed of a stream that is all there is."""

    @property
    def open(self) -> bool:
        """Nothing comes."""
        return False

    def take(self, room: int) -> Sequence[Work]:
        """Nothing."""
        return ()


def _step(flow: Flow, parts: Mapping[str, Sequence[Going]], run: Run) -> list[str]:
    """One token for each text; ids of the jobs that are done and still wanted."""
    ended = flow.step()
    run.advance(
        {
            job_id: _progress(parts[job_id])
            for job_id in dict.fromkeys(going.row.job.job_id for going in (*flow.going, *ended))
        }
    )
    over = dict.fromkeys(going.row.job.job_id for going in ended)
    return [job_id for job_id in over if all(going.done for going in parts[job_id]) and run.wanted(job_id)]


def _progress(goings: Sequence[Going]) -> tuple[int, int]:
    """(tokens generated, most that will be) over the sequences of a job."""
    return sum(len(going.tokens) for going in goings), sum(going.row.new_tokens for going in goings)
