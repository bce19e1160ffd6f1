"""The storage fails in every way a store on HTTP can: what was made is stored whole, once, or made again uncharged."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import BRISK, Cluster, until
from fault_proxies import HttpFault, HttpFaultProxy, Request
from servers import RedisServer
from sqlalchemy import select
from swift_server import SwiftServer
from test_faults_redis import all_well, echo, lost_sessions

from aigc import Batch
from producer.doctor import examine
from shared.database import Database
from shared.storage import s3
from shared.tables import artifacts, worker_sessions
from workers.worker import Worker

pytestmark = pytest.mark.timeout(180)

#: what happens to a job that cannot be stored: it goes back, and is let go after a moment
GIVEN_BACK = frozenset({"given_back", "released"})
#: outputs from here on have an object of their own
LARGE = "x" * 100_000


@pytest.fixture(scope="module")
def proxy(swift_server: SwiftServer) -> Iterator[HttpFaultProxy]:
    with HttpFaultProxy(swift_server.endpoint_url, drip_s=1.5) as made:
        yield made


@pytest.fixture(scope="module")
def bucket(swift_server: SwiftServer) -> str:
    return swift_server.new_bucket()


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory,
    swift_server: SwiftServer,
    proxy: HttpFaultProxy,
    bucket: str,
    redis_server: RedisServer,
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("storage")
    return {
        "AIGC_DATA_DIR": str(folder / "data"),
        "AIGC_STORE_URL": f"s3://{bucket}/made",
        "AIGC_S3_ENDPOINT_URL": proxy.endpoint_url,
        "AIGC_S3_ACCESS_KEY_ID": swift_server.access_key,
        "AIGC_S3_SECRET_ACCESS_KEY": swift_server.secret_key,
        "AIGC_REDIS_URL": redis_server.url,
        "AIGC_REDIS_PREFIX": folder.name,
    }


@pytest.fixture(scope="module")
def everything(environment: dict[str, str]) -> Iterator[Cluster]:
    folder = Path(environment["AIGC_DATA_DIR"]).parent
    with Cluster(environment, folder / "worker.log") as made:
        made.start_keeper()
        made.start_worker()
        yield made


@pytest.fixture
def cluster(everything: Cluster, proxy: HttpFaultProxy) -> Iterator[Cluster]:
    """A keeper and a worker; after the test the storage is well, and nobody who lived was taken for dead."""
    proxy.injected.clear()
    yield everything
    proxy.heal()
    until(lambda: condition(everything._database) is None, what="the all-clear")
    assert not lost_sessions(everything._database)


def both_sizes(n: int) -> list[dict[str, Any]]:
    """Jobs whose outputs share an object, and one with an object of its own."""
    jobs = echo(n, steps=2)
    jobs[-1]["params"]["message"] = LARGE
    return jobs


def in_the_bucket(swift_server: SwiftServer, bucket: str, batch: Batch) -> set[str]:
    """Keys of what the store really holds of a batch."""
    listed = swift_server._client.list_objects_v2(Bucket=bucket, Prefix=f"made/default/{batch.id}/")
    return {entry["Key"].removeprefix("made/") for entry in listed.get("Contents", ())}


def referred(database: Database, batch: Batch) -> set[str]:
    """Keys of the objects that hold the results of a batch."""
    with database.read() as connection:
        keys = connection.scalars(
            select(artifacts.c.object_key).where(artifacts.c.job_id.startswith(f"{batch.id}-")).distinct()
        )
        return set(keys)


def condition(database: Database) -> str | None:
    """What a worker that is alive says of the storage."""
    with database.read() as connection:
        told = connection.scalars(select(worker_sessions.c.condition).where(worker_sessions.c.ended_at.is_(None)))
        return next((one["storage"] for one in told if one.get("storage")), None)


def claims(batch: Batch) -> int:
    return sum(event.count for event in batch.events() if event.kind == "claimed")


@pytest.mark.parametrize(
    "burst",
    [
        {"error": 2, "unavailable": 1},
        {"error-after": 1},
        {"lost-answer": 1},
        {"reset": 2},
        {"slow": 1},
    ],
    ids="-and-".join,
)
def test_what_passes_within_the_tries_of_a_request_costs_nothing_and_stores_one_object(
    cluster: Cluster, proxy: HttpFaultProxy, swift_server: SwiftServer, bucket: str, burst: dict[HttpFault, int]
) -> None:
    for fault, times in burst.items():
        proxy.script(fault, method="PUT", target="/default/", times=times)

    batch = cluster.client.submit(both_sizes(6))
    results = cluster.done(batch, within_s=60)

    assert proxy.injected == burst
    assert {(result["status"], result["attempts"], len(result["artifacts"])) for result in results.values()} == {
        ("succeeded", 1, 1)
    }
    assert results["6"]["data"]["message"] == LARGE
    assert {event.kind for event in batch.events()} == {"submitted", "claimed", "succeeded"}
    assert in_the_bucket(swift_server, bucket, batch) == referred(cluster._database, batch)
    assert condition(cluster._database) is None


def test_a_store_that_stalls_for_longer_than_a_lease_costs_no_lease(cluster: Cluster, proxy: HttpFaultProxy) -> None:
    stall = proxy.script("stall", method="PUT", target="/default/")
    batch = cluster.client.submit(echo(3))
    assert stall.hit.wait(30)
    time.sleep(1.5 * float(BRISK["AIGC_LEASE_S"]))  # the time that passes is the matter here
    stall.release()
    all_well(cluster, batch)


def test_a_store_that_stalls_for_longer_than_a_request_may_take_is_asked_again(
    environment: dict[str, str],
    proxy: HttpFaultProxy,
    swift_server: SwiftServer,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3, "_READ_TIMEOUT_S", 1)
    with Cluster({**environment, "AIGC_DATA_DIR": str(tmp_path)}, tmp_path / "log") as alone:
        worker = Worker(alone.settings, device="cpu", queues=["cpu"])
        stall = proxy.script("stall", method="PUT", target="/default/")
        batch = alone.client.submit(echo(3))
        worker.drain()

        all_well(alone, batch)
        late: list[Request] = []
        ask = proxy._ask

        def noted(request: Request) -> Any:
            answer = ask(request)
            late.append(request)
            return answer

        monkeypatch.setattr(proxy, "_ask", noted)
        stall.release()
        until(lambda: late, what="the first request coming late")
        all_well(alone, batch)
        assert in_the_bucket(swift_server, bucket, batch) == referred(alone._database, batch)
        worker.close()


@pytest.mark.parametrize(
    ("fault", "told"), [("full", "it has no room left"), ("unavailable", "it is overloaded or failing")]
)
def test_a_storage_that_takes_nothing_rests_the_claims_tells_the_operator_and_heals_by_itself(
    cluster: Cluster, proxy: HttpFaultProxy, fault: HttpFault, told: str
) -> None:
    proxy.rule = lambda request: fault if request.method == "PUT" else None
    batch = cluster.client.submit(echo(5, steps=2))
    until(lambda: condition(cluster._database), what="the operator being told")
    assert told in str(condition(cluster._database))
    by_then = proxy.injected[fault]
    with ThreadPoolExecutor() as pool:
        overview, checked = pool.submit(cluster.aigc, "status"), pool.submit(cluster.aigc, "doctor", "--json")
        until(lambda: proxy.injected[fault] >= by_then + 2, what="the worker looking whether it is back")

    given_back = {("queued", 0, None, ())}
    until(
        lambda: {(job.status, job.attempt, job.error, job.artifacts) for job in batch.jobs()} == given_back,
        what="everything being given back",
    )
    assert claims(batch) == 5, "nothing is computed in vain"
    assert "cannot store results" in overview.result().stdout
    assert checked.result().returncode == 3
    wrong = {
        check["name"]: check["detail"] for check in json.loads(checked.result().stdout)["checks"] if not check["ok"]
    }
    assert told in wrong.pop("storage")
    assert any("cannot store results" in detail and told in detail for detail in wrong.values()), "of the worker"

    proxy.heal()
    all_well(cluster, batch, also=GIVEN_BACK)
    assert claims(batch) == 10
    until(lambda: condition(cluster._database) is None, what="the all-clear")
    assert all(check.ok for check in examine(cluster.settings))


def test_the_all_clear_needs_no_further_job(cluster: Cluster, proxy: HttpFaultProxy) -> None:
    proxy.rule = lambda request: "full" if request.method == "PUT" else None
    batch = cluster.client.submit(echo(1))
    until(lambda: condition(cluster._database), what="the operator being told")
    until(lambda: batch.status().counts["queued"] == 1, what="given back")
    batch.cancel()
    proxy.heal()
    until(lambda: condition(cluster._database) is None, within_s=30, what="the all-clear")


def test_bytes_that_were_damaged_on_their_way_in_are_never_a_result(
    cluster: Cluster, proxy: HttpFaultProxy, swift_server: SwiftServer, bucket: str
) -> None:
    proxy.script("corrupt", method="PUT", target="/default/", times=2)
    batch = cluster.client.submit(both_sizes(6))
    results = cluster.done(batch, within_s=60)

    assert proxy.injected["corrupt"] == 2
    assert {(result["status"], result["attempts"]) for result in results.values()} == {("succeeded", 1)}
    assert results["6"]["data"]["message"] == LARGE
    stored = {
        key: swift_server._client.get_object(Bucket=bucket, Key=f"made/{key}")["Body"].read()
        for key in in_the_bucket(swift_server, bucket, batch)
    }
    for job in batch.jobs():
        [artifact] = job.artifacts
        body = stored[artifact.key][artifact.start :][: artifact.bytes]
        assert hashlib.sha256(body).hexdigest() == artifact.sha256


def test_a_storage_that_fails_in_one_way_after_another_doubles_and_loses_nothing(
    cluster: Cluster, proxy: HttpFaultProxy
) -> None:
    """Given every third request fails, each time in another way, while jobs come in."""
    kinds: tuple[HttpFault, ...] = ("error", "lost-answer", "full", "reset", "corrupt", "error-after", "unavailable")
    requests = itertools.count(1)

    def every_third(_: Request) -> HttpFault | None:
        n = next(requests)
        return kinds[n // 3 % len(kinds)] if n % 3 == 0 else None

    proxy.rule = every_third
    batches = []
    while sum(proxy.injected.values()) < len(kinds):
        batches.append(cluster.client.submit(echo(20, step_s=0.01)))
        until(lambda: len(proxy.injected) == len(kinds) or batches[-1].status().status == "done", what="trouble")
    proxy.heal()
    for batch in batches:
        all_well(cluster, batch, also=GIVEN_BACK)


def test_what_rots_in_the_store_is_named_and_everything_else_is_delivered(
    cluster: Cluster, swift_server: SwiftServer, bucket: str, tmp_path: Path
) -> None:
    jobs: list[dict[str, Any]] = [*echo(3), *({"task": "echo", "params": {"message": c * 1_200_000}} for c in "ab")]
    batch = cluster.client.submit(jobs)
    cluster.done(batch)
    kept = {job.custom_id: job.artifacts[0] for job in batch.jobs()}
    for custom_id in "24":
        artifact = kept[custom_id]
        name = f"made/{artifact.key}"
        body = bytearray(swift_server._client.get_object(Bucket=bucket, Key=name)["Body"].read())
        body[artifact.start + artifact.bytes // 2] ^= 1
        swift_server._client.put_object(Bucket=bucket, Key=name, Body=bytes(body))

    out = tmp_path / "out"
    fetched = cluster.aigc("results", batch.id, "--out", str(out))

    assert fetched.returncode == 3
    assert "2 output(s) could not be had" in fetched.stderr
    for custom_id in "24":
        assert f"job {batch.id}-{custom_id}" in fetched.stderr
    lines = {line["custom_id"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert [lines[n]["data"]["message"] for n in "13"] == [0, 2]
    assert (out / lines["5"]["artifacts"][0]["path"]).read_text() == "b" * 1_200_000
    assert {n for n, line in lines.items() if "problem" in line["artifacts"][0]} == {"2", "4"}
    assert len(list(out.glob("*.txt"))) == 1, "what is damaged leaves no file"
