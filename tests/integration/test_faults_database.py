"""The database fails in every way a server and a network can: no job is lost or charged, nobody alive is reaped."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, until
from fault_proxies import HOST, CutAt, TcpFaultProxy
from psycopg import sql
from servers import PostgresServer, RedisServer
from sqlalchemy import select, update
from test_faults_redis import all_well, echo, lost_sessions, running
from test_transitions import claim, fail, held, job, session, states, submit, success

from aigc import Batch, Client
from producer.submit import SMALL
from shared import jobs as transitions
from shared.audit import audit
from shared.database import CommitUnknown, Database
from shared.errors import Unavailable
from shared.ids import batch_of, new_batch_id
from shared.jobs import Lane, NewBatch
from shared.settings import Settings
from shared.tables import attempts, batches, events
from workers.pulse import Pulse
from workers.session import Session

pytestmark = pytest.mark.timeout(180)

LEASE_S = 4.0
#: what happens to a job whose claim, or whose way back, was not heard of
GIVEN_BACK = frozenset({"given_back", "released"})
CUTS: tuple[CutAt, ...] = ("statement", "commit-before", "commit-after")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as made:
        yield made


@pytest.fixture(scope="module")
def proxy(server: PostgresServer) -> Iterator[TcpFaultProxy]:
    """Between PostgreSQL and the whole cluster: two workers and a keeper."""
    with TcpFaultProxy(HOST, server.port) as made:
        yield made


@pytest.fixture(scope="module")
def url(server: PostgresServer) -> str:
    """Of the cluster's database, past any proxy."""
    return server.new_database()


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory, url: str, proxy: TcpFaultProxy, redis_server: RedisServer
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("database")
    environment = {
        "AIGC_DATA_DIR": str(folder / "data"),
        "AIGC_STORE_URL": (folder / "store").as_uri(),
        "AIGC_DATABASE_URL": proxy.url(url),
        "AIGC_REDIS_URL": redis_server.url,
        "AIGC_REDIS_PREFIX": folder.name,
        "AIGC_LEASE_S": str(LEASE_S),
    }
    with Cluster(environment, folder / "worker.log") as made:
        made.start_keeper()
        made.start_worker()
        made.start_worker()
        yield made
        proxy.heal()


@pytest.fixture(scope="module")
def onlooker(everything: Cluster, url: str) -> Client:
    """Sees and submits past the proxy."""
    return Client(everything.settings.model_copy(update={"database_url": _secret(url)}))


def _secret(url: str) -> Any:
    return Settings(_env_file=None, database_url=url).database_url


@pytest.fixture
def cluster(everything: Cluster, proxy: TcpFaultProxy, onlooker: Client) -> Iterator[Cluster]:
    """A keeper and two workers; whatever a test does to the database, none of the two was taken for dead after it."""
    proxy.injected.clear()
    before = {worker.session for worker in onlooker.workers()}
    yield everything
    proxy.heal()
    direct = Database(onlooker.settings)
    assert not lost_sessions(direct)
    until(lambda: {worker.session for worker in onlooker.workers() if not worker.silent} == before, what="both at work")
    direct.dispose()


def in_the_model(batch: Batch) -> None:
    """All jobs of the batch are, so what happens to the database now need not concern them before they are done."""
    until(lambda: all(one.timings["entered_at"] for one in batch.jobs()), what="in the model")


# --- a cluster at work ---


def test_connections_cut_in_the_middle_of_anything_cost_no_job_and_no_attempt(
    cluster: Cluster, proxy: TcpFaultProxy, onlooker: Client
) -> None:
    made: list[Batch] = []
    while min(proxy.injected[cut] for cut in CUTS) < 8:
        for cut in CUTS:
            proxy.arm(cut, times=2)
        made.append(onlooker.submit(echo(30, step_s=0.01)))
        until(lambda: made[-1].status().counts["succeeded"] > 0 or sum(proxy.injected.values()) > 40, what="progress")
    proxy.heal()
    for batch in made:
        all_well(cluster, batch, also=GIVEN_BACK)
        assert audit(Database(onlooker.settings), batch.id) == []


def test_a_database_that_crashes_and_starts_again_under_load_costs_nobody_anything(
    cluster: Cluster, server: PostgresServer, onlooker: Client
) -> None:
    batch = onlooker.submit(echo(40, steps=4))
    running(batch, 2)
    server.restart("immediate")
    all_well(cluster, batch, also=GIVEN_BACK)


def test_a_database_that_only_reads_is_named_as_such_and_served_again_once_it_writes(
    cluster: Cluster, server: PostgresServer, proxy: TcpFaultProxy, onlooker: Client, url: str
) -> None:
    batch = onlooker.submit(echo(2, steps=60))
    in_the_model(batch)
    size = cluster.log.stat().st_size
    try:
        only_read(server, url, proxy, "on")
        began = time.monotonic()
        refused = cluster.aigc("submit", "-", stdin=b'{"task":"echo","params":{"message":"hi"}}\n')
        assert refused.returncode == 3
        assert "read-only" in refused.stderr
        assert "this server only reads: name the primary in AIGC_DATABASE_URL" in refused.stderr
        told = cluster.aigc("doctor")
        assert told.returncode == 3
        assert "FAIL  database" in told.stdout
        until(lambda: b"read-only" in cluster.log.read_bytes()[size:], what="the workers saying so")
        until(lambda: time.monotonic() > began + 1.5 * LEASE_S, what="a lease being over")
        assert {job.status for job in batch.jobs()} == {"running"}
    finally:
        only_read(server, url, proxy, "off")
    all_well(cluster, batch)
    all_well(cluster, onlooker.submit(echo(2)))


def only_read(server: PostgresServer, url: str, proxy: TcpFaultProxy, value: str) -> None:
    name = sql.Identifier(url.rpartition("/")[2])
    with server._connect() as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(name, value))
    proxy.cut_all()


def test_a_slow_database_slows_and_nothing_else(cluster: Cluster, proxy: TcpFaultProxy, onlooker: Client) -> None:
    """A statement takes about a quarter of a second longer, for it comes in several pieces."""
    proxy.slow(0.04)
    batch = onlooker.submit(echo(8, steps=10))
    all_well(cluster, batch)


def test_a_network_that_swallows_everything_for_three_leases_reaps_nobody(
    cluster: Cluster, proxy: TcpFaultProxy, onlooker: Client
) -> None:
    long = onlooker.submit(echo(2, steps=round(3.5 * LEASE_S / 0.05)))
    in_the_model(long)
    short = onlooker.submit(echo(30, steps=2))
    proxy.black_hole()
    began = time.monotonic()
    waiting = onlooker.submit(echo(10))
    with ThreadPoolExecutor() as pool:
        refused = pool.submit(cluster.aigc, "submit", "-", stdin=b'{"task":"echo","params":{"message":"hi"}}\n')
        until(lambda: time.monotonic() > began + 3 * LEASE_S, what="three leases being over")
        assert refused.result().returncode == 3
        assert "see that the host can be reached from here" in refused.result().stderr
    assert waiting.status().counts["queued"] == 10

    proxy.heal()
    all_well(cluster, long)
    for batch in (short, waiting):
        all_well(cluster, batch, also=GIVEN_BACK)


# --- one transition at a time ---


@pytest.fixture
def alone(server: PostgresServer) -> Iterator[TcpFaultProxy]:
    """A proxy before a database that nobody else uses."""
    with TcpFaultProxy(HOST, server.port) as made:
        yield made


@pytest.fixture(scope="module")
def empty(server: PostgresServer) -> str:
    url = server.new_database()
    database = Database(Settings(_env_file=None, database_url=url))
    database.migrate()
    database.dispose()
    return url


@pytest.fixture
def direct(empty: str) -> Iterator[Database]:
    database = Database(Settings(_env_file=None, database_url=empty))
    yield database
    database.dispose()


@pytest.fixture
def through(alone: TcpFaultProxy, empty: str, tmp_path: Path) -> Iterator[Database]:
    """The same database, through the proxy."""
    database = Database(
        Settings(
            _env_file=None, database_url=alone.url(empty), lease_s=2, keeper_interval_s=0.5, data_dir=tmp_path
        )
    )  # fmt: skip
    yield database
    database.dispose()


def new_lane() -> Lane:
    """In which nobody else's jobs wait."""
    return Lane("cpu", "echo", new_batch_id())


def kinds(database: Database, id_: str) -> list[str]:
    with database.read() as connection:
        found = select(events.c.kind).where(events.c.batch_id == batch_of(id_)).order_by(events.c.id)
        return list(connection.scalars(found))


def outcomes(database: Database, id_: str) -> list[str]:
    with database.read() as connection:
        found = select(attempts.c.outcome).where(attempts.c.job_id == id_).order_by(attempts.c.epoch)
        return list(connection.scalars(found))


def ends(way: str, through: Database, direct: Database, who: str, id_: str) -> Any:
    """A worker ends a job that it holds under epoch 1, in one of three ways."""
    if way == "succeed":
        result = success(direct, who, id_, 1)
        return lambda: transitions.succeed(through, who, [result])
    if way == "fail":
        return lambda: fail(through, who, id_, 1)
    return lambda: transitions.give_back(through, who, [(id_, 1)], "no reason")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("way", "state", "charged", "event"),
    [
        ("succeed", "succeeded", 0, "succeeded"),
        ("fail", "queued", 1, "retried"),
        ("give back", "queued", 0, "given_back"),
    ],
)
def test_a_worker_that_does_not_hear_how_a_job_ended_ends_it_once(
    direct: Database, through: Database, alone: TcpFaultProxy,
    way: str, state: str, charged: int, event: str, cut: CutAt,
) -> None:  # fmt: skip
    lane = new_lane()
    [id_] = submit(direct, lane=lane)
    who = session(direct)
    claim(direct, who, lane=lane)
    end = ends(way, through, direct, who, id_)

    alone.arm(cut)
    stands = end()

    assert alone.injected == {cut: 1}
    row = job(direct, id_)
    assert (row.state, row.attempts) == (state, charged)
    assert stands == {id_} or (way != "succeed" and cut == "commit-after"), "a success is read back"
    assert kinds(direct, id_) == ["submitted", "claimed", event]
    assert outcomes(direct, id_) == [event]
    assert audit(direct, batch_of(id_)) == []


@pytest.mark.parametrize("cut", CUTS)
def test_jobs_whose_claim_was_not_heard_of_go_back_by_themselves(
    direct: Database, through: Database, alone: TcpFaultProxy, cut: CutAt
) -> None:
    lane = new_lane()
    ids = submit(direct, 3, lane=lane)
    lane_id = transitions.lane_ids(direct, [lane])[lane]
    mine = Session(through._settings, direct, device="cpu", queues=["cpu"], pulse=Pulse.private(), on_drain=print)
    take = partial(transitions.claim, session=mine.id, lane_id=lane_id, priority=0, limit=3, window_s=600)
    try:
        alone.arm(cut)
        if cut == "statement":  # no COMMIT was sent, so it is simply tried again
            claimed = take(through)
            assert [one.id for one in claimed] == ids
            mine.hold(claimed)
            transitions.give_back(direct, mine.id, held(claimed), "enough")
            mine.release(ids)
        else:
            with pytest.raises(CommitUnknown):
                take(through)
        until(lambda: states(direct, ids) == ["queued"] * 3, within_s=10, what="given back")
    finally:
        mine.close()
    assert alone.injected == {cut: 1}
    assert {job(direct, id_).attempts for id_ in ids} == {0}
    assert kinds(direct, ids[0]) == (
        ["submitted"] if cut == "commit-before" else ["submitted", "claimed", "given_back"]
    )
    assert audit(direct, batch_of(ids[0])) == []


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("wish", ["cancel", "retry"])
def test_an_owner_who_does_not_hear_whether_a_wish_stands_may_repeat_it(
    direct: Database, through: Database, alone: TcpFaultProxy, wish: str, cut: CutAt
) -> None:
    ids = submit(direct, 2)
    if wish == "retry":
        transitions.cancel_jobs(direct, "default", ids)

    def carry_out() -> int:
        if wish == "cancel":
            return transitions.cancel_jobs(through, "default", ids)
        return transitions.retry(through, "default", batch_of(ids[0]))

    alone.arm(cut)
    if cut == "statement":
        assert carry_out() == 2
    else:
        with pytest.raises(CommitUnknown) as unknown:
            carry_out()
        assert unknown.value.exit_status == 3
        assert "look whether the work stands" in str(unknown.value)
    carry_out()

    assert alone.injected == {cut: 1}
    assert states(direct, ids) == (["cancelled"] * 2 if wish == "cancel" else ["queued"] * 2)
    assert kinds(direct, ids[0])[-1] == ("cancelled" if wish == "cancel" else "retry_requested")
    assert len(kinds(direct, ids[0])) == (2 if wish == "cancel" else 3), "it came to pass once"
    assert audit(direct, batch_of(ids[0])) == []


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("step", ["begin_batch", "lane_ids", "add_jobs", "open_batch", "store_batch"])
def test_a_submission_that_is_cut_at_any_step_is_one_batch(
    direct: Database, through: Database, alone: TcpFaultProxy, monkeypatch: pytest.MonkeyPatch, step: str, cut: CutAt
) -> None:
    client, do = Client(through._settings), getattr(transitions, step)

    def in_the_middle(*given: Any) -> Any:
        alone.arm(cut)
        return do(*given)

    key = f"{step} {cut}"
    with monkeypatch.context() as patch:
        patch.setattr(transitions, step, in_the_middle)
        patch.setattr("producer.submit.SMALL", 100 if step == "store_batch" else 0)
        batch = client.submit(echo(20), idempotency_key=key)
    again = client.submit(echo(20), idempotency_key=key)

    assert alone.injected == {cut: 1}
    assert again.id == batch.id
    assert batch.status().counts["queued"] == 20
    assert [event.kind for event in batch.events()] == ["submitted"]
    assert audit(direct, batch.id) == []


class GoneOnceCut(TcpFaultProxy):
    """Nobody listens any more once it has cut a connection."""

    def _cut_at(self, link: Any, where: CutAt, message: bytes) -> None:  # type: ignore[override]
        super()._cut_at(link, where, message)
        self.close()


@pytest.mark.parametrize("cut", CUTS[1:])
def test_a_command_that_was_left_in_doubt_is_repeated_under_its_key_and_makes_one_batch(
    cluster: Cluster, server: PostgresServer, direct: Database, empty: str, cut: CutAt
) -> None:
    lines = "\n".join(json.dumps(one) for one in echo(SMALL + 1, queue="nobody")).encode()
    command = ("submit", "-", "--idempotency-key", cut)
    with GoneOnceCut(HOST, server.port) as gone:
        gone.arm(cut, writing="batch_counters")  # the batch opens
        left = cluster.aigc(*command, stdin=lines, AIGC_DATABASE_URL=gone.url(empty))
    assert left.returncode == 3
    [named] = [word for word in left.stderr.split() if is_batch(direct, word)]
    assert f"batch {named} may have been accepted: look with `aigc status {named}`" in left.stderr

    if cut == "commit-before":
        early = cluster.aigc(*command, stdin=lines, AIGC_DATABASE_URL=empty)
        assert early.returncode == 2
        assert "try again in a minute" in early.stderr
        long_ago = update(batches).where(batches.c.id == named).values(touched_at=batches.c.touched_at - 31)
        direct.write(lambda connection: connection.execute(long_ago))
    repeated = cluster.aigc(*command, stdin=lines, AIGC_DATABASE_URL=empty)

    assert repeated.returncode == 0, repeated.stderr
    accepted = repeated.stdout.strip()
    assert (accepted == named) == (cut == "commit-after")
    with direct.read() as connection:
        there = connection.scalars(select(batches.c.id).where(batches.c.idempotency_key == cut)).all()
    assert there == [accepted]
    assert audit(direct, accepted) == []


def is_batch(database: Database, word: str) -> bool:
    with database.read() as connection:
        return connection.scalar(select(batches.c.id).where(batches.c.id == word)) is not None


# --- SQLite on a disk that is full ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, of 16 MiB."""
    folder = tmp_path / "data"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_below_sqlite_keeps_every_job_and_heals_once_there_is_room(
    small_disk: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    environment = {
        "AIGC_DATA_DIR": str(small_disk),
        "AIGC_STORE_URL": (tmp_path / "store").as_uri(),
        "AIGC_REDIS_URL": redis_server.url,
        "AIGC_REDIS_PREFIX": tmp_path.name,
    }
    with Cluster(environment, tmp_path / "worker.log") as cluster:
        cluster.start_keeper()
        cluster.start_worker()
        batch = cluster.client.submit(echo(3, steps=40))
        running(batch, 3)
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        refused = cluster.aigc("submit", "-", stdin=b'{"task":"echo","params":{"message":"hi"}}\n')
        assert refused.returncode == 3
        assert "free some space" in refused.stderr or "see whether the disk is full" in refused.stderr
        with pytest.raises(Unavailable, match="disk is full"):
            fill_database(cluster._database)
        until(lambda: b"disk is full" in cluster.log.read_bytes(), what="the worker saying so")
        told = cluster.aigc("doctor")
        assert told.returncode == 3
        assert "FAIL  data folder" in told.stdout

        ballast.unlink()
        all_well(cluster, batch, also=GIVEN_BACK)
        all_well(cluster, cluster.client.submit(echo(2)))
        assert not lost_sessions(cluster._database)


def fill_database(database: Database) -> None:
    """Ends only in an error, and leaves nothing behind: the room that SQLite had set by in its log is used up."""
    for n in range(1000):
        transitions.begin_batch(database, NewBatch(new_batch_id(), "default", f"{n} " + "x" * 190, 1, None, ""))
