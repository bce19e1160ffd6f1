"""Many rows at the price of one statement: sets of keys as one parameter, and inserts without a detour per row.

A list of a thousand keys as a thousand parameters costs more to write than the database takes to find the rows. As one
JSON text it is one parameter, and the statement is the same each time.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    Select,
    String,
    Table,
    Text,
    TextClause,
    bindparam,
    cast,
    column,
    select,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import JSON, TypeEngine


class _Entries(FunctionElement[Any]):
    """The entries of a JSON object, as rows of key and value."""

    inherit_cache = True


@compiles(_Entries, "postgresql")
def _entries_postgresql(element: _Entries, compiler: Any, **more: Any) -> str:
    return f"json_each_text(CAST({compiler.process(element.clauses, **more)} AS json))"


@compiles(_Entries, "sqlite")
def _entries_sqlite(element: _Entries, compiler: Any, **more: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **more)})"


class _Elements(FunctionElement[Any]):
    """The elements of a JSON array of texts, as rows of one value."""

    inherit_cache = True


@compiles(_Elements, "postgresql")
def _elements_postgresql(element: _Elements, compiler: Any, **more: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **more)} AS json))"


@compiles(_Elements, "sqlite")
def _elements_sqlite(element: _Elements, compiler: Any, **more: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **more)})"


def pairs(these: Iterable[tuple[str, int]]) -> Select[tuple[str, int]]:
    """Pairs of key and number, for `tuple_(…).in_(pairs(…))` and for joins (`key`, `number`); any number of them."""
    rows = _Entries(bindparam(None, _as_object(list(these)), Text, unique=True)).table_valued(
        column("key", String), column("value", Text)
    )
    return select(rows.c.key.label("key"), cast(rows.c.value, BigInteger).label("number"))


def _as_object(these: Sequence[tuple[str, int]]) -> str:
    """As a JSON object, in which a key may stand more than once."""
    by_key = dict(these)
    if len(by_key) == len(these):
        return json.dumps(by_key)
    return f"{{{','.join(f'{json.dumps(key)}:{number:d}' for key, number in these)}}}"


def listed(these: Iterable[str]) -> Select[tuple[str]]:
    """Keys, for `….in_(listed(…))`; any number of them."""
    rows = _Elements(bindparam(None, json.dumps(list(these)), Text, unique=True)).table_valued(column("value", String))
    return select(rows.c.value)


def insert_many(
    connection: Connection,
    table: Table,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    or_ignore: bool = False,
) -> None:
    """Insert rows of values in the order of `columns`; what goes into a column of JSON is JSON text already.

    Rows that are there already are an error, or left alone with `or_ignore`.
    """
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_values(table, tuple(columns), or_ignore), [tuple(row) for row in rows])
        return
    given: dict[str, list[Any]] = {}
    for name, values in zip(columns, zip(*rows, strict=True), strict=True):
        number = isinstance(table.c[name].type, Double)  # psycopg takes no list of whole and other numbers
        given[name] = [None if value is None else float(value) for value in values] if number else list(values)
    connection.execute(_arrays(table, tuple(columns), or_ignore), given)


@functools.cache
def _values(table: Table, columns: tuple[str, ...], or_ignore: bool) -> str:
    return f"{_into(table, columns)} VALUES ({', '.join('?' * len(columns))}){_conflict(or_ignore)}"


@functools.cache
def _arrays(table: Table, columns: tuple[str, ...], or_ignore: bool) -> TextClause:
    arrays = ", ".join(f"CAST(:{name} AS {_array_of(table.c[name].type)})" for name in columns)
    given = ", ".join(f'CAST(n."{name}" AS json)' if _is_json(table, name) else f'n."{name}"' for name in columns)
    source = f"SELECT {given} FROM unnest({arrays}) AS n ({_names(columns)})"  # noqa: S608 - names of ours
    return text(f"{_into(table, columns)} {source}{_conflict(or_ignore)}")


def _into(table: Table, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table.name} ({_names(columns)})"


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


def _conflict(or_ignore: bool) -> str:
    return " ON CONFLICT DO NOTHING" if or_ignore else ""


def _is_json(table: Table, name: str) -> bool:
    return isinstance(table.c[name].type, JSON)


def _array_of(kind: TypeEngine[Any]) -> str:
    if isinstance(kind, (JSON, String)):
        return "text[]"
    return "double precision[]" if isinstance(kind, Double) else "bigint[]"
