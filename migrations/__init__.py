"""Alembic migrations: the same on SQLite and PostgreSQL."""

#: revision that this version of the code works with; a test holds it to the newest migration
HEAD = "0001"
