"""Alembic's entry: one transaction for all of it, and one migrator at a time."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Engine, text

from migrations import VERSION_TABLE

#: any number will do, as long as no other application on the server takes the same advisory lock
_LOCK = 7_411_023


def run() -> None:
    engine: Engine = context.config.attributes["engine"]
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        context.configure(
            connection=connection,
            target_metadata=context.config.attributes.get("metadata"),
            render_as_batch=True,
            version_table=VERSION_TABLE,
        )
        context.run_migrations()
        connection.commit()


run()
