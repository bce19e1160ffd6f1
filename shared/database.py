"""The SQL database behind one small door: `read`, `write`, and what its failures mean.

SQLite and PostgreSQL behave alike here: a write is one short transaction with bounded waits, tried again when the
database says that trying again is right, and never after its COMMIT was sent (`CommitUnknown`).
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Double

import migrations
from shared.errors import RequestError, Unavailable
from shared.settings import Settings, without_password

T = TypeVar("T")

log = logging.getLogger("aigc.database")

#: seconds that a writer waits for another one on SQLite
SQLITE_WAIT_S = 30.0
#: seconds that one statement of a writer waits for a lock on PostgreSQL
LOCK_WAIT_S = 10.0
#: a transaction is tried again this often after a deadlock, a busy lock or a lost connection
TRIES = 6


class now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """Seconds since 1970 by the database's own clock (on SQLite: the host's, it has no other): what is written down.

    Moves on within a statement, so that PostgreSQL looks nothing up by it: conditions take `moment`.
    """

    type = Double()
    inherit_cache = True


@compiles(now, "postgresql")
def _now_postgresql(_element: now, _compiler: Any, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class moment(FunctionElement[float]):  # noqa: N801 - as above
    """The same at the beginning of the statement: for conditions, which an index can then answer."""

    type = Double()
    inherit_cache = True


@compiles(moment, "postgresql")
def _moment_postgresql(_element: moment, _compiler: Any, **_: Any) -> str:
    return "extract(epoch from statement_timestamp())::double precision"


@compiles(now, "sqlite")
@compiles(moment, "sqlite")
def _now_sqlite(_element: now | moment, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class CommitUnknown(Unavailable):
    """The connection broke while COMMIT was under way: the work may or may not stand. Read back, then decide."""


class RowsLocked(Unavailable):
    """Another transaction holds rows locked for longer than we were ready to wait; ours does not stand."""


class Database:
    """Connections to the one SQL database."""

    def __init__(self, settings: Settings) -> None:
        """Make no connection yet. Raises `RequestError` if the URL cannot be understood."""
        self._settings = settings
        self._turn = threading.Lock()
        _databases.add(self)
        url = settings.sql_url
        #: where it is, fit to be shown
        self.address = without_password(url)
        try:
            parsed = make_url(url)
            self.is_sqlite = parsed.get_backend_name() == "sqlite"
            self._path = Path(parsed.database) if self.is_sqlite and parsed.database else None
            if self.is_sqlite and parsed.database in (None, "", ":memory:"):
                raise ArgumentError("a database in memory is of no use to several processes")
            if self.is_sqlite:
                self.engine = _sqlite(url)
            elif parsed.get_backend_name() == "postgresql" and parsed.get_driver_name() == "psycopg":
                self.engine = _postgresql(url, settings)
            else:
                raise ArgumentError(f"{parsed.drivername} is not supported")
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise RequestError(
                f"AIGC_DATABASE_URL cannot be used: {error}; "
                "write sqlite:////path/file.db or postgresql+psycopg://user:password@host:5432/name"
            ) from None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection outside any transaction, for reads. Raises `Unavailable`."""
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            raise self.explained(error) from error

    def write(
        self, work: Callable[[Connection], T], *, replayable: bool = False, lock_wait_s: float | None = None
    ) -> T:
        """Run `work` in one transaction and commit it; `work` may be run several times.

        `replayable` says that `work` recognises what an earlier run of it left behind: then it is run again after a
        COMMIT whose answer was lost, too. Raises `Unavailable` when the database keeps refusing: then the work does not
        stand; and `CommitUnknown` when it may: the answer to a COMMIT was lost, and no later try has told.

        With `lock_wait_s`, PostgreSQL waits so many seconds for a lock that another transaction holds, once: then
        `RowsLocked` is raised. SQLite has one lock for all, and waits for it as ever.
        """
        unknown: CommitUnknown | None = None
        for attempt in range(1, TRIES + 1):
            try:
                with self._my_turn(), self.engine.connect() as connection:
                    result = self._run(connection, work, lock_wait_s or LOCK_WAIT_S)
                    self._commit(connection)
                    return result
            except CommitUnknown as error:
                unknown = error
                again = replayable and attempt < TRIES
                log.warning("the answer to a COMMIT was lost; %s", "reading back" if again else "nobody knows")
                if not again:
                    raise
            except (DBAPIError, PoolTimeout) as error:
                if lock_wait_s is not None and isinstance(error, DBAPIError) and _sqlstate(error) == _LOCKED:
                    raise RowsLocked("database", self.address, _text(error), _ADVICE_BY_STATE[_LOCKED]) from error
                # A server that starts again refuses for a moment; what became of the COMMIT is worth the wait.
                again = _worth_another_try(error) or (unknown is not None and _no_answer(error))
                if attempt == TRIES or not again:
                    if unknown is not None:
                        raise unknown from error
                    raise self.explained(error) from error
            time.sleep(random.uniform(0.5, 1.0) * 0.02 * 2**attempt)
        raise AssertionError("unreachable")

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """On SQLite the threads of this process queue up for its one lock: it would have them sleep and try again.

        Who does not get its turn for long asks SQLite all the same.
        """
        mine = self.is_sqlite and self._turn.acquire(timeout=SQLITE_WAIT_S)
        try:
            yield
        finally:
            if mine:
                self._turn.release()

    def forget_turns(self) -> None:
        """In the child of a fork: whose turn it was in the parent is of no interest."""
        self._turn = threading.Lock()

    def _run(self, connection: Connection, work: Callable[[Connection], T], lock_wait_s: float) -> T:
        if self.is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(
                "SELECT set_config('statement_timeout', '30000', true), "
                f"set_config('lock_timeout', '{round(lock_wait_s * 1000)}', true), "
                "set_config('idle_in_transaction_session_timeout', '60000', true)"
            )
        return work(connection)

    def _commit(self, connection: Connection) -> None:
        try:
            connection.commit()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise CommitUnknown(
                    "database",
                    self.address,
                    "the connection was lost during COMMIT",
                    "look whether the work stands",
                ) from error
            raise

    def clock(self) -> float:
        """Seconds since 1970 by the database's clock."""
        with self.read() as connection:
            return float(connection.execute(select(now())).scalar_one())

    def prepare(self) -> None:
        """Make sure the schema is the one this code knows: a fresh SQLite file gets it, anything else must have it.

        Raises `Unavailable`, or `RequestError` that says which side has to be updated.
        """
        revision = self.revision()
        if revision == migrations.HEAD:
            return
        if self.is_sqlite and (revision is None or revision < migrations.HEAD):
            self.migrate()
            return
        self._require_known(revision)
        raise RequestError(
            f"the database at {self.address} has schema {revision or 'none'}, and this version of aigc needs "
            f"{migrations.HEAD}: run `aigc migrate`"
        )

    def revision(self) -> str | None:
        """The schema's revision; None if there is no schema. Raises `Unavailable`."""
        if self._path is not None:
            if not self._path.exists():
                return None
            self._require_writable_folder()
        with self.read() as connection:
            if not connection.dialect.has_table(connection, migrations.VERSION_TABLE):
                return None
            row = connection.execute(text(f"SELECT version_num FROM {migrations.VERSION_TABLE}")).first()  # noqa: S608
            return str(row[0]) if row else None

    def migrate(self) -> None:
        """Bring the schema to this code's revision; harmless when it is there, and safe to run twice at once.

        Raises `Unavailable`, or `RequestError` if the schema is one that this code does not know.
        """
        from migrations.run import UnknownRevision, upgrade

        self._require_writable_folder()
        try:
            upgrade(self.engine)
        except UnknownRevision as error:
            self._require_known(self.revision())
            raise RequestError(f"the database at {self.address} cannot be migrated: {error}") from None
        except (DBAPIError, PoolTimeout) as error:
            raise self.explained(error) from error

    def _require_known(self, revision: str | None) -> None:
        if revision is not None and revision > migrations.HEAD:
            raise RequestError(
                f"the database at {self.address} has schema {revision}, newer than this version of aigc "
                f"({migrations.HEAD}): update aigc"
            )

    def _require_writable_folder(self) -> None:
        if self._path is None:
            return
        try:
            if self._path.is_relative_to(self._settings.data_dir):
                self._settings.make_data_dir()
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                "database",
                self.address,
                f"its folder cannot be made: {error.strerror}",
                "set AIGC_DATA_DIR elsewhere",
            ) from None

    def explained(self, error: DBAPIError | PoolTimeout) -> Unavailable:
        """What a driver's error means to a person. Errors that are defects of ours come back unchanged, by raising."""
        if isinstance(error, PoolTimeout):
            return Unavailable(
                "database", self.address, "every connection of this process is in use", "see whether it is very slow"
            )
        reason = _text(error)
        lowered = reason.lower()
        state = _sqlstate(error)
        for sign, advice in _ADVICE:
            if sign in lowered and state[:2] != "42":
                return Unavailable("database", self.address, reason, advice)
        if state in _ADVICE_BY_STATE:
            return Unavailable("database", self.address, reason, _ADVICE_BY_STATE[state])
        if _no_answer(error):
            return Unavailable("database", self.address, reason, "see that it runs and can be reached")
        raise error

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


_ADVICE = (
    ("password authentication failed", "check user and password in AIGC_DATABASE_URL"),
    ("no password supplied", "put the password into AIGC_DATABASE_URL"),
    ("no pg_hba.conf entry", "let this host in (pg_hba.conf)"),
    ("does not exist", "create it, or correct the name in AIGC_DATABASE_URL"),
    ("connection refused", "start PostgreSQL, or correct host and port in AIGC_DATABASE_URL"),
    ("could not translate host name", "correct the host in AIGC_DATABASE_URL"),
    ("failed to resolve host", "correct the host in AIGC_DATABASE_URL"),
    ("timeout expired", "see that the host can be reached from here"),
    ("readonly database", "make the file and its folder writable"),
    ("unable to open database file", "make the folder writable, or set AIGC_DATA_DIR elsewhere"),
    ("database or disk is full", "free some space where AIGC_DATA_DIR lies"),
    ("disk i/o error", "see whether the disk is full or failing"),
    ("file is not a database", "AIGC_DATABASE_URL names a file that is something else"),
    ("database disk image is malformed", "restore the file from a backup"),
    ("database is locked", "another process holds a write for very long: see what it does"),
)

#: PostgreSQL's code for a lock that could not be had in time
_LOCKED = "55P03"

#: the same by PostgreSQL's code, where the words depend on its language
_ADVICE_BY_STATE = {
    "28P01": "check user and password in AIGC_DATABASE_URL",
    "3D000": "create it, or correct the name in AIGC_DATABASE_URL",
    "42501": "let this user read and write the tables of aigc (GRANT)",
    "25006": "this server only reads: name the primary in AIGC_DATABASE_URL",
    "40001": "the database is very busy: try again",
    "40P01": "the database is very busy: try again",
    _LOCKED: "another process holds a lock for very long: see pg_stat_activity",
}


def _text(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _no_answer(error: DBAPIError | PoolTimeout) -> bool:
    """Nobody could be asked: no connection, a lost one, or a server that starts, stops or has no room for us."""
    if isinstance(error, PoolTimeout) or error.connection_invalidated:
        return True
    without_code = not isinstance(error.orig, sqlite3.Error) and getattr(error.orig, "sqlstate", "") is None
    return without_code or _sqlstate(error)[:2] in {"08", "53", "57", "58"}


def _worth_another_try(error: DBAPIError | PoolTimeout) -> bool:
    """Deadlock, serialisation, lock timeout, a lost connection before COMMIT, SQLite's BUSY."""
    if isinstance(error, PoolTimeout):
        return False
    if error.connection_invalidated:
        return True
    if _sqlstate(error) in {"40001", "40P01", _LOCKED}:
        return True
    return isinstance(error.orig, sqlite3.OperationalError) and "locked" in str(error.orig)


_encode = json.JSONEncoder(allow_nan=False).encode


def as_json(value: Any) -> str:
    """What JSON columns hold: a number that is none, such as a NaN among facts, becomes null."""
    try:
        return _encode(value)
    except ValueError:
        return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sqlite(url: str) -> Engine:
    # Connections are kept: whoever closes the last one to a file also writes the whole WAL back and deletes it, and
    # opening one reads the schema. Both together took four fifths of the time of a small transaction.
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=5,
        max_overflow=-1,
        json_serializer=as_json,
        hide_parameters=True,  # prompts are no matter for logs
        connect_args={"timeout": SQLITE_WAIT_S, "check_same_thread": False},
    )

    path = Path(str(engine.url.database))

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.close()
        record.info["file"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def _look(connection: sqlite3.Connection, record: ConnectionPoolEntry, _proxy: object) -> None:
        # A file that was moved away or restored from a backup is another one: what we have open is nobody's any more.
        if record.info.get("file") != _identity(path):
            raise DisconnectionError
        connection.isolation_level = None  # SQLAlchemy sets it back after each read

    _engines.add(engine)
    return engine


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
#: connections of a parent process, kept so that nothing closes them
_inherited: list[object] = []
_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A child of a fork must not touch what its parent has open: SQLite's locks are the parent's."""
    for engine in list(_engines):
        _inherited.append(engine.pool)
        engine.dispose(close=False)
    for database in list(_databases):
        database.forget_turns()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL; SQLite does not wait by itself while another process that opened the new file does the same."""
    deadline = time.monotonic() + SQLITE_WAIT_S
    while True:
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _postgresql(url: str, settings: Settings) -> Engine:
    # No prepared statements: PgBouncer in transaction mode hands every transaction another server.
    return create_engine(
        url,
        pool_pre_ping=True,
        json_serializer=as_json,
        hide_parameters=True,
        pool_size=5,
        max_overflow=5,
        pool_timeout=30,
        connect_args={
            "connect_timeout": max(2, round(settings.connect_timeout_s)),
            "prepare_threshold": None,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "application_name": "aigc",
        },
    )
