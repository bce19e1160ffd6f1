"""The proxies that tests put before real servers do what they say, and nothing until they are told to."""

from __future__ import annotations

import hashlib
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import boto3
import psycopg
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from fault_proxies import HttpFault, HttpFaultProxy, TcpFaultProxy
from servers import PostgresServer
from swift_server import SwiftServer

KEY, BODY = "some/key", b"what was stored"


class Bucket:
    """A bucket as a client sees it at an endpoint: one try a request, short waits."""

    def __init__(self, server: SwiftServer, endpoint_url: str, name: str) -> None:
        self.name = name
        self.client = boto3.Session().client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=server.region,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"mode": "standard", "total_max_attempts": 1},
                read_timeout=3,
            ),
        )

    def put(self, body: bytes = BODY) -> None:
        md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        self.client.put_object(Bucket=self.name, Key=KEY, Body=body, ContentMD5=md5)

    def get(self) -> bytes | None:
        try:
            answer: Any = self.client.get_object(Bucket=self.name, Key=KEY)
        except self.client.exceptions.NoSuchKey:
            return None
        return bytes(answer["Body"].read())


@pytest.fixture
def http_proxy(swift_server: SwiftServer) -> Iterator[HttpFaultProxy]:
    with HttpFaultProxy(swift_server.endpoint_url, drip_s=0.5) as proxy:
        yield proxy


@pytest.fixture
def through(swift_server: SwiftServer, http_proxy: HttpFaultProxy) -> Bucket:
    return Bucket(swift_server, http_proxy.endpoint_url, swift_server.new_bucket())


@pytest.fixture
def behind(swift_server: SwiftServer, through: Bucket) -> Bucket:
    """The same bucket, without the proxy."""
    return Bucket(swift_server, swift_server.endpoint_url, through.name)


def test_an_http_proxy_that_was_told_nothing_passes_everything_on(
    through: Bucket, behind: Bucket, http_proxy: HttpFaultProxy
) -> None:
    big = bytes(range(256)) * 4096
    through.put(big)

    assert (through.get(), behind.get()) == (big, big)
    assert through.client.head_object(Bucket=through.name, Key=KEY)["ContentLength"] == len(big)
    through.client.delete_object(Bucket=through.name, Key=KEY)
    assert behind.get() is None
    assert not http_proxy.injected


@pytest.mark.parametrize(
    ("fault", "status", "stored"),
    [
        ("error", 500, None),
        ("unavailable", 503, None),
        ("full", 507, None),
        ("error-after", 500, BODY),
        ("corrupt", 400, None),
    ],
)
def test_a_request_is_refused_before_or_after_the_store_has_seen_it(
    through: Bucket, behind: Bucket, http_proxy: HttpFaultProxy, fault: HttpFault, status: int, stored: bytes | None
) -> None:
    http_proxy.script(fault, method="PUT")

    with pytest.raises(ClientError) as refused:
        through.put()

    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert behind.get() == stored
    assert http_proxy.injected == {fault: 1}
    through.put()
    assert behind.get() == BODY


@pytest.mark.parametrize(("fault", "stored"), [("reset", None), ("lost-answer", BODY)])
def test_a_connection_breaks_before_or_after_the_store_has_seen_the_request(
    through: Bucket, behind: Bucket, http_proxy: HttpFaultProxy, fault: HttpFault, stored: bytes | None
) -> None:
    http_proxy.script(fault, method="PUT", target=KEY)

    with pytest.raises(BotoCoreError):
        through.put()

    assert behind.get() == stored
    assert http_proxy.injected == {fault: 1}


def test_a_stalled_request_goes_on_once_it_is_released(
    through: Bucket, behind: Bucket, http_proxy: HttpFaultProxy
) -> None:
    stall = http_proxy.script("stall", method="PUT")
    storing = threading.Thread(target=through.put)
    storing.start()

    assert stall.hit.wait(5)
    assert storing.is_alive()
    assert behind.get() is None
    stall.release()
    storing.join(5)

    assert behind.get() == BODY


def test_a_slow_answer_drips_and_is_whole(through: Bucket, http_proxy: HttpFaultProxy) -> None:
    through.put()
    http_proxy.script("slow", method="GET")
    began = time.monotonic()

    assert through.get() == BODY
    assert time.monotonic() - began >= 0.4


def test_a_rule_says_which_request_is_hit(through: Bucket, behind: Bucket, http_proxy: HttpFaultProxy) -> None:
    http_proxy.rule = lambda request: "unavailable" if request.method == "GET" else None
    through.put()
    with pytest.raises(ClientError, match="ServiceUnavailable"):
        through.get()
    http_proxy.heal()

    assert through.get() == BODY
    assert http_proxy.injected == {"unavailable": 1}


# --- PostgreSQL ---


@pytest.fixture
def tcp_proxy(postgres_server: PostgresServer) -> Iterator[TcpFaultProxy]:
    with TcpFaultProxy("127.0.0.1", postgres_server.port) as proxy:
        yield proxy


class Table:
    """A table of one column, through the proxy and past it."""

    def __init__(self, url: str, through: str) -> None:
        self.through = through.replace("+psycopg", "")
        self.direct = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        self.direct.execute("CREATE TABLE seen (n int)")

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.through, connect_timeout=5)

    def rows(self) -> list[int]:
        return [row[0] for row in self.direct.execute("SELECT n FROM seen ORDER BY n")]


@pytest.fixture
def table(postgres_url: str, tcp_proxy: TcpFaultProxy) -> Iterator[Table]:
    made = Table(postgres_url, tcp_proxy.url(postgres_url))
    yield made
    made.direct.close()


def test_a_tcp_proxy_that_was_told_nothing_passes_everything_on(table: Table, tcp_proxy: TcpFaultProxy) -> None:
    with table.connect() as connection:
        connection.execute("INSERT INTO seen SELECT generate_series(1, %s)", [20_000])

    assert len(table.rows()) == 20_000
    assert not tcp_proxy.injected


@pytest.mark.parametrize(("where", "stands"), [("statement", False), ("commit-before", False), ("commit-after", True)])
def test_a_connection_is_cut_at_the_point_that_was_asked_for(
    table: Table, tcp_proxy: TcpFaultProxy, where: Any, stands: bool
) -> None:
    tcp_proxy.arm(where)
    connection = table.connect()
    connection.execute("SELECT 1")
    if where != "statement":
        connection.execute("INSERT INTO seen VALUES (1)")
    with pytest.raises(psycopg.OperationalError):
        connection.execute("INSERT INTO seen VALUES (1)") if where == "statement" else connection.commit()

    assert tcp_proxy.injected == {where: 1}
    with table.connect() as again:  # one was to be cut, the next one works
        again.execute("INSERT INTO seen VALUES (2)")
    assert table.rows() == ([1, 2] if stands else [2])


def test_only_a_transaction_that_wrote_what_was_asked_for_is_cut(table: Table, tcp_proxy: TcpFaultProxy) -> None:
    tcp_proxy.arm("commit-after", writing="INTO seen")
    connection = table.connect()
    connection.execute("SELECT 1")
    connection.commit()
    connection.execute("INSERT INTO seen VALUES (1)")
    connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        connection.commit()

    assert table.rows() == [1]


def test_every_connection_is_cut_at_once(table: Table, tcp_proxy: TcpFaultProxy) -> None:
    several = [table.connect() for _ in range(3)]

    assert tcp_proxy.cut_all() == 3
    for connection in several:
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_in_a_black_hole_nothing_passes_and_nothing_breaks_until_it_heals(
    table: Table, tcp_proxy: TcpFaultProxy
) -> None:
    connection = table.connect()
    tcp_proxy.black_hole()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        psycopg.connect(table.through, connect_timeout=2)
    writing = threading.Thread(target=lambda: (connection.execute("INSERT INTO seen VALUES (1)"), connection.commit()))
    writing.start()
    writing.join(0.5)

    assert writing.is_alive()
    tcp_proxy.heal()
    writing.join(5)
    assert table.rows() == [1]


def test_a_slow_line_is_slow_until_it_heals(table: Table, tcp_proxy: TcpFaultProxy) -> None:
    with table.connect() as connection:
        tcp_proxy.slow(0.2)
        began = time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - began >= 0.4
        tcp_proxy.heal()


def test_a_server_that_is_away_is_a_broken_connection(table: Table) -> None:
    with TcpFaultProxy("127.0.0.1", 9) as nobody, pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{nobody.port}/postgres", connect_timeout=3)
