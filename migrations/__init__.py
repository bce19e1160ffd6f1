"""Alembic migrations: the same on SQLite and PostgreSQL."""

#: revision that this version of the code works with; a test holds it to the newest migration
HEAD = "0005"
#: where Alembic keeps the revision; a name of our own, for a database that is shared with another application
VERSION_TABLE = "aigc_version"
