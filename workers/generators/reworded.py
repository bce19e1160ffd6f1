"""Tasks that are text generation in other words: each job is put into a prompt, and a text generator does the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from shared.errors import JobFailed
from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Failed, Feed, Generator, Outcome, Run, Work


class Reworded(Generator):
    """Stands before a generator of `text-generation`, and gives it each job as one of its own."""

    def __init__(self, writer: Generator) -> None:
        self._writer = writer

    @abstractmethod
    def reword(self, params: Any) -> TextGenerationParams:
        """The job as text generation; raises `JobFailed` if this model cannot be asked so."""

    def _said(self, job: Work) -> Work:
        """The job as the writer takes it; raises `JobFailed` if it cannot be asked so."""
        if isinstance(job.params, TextGenerationParams):
            return job
        try:
            return replace(job, params=self.reword(job.params))
        except ValidationError as error:
            raise JobFailed("param_unsupported", str(error.errors()[0]["msg"])) from None

    def _able(self, jobs: Sequence[Work]) -> list[Work]:
        able: list[Work] = []
        for job in jobs:
            with suppress(JobFailed):  # `generate` says why
                able.append(self._said(job))
        return able

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """As the writer does it; those that cannot be asked so go together."""
        own = {job.job_id: job for job in jobs}
        able = self._able(jobs)
        shares = [[own[job.job_id] for job in share] for share in self._writer.cut(able, limit)]
        names = {job.job_id for job in able}
        rest = [job for job in jobs if job.job_id not in names]
        return [*shares, *(rest[start : start + limit] for start in range(0, len(rest), limit))]

    def most(self, jobs: Sequence[Work], limit: int) -> int:
        """As the writer has it."""
        able = self._able(jobs)
        return self._writer.most(able, limit) if able else limit

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """As the writer has it."""
        able = self._able(jobs)
        return self._writer.shape(able) if able else ()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Jobs that cannot be asked so fail; the writer writes the others."""
        able: list[Work] = []
        for job in jobs:
            try:
                able.append(self._said(job))
            except JobFailed as error:
                yield Failed(job.job_id, error)
        if able:
            yield from self._writer.generate(able, run)

    def streams(self, job: Work) -> bool:
        """Whether the writer can take it into a stream."""
        return any(self._writer.streams(said) for said in self._able([job]))

    def room(self) -> int | None:
        """As much as the writer has."""
        return self._writer.room()

    def stream(self, jobs: Sequence[Work], feed: Feed, run: Run) -> Iterator[Outcome]:
        """The writer's stream, with jobs put into its words on their way in."""
        return self._writer.stream(self._able(jobs), _Reworded(self, feed), run)

    def park(self) -> bool:
        """Park the writer."""
        return self._writer.park()

    def unpark(self) -> None:
        """Bring the writer back."""
        self._writer.unpark()

    def unload(self) -> None:
        """Drop the writer."""
        self._writer.unload()


class _Reworded:
    """A feed whose jobs are text generation."""

    def __init__(self, words: Reworded, feed: Feed) -> None:
        self._words, self._feed = words, feed

    def take(self, room: int) -> Sequence[Work]:
        return self._words._able(self._feed.take(room))  # noqa: SLF001 - the two are one

    @property
    def open(self) -> bool:
        return self._feed.open
