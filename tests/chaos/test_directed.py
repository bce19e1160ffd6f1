"""Single promises that the runs lean on and that no other test asks for by itself."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from servers import PostgresServer
from sqlalchemy import select, update

from aigc import Client
from shared import jobs
from shared.database import Database
from shared.jobs import outcome
from shared.settings import Settings
from shared.tables import artifacts, batch_counters, lanes, worker_sessions
from shared.tables import jobs as job_rows
from workers import residency
from workers.generators import Device, Done, Generator, Output, Run, Work
from workers.worker import Worker


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    more: dict[str, Any] = {}
    if request.param == "postgres":
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        more["database_url"] = postgres.new_database()
    made = Settings(_env_file=None, data_dir=tmp_path, redis_url="redis://127.0.0.1:9/0", **more)
    Database(made).migrate()
    return made


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    made = Database(settings)
    yield made
    made.dispose()


class Twice(Generator):
    """Run by two workers at once: the first to begin is presumed dead on the way, and comes to its end last."""

    second: Worker
    calls = 0

    @classmethod
    def load(cls, files: Any, device: Device) -> Twice:
        return cls()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Any]:
        kind = type(self)
        kind.calls += 1
        who = "zombie" if kind.calls == 1 else "winner"
        if who == "zombie":
            _presume_dead(kind.second._db, run.session)
            kind.second.drain()
        for job in jobs:
            packed, own = f"packed by the {who}".encode(), f"alone by the {who}".encode()
            outputs = [Output("text/plain", packed), Output("application/octet-stream", own)]
            yield Done(job.job_id, outputs)


def _presume_dead(db: Database, session: str) -> None:
    lapsed = update(worker_sessions).where(worker_sessions.c.id == session).values(lease_expires_at=0.0)
    db.write(lambda connection: connection.execute(lapsed))
    assert jobs.reap(db) == [session]
    # It was alone in the model, so it would wait a little before its next try.
    db.write(lambda connection: connection.execute(update(job_rows).values(available_at=0.0)))
    assert jobs.release_due(db) == 1


def test_what_a_zombie_uploads_never_lands_on_the_object_of_a_winner(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Twice)
    batch = Client(settings).submit(["hello"], task="echo")
    first, Twice.second, Twice.calls = (
        Worker(settings, device="one", queues=["cpu"]), Worker(settings, device="two", queues=["cpu"]), 0,
    )  # fmt: skip
    first.drain()
    first.close()
    Twice.second.close()

    assert Twice.calls == 2
    client = Client(settings)
    [job] = client.batch(batch.id).jobs()
    shown = [client.gateway.open(artifact).read() for artifact in job.artifacts]
    assert shown == [b"packed by the winner", b"alone by the winner"]
    with db.read() as connection:
        owner = connection.scalar(select(job_rows.c.worker_session))
        keys = connection.scalars(select(artifacts.c.object_key)).all()
    assert all(owner in key for key in keys)


def test_a_result_and_its_books_stand_or_fall_together(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Client(settings).submit(["hello"], task="echo")
    session = f"w{secrets.token_hex(8)}"
    facts = {"worker": "w", "host": "h", "pid": 1, "device": "cpu", "queues": "cpu", "versions": {}, "condition": {}}
    jobs.open_session(db, {"id": session, **facts}, 60)
    with db.read() as connection:
        lane = connection.execute(select(lanes.c.id)).scalar_one()
    [claimed] = jobs.claim(db, session=session, lane_id=lane, priority=0, limit=1, window_s=60)

    def interrupted(*_: Any, **__: Any) -> None:
        raise InterruptedError("the worker dies here")

    with monkeypatch.context() as patch:
        patch.setattr(outcome, "moved", interrupted)
        with pytest.raises(InterruptedError):
            jobs.succeed(db, session, [jobs.Success(claimed.id, claimed.epoch, [], 0.1)])

    assert _books(db, batch.id) == ("running", 1, 0)
    jobs.succeed(db, session, [jobs.Success(claimed.id, claimed.epoch, [], 0.1)])
    assert _books(db, batch.id) == ("succeeded", 0, 1)


def _books(db: Database, batch_id: str) -> tuple[str, int, int]:
    c = batch_counters.c
    with db.read() as connection:
        state = connection.execute(select(job_rows.c.state).where(job_rows.c.batch_id == batch_id)).scalar_one()
        row = connection.execute(select(c.running, c.succeeded).where(c.batch_id == batch_id)).one()
    return state, row.running, row.succeeded


def test_a_mutant_needs_its_text_exactly_once(tmp_path: Path) -> None:
    """So that a mutant that no longer applies is said, and not taken for a promise that holds."""
    import mutants

    for mutant in mutants.MUTANTS:
        path = tmp_path / mutant.file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(mutants.ROOT / mutant.file, path)
        copy = mutants.Copy.__new__(mutants.Copy)
        copy.folder = tmp_path
        copy.change(mutant)
        with pytest.raises(ValueError, match="times"):
            copy.change(mutant)
