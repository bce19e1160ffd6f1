"""Run the migrations on an engine, without an ini file."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, MetaData


class UnknownRevision(Exception):
    """The database is at a revision that this code does not have."""


def config(engine: Engine, metadata: MetaData | None = None) -> Config:
    """Alembic's configuration for this engine; `metadata` is needed only to compare the models with the schema."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.attributes["engine"] = engine
    made.attributes["metadata"] = metadata
    return made


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Upgrade to a revision. Runs at the same time on several hosts wait for each other."""
    try:
        command.upgrade(config(engine), revision)
    except CommandError as error:
        raise UnknownRevision(str(error)) from error


def downgrade(engine: Engine, revision: str) -> None:
    """Go back to a revision (`base` = an empty database)."""
    command.downgrade(config(engine), revision)
