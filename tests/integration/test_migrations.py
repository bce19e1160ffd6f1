"""The same migrations on SQLite and PostgreSQL, and what the code says to a schema that it does not know."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, inspect, text
from sqlalchemy.exc import IntegrityError

import migrations
from migrations.run import config, downgrade, upgrade
from shared.database import Database
from shared.errors import RequestError
from shared.settings import Settings
from shared.tables import batches, jobs, lanes, metadata, tenants


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without any table."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    database = Database(Settings(_env_file=None, data_dir=tmp_path, database_url=url))
    yield database
    database.dispose()


def tables(db: Database) -> set[str]:
    return set(inspect(db.engine).get_table_names()) - {migrations.VERSION_TABLE}


def test_head_is_the_newest_migration() -> None:
    script = ScriptDirectory.from_config(config(create_engine("sqlite://")))
    assert script.get_heads() == [migrations.HEAD]


def test_up_down_and_up_again_and_the_schema_is_what_the_code_believes(empty: Database) -> None:
    upgrade(empty.engine)
    assert tables(empty) == set(metadata.tables)
    downgrade(empty.engine, "base")
    assert tables(empty) == set()
    upgrade(empty.engine)
    upgrade(empty.engine)
    assert empty.revision() == migrations.HEAD
    with empty.engine.connect() as connection:
        options = {
            "compare_type": True, "compare_server_default": not empty.is_sqlite,
            "version_table": migrations.VERSION_TABLE,
        }  # fmt: skip
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_partial_indexes_and_checks_exist_and_are_as_the_code_believes(empty: Database) -> None:
    """Autogenerate does not look at these."""
    upgrade(empty.engine)
    inspector = inspect(empty.engine)
    option = f"{empty.engine.dialect.name}_where"
    for table in metadata.sorted_tables:
        believed = {
            index.name: (
                tuple(column.name for column in index.columns),
                bool(index.dialect_options[option[:-6]]["where"] is not None),
            )
            for index in table.indexes
        }
        found = {
            index["name"]: (tuple(index["column_names"]), option in index["dialect_options"])
            for index in inspector.get_indexes(table.name)
            if "duplicates_constraint" not in index
        }
        assert found == believed, table.name
        names = {check["name"] for check in inspector.get_check_constraints(table.name)}
        assert names == {
            str(c.name) for c in table.constraints if c.__visit_name__ == "table_or_column_check_constraint"
        }
    ready = next(index for index in inspector.get_indexes("jobs") if index["name"] == "ix_jobs_ready")
    assert "queued" in str(ready["dialect_options"][option])


def test_a_state_that_is_none_is_refused_by_the_database_itself(empty: Database) -> None:
    upgrade(empty.engine)
    batch = {"id": "b", "tenant_id": "t", "total": 1, "created_at": 0, "touched_at": 0}
    job = {
        "id": "b-1", "batch_id": "b", "tenant_id": "t", "line": 1, "custom_id": "1", "lane_id": 1, "priority": 0,
        "params_json": "{}", "seed": 0, "cost": 0, "max_attempts": 1, "created_at": 0,
    }  # fmt: skip
    with empty.engine.begin() as connection:
        connection.execute(insert(tenants).values(id="t", created_at=0))
        connection.execute(insert(lanes).values(id=1, queue="q", task="t", model=""))
        connection.execute(insert(batches).values(**batch, state="open"))
    for statement in (
        insert(batches).values(**{**batch, "id": "c"}, state="closed"),
        insert(jobs).values(**job, state="done"),
        insert(jobs).values(**{**job, "batch_id": "nobody's"}, state="queued"),
    ):
        with pytest.raises(IntegrityError), empty.engine.begin() as connection:
            connection.execute(statement)
    for number, state in enumerate(metadata.tables["batch_counters"].columns.keys()[1:7]):
        with empty.engine.begin() as connection:
            connection.execute(insert(jobs).values(**{**job, "id": f"b-{number}", "line": number}, state=state))


def _migrate(arguments: dict[str, Any], together: Any, said: Any) -> None:
    try:
        database = Database(Settings(_env_file=None, **arguments))
        together.wait(timeout=60)
        database.migrate()
        said.put(database.revision())
    except BaseException as error:  # noqa: BLE001 - told to the test
        said.put(f"{type(error).__name__}: {error}")


def test_migrators_that_start_at_the_same_time_wait_for_each_other(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Two processes on a file that is not there yet, and two on an empty PostgreSQL database."""
    context = multiprocessing.get_context("spawn")
    url = request.getfixturevalue("postgres_url")
    together, said = context.Barrier(4), context.Queue()
    targets = [{"data_dir": tmp_path / "lite"}] * 2 + [{"data_dir": tmp_path, "database_url": url}] * 2
    processes = [context.Process(target=_migrate, args=(target, together, said)) for target in targets]
    for process in processes:
        process.start()
    answers = [said.get(timeout=90) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    assert answers == [migrations.HEAD] * 4


def stamp(db: Database, revision: str) -> None:
    with db.engine.begin() as connection:
        connection.execute(
            text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = :revision"), {"revision": revision}
        )


def test_a_schema_newer_than_the_code_says_to_update_aigc(empty: Database) -> None:
    empty.migrate()
    stamp(empty, "9999")
    for look in (empty.prepare, empty.migrate):
        with pytest.raises(RequestError, match=r"has schema 9999, newer than this version of aigc .*: update aigc"):
            look()


def test_a_revision_that_is_nobodys_is_a_sentence_too(empty: Database) -> None:
    empty.migrate()
    stamp(empty, "0000-of-a-fork")
    with pytest.raises(RequestError, match=r"cannot be migrated: .*0000-of-a-fork"):
        empty.migrate()


def test_the_revisions_of_another_application_in_the_same_database_are_not_ours(empty: Database) -> None:
    with empty.engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('ffff')"))
    assert empty.revision() is None
    empty.migrate()
    empty.prepare()
    with empty.read() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "ffff"


def test_a_schema_that_is_missing_or_older_is_made_on_sqlite_and_asked_for_on_postgresql(empty: Database) -> None:
    if empty.is_sqlite:
        empty.prepare()
        assert empty.revision() == migrations.HEAD
        return
    with pytest.raises(RequestError, match=r"has schema none, and this version of aigc needs .*: run `aigc migrate`"):
        empty.prepare()
    assert tables(empty) == set()
    empty.migrate()
    empty.prepare()
    stamp(empty, "0000")
    with pytest.raises(RequestError, match=r"has schema 0000, .* run `aigc migrate`"):
        empty.prepare()


def test_a_look_at_a_sqlite_file_that_is_not_there_does_not_make_it(tmp_path: Path) -> None:
    database = Database(Settings(_env_file=None, data_dir=tmp_path / "nothing"))
    assert database.revision() is None
    assert not (tmp_path / "nothing").exists()
