"""`aigc doctor` tells a healthy set-up from each broken one, names what is broken, and what to do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from servers import PostgresServer, RedisServer, free_port
from sqlalchemy import update
from swift_server import SwiftServer

from producer import doctor
from producer.client import Client
from producer.doctor import Check, examine
from shared import jobs
from shared.database import Database, now
from shared.ids import new_session_id
from shared.settings import Settings
from shared.tables import backlog, duties
from shared.tables import jobs as jobs_table

WRONG = "not-the-secret"


def variables(settings: Settings) -> dict[str, str]:
    """The same settings as an environment."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    shown = {name: v.get_secret_value() if hasattr(v, "get_secret_value") else v for name, v in given.items()}
    return {f"AIGC_{name.upper()}": str(value) for name, value in shown.items()}


def changed(settings: Settings, **changes: Any) -> Settings:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return Settings(_env_file=None, **{**given, **changes})


def open_worker(settings: Settings, lease_s: float = 600, condition: dict[str, Any] | None = None) -> None:
    """A worker session that is alive."""
    database = Database(settings)
    about = {
        "id": new_session_id(),
        "worker": "host:cpu",
        "host": "host",
        "pid": 1,
        "device": "cpu",
        "queues": "cpu,gpu",
    }
    jobs.open_session(database, {**about, "versions": {}, "condition": condition or {}}, lease_s)
    database.dispose()


def see_keeper(settings: Settings, ago_s: float = 0) -> None:
    """A keeper that did a round so many seconds ago."""
    database = Database(settings)
    jobs.beat(database, lease_s=60, interval_s=2)
    database.write(lambda c: c.execute(update(duties).values(done_at=now() - ago_s)))
    database.dispose()


@pytest.fixture
def embedded(sqlite_settings: Settings, redis_server: RedisServer) -> Settings:
    """SQLite, a folder, Redis, a worker and a keeper that are alive: all is well."""
    settings = changed(sqlite_settings, redis_url=redis_server.url)
    open_worker(settings)
    see_keeper(settings)
    return settings


@pytest.fixture
def cluster(postgres_settings: Settings, redis_server: RedisServer, swift_server: SwiftServer) -> Iterator[Settings]:
    """PostgreSQL, S3, Redis, a worker and a keeper that are alive: all is well."""
    settings = changed(
        postgres_settings, redis_url=redis_server.url, store_url=f"s3://{swift_server.new_bucket()}/prefix",
        s3_endpoint_url=swift_server.endpoint_url, s3_access_key_id=swift_server.access_key,
        s3_secret_access_key=swift_server.secret_key, connect_timeout_s=2,
    )  # fmt: skip
    open_worker(settings)
    see_keeper(settings)
    return settings


def failing(settings: Settings) -> dict[str, Check]:
    """The checks that fail, by name; none of them shows a secret, and each says what to do."""
    checks = examine(settings)
    told = json.dumps([check.to_json() for check in checks])
    secrets = [settings.database_url, settings.redis_url, settings.s3_secret_access_key]
    for value in (secret.get_secret_value() for secret in secrets if secret is not None):
        password = value.rpartition("@")[0].rpartition(":")[2] if "://" in value else value
        assert not password or password not in told
    assert WRONG not in told
    return {check.name: check for check in checks if not check.ok}


@pytest.mark.parametrize("profile", ["embedded", "cluster"])
def test_a_healthy_set_up_is_told_so(request: pytest.FixtureRequest, profile: str) -> None:
    settings = request.getfixturevalue(profile)
    assert failing(settings) == {}
    checks = {check.name: check.detail for check in examine(settings)}
    assert {"profile", "data folder", "database", "redis", "storage", "workers", "keeper", "torch"} <= checks.keys()
    assert checks["workers"] == "1 alive, serving cpu, gpu"
    assert ("SQLite" if profile == "embedded" else "PostgreSQL") in checks["database"]


def test_as_a_command_it_ends_with_0_where_all_is_well_and_3_where_not(embedded: Settings, tmp_path: Path) -> None:
    def run(*options: str, **changes: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AIGC_")}
        command = [sys.executable, "-m", "producer.cli", "doctor", *options]
        environment = clean | variables(embedded) | changes
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )

    healthy = run("--json")
    assert (healthy.returncode, healthy.stderr) == (0, "")
    told = json.loads(healthy.stdout)
    assert told["ok"] is True
    assert all({"name", "ok", "detail", "advice"} <= check.keys() for check in told["checks"])

    broken = run("--json", AIGC_REDIS_URL="redis://127.0.0.1:1/0")
    assert broken.returncode == 3
    told = json.loads(broken.stdout)
    assert told["ok"] is False
    assert [check["name"] for check in told["checks"] if not check["ok"]] == ["redis"]

    words = run(AIGC_REDIS_URL="redis://127.0.0.1:1/0").stdout
    assert "FAIL  redis: redis://127.0.0.1:1/0: " in words
    assert "→ start Redis, or correct AIGC_REDIS_URL" in words
    assert "ok    database: SQLite at " in words


# --- Redis ---


def test_redis_that_is_not_started(embedded: Settings) -> None:
    told = failing(changed(embedded, redis_url=None))
    assert told.keys() == {"redis"}
    assert "aigc up" in told["redis"].advice


def test_redis_that_is_down(embedded: Settings) -> None:
    told = failing(changed(embedded, redis_url=f"redis://:{WRONG}@127.0.0.1:{free_port()}/0"))
    assert told.keys() == {"redis"}
    assert "redis://:***@127.0.0.1" in told["redis"].detail
    assert told["redis"].advice == "start Redis, or correct AIGC_REDIS_URL"


def test_redis_with_another_password(embedded: Settings, redis_server: RedisServer) -> None:
    told = failing(changed(embedded, redis_url=redis_server.url.replace(redis_server.password, WRONG)))
    assert told.keys() == {"redis"}
    assert "wrong password" in told["redis"].detail
    assert told["redis"].advice == "check the password in AIGC_REDIS_URL"


def test_redis_without_the_password_it_wants(embedded: Settings, redis_server: RedisServer) -> None:
    told = failing(changed(embedded, redis_url=redis_server.url.replace(f":{redis_server.password}@", "")))
    assert told.keys() == {"redis"}
    assert "password" in told["redis"].advice


def test_redis_that_evicts(embedded: Settings) -> None:
    with RedisServer(maxmemory="100mb", policy="allkeys-lru") as evicting:
        told = failing(changed(embedded, redis_url=evicting.url))
    assert told.keys() == {"redis"}
    assert "allkeys-lru" in told["redis"].detail
    assert told["redis"].advice == "set maxmemory-policy noeviction"


def test_a_hosted_redis_that_does_not_tell_its_policy_is_well(embedded: Settings) -> None:
    with RedisServer() as hosted:
        with redis.Redis.from_url(hosted.url) as client:
            client.acl_setuser("guest", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-config"])
        assert failing(changed(embedded, redis_url=hosted.url.replace(f":{hosted.password}", "guest:pw"))) == {}


def test_redis_whose_memory_is_full(embedded: Settings) -> None:
    with RedisServer(maxmemory="2mb") as server:
        with redis.Redis.from_url(server.url) as client:
            while client.info("memory")["used_memory"] < 2 * 2**20 * 0.97:
                client.rpush("somebody else's", "x" * 5000)
        told = failing(changed(embedded, redis_url=server.url))
    assert told.keys() == {"redis"}
    assert "it refuses messages" in told["redis"].detail
    assert "maxmemory" in told["redis"].advice


# --- SQL ---


def test_postgresql_that_is_down(cluster: Settings) -> None:
    told = failing(changed(cluster, database_url=f"postgresql+psycopg://u:{WRONG}@127.0.0.1:{free_port()}/d"))
    assert told.keys() == {"database"}
    assert "start PostgreSQL" in told["database"].advice


def test_postgresql_with_another_password(cluster: Settings, postgres_server: PostgresServer) -> None:
    told = failing(changed(cluster, database_url=postgres_server.url.replace(postgres_server.password, WRONG)))
    assert told.keys() == {"database"}
    assert told["database"].advice == "check user and password in AIGC_DATABASE_URL"
    assert "postgres:***@127.0.0.1" in told["database"].detail


def test_postgresql_without_the_schema(cluster: Settings, postgres_url: str) -> None:
    told = failing(changed(cluster, database_url=postgres_url))
    assert told.keys() == {"database"}
    assert "run `aigc migrate`" in told["database"].detail


def test_postgresql_where_we_may_do_nothing(cluster: Settings, postgres_server: PostgresServer) -> None:
    with postgres_server._connect() as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute(f"CREATE ROLE guest LOGIN PASSWORD '{WRONG}'")
    assert cluster.database_url is not None
    url = cluster.database_url.get_secret_value().replace(f"postgres:{postgres_server.password}", f"guest:{WRONG}")
    told = failing(changed(cluster, database_url=url))
    assert told.keys() == {"database"}
    assert "GRANT" in told["database"].advice


def test_a_sqlite_file_that_is_none(embedded: Settings) -> None:
    file = embedded.data_dir / "aigc.db"
    for path in embedded.data_dir.glob("aigc.db*"):
        path.unlink()
    file.write_bytes(b"something else entirely " * 1000)
    told = failing(embedded)
    assert told.keys() == {"database"}
    assert "file is not a database" in told["database"].detail


# --- storage and disk ---


def test_s3_with_another_secret(cluster: Settings) -> None:
    told = failing(changed(cluster, s3_secret_access_key=WRONG))
    assert told.keys() == {"storage"}
    assert "AIGC_S3_SECRET_ACCESS_KEY" in told["storage"].advice


def test_s3_without_the_bucket(cluster: Settings) -> None:
    told = failing(changed(cluster, store_url="s3://there-is-no-such-bucket/prefix"))
    assert told.keys() == {"storage"}
    assert "there-is-no-such-bucket" in told["storage"].detail
    assert told["storage"].advice


def test_s3_that_does_not_listen(cluster: Settings) -> None:
    told = failing(changed(cluster, s3_endpoint_url=f"http://127.0.0.1:{free_port()}"))
    assert told.keys() == {"storage"}
    assert "AIGC_S3_ENDPOINT_URL" in told["storage"].advice


def test_a_storage_address_that_makes_no_sense(embedded: Settings) -> None:
    told = failing(changed(embedded, store_url="ftp://host/folder"))
    assert told.keys() == {"storage"}
    assert "AIGC_STORE_URL" in told["storage"].detail


def test_a_storage_folder_that_cannot_be_written(embedded: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = failing(changed(embedded, store_url=(tmp_path / "file" / "store").as_uri()))
    assert told.keys() == {"storage"}
    assert "AIGC_STORE_URL" in told["storage"].advice


def test_a_data_folder_that_cannot_be_written(embedded: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = failing(changed(embedded, data_dir=tmp_path / "file" / "data"))
    assert told.keys() == {"data folder", "database", "storage"}
    assert all("AIGC_" in told[name].advice for name in told)


def test_a_disk_that_is_nearly_full(embedded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK", 1 << 60)
    assert failing(embedded).keys() == {"data folder", "storage space"}


def test_the_space_is_looked_at_where_the_storage_lies(
    embedded: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK", 1 << 60)
    told = failing(changed(embedded, store_url=(tmp_path / "a folder").as_uri()))
    assert told.keys() == {"data folder", "storage space"}


# --- workers ---


def test_no_worker(sqlite_settings: Settings, redis_server: RedisServer) -> None:
    settings = changed(sqlite_settings, redis_url=redis_server.url)
    see_keeper(settings)
    told = failing(settings)
    assert told.keys() == {"workers"}
    assert told["workers"].detail == "none is alive, 0 job(s) wait"
    client = Client(settings)
    client.submit([{"task": "echo", "params": {"message": "first"}}] * 3)
    for _ in range(101):
        client.submit([{"task": "echo", "params": {"message": "one more"}}])
    client.submit([{"task": "echo", "params": {"message": "not any more"}}]).cancel()
    assert failing(settings)["workers"].detail == "none is alive, 104 job(s) wait"
    open_worker(settings, lease_s=-1)
    assert failing(settings).keys() == {"workers"}, "its lease has lapsed"


def test_a_worker_that_cannot_store(sqlite_settings: Settings, redis_server: RedisServer) -> None:
    settings = changed(sqlite_settings, redis_url=redis_server.url)
    see_keeper(settings)
    open_worker(settings, condition={"storage": "disk full"})
    assert failing(settings)["worker host:cpu"].detail == "cannot store results: disk full"


def test_a_model_that_nobody_can_load_is_told_and_no_fault_of_the_system(
    sqlite_settings: Settings, redis_server: RedisServer
) -> None:
    settings = changed(sqlite_settings, redis_url=redis_server.url)
    see_keeper(settings)
    open_worker(settings, condition={"set_aside": {"m for echo": {"reason": "is no model", "since": 1.0}}})
    assert failing(settings) == {}
    assert "could not load m for echo lately: is no model" in [check.detail for check in examine(settings)]


def test_a_worker_that_is_silent_fails_and_one_that_drains_is_told(
    sqlite_settings: Settings, redis_server: RedisServer
) -> None:
    settings = changed(sqlite_settings, redis_url=redis_server.url)
    see_keeper(settings)
    open_worker(settings, lease_s=20)  # of 60: the last renewal was 40 s ago
    assert failing(settings)["worker host:cpu"].detail.startswith("has not been heard of for 4")
    Client(settings).drain("host:cpu")
    assert any(check.ok and "is draining since" in check.detail for check in examine(settings))


# --- queues and keepers ---


def test_a_paused_queue_is_told_and_no_fault(embedded: Settings) -> None:
    Client(embedded).pause("night", reason="cheap power")
    assert failing(embedded) == {}
    [check] = [check for check in examine(embedded) if check.name == "queue night"]
    assert check.detail.endswith(": cheap power")
    assert check.advice == "`aigc resume night` lets it go on"


def test_no_keeper_is_a_fault_where_there_is_work_or_a_worker(
    sqlite_settings: Settings, redis_server: RedisServer
) -> None:
    settings = changed(sqlite_settings, redis_url=redis_server.url)
    assert failing(settings).keys() == {"workers"}, "an idle system needs none"
    open_worker(settings)
    assert failing(settings)["keeper"].detail.startswith("no keeper has ever been seen: retries and the jobs of dead")
    see_keeper(settings, ago_s=40)
    told = failing(settings)
    assert told.keys() == {"keeper"}
    assert told["keeper"].detail.startswith("no keeper has been seen for 40 s")
    assert "aigc keeper" in told["keeper"].advice
    see_keeper(settings)
    assert failing(settings) == {}


def test_no_keeper_is_a_fault_where_jobs_wait_for_their_next_try(
    sqlite_settings: Settings, redis_server: RedisServer
) -> None:
    settings = changed(sqlite_settings, redis_url=redis_server.url)
    batch = Client(settings).submit([{"task": "echo", "params": {"message": 1}}])
    db = Database(settings)
    db.write(lambda c: c.execute(update(jobs_table).values(available_at=now() + 60)))
    db.write(lambda c: c.execute(update(backlog).values(ready=0)))
    assert failing(settings).keys() == {"workers", "keeper"}
    assert batch.status().counts["queued"] == 1


# --- variables ---


def test_a_misspelt_variable_is_named_with_what_was_meant(
    embedded: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("AIGC_GRACE=3\nAIGC_TENANT=somebody\n")
    monkeypatch.setenv("AIGC_LEASES_S", "5")
    monkeypatch.setenv("aigc_lease_s", "5")
    monkeypatch.setenv("AIGC_ZZZ", "5")
    told = failing(embedded)
    assert {name: check.advice for name, check in told.items()} == {
        "variable AIGC_GRACE": "did you mean AIGC_GRACE_S?", "variable AIGC_LEASES_S": "did you mean AIGC_LEASE_S?",
    }  # fmt: skip
    assert "variable AIGC_ZZZ" in {check.name for check in examine(embedded)}, "told, but it may be somebody else's"


@pytest.mark.parametrize(("torch", "well"), [("2.13.0+cpu", False), ("2.13.0+cu128", True), (None, True)])
def test_a_gpu_beside_a_torch_that_cannot_use_it(
    embedded: Settings, monkeypatch: pytest.MonkeyPatch, torch: str | None, well: bool
) -> None:
    known: Callable[[str], str | None] = {"torch": torch}.get
    monkeypatch.setattr(doctor, "_gpu_names", lambda: ["NVIDIA H100"])
    monkeypatch.setattr(doctor, "_version", known)
    assert failing(embedded).keys() == (set() if well else {"torch"})
