"""Real servers, each started when a test first asks for it, one per run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import PostgresServer, RedisServer
from swift_server import SwiftServer

from shared.settings import Settings

# Tests run beside each other. OpenMP threads that spin while they wait for one another would take the cores from all:
# to be set before torch is imported, and for the workers that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of this test alone."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(scope="session")
def swift_server() -> Iterator[SwiftServer]:
    with SwiftServer() as server:
        yield server


@pytest.fixture
def settings_for_folder(tmp_path: Path) -> Settings:
    """The embedded profile below a temporary folder."""
    return Settings(_env_file=None, data_dir=tmp_path / "data", store_url=(tmp_path / "store").as_uri())


@pytest.fixture
def settings_for_s3(tmp_path: Path, swift_server: SwiftServer) -> Settings:
    """A prefix in a new bucket of a real S3 server."""
    return Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        store_url=f"s3://{swift_server.new_bucket()}/some/prefix",
        s3_endpoint_url=swift_server.endpoint_url,
        s3_access_key_id=swift_server.access_key,
        s3_secret_access_key=swift_server.secret_key,
    )
