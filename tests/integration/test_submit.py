"""Once SQL has committed, a submission is accepted, whatever Redis does; and Redis only ever says what SQL knows."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
import redis
from servers import RedisServer, free_port
from sqlalchemy import QueuePool, event, func, select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from aigc import Batch, Client, NotAllowed, NotFound, RequestError
from producer.gateway import DirectGateway
from shared import jobs as transitions
from shared.database import CommitUnknown, Database, now
from shared.errors import Unavailable
from shared.keeper import Keeper
from shared.queue import IDS_PER_MESSAGE, Queue
from shared.settings import Settings
from shared.tables import batches, jobs


@pytest.fixture
def with_redis(settings: Settings, redis_server: RedisServer) -> Settings:
    """A Redis that is there, with keys of this test alone, and nobody who takes anything out of it."""
    prefix = f"test-{uuid.uuid4().hex[:8]}-"
    return settings.model_copy(update={"redis_url": _secret(redis_server.url), "redis_prefix": prefix})


def _secret(url: str) -> Any:
    return Settings(_env_file=None, redis_url=url).redis_url


def echo(n: int) -> Iterator[dict[str, Any]]:
    return ({"task": "echo", "params": {"message": number}} for number in range(n))


def messages(settings: Settings, queue: str = "cpu") -> list[dict[str, Any]]:
    """What waits in Redis, decoded as Celery does it; the oldest first."""
    assert settings.redis_url is not None
    with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client:
        waiting = client.lrange(settings.redis_prefix + queue, 0, -1)
    decoded = []
    for raw in reversed(waiting):
        envelope = json.loads(raw)
        assert envelope["content-type"] == "application/json"
        assert envelope["properties"]["body_encoding"] == "base64"
        args, _, _ = json.loads(base64.b64decode(envelope["body"]))
        name, batch_id, ids = args
        decoded.append({"task": envelope["headers"]["task"], "queue": name, "batch": batch_id, "ids": ids})
    return decoded


def ids(batch: Batch) -> list[str]:
    return [job.id for job in batch.jobs()]


def rows(db: Database, table: Any) -> int:
    with db.read() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


# --- Redis wakes ---


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches are stored like large ones: block after block."""
    monkeypatch.setattr("producer.submit.SMALL", 0)


def test_with_no_worker_running_the_messages_in_redis_decode_to_the_ids_of_the_jobs(with_redis: Settings) -> None:
    batch = Client(with_redis).submit(echo(150))
    assert batch.warnings == ()
    waiting = messages(with_redis)
    assert [id_ for message in waiting for id_ in message["ids"]] == ids(batch)
    assert [len(message["ids"]) for message in waiting] == [64, 64, 22]
    assert {(m["task"], m["queue"], m["batch"]) for m in waiting} == {("aigc.generate", "cpu", batch.id)}


def test_each_queue_has_messages_of_its_own_and_urgent_jobs_stand_first(with_redis: Settings) -> None:
    client = Client(with_redis)
    client.submit(echo(64), queue="night")
    later = client.submit([{**job, "priority": n % 2} for n, job in enumerate(echo(128))])
    urgent = [job.id for job in later.jobs() if job.priority == 1]
    assert messages(with_redis)[0]["ids"] == urgent
    assert len(messages(with_redis, "night")) == 1


def test_a_queue_never_holds_more_messages_than_it_may_and_ringing_again_piles_up_nothing(with_redis: Settings) -> None:
    settings = with_redis.model_copy(update={"queue_messages": 3})
    client = Client(settings)
    client.submit(echo(IDS_PER_MESSAGE * 5))
    db = Database(settings)
    for _ in range(3):
        assert Queue(settings).ring(db) == 0
        assert len(messages(settings)) == 3
    client.submit(echo(10))
    assert Queue(settings).lengths(["cpu", "gpu"]) == {"cpu": 3, "gpu": 0}


def test_after_a_flush_a_round_of_the_keeper_brings_the_messages_back(
    with_redis: Settings, redis_server: RedisServer
) -> None:
    batch = Client(with_redis).submit(echo(100))
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    assert messages(with_redis) == []
    keeper = Keeper(with_redis, Database(with_redis))
    keeper.ring()
    keeper.ring()
    assert [id_ for message in messages(with_redis) for id_ in message["ids"]] == ids(batch)


def test_nothing_is_rung_for_jobs_that_nobody_may_claim(with_redis: Settings) -> None:
    client = Client(with_redis)
    cancelled = client.submit(echo(5))
    marked = client.submit(echo(5))
    cancelled.cancel()
    db = Database(with_redis)
    db.write(lambda c: c.execute(update(batches).where(batches.c.id == marked.id).values(cancelled_at=now())))
    with redis.Redis.from_url(with_redis.broker_url or "") as server:
        server.delete(with_redis.redis_prefix + "cpu")
    assert Queue(with_redis).ring(db) == 0


# --- and may be away ---


@pytest.mark.parametrize(
    "url",
    [None, "redis://127.0.0.1:{port}/0", "redis://no-such-host.invalid/0", "nonsense://x", "redis://h:99999999/0"],
    ids=["not started", "refused", "unknown host", "not a URL of Redis", "not a port"],
)
def test_a_submission_is_accepted_whatever_is_wrong_with_redis(sqlite_settings: Settings, url: str | None) -> None:
    broker = _secret(url.format(port=free_port())) if url else None
    batch = Client(sqlite_settings.model_copy(update={"redis_url": broker})).submit(echo(3))
    [warning] = batch.warnings
    assert warning.startswith("the jobs are stored; they start when Redis answers: ")
    assert batch.status().counts["queued"] == 3


def test_a_redis_that_refuses_us_is_a_warning_without_our_password(
    sqlite_settings: Settings, redis_server: RedisServer
) -> None:
    wrong = _secret(redis_server.url.replace(redis_server.password, "not-the-password"))
    batch = Client(sqlite_settings.model_copy(update={"redis_url": wrong})).submit(echo(1))
    [warning] = batch.warnings
    assert "wrong password" in warning
    assert "not-the-password" not in warning


def test_a_redis_that_is_full_is_a_warning(sqlite_settings: Settings) -> None:
    with RedisServer() as full:
        with redis.Redis.from_url(full.url) as client:
            client.config_set("maxmemory", 1)
        batch = Client(sqlite_settings.model_copy(update={"redis_url": _secret(full.url)})).submit(echo(1))
        assert "give it more memory" in batch.warnings[0]


def test_a_redis_that_dies_between_the_look_and_the_message_is_a_warning(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared import queue

    with RedisServer() as server:
        settings = sqlite_settings.model_copy(update={"redis_url": _secret(server.url), "connect_timeout_s": 1.0})
        hints = queue._hints

        def and_then_it_dies(*args: Any) -> Iterator[Any]:
            server.kill()
            return hints(*args)

        monkeypatch.setattr(queue, "_hints", and_then_it_dies)
        batch = Client(settings).submit(echo(IDS_PER_MESSAGE + 1))
        assert "when Redis answers" in batch.warnings[0]
        assert batch.status().counts["queued"] == IDS_PER_MESSAGE + 1


# --- SQL decides ---


def test_what_is_strange_and_allowed_survives_on_both_databases(settings: Settings) -> None:
    custom_ids = ["../../etc/passwd", "a/b", "CON", "😀" * 256, " ", "'; DROP TABLE jobs; --", "a\u2028b", "%s{}"]
    strange = [
        {"task": "echo", "params": {"message": {"\x00": ["\x00", None, 2**70, 1e-300]}}, "custom_id": custom_id}
        for custom_id in custom_ids
    ]
    strange[0] |= {"seed": 2**63 - 4097, "priority": -1000, "metadata": {"\x00": "\x00" * 1000}, "timeout_s": 1e-9}
    strange.append({"task": "text-generation", "model": "/" + "😀" * 499, "params": {"prompt": "\x00"}})
    batch = Client(settings).submit(strange, name="é %_' 😀", idempotency_key="k\u3000k")
    stored = list(batch.jobs())
    assert [job.custom_id for job in stored] == [*custom_ids, "9"]
    assert stored[0].params["message"] == {"\x00": ["\x00", None, 2**70, 1e-300]}
    assert (stored[0].seed, stored[0].priority) == (2**63 - 4097, -1000)
    assert stored[0].metadata == {"\x00": "\x00" * 1000}
    assert Client(settings).batch("é %_' 😀").id == batch.id


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a\x00b"}, {"name": "\ud800"}, {"name": "  "}, {"name": "x" * 201}, {"idempotency_key": "\n"},
        {"idempotency_key": ""}, {"expires_s": 0}, {"expires_s": -1}, {"expires_s": float("nan")},
        {"expires_s": float("inf")},
    ],
    ids=str,
)  # fmt: skip
def test_a_submission_as_a_whole_may_be_wrong_and_then_nothing_is_stored(
    sqlite_settings: Settings, wrong: dict[str, Any]
) -> None:
    client = Client(sqlite_settings)
    with pytest.raises(RequestError):
        client.submit(echo(1), **wrong)
    assert client.batches() == []


def test_the_same_request_again_is_the_first_batch(settings: Settings) -> None:
    client = Client(settings)
    first = client.submit(echo(3), idempotency_key="k", name="a")
    assert client.submit(echo(3), idempotency_key="k").id == first.id
    with pytest.raises(NotAllowed, match=first.id):
        client.submit(echo(4), idempotency_key="k")
    assert client.submit(echo(3)).id != first.id
    assert len(client.batches()) == 2


@pytest.mark.usefixtures("in_blocks")
def test_a_failure_half_way_leaves_nothing_behind(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.spool.BLOCK", 10)
    add_jobs, calls = transitions.add_jobs, iter(range(10))

    def full_at_the_third(db: Database, *args: Any) -> None:
        if next(calls) == 2:
            raise Unavailable("database", "here", "disk full")
        add_jobs(db, *args)

    monkeypatch.setattr(transitions, "add_jobs", full_at_the_third)
    client = Client(settings)
    with pytest.raises(Unavailable):
        client.submit(echo(50), idempotency_key="k")
    db = Database(settings)
    assert (rows(db, batches), rows(db, jobs)) == (0, 0)
    monkeypatch.undo()
    assert client.submit(echo(50), idempotency_key="k").status().total == 50


def test_commits_whose_answers_are_lost_store_everything_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given every second COMMIT stands, and the connection breaks before we hear of it."""
    commit, count = Database._commit, iter(range(10_000))

    def and_no_answer(self: Database, connection: Any) -> None:
        commit(self, connection)
        if next(count) % 2 == 0:
            raise CommitUnknown("database", self.address, "lost")

    monkeypatch.setattr(Database, "_commit", and_no_answer)
    monkeypatch.setattr("producer.spool.BLOCK", 10)
    batch = Client(settings).submit(echo(35), idempotency_key="k")
    assert batch.status().total == 35
    assert batch.status().counts["queued"] == 35
    assert [job.line for job in batch.jobs()] == list(range(1, 36))
    assert [e.kind for e in batch.events()] == ["submitted"]


class Answers:
    """A database that loses the answer to one COMMIT, and then refuses connections for a while."""

    def __init__(self, patch: pytest.MonkeyPatch, doing: str, *, stands: bool, refusals: int) -> None:
        self._commit, self._run, self._do = Database._commit, Database._run, getattr(transitions, doing)
        self._stands, self._refusals = stands, refusals
        self._lost, self._armed = False, False
        patch.setattr(Database, "_commit", lambda db, *args: self.commit(db, *args))  # noqa: PLW0108 - a method now
        patch.setattr(Database, "_run", lambda db, *args: self.run(db, *args))  # noqa: PLW0108 - the same
        patch.setattr(transitions, doing, self.do)

    def do(self, *args: Any) -> Any:
        self._armed = True
        try:
            return self._do(*args)
        finally:
            self._armed = self._lost = False

    def commit(self, db: Database, connection: Any) -> None:
        if not self._armed or self._lost:
            return self._commit(db, connection)
        self._lost = True
        if self._stands:
            self._commit(db, connection)
        raise CommitUnknown("database", db.address, "the connection was lost during COMMIT")

    def run(self, db: Database, connection: Any, work: Any, *more: Any) -> Any:
        if self._lost and self._refusals:
            self._refusals -= 1
            raise OperationalError("BEGIN", {}, psycopg.OperationalError("connection refused"))
        return self._run(db, connection, work, *more)


@pytest.mark.parametrize("stands", [True, False])
def test_a_small_batch_that_may_have_been_accepted_is_never_said_to_be_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, stands: bool
) -> None:
    client = Client(settings)
    with monkeypatch.context() as patch:
        Answers(patch, "store_batch", stands=stands, refusals=100)
        with pytest.raises(CommitUnknown, match="may have been accepted: look with `aigc status"):
            client.submit(echo(3))
    assert [batch.status for batch in client.batches()] == (["queued"] if stands else [])
    assert rows(Database(settings), jobs) == (3 if stands else 0)


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("stands", [True, False])
def test_a_batch_that_may_have_been_accepted_is_never_said_to_be_refused_and_never_cleared_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, stands: bool
) -> None:
    client = Client(settings)
    with monkeypatch.context() as patch:
        Answers(patch, "open_batch", stands=stands, refusals=100)
        with pytest.raises(CommitUnknown) as raised:
            client.submit(echo(3))
    assert raised.value.exit_status == 3
    [batch] = client.batches()
    assert f"batch {batch.id} may have been accepted: look with `aigc status {batch.id}`" in str(raised.value)
    assert batch.status == ("queued" if stands else "loading")
    assert rows(Database(settings), jobs) == 3


@pytest.mark.parametrize(("step", "small"), [("open_batch", 0), ("store_batch", 100)])
def test_a_database_that_is_back_in_time_tells_what_became_of_the_commit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, step: str, small: int
) -> None:
    monkeypatch.setattr("producer.submit.SMALL", small)
    for stands in (True, False):
        with monkeypatch.context() as patch:
            Answers(patch, step, stands=stands, refusals=2)
            batch = Client(settings).submit(echo(3))
        assert batch.status().counts["queued"] == 3
        assert [e.kind for e in batch.events()] == ["submitted"]


@pytest.mark.usefixtures("in_blocks")
def test_a_lost_answer_before_the_batch_opens_leaves_no_doubt_that_nothing_was_accepted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Answers(patch, "add_jobs", stands=True, refusals=100)
        with pytest.raises(Unavailable, match="nothing was accepted") as raised:
            Client(settings).submit(echo(3))
    assert not isinstance(raised.value, CommitUnknown)
    assert rows(Database(settings), batches) == 0


def test_a_database_that_refuses_from_the_start_is_simply_unavailable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OperationalError("BEGIN", {}, psycopg.OperationalError("connection refused"))

    client = Client(settings)
    monkeypatch.setattr(Database, "_run", refuse)
    with pytest.raises(Unavailable, match="start PostgreSQL") as raised:
        client.submit(echo(3))
    assert not isinstance(raised.value, CommitUnknown)


def test_when_every_connection_is_in_use_that_is_a_passing_trouble(postgres_settings: Settings) -> None:
    db = Database(postgres_settings)
    pool = db.engine.pool
    assert isinstance(pool, QueuePool)
    pool._timeout = 0.05
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(db.read())
        for act in (db.clock, lambda: db.write(lambda _: None)):
            with pytest.raises(Unavailable, match="in use"):
                act()
    db.dispose()


def test_what_goes_wrong_in_the_database_is_told_without_what_was_submitted(settings: Settings) -> None:
    batch = Client(settings).submit(echo(1))
    [job] = batch.jobs()
    with pytest.raises(IntegrityError) as raised:
        Database(settings).write(
            lambda c: c.execute(update(jobs).values(params_json="a secret prompt", lane_id=99_999))
        )
    assert job.id not in str(raised.value)
    assert "a secret prompt" not in str(raised.value)


def test_connections_that_the_database_has_cut_are_not_noticed(postgres_settings: Settings) -> None:
    client = Client(postgres_settings)
    client.submit(echo(1))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    with Database(postgres_settings).read() as connection:
        connection.exec_driver_sql(f"{cut} AND pid != pg_backend_pid()")
    client.submit(echo(1))
    assert len(client.batches()) == 2


# --- and answers cheaply ---


def statements(gateway: DirectGateway, reference: str) -> list[str]:
    said: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(" ".join(statement.split()).lower())

    event.listen(gateway.db.engine, "before_cursor_execute", listen)
    gateway.batch(reference)
    event.remove(gateway.db.engine, "before_cursor_execute", listen)
    return said


def test_the_status_of_a_batch_reads_its_counters_and_never_its_jobs(settings: Settings) -> None:
    client = Client(settings)
    gateway = client.gateway
    assert isinstance(gateway, DirectGateway)
    small, large = client.submit(echo(10)), client.submit(echo(3000), name="large")
    said = statements(gateway, large.id)
    assert said == statements(gateway, small.id)
    assert len(said) == 2
    for statement in [*said, *statements(gateway, "large"), *statements(gateway, large.id[:10])]:
        assert not any(word in statement for word in ("from jobs", "join jobs", "count(", "sum(", "group by"))
    assert client.batch(large.id).status().counts["queued"] == 3000


def test_pages_of_batches_lose_none_that_were_made_at_the_same_moment(settings: Settings) -> None:
    client = Client(settings)
    made = [client.submit(echo(1)).id for _ in range(5)]
    db = Database(settings)
    db.write(lambda c: c.execute(update(batches).where(batches.c.id != made[0]).values(created_at=1.0)))
    found, before = [], None
    while page := client.gateway.batches(limit=2, before=before):
        found += [batch.id for batch in page]
        before = (page[-1].created_at, page[-1].id)
    assert found == [made[0], *sorted(made[1:], reverse=True)]


def test_a_name_is_looked_up_in_the_index_of_names(sqlite_settings: Settings) -> None:
    gateway = Client(sqlite_settings).gateway
    assert isinstance(gateway, DirectGateway)
    Client(sqlite_settings).submit(echo(1), name="spring")
    [by_name] = [statement for statement in statements(gateway, "spring") if "batches.name = ?" in statement]
    with gateway.db.read() as connection:
        asked = connection.exec_driver_sql(f"explain query plan {by_name}", ("default", "spring", 1, 0))
        steps = [row[3] for row in asked]
    assert any("ix_batches_tenant_id_name_created_at (tenant_id=? AND name=?)" in step for step in steps), steps
    assert not any("TEMP B-TREE" in step for step in steps), steps


def test_a_name_or_beginning_never_means_something_else_than_one_batch(settings: Settings) -> None:
    client = Client(settings)
    first, second = (client.submit([message], task="echo") for message in ("a", "b"))
    shared = first.id[:6]  # the day and more of the clock
    assert second.id.startswith(shared)
    with pytest.raises(RequestError, match=f"several batches .*{first.id}.*{second.id}"):
        client.batch(shared)
    assert client.batch(first.id[:-1]).id == first.id
    with pytest.raises(RequestError, match="form of a job's id"):
        client.submit(["c"], task="echo", name=f"{first.id}-1")
    with pytest.raises(NotFound):
        client.batch(f"{first.id}-1")
