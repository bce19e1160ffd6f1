"""Many new jobs at the least price: SQLite takes dozens of rows in one statement, PostgreSQL takes a COPY."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from shared.ids import job_id

#: parameters of one statement: every SQLite takes 999
_PARAMETERS = 999
#: columns whose values follow from the batch
_SHARED = ("batch_id", "tenant_id", "created_at", "state")


class NewJob(NamedTuple):
    """A job about to be stored: what differs between the jobs of a batch, each under the name of its column."""

    #: 1-based line of the input, unique in its batch
    line: int
    custom_id: str
    lane_id: int
    priority: int
    params_json: str
    seed: int
    metadata_json: str | None
    #: estimated seconds of work
    cost: float
    timeout_s: float | None
    max_attempts: int
    expires_at: float | None
    #: what it asks for, as a digest; only where identical work is to be done once
    fingerprint: str | None = None


def store(connection: Connection, batch_id: str, tenant_id: str, created_at: float, rows: Sequence[NewJob]) -> None:
    """Insert jobs in state `queued`; none of them may be there yet. Raises `DBAPIError` like any statement."""
    shared = (batch_id, tenant_id, created_at, "queued")
    if connection.dialect.name == "sqlite":
        # A statement for each row would cost half as much again.
        most = (_PARAMETERS - len(_SHARED)) // len(NewJob._fields)
        for begin in range(0, len(rows), most):
            some = rows[begin : begin + most]
            connection.exec_driver_sql(_values(len(some)), (*shared, *chain.from_iterable(some)))
        return
    statement = f"COPY jobs (id, {', '.join((*_SHARED, *NewJob._fields))}) FROM STDIN"
    driver: Any = connection.connection.driver_connection  # psycopg's own: SQLAlchemy knows no COPY
    with _as_ever(connection, statement), driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row((job_id(batch_id, row.line), *shared, *row))


@cache
def _values(count: int) -> str:
    """An INSERT of so many rows: the shared values come first, then those of each job; the id is made of both."""
    names = ", ".join(("id", *_SHARED, *NewJob._fields))
    shared = ", ".join(f"?{number}" for number in range(1, len(_SHARED) + 1))
    rows = []
    for row in range(count):
        first = len(_SHARED) + 1 + row * len(NewJob._fields)
        own = ", ".join(f"?{first + column}" for column in range(len(NewJob._fields)))
        rows.append(f"(?1 || '-' || ?{first}, {shared}, {own})")
    return f"INSERT INTO jobs ({names}) VALUES {', '.join(rows)}"  # noqa: S608 - names of ours


@contextmanager
def _as_ever(connection: Connection, statement: str) -> Iterator[None]:
    """Errors of the driver become those of SQLAlchemy, as where it runs the statement itself."""
    dialect = connection.dialect
    try:
        yield
    except dialect.loaded_dbapi.Error as error:
        lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, dialect.loaded_dbapi.Error,
            hide_parameters=True, connection_invalidated=lost, dialect=dialect,
        ) from error  # fmt: skip
