"""Connections to SQLite are kept from one transaction to the next, and never used where they must not be."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import pytest
from sqlalchemy import select

from shared.database import Database
from shared.settings import Settings
from shared.tables import tenants


@pytest.fixture
def db(sqlite_settings: Settings) -> Database:
    return Database(sqlite_settings)


@pytest.fixture
def file(sqlite_settings: Settings) -> Path:
    return sqlite_settings.data_dir / "aigc.db"


def write(db: Database, name: str) -> None:
    db.write(lambda connection: connection.execute(tenants.insert().values(id=name, created_at=1.0)))


def names(db: Database) -> set[str]:
    with db.read() as connection:
        return set(connection.scalars(select(tenants.c.id)))


def test_the_log_of_the_database_outlives_a_transaction(db: Database, file: Path) -> None:
    """Whoever closes the last connection writes the log back, waits for the disk and deletes it: after each write."""
    write(db, "one")
    log = file.with_name("aigc.db-wal")
    before = log.stat().st_ino
    for n in range(5):
        write(db, f"more{n}")
        assert len(names(db)) == n + 2
    assert log.stat().st_ino == before


def test_what_is_written_after_a_file_was_replaced_is_in_the_new_one(db: Database, file: Path, tmp_path: Path) -> None:
    write(db, "before")
    db.dispose()
    backup = tmp_path / "backup.db"
    shutil.copy(file, backup)
    write(db, "lost with the file")
    for path in file.parent.glob("aigc.db*"):
        path.rename(tmp_path / f"away-{path.name}")
    shutil.copy(backup, file)
    write(db, "after")

    assert names(db) == {"before", "after"}
    assert names(Database(db._settings)) == {"before", "after"}


def test_a_child_of_a_fork_uses_none_of_its_parent_s_connections(db: Database) -> None:
    write(db, "parent")
    child = multiprocessing.get_context("fork").Process(target=_in_the_child, args=(db,))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    write(db, "parent again")
    assert names(db) == {"parent", "child", "parent again"}


def _in_the_child(db: Database) -> None:
    pool = db.engine.pool
    assert pool.checkedin() == 0, "none is there yet"
    write(db, "child")
    os._exit(0 if names(db) == {"parent", "child"} else 1)


def test_threads_that_write_at_once_all_do(db: Database) -> None:
    def some(thread: int) -> None:
        for n in range(10):
            write(db, f"{thread}-{n}")

    threads = [threading.Thread(target=some, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(names(db)) == 80
