"""Settings over real databases: each test has a fresh one, migrated, and a data folder of its own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import PostgresServer
from sqlalchemy import create_engine, text

from migrations.run import upgrade
from shared.database import Database
from shared.errors import Unavailable
from shared.settings import Settings
from shared.tables import metadata


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database as the migrations make it; tests copy it."""
    settings = Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("migrated"))
    database = Database(settings)
    database.migrate()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return settings.data_dir / "aigc.db"


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """The URL of a database as the migrations make it; tests empty it, which takes far less time than a new one."""
    url = postgres_server.new_database()
    engine = create_engine(url)
    upgrade(engine)
    with engine.begin() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        # No test crashes this one; and whoever deadlocks need not wait a second to be told so.
        for setting in ("synchronous_commit = off", "deadlock_timeout = 50"):
            connection.execute(text(f'ALTER DATABASE "{name}" SET {setting}'))
    engine.dispose()
    return url


@pytest.fixture
def sqlite_settings(tmp_path: Path, migrated_file: Path) -> Settings:
    """The embedded profile, with a SQLite file of this test alone."""
    settings = Settings(_env_file=None, data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    shutil.copy(migrated_file, settings.data_dir / "aigc.db")
    return settings


@pytest.fixture
def postgres_settings(tmp_path: Path, migrated_postgres: str) -> Iterator[Settings]:
    """PostgreSQL, with a database that is empty and nobody else's."""
    yield Settings(_env_file=None, data_dir=tmp_path / "data", database_url=migrated_postgres)
    engine = create_engine(migrated_postgres)
    with engine.begin() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        connection.execute(text(f"{others} AND pid != pg_backend_pid()"))
        tables = ", ".join(table.name for table in metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """The same test on both databases."""
    return request.getfixturevalue(f"{request.param}_settings")


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    """The database of `settings`."""
    database = Database(settings)
    yield database
    database.dispose()


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, no database answers."""
    gone, write, read = threading.Event(), Database.write, Database.read

    def flaky_write(self: Database, work: Any, **more: Any) -> Any:
        if gone.is_set():
            raise Unavailable("database", "here", "gone")
        return write(self, work, **more)

    @contextmanager
    def flaky_read(self: Database) -> Iterator[Any]:
        if gone.is_set():
            raise Unavailable("database", "here", "gone")
        with read(self) as connection:
            yield connection

    monkeypatch.setattr(Database, "write", flaky_write)
    monkeypatch.setattr(Database, "read", flaky_read)
    return gone
