"""What a run leaves behind: the plan, the books, the store and the logs, read once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import plan
from plan import PlannedBatch
from sqlalchemy import Row, select

from shared.database import Database
from shared.errors import ObjectMissing
from shared.storage import Storage
from shared.tables import artifacts, attempts, jobs


@dataclass(frozen=True)
class Evidence:
    """All that a run left behind."""

    plan: plan.Plan
    #: key of a planned batch → the id under which it was accepted
    accepted: dict[str, str]
    db: Database
    #: past the proxy
    storage: Storage
    logs: Path
    #: what poison jobs wrote before they acted
    diary: list[dict[str, str]]
    #: most messages that were seen in a queue
    most_messages: dict[str, int]
    #: the same, as it may be at most
    messages_allowed: int
    #: jobs that failed with their worker and were retried by their owner after the faults were over
    revived: frozenset[str] = frozenset()
    #: whether faults of every kind were to come
    every_kind: bool = True
    #: whether none but outages of the database, for all at once, were to come
    only_outages: bool = False
    #: processes whose clock was wrong
    wrong_clocks: frozenset[int] = frozenset()

    def rows(self, statement: Any) -> list[Row[Any]]:
        """Everything that a query finds."""
        with self.db.read() as connection:
            return list(connection.execute(statement).all())

    @cached_property
    def jobs(self) -> dict[str, Row[Any]]:
        """Every job by id."""
        return {row.id: row for row in self.rows(select(jobs))}

    @cached_property
    def outputs(self) -> dict[str, list[Row[Any]]]:
        """Artifacts of role output by job."""
        found: dict[str, list[Row[Any]]] = {}
        wanted = (
            select(artifacts).where(artifacts.c.role == "output").order_by(artifacts.c.job_id, artifacts.c.position)
        )
        for row in self.rows(wanted):
            found.setdefault(row.job_id, []).append(row)
        return found

    @cached_property
    def wins(self) -> dict[str, list[Row[Any]]]:
        """Attempts that succeeded, by job."""
        found: dict[str, list[Row[Any]]] = {}
        for row in self.rows(select(attempts).where(attempts.c.outcome == "succeeded")):
            found.setdefault(row.job_id, []).append(row)
        return found

    @cached_property
    def contents(self) -> dict[int, bytes | None]:
        """What lies in the store for each output artifact, by its id; None if the object is missing."""
        whole: dict[str, bytes | None] = {}
        for row in (row for rows in self.outputs.values() for row in rows):
            if row.object_key not in whole:
                try:
                    with self.storage.open(row.object_key) as stream:
                        whole[row.object_key] = stream.read()
                except ObjectMissing:
                    whole[row.object_key] = None
        found: dict[int, bytes | None] = {}
        for row in (row for rows in self.outputs.values() for row in rows):
            body = whole[row.object_key]
            found[row.id] = None if body is None else body[row.start : row.start + row.bytes]
        return found

    def log_lines(self, names: str = "*.log") -> Iterator[str]:
        """Every line of the logs of our processes."""
        for path in sorted(self.logs.glob(names)):
            with path.open(errors="replace") as stream:
                yield from stream

    def planned(self) -> Iterator[tuple[str, str, PlannedBatch, dict[str, Any]]]:
        """(job id, what it is for, its batch, its line) of every job that was accepted."""
        for batch in self.plan.batches:
            if batch.key in self.accepted:
                for n, line in enumerate(batch.lines, 1):
                    yield f"{self.accepted[batch.key]}-{n}", batch.kinds[line["custom_id"]], batch, line
