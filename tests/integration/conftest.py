"""Settings over real databases: each test has a fresh one, migrated, and a data folder of its own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql
from servers import PostgresServer
from sqlalchemy import create_engine

from migrations.run import upgrade
from shared.database import Database
from shared.settings import Settings


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
def new_migrated_database(postgres_server: PostgresServer) -> Callable[[], str]:
    """Makes PostgreSQL databases with all tables, as copies of one that was migrated."""
    template = postgres_server.new_database()
    engine = create_engine(template)
    upgrade(engine)
    engine.dispose()

    def make() -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with postgres_server._connect() as connection:
            connection.execute(copy.format(sql.Identifier(name), sql.Identifier(template.rpartition("/")[2])))
        return postgres_server._url(name)

    return make


@pytest.fixture
def sqlite_settings(tmp_path: Path, migrated_file: Path) -> Settings:
    """The embedded profile, with a SQLite file of this test alone."""
    settings = Settings(_env_file=None, data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    shutil.copy(migrated_file, settings.data_dir / "aigc.db")
    return settings


@pytest.fixture
def postgres_settings(
    tmp_path: Path, postgres_server: PostgresServer, new_migrated_database: Callable[[], str]
) -> Iterator[Settings]:
    """PostgreSQL, with a database of this test alone."""
    url = new_migrated_database()
    yield Settings(_env_file=None, data_dir=tmp_path / "data", database_url=url)
    postgres_server.drop_database(url)


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
