"""Celery on Redis: how workers are woken.

A message `aigc.generate(queue, batch_id, job_ids)` names up to 64 jobs, and each id is a hint: Redis wakes, SQL
decides. Losing, doubling or forging a message does no harm, and each queue holds only so many: the keeper tops them up.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from sqlalchemy import func, select

from shared.database import Database
from shared.errors import RequestError, Unavailable
from shared.operators import not_paused
from shared.settings import Settings, without_password
from shared.tables import backlog, batches, jobs, lanes

#: name of the one Celery task
TASK_NAME = "aigc.generate"
#: most job ids in a message
IDS_PER_MESSAGE = 64
#: Redis answers within this many seconds, or is away
SOCKET_TIMEOUT_S = 10.0
#: a connection that was closed says so within this many seconds; what takes longer is no better over a new one
AT_ONCE_S = 1.0


def make_celery(settings: Settings) -> Celery:
    """The Celery application, for sending and for working; connects to nothing yet."""
    app = Celery("aigc", broker=settings.broker_url or "redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue="gpu",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_concurrency=1,
        worker_pool="prefork",
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=180,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_connection_timeout=settings.connect_timeout_s,
        broker_transport_options={
            "ack_emulation": False,
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": min(settings.connect_timeout_s, 3.0),
            "socket_keepalive": True,
            "health_check_interval": 5,
            "global_keyprefix": settings.redis_prefix,
        },
    )
    return app


class Queue:
    """The producer's end: rings, looks, and tells what is wrong with Redis."""

    def __init__(self, settings: Settings) -> None:
        """Connects on first use, and stays connected."""
        self._settings = settings
        self._client: tuple[str, Redis] | None = None
        self._sender: tuple[str, _Sender] | None = None
        self._sending = threading.Lock()
        #: where it is, fit to be shown; None if it is the embedded one and that does not run
        self.address = without_password(settings.broker_url) if settings.broker_url else None

    def ring(self, db: Database, queues: list[str] | None = None) -> int:
        """Top every queue (or these) up with messages for its ready jobs, but paused ones; returns how many were sent.

        Raises `Unavailable` if Redis does not answer; nothing is lost by that.
        """
        sent = 0
        with self.answering() as client:
            for queue, ready in _ready(db, queues):
                wanted = min(self._settings.queue_messages, -(-ready // IDS_PER_MESSAGE))
                room = wanted - int(client.llen(self._settings.redis_prefix + queue))
                if room > 0:
                    sent += self._send(db, queue, room)
        return sent

    def knock(self, queue: str, batch_id: str, job_ids: Sequence[str]) -> bool:
        """Send one message for jobs that have just become ready into an empty queue; whether it was empty.

        The short way for a few jobs: nothing is looked up. At most `IDS_PER_MESSAGE` ids. Raises as `ring`.
        """
        with self.answering() as client:
            if int(client.llen(self._settings.redis_prefix + queue)):
                return False
            with self._sending:
                self._send_one([queue, batch_id, list(job_ids)], queue)
        return True

    def _send(self, db: Database, queue: str, messages: int) -> int:
        with self._sending:
            hints = list(_hints(db, queue, messages))
            for batch_id, ids in hints:
                self._send_one([queue, batch_id, ids], queue)
        return len(hints)

    def _send_one(self, args: list[object], queue: str) -> None:
        """Over the connection of last time, or over a new one if that was closed meanwhile."""
        url, began = self._settings.broker_url or "", time.monotonic()
        if self._sender is not None and self._sender[0] == url:
            try:
                self._sender[1].send(args, queue)
            except (RedisError, OperationalError, OSError):
                self._forget_sender()
                if time.monotonic() - began > AT_ONCE_S:
                    raise
            else:
                return
        self._forget_sender()
        sender = _Sender(self._settings)
        try:
            sender.send(args, queue)
        except BaseException:
            sender.close()
            raise
        self._sender = (url, sender)

    def _forget_sender(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            sender[1].close()

    def close(self) -> None:
        """Leave Redis; the next use connects again."""
        with self._sending:
            self._forget_sender()
        client, self._client = self._client, None
        if client is not None:
            client[1].close()

    def lengths(self, queues: list[str]) -> dict[str, int]:
        """How many messages wait in each queue. Raises `Unavailable`."""
        with self.answering() as client:
            return {queue: int(client.llen(self._settings.redis_prefix + queue)) for queue in queues}

    def trouble(self) -> Unavailable | None:
        """What keeps Redis from answering a ping; None if it answers."""
        try:
            with self.answering() as client:
                client.ping()
        except Unavailable as error:
            return error
        return None

    @contextmanager
    def answering(self) -> Iterator[Redis]:
        """A Redis client; every way that Redis can refuse becomes `Unavailable` with what to do about it."""
        url = self._settings.broker_url
        if url is None:
            raise Unavailable(
                "redis", "the embedded server", "it is not running", "start it with `aigc up`, or set AIGC_REDIS_URL"
            )
        self.address = address = without_password(url)
        try:
            if self._client is None or self._client[0] != url:
                self._client = (url, self._connected(url))
            client = self._client[1]
        except ValueError as error:
            raise RequestError(f"AIGC_REDIS_URL cannot be used: {error}; write redis://:password@host:6379/0") from None
        try:
            yield client
        except AuthenticationError:
            raise Unavailable("redis", address, "wrong password", "check the password in AIGC_REDIS_URL") from None
        except (RedisError, OperationalError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            advice = "see its log" if isinstance(error, ResponseError) else "start Redis, or correct AIGC_REDIS_URL"
            if "maxmemory" in reason:
                advice = "give it more memory"
            raise Unavailable("redis", address, reason, advice) from None

    def _connected(self, url: str) -> Redis:
        return Redis.from_url(
            url,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=min(self._settings.connect_timeout_s, 3.0),
        )


class _Sender:
    """A Celery application and its connection for sending."""

    def __init__(self, settings: Settings) -> None:
        self._app = make_celery(settings)
        self._connection = self._app.connection_for_write()
        self._producer = self._app.amqp.Producer(self._connection)

    def send(self, args: list[object], queue: str) -> None:
        """One message. Raises what Redis and its clients raise."""
        self._app.send_task(TASK_NAME, args=args, queue=queue, producer=self._producer, retry=False)

    def close(self) -> None:
        """Leave Redis; what stands in the way of that is of no interest."""
        with suppress(Exception):
            self._producer.release()
        with suppress(Exception):
            self._connection.release()


@functools.lru_cache(maxsize=4)
def queue_of(settings: Settings) -> Queue:
    """The same queue for the same settings, with the connections that it has: for those who ring again and again."""
    return Queue(settings)


def _ready(db: Database, queues: list[str] | None) -> list[tuple[str, int]]:
    statement = (
        select(lanes.c.queue, func.sum(backlog.c.ready))
        .join(lanes, lanes.c.id == backlog.c.lane_id)
        .join(batches, batches.c.id == backlog.c.batch_id)
        .where(backlog.c.ready > 0, batches.c.cancelled_at.is_(None), not_paused(lanes.c.queue))
        .group_by(lanes.c.queue)
    )
    if queues is not None:
        statement = statement.where(lanes.c.queue.in_(queues))
    with db.read() as connection:
        return [(queue, int(ready)) for queue, ready in connection.execute(statement)]


def _hints(db: Database, queue: str, messages: int) -> Iterator[tuple[str, list[str]]]:
    """(batch, ids) for up to this many messages, of the jobs that stand first in the queue."""
    with db.read() as connection:
        rows = connection.execute(
            select(backlog.c.batch_id, backlog.c.lane_id, backlog.c.priority)
            .join(lanes, lanes.c.id == backlog.c.lane_id)
            .join(batches, batches.c.id == backlog.c.batch_id)
            .where(lanes.c.queue == queue, backlog.c.ready > 0, batches.c.cancelled_at.is_(None))
            .order_by(backlog.c.priority.desc(), backlog.c.opened_at, backlog.c.batch_id, backlog.c.lane_id)
            .limit(messages)
        ).all()
        for batch_id, lane_id, priority in rows:
            ids = connection.scalars(
                select(jobs.c.id)
                .where(
                    jobs.c.batch_id == batch_id,
                    jobs.c.lane_id == lane_id,
                    jobs.c.priority == priority,
                    jobs.c.state == "queued",
                    jobs.c.available_at.is_(None),
                )
                .order_by(jobs.c.line)
                .limit(messages * IDS_PER_MESSAGE)
            ).all()
            for start in range(0, len(ids), IDS_PER_MESSAGE):
                yield batch_id, list(ids[start : start + IDS_PER_MESSAGE])
                messages -= 1
                if messages <= 0:
                    return
