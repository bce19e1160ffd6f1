"""What nobody refers to is deleted, whatever breaks on the way; what somebody refers to, or may come to, is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster import until
from sqlalchemy import select, text, update
from test_transitions import change, claim, count, fail, job, new_batch, session, submit

from producer.gateway import DirectGateway
from shared import garbage, jobs
from shared.audit import audit
from shared.database import Database, now
from shared.errors import NotFound, Unavailable
from shared.garbage import collect, collect_strays
from shared.ids import batch_of
from shared.jobs import Publication, StoredArtifact, Success, owner, retention, submission
from shared.keeper import Keeper
from shared.settings import Settings
from shared.storage import ObjectInfo, Storage, open_storage
from shared.tables import (
    artifacts,
    attempts,
    backlog,
    batch_counters,
    batch_errors,
    batches,
    duties,
    events,
    objects,
    tenants,
    worker_sessions,
)
from shared.tables import jobs as table

TENANT = "default"
DAY_S = 86_400.0
#: older than this is everything: a store may round its times up
ANY_AGE_S = -10.0


@pytest.fixture(params=["settings_for_folder", pytest.param("settings_for_s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest) -> Storage:
    return open_storage(request.getfixturevalue(request.param))


class Broken:
    """A real storage of which some calls fail, or whose objects look older than they are."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        #: says whether the deletion of a key fails
        self.fails: Callable[[str], bool] = lambda _: False
        #: seconds by which objects under a key are older than they are
        self.ages: dict[str, float] = {}
        self.deleted: list[str] = []

    def delete(self, key: str) -> None:
        if self.fails(key):
            raise Unavailable("storage", "here", "it broke")
        self._storage.delete(key)
        self.deleted.append(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for entry in self._storage.list(prefix):
            yield replace(entry, modified=entry.modified - self.ages.get(entry.key, 0.0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def intend(db: Database, storage: Storage, who: str, *keys: str, upload: bool = True) -> None:
    jobs.intend(db, who, TENANT, keys)
    for key in keys if upload else ():
        storage.put(key, b"hello", media_type="text/plain")


def file(key: str, *, role: str = "output", position: int = 0) -> StoredArtifact:
    return StoredArtifact(key, 5, role, position, 0, 5, "text/plain", "0" * 64, {})


def finish(db: Database, storage: Storage, who: str, id_: str, epoch: int, key: str) -> None:
    intend(db, storage, who, key)
    assert jobs.succeed(db, who, [Success(id_, epoch, [file(key)], device_s=0.5)]) == {id_}


def stored(storage: Storage) -> list[str]:
    return [entry.key for entry in storage.list()]


def known(db: Database) -> dict[str, str]:
    """The objects that the database knows, and their states."""
    with db.read() as connection:
        return {row.key: row.state for row in connection.execute(select(objects).order_by(objects.c.key))}


# --- collection ---


def test_what_was_replaced_goes_and_what_is_referred_to_stays(db: Database, storage: Storage) -> None:
    [id_] = submit(db)
    who = session(db)
    claim(db, who)
    for n in (1, 2):
        intend(db, storage, who, f"t/preview-{n}")
        shown = Publication(id_, 1, file(f"t/preview-{n}", role="preview"))
        assert jobs.publish(db, who, [shown]) == {id_}
    assert known(db) == {"t/preview-1": "dropped", "t/preview-2": "stored"}

    assert collect(db, storage) == 1

    assert stored(storage) == ["t/preview-2"]
    assert known(db) == {"t/preview-2": "stored"}
    finish(db, storage, who, id_, 1, "t/output")
    assert collect(db, storage) == 1
    assert (stored(storage), known(db)) == (["t/output"], {"t/output": "stored"})
    assert collect(db, storage) == 0


def test_uploads_that_came_to_nothing_go_once_their_session_is_over_and_never_before(
    db: Database, storage: Storage
) -> None:
    at_work, dead = session(db), session(db)
    intend(db, storage, at_work, "t/under-way")
    intend(db, storage, at_work, "t/announced", upload=False)
    intend(db, storage, dead, "t/uploaded", "t/uploaded-too")
    intend(db, storage, dead, "t/never-uploaded", upload=False)
    intend(db, storage, "w-that-never-was", "t/nobodys")

    assert collect(db, storage) == 1, "of those that work or may work, nothing"
    jobs.bury(db, dead)
    assert collect(db, storage) == 3

    assert stored(storage) == ["t/under-way"]
    assert known(db) == {"t/announced": "intended", "t/under-way": "intended"}


def test_an_object_that_is_condemned_is_never_shown(db: Database, storage: Storage) -> None:
    """A zombie comes to tell of its upload when the collector has begun with it."""
    [id_] = submit(db)
    who = session(db)
    claim(db, who)
    intend(db, storage, who, "t/late")
    change(db, update(worker_sessions).values(ended_at=now(), end="lost"))  # and its jobs are not taken back yet
    broken = Broken(storage)
    broken.fails = lambda _: True
    with pytest.raises(Unavailable):
        collect(db, broken)
    assert known(db) == {"t/late": "condemned"}

    with suppress(RuntimeError):
        jobs.succeed(db, who, [Success(id_, 1, [file("t/late")], device_s=0.5)])

    assert count(db, artifacts) == 0
    assert known(db) == {"t/late": "condemned"}
    assert collect(db, storage) == 1
    assert (known(db), stored(storage)) == ({}, [])


def test_an_object_that_is_just_being_referred_to_is_left_alone(postgres_settings: Settings, tmp_path: Path) -> None:
    """The transition has not committed yet; the collector passes by instead of waiting for it."""
    storage = open_storage(Settings(_env_file=None, store_url=(tmp_path / "store").as_uri()))
    db = Database(postgres_settings)
    who = session(db)
    intend(db, storage, who, "t/output")
    change(db, update(worker_sessions).values(ended_at=now(), end="lost"))
    with db.engine.connect() as connection:
        connection.execute(update(objects).where(objects.c.state == "intended").values(state="stored", bytes=5))
        assert collect(db, storage) == 0
        connection.rollback()
    assert collect(db, storage) == 1
    db.dispose()


def test_the_collector_goes_on_where_it_was_interrupted_before_the_storage_was_told(
    db: Database, storage: Storage
) -> None:
    intend(db, storage, "w-gone", *(f"t/{n}" for n in range(5)))
    broken = Broken(storage)
    broken.fails = lambda _: True
    with pytest.raises(Unavailable, match="it broke"):
        collect(db, broken)
    assert set(known(db).values()) == {"condemned"}
    assert len(stored(storage)) == 5

    assert collect(db, storage) == 5
    assert (known(db), stored(storage)) == ({}, [])


def test_a_storage_that_fails_half_way_costs_no_row_of_what_is_still_there(db: Database, storage: Storage) -> None:
    intend(db, storage, "w-gone", *(f"t/{n}" for n in range(30)))
    broken = Broken(storage)
    broken.fails = lambda _: len(broken.deleted) >= 10
    with pytest.raises(Unavailable):
        collect(db, broken)

    assert 0 < len(stored(storage)) < 30
    assert set(stored(storage)) == set(known(db)), "a row for each that is there, and none more"
    assert collect(db, storage) == len(set(range(30))) - len(broken.deleted)
    assert (known(db), stored(storage)) == ({}, [])


def test_the_collector_goes_on_where_it_was_interrupted_after_the_storage_was_told(
    db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    intend(db, storage, "w-gone", "t/a", "t/b")
    write, written = Database.write, []

    def crash(self: Database, work: Any, **options: Any) -> Any:
        if written:
            raise Unavailable("database", "here", "it went away")
        written.append(True)
        return write(self, work, **options)

    monkeypatch.setattr(Database, "write", crash)
    with pytest.raises(Unavailable):
        collect(db, storage)
    assert (stored(storage), known(db)) == ([], {"t/a": "condemned", "t/b": "condemned"})

    monkeypatch.setattr(Database, "write", write)
    assert collect(db, storage) == 2
    assert known(db) == {}


def test_many_are_collected_in_chunks_up_to_a_limit(
    db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "CHUNK", 3)
    intend(db, storage, "w-gone", *(f"t/{n}" for n in range(10)))
    assert collect(db, storage, limit=4) == 6
    assert collect(db, storage, limit=100) == 4
    assert stored(storage) == []


def test_two_keepers_that_collect_at_once_do_not_disturb_each_other(
    db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "CHUNK", 4)
    intend(db, storage, "w-gone", *(f"t/{n}" for n in range(24)))
    totals: list[int] = []
    threads = [threading.Thread(target=lambda: totals.append(collect(db, storage))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(totals) == 24
    assert (known(db), stored(storage)) == ({}, [])


# --- strays ---


def test_what_a_zombie_uploads_after_its_row_is_gone_is_found_in_the_storage(db: Database, storage: Storage) -> None:
    submit(db)
    zombie = session(db)
    intend(db, storage, zombie, "t/zombie", upload=False)
    jobs.bury(db, zombie)
    assert collect(db, storage) == 1
    storage.put("t/zombie", b"late", media_type="text/plain")

    assert collect_strays(db, storage) == 0, "it is young"
    assert collect_strays(db, storage, older_than_s=ANY_AGE_S) == 1
    assert stored(storage) == []


def test_only_what_is_old_and_has_no_row_goes_in_whatever_order_it_is_listed(
    db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "CHUNK", 3)
    submit(db)
    change(db, update(tenants).values(created_at=now() - 10 * DAY_S))
    keys = [f"t/{n:02}" for n in range(12)]
    intend(db, storage, session(db), *keys[::2])
    for key in keys[1::2]:
        storage.put(key, b"x", media_type="text/plain")
    aged = Broken(storage)
    aged.ages = dict.fromkeys(keys[:10], DAY_S + 60)  # the last two are young
    listing = aged.list
    monkeypatch.setattr(aged, "list", lambda: iter(sorted(listing(), key=lambda entry: hash(entry.key))))

    assert collect_strays(db, aged) == 5

    assert stored(storage) == sorted([*keys[::2], keys[11]])
    assert len(known(db)) == 6


def test_probes_go_after_an_hour_and_not_before(db: Database, storage: Storage) -> None:
    submit(db)
    for name in ("young", "old"):
        storage.put(f"probe/{name}", b"x", media_type="text/plain")
    aged = Broken(storage)
    aged.ages = {"probe/old": 3700}
    assert collect_strays(db, aged, older_than_s=ANY_AGE_S) == 1
    assert stored(storage) == ["probe/young"]


def test_a_database_that_is_newer_than_the_storage_deletes_nothing_of_it(db: Database, storage: Storage) -> None:
    """Somebody started a keeper with the address of another, empty database."""
    storage.put("t/precious", b"x", media_type="text/plain")
    assert collect_strays(db, storage, older_than_s=ANY_AGE_S) == 0, "nothing was ever submitted to it"
    submit(db)
    aged = Broken(storage)
    aged.ages = {"t/precious": 3 * DAY_S}
    assert collect_strays(db, aged) == 0
    assert stored(storage) == ["t/precious"]


# --- retention ---


def finished_batch(db: Database, storage: Storage, total: int = 7, *, days_ago: float = 10) -> list[str]:
    """All jobs final: all but one done, in objects of their own and one that they share."""
    ids = submit(db, total)
    who = session(db)
    claim(db, who)
    jobs.enter(db, who, [(id_, 1) for id_ in ids], 1)
    pack = f"t/{batch_of(ids[0])}/pack"
    intend(db, storage, who, pack)
    for id_ in ids[1:]:
        own = f"t/{id_}/own"
        intend(db, storage, who, own)
        files = [file(own), file(pack, position=1)]
        assert jobs.succeed(db, who, [Success(id_, 1, files, device_s=0.5)]) == {id_}
    fail(db, who, ids[0], 1, retryable=False)
    jobs.close_session(db, who)
    long_ago(db, batch_of(ids[0]), days_ago)
    return ids


def long_ago(db: Database, batch_id: str, days: float) -> None:
    ended = now() - days * DAY_S
    change(db, update(batch_counters).where(batch_counters.c.batch_id == batch_id).values(finished_at=ended))


def test_a_batch_that_was_kept_long_enough_goes_with_all_that_hangs_on_it_and_no_other_does(
    db: Database, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.jobs.pieces.CHUNK", 3)
    monkeypatch.setattr("shared.jobs.submission.CHUNK", 3)
    old, young = finished_batch(db, storage), finished_batch(db, storage, days_ago=5)
    [going_on] = submit(db)
    long_ago(db, batch_of(going_on), 100)

    assert jobs.retire_batches(db, 7 * DAY_S) == 1

    kept = [batch_of(young[0]), batch_of(going_on)]
    with db.read() as connection:
        assert sorted(connection.scalars(select(batches.c.id))) == sorted(kept)
        for of in (table, events, batch_counters, backlog, batch_errors):
            assert set(connection.scalars(select(of.c.batch_id))) <= set(kept), of.name
        for of in (attempts, artifacts):
            assert set(connection.scalars(select(of.c.job_id))) <= set(young), of.name
    states = known(db)
    assert {key for key, state in states.items() if state == "dropped"} == {
        f"t/{batch_of(old[0])}/pack",
        *(f"t/{id_}/own" for id_ in old[1:]),
    }
    assert collect(db, storage) == 7
    assert set(stored(storage)) == {key for key, state in states.items() if state == "stored"}
    assert jobs.retire_batches(db, 7 * DAY_S) == 0


class Died(Exception):
    """Of the process that clears away."""


def test_a_batch_that_is_half_deleted_is_not_shown_is_not_revived_and_is_finished_by_another_keeper(
    db: Database, storage: Storage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.jobs.pieces.CHUNK", 3)
    ids = finished_batch(db, storage)
    batch_id, gateway = batch_of(ids[0]), DirectGateway(settings)
    write, written = Database.write, []

    def die(self: Database, work: Any, **options: Any) -> Any:
        if len(written) == 2:  # the mark stands, and one chunk is gone
            raise Died
        written.append(True)
        return write(self, work, **options)

    monkeypatch.setattr(Database, "write", die)
    with pytest.raises(Died):
        jobs.retire_batches(db, DAY_S)
    monkeypatch.setattr(Database, "write", write)
    assert count(db, table) == 4
    shared = f"t/{batch_id}/pack"
    assert known(db)[shared] == "stored", "jobs that are still there refer to it"
    assert [known(db)[f"t/{id_}/own"] for id_ in ids[1:]] == ["dropped"] * 2 + ["stored"] * 4

    for act in (
        lambda: gateway.batch(batch_id),
        lambda: gateway.batch(batch_id[:-2]),
    ):
        with pytest.raises(NotFound):
            act()
    assert gateway.batches(limit=10) == []
    change(db, update(table).where(table.c.id == ids[5]).values(state="failed", error_code="x"))
    with pytest.raises(NotFound, match="no batch"):
        jobs.retry(db, TENANT, batch_id)
    assert job(db, ids[5]).state == "failed"
    assert jobs.retire_batches(db, DAY_S) == 0, "it is on its way out already"

    assert jobs.abandon_silent_batches(db) == 1
    assert (count(db, batches), count(db, table), count(db, artifacts)) == (0, 0, 0)
    assert set(known(db).values()) == {"dropped"}
    assert collect(db, storage) == 7


def test_a_retry_that_comes_first_wins(db: Database, storage: Storage) -> None:
    ids = finished_batch(db, storage)
    assert jobs.retry(db, TENANT, batch_of(ids[0])) == 1
    long_ago(db, batch_of(ids[0]), 100)
    assert jobs.retire_batches(db, DAY_S) == 0
    assert audit(db, batch_of(ids[0])) == []


def test_a_retry_that_is_under_way_wins_too(
    postgres_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its locks and has not committed when the keeper comes; the keeper waits, and looks again."""
    storage = open_storage(Settings(_env_file=None, store_url=(tmp_path / "store").as_uri()))
    db = Database(postgres_settings)
    ids = finished_batch(db, storage)
    retired: list[int] = []
    keeper = threading.Thread(target=lambda: retired.append(jobs.retire_batches(db, DAY_S)))
    with db.engine.connect() as connection:
        which = table.c.batch_id == batch_of(ids[0])
        assert owner._retry(connection, batch_id=batch_of(ids[0]), which=which, states=("failed",)) == 1
        keeper.start()
        until(lambda: waits(db), within_s=10, what="the keeper waiting")
        connection.execute(update(batch_counters).values(finished_at=now() - 100 * DAY_S))
        connection.commit()
    keeper.join(timeout=10)

    assert retired == [0]
    assert job(db, ids[0]).state == "queued"
    assert audit(db, batch_of(ids[0])) == []
    db.dispose()


def waits(db: Database) -> bool:
    with db.read() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def test_two_keepers_that_clear_one_batch_away_lose_no_object(postgres_settings: Settings, tmp_path: Path) -> None:
    """The jobs share an object: whoever deletes the last reference has to see that it is the last."""
    storage = open_storage(Settings(_env_file=None, store_url=(tmp_path / "store").as_uri()))
    db = Database(postgres_settings)
    ids = finished_batch(db, storage, 4)
    batch_id = batch_of(ids[0])
    assert db.write(lambda connection: retention._retire(connection, batch_id=batch_id, older_than_s=DAY_S))
    second = partial(submission._remove, batch_id=batch_id, ids=ids[2:])
    other = threading.Thread(target=lambda: db.write(second))
    with db.engine.connect() as connection:
        submission._remove(connection, batch_id=batch_id, ids=ids[:2])
        other.start()
        until(lambda: waits(db) or not other.is_alive(), within_s=10, what="the other one waiting")
        connection.commit()
    other.join(timeout=10)

    assert count(db, table) == 0
    assert set(known(db).values()) == {"dropped"}
    assert collect(db, storage) == 4
    assert stored(storage) == []
    db.dispose()


def test_its_idempotency_key_is_free_again(db: Database, storage: Storage) -> None:
    ids = finished_batch(db, storage)
    change(db, update(batches).values(idempotency_key="k"))
    jobs.retire_batches(db, DAY_S)
    again = new_batch(1, key="k", digest="another")
    assert jobs.begin_batch(db, again) == again.id
    assert again.id != batch_of(ids[0])


# --- all of it by a keeper ---


@pytest.mark.parametrize("kind", ["settings_for_folder", pytest.param("settings_for_s3", marks=pytest.mark.s3)])
def test_a_keeper_retires_collects_and_clears_the_storage(
    kind: str, settings: Settings, db: Database, request: pytest.FixtureRequest
) -> None:
    """Given an old batch, a stray and an unfinished upload, one round of housekeeping leaves what is to be kept."""
    where: Settings = request.getfixturevalue(kind)
    ours = where.model_copy(
        update={"retention_days": 7.0, "data_dir": settings.data_dir, "database_url": settings.database_url}
    )
    storage = open_storage(ours)
    finished_batch(db, storage)
    kept = finished_batch(db, storage, days_ago=5)
    made = Keeper(ours, db)

    made.keep_house()

    assert len(stored(storage)) == 7
    assert all(batch_of(kept[0]) in key for key in stored(storage))
    assert set(known(db)) == set(stored(storage))
    with db.read() as connection:
        done = {row.name: row.done_at for row in connection.execute(select(duties))}
    assert {"retention", "clear_unfinished", "collect_strays"} <= set(done)
    assert all(abs(moment - time.time()) < 60 for moment in done.values())


def test_without_the_setting_everything_is_kept_for_ever(settings: Settings, db: Database) -> None:
    storage = open_storage(settings)
    finished_batch(db, storage, days_ago=10_000)
    Keeper(settings, db).keep_house()
    assert len(stored(storage)) == 7
    assert count(db, batches) == 1
