"""T13: a job that is identical to one that is done succeeds with the files of that one. See `shared.jobs.identical`.

Its artifacts refer to the same objects, which stay as long as anything refers to them, whoever is deleted first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, select, update

from shared.database import as_json, now
from shared.jobs.pieces import MOVED, end_attempts
from shared.jobs.publish import drop_artifacts
from shared.many import insert_many, listed
from shared.tables import artifacts, attempts, jobs, objects, worker_sessions

#: roles of the files that are given: what is left when a job is done
_GIVEN_ROLES = ("output", "metric")
_ARTIFACT = (
    "tenant_id", "job_id", "role", "position", "object_key", "start", "bytes", "media_type", "sha256", "facts",
)  # fmt: skip


def give(
    connection: Connection, plan: Mapping[str, Sequence[Row[Any]]], source: str, session: str | None = None
) -> list[Row[Any]]:
    """T13: jobs in state `source`, locked by us, succeed with the files of those that they are planned for.

    Files whose job is being deleted are left alone, and so are the jobs that were to have them.
    """
    if not plan:
        return []
    there = _givers(connection, plan)
    c = jobs.c
    served: list[Row[Any]] = []
    for giver in sorted(there):
        ids = [row.id for row in plan[giver]]
        values: dict[str, Any] = {"same_as": there[giver].origin, "maker": there[giver].maker}
        if source != "running":  # nobody ran it, so nobody holds its epoch
            values |= {"epoch": c.epoch + 1, "worker_session": None}
        rows = connection.execute(
            update(jobs)
            .where(c.id.in_(listed(ids)), c.state == source)
            .values(
                state="succeeded", finished_at=now(), progress=1.0, blockers=0, available_at=None, deadline_at=None,
                company=None, error_code=None, error_message=None, **values,
            )
            .returning(*MOVED, c.epoch, c.claimed_at)
        ).all()  # fmt: skip
        there[giver].hand_out(connection, rows, session)
        served += rows
    return served


def _givers(connection: Connection, ids: Collection[str]) -> dict[str, _Giver]:
    """Those of these succeeded jobs whose files are there, and stay there until this transaction ends."""
    c, a, w = jobs.c, artifacts.c, worker_sessions.c
    found = connection.execute(
        select(c.id, c.same_as, c.maker, attempts.c.worker_session, attempts.c.record, w.versions)
        .join(attempts, and_(attempts.c.job_id == c.id, attempts.c.epoch == c.epoch))
        .outerjoin(worker_sessions, w.id == attempts.c.worker_session)
        .where(c.id.in_(listed(sorted(ids))), c.state == "succeeded")
        .order_by(c.id)
        .with_for_update(read=True, key_share=True, of=jobs)
    ).all()
    files: dict[str, list[Row[Any]]] = {row.id: [] for row in found}
    shared = and_(a.job_id.in_(listed(sorted(files))), a.role.in_(_GIVEN_ROLES))
    for file in connection.execute(select(artifacts).where(shared).order_by(a.id)):
        files[file.job_id].append(file)
    keys = sorted({file.object_key for some in files.values() for file in some})
    stored = set(
        connection.scalars(
            select(objects.c.key)
            .where(objects.c.key.in_(listed(keys)), objects.c.state == "stored")
            .order_by(objects.c.key)
            .with_for_update()
        )
    )
    return {
        row.id: _Giver(row.same_as or row.id, row.maker, row.worker_session, row.record, row.versions, files[row.id])
        for row in found
        if all(file.object_key in stored for file in files[row.id])
    }


@dataclass(frozen=True, slots=True)
class _Giver:
    """A job that is done, and what it has to give."""

    #: the job that was made: itself, or the one whose files it was given
    origin: str
    maker: str | None
    session: str
    record: Mapping[str, Any] | None
    versions: Mapping[str, Any] | None
    files: Sequence[Row[Any]]

    def hand_out(self, connection: Connection, rows: Sequence[Row[Any]], session: str | None) -> None:
        """These jobs, which have just succeeded, refer to the same files, and say how they came to be."""
        if not rows:
            return
        files: list[tuple[Any, ...]] = []
        facts = {file.id: as_json(file.facts) for file in self.files}
        # What earlier attempts of theirs have left: checkpoints, previews, metrics.
        drop_artifacts(connection, artifacts.c.job_id.in_(listed(row.id for row in rows)))
        for row in rows:
            files += [
                (
                    row.tenant_id, row.id, file.role, file.position, file.object_key, file.start, file.bytes,
                    file.media_type, file.sha256, facts[file.id],
                )
                for file in self.files
            ]  # fmt: skip
        insert_many(connection, artifacts, _ARTIFACT, files)
        record = {"versions": dict(self.versions or {}), **(self.record or {}), "identical_to": self.origin}
        how = {row.id: {"device_s": 0.0, "record": record} for row in rows}
        end_attempts(connection, session or self.session, rows, "served", how)
