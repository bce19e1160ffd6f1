"""The tables, as SQLAlchemy Core knows them. `migrations/` makes them; a test holds the two together.

Times are seconds since 1970 by the database's clock (`shared.database.now`), so that they subtract alike on SQLite and
PostgreSQL. Columns named `…_json` hold JSON as text: written once, read back as it was.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

JOB_STATES = ("waiting", "queued", "running", "succeeded", "failed", "cancelled")
FINAL_STATES = ("succeeded", "failed", "cancelled")

_Id = String(64)
#: a 64-bit key that counts up on both databases
_Serial = BigInteger().with_variant(Integer, "sqlite")

tenants = Table(
    "tenants",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("created_at", Double, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("name", String(200)),
    # `loading` until every job of the batch is stored, then `open`
    Column("state", String(16), nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("idempotency_key", String(200)),
    # sha256 over the request, to tell a repeated request from another one under the same key
    Column("request_digest", String(64)),
    Column("created_at", Double, nullable=False),
    # last sign of life of a submission that is still loading
    Column("touched_at", Double, nullable=False),
    Column("opened_at", Double),
    # when its owner cancelled it; while it is loading: given up, on its way out
    Column("cancelled_at", Double),
    UniqueConstraint("tenant_id", "idempotency_key"),
    CheckConstraint("state IN ('loading', 'open')", name="state"),
    # the newest of a name
    Index(None, "tenant_id", "name", "created_at"),
    Index(None, "tenant_id", "created_at"),
)

batch_counters = Table(
    "batch_counters",
    metadata,
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    *(Column(state, BigInteger, nullable=False, server_default="0") for state in JOB_STATES),
    Column("started_at", Double),
    Column("finished_at", Double),
    # a window of finished jobs, and the rate of the one before: what the time left is told from
    Column("window_started_at", Double),
    Column("window_finished", BigInteger, nullable=False, server_default="0"),
    Column("last_rate", Double),
)

batch_errors = Table(
    "batch_errors",
    metadata,
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("code", String(64), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("example", Text, nullable=False),
)

lanes = Table(
    "lanes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("queue", String(64), nullable=False),
    Column("task", String(64), nullable=False),
    # empty for tasks without a model
    Column("model", String(500), nullable=False),
    # canonical JSON list of adapters; empty if none
    Column("adapters", String(500), nullable=False, server_default=""),
    # when jobs of it were last claimed, by anybody
    Column("claimed_at", Double),
    UniqueConstraint("queue", "task", "model", "adapters"),
)

_waiting = text("ready > 0")

backlog = Table(
    "backlog",
    metadata,
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("lane_id", ForeignKey("lanes.id"), primary_key=True),
    Column("priority", Integer, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    # when the batch was opened: the order of claims within a priority
    Column("opened_at", Double, nullable=False),
    # how many of its jobs could be claimed at once
    Column("ready", BigInteger, nullable=False),
    Index("ix_backlog_ready", "lane_id", "priority", "opened_at", postgresql_where=_waiting, sqlite_where=_waiting),
)

_active = text("active")

service = Table(
    "service",
    metadata,
    # what tenants share fairly: the workers of a queue, among jobs of one priority
    Column("queue", String(64), primary_key=True),
    Column("priority", Integer, primary_key=True, autoincrement=False),
    Column("tenant_id", String(64), primary_key=True),
    # device seconds that it was served, as measured, on top of where it stood when it last came back
    Column("served_s", Double, nullable=False),
    # estimated seconds of its jobs that are claimed and not ended
    Column("claimed_s", Double, nullable=False),
    # whether something of it was ready when workers last claimed
    Column("active", Boolean, nullable=False),
    Index("ix_service_active", "queue", postgresql_where=_active, sqlite_where=_active),
)

_ready = text("state = 'queued' AND available_at IS NULL")
_delayed = text("state = 'queued' AND available_at IS NOT NULL")
_running = text("state = 'running'")
_timed = text("state = 'running' AND deadline_at IS NOT NULL")
_perishable = text("expires_at IS NOT NULL AND state IN ('waiting', 'queued')")
_alike = text("fingerprint IS NOT NULL AND same_as IS NULL")
_awaited = text("awaited_at IS NOT NULL")

jobs = Table(
    "jobs",
    metadata,
    # `<batch>-<line>`
    Column("id", _Id, primary_key=True),
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    # 1-based line of the input
    Column("line", BigInteger, nullable=False),
    Column("custom_id", String(256), nullable=False),
    Column("lane_id", ForeignKey("lanes.id"), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("params_json", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("metadata_json", Text),
    # estimated seconds of work, by the task's own reckoning
    Column("cost", Double, nullable=False),
    Column("timeout_s", Double),
    Column("expires_at", Double),
    Column("state", String(16), nullable=False),
    # how many jobs it waits for
    Column("blockers", Integer, nullable=False, server_default="0"),
    # the fencing number: grows at each claim and each take-back
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    Column("worker_session", String(64)),
    # charged attempts that have ended
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("max_attempts", Integer, nullable=False),
    # given back without a charge, how often
    Column("give_backs", Integer, nullable=False, server_default="0"),
    # the time before which it may not be claimed; empty if it may be now
    Column("available_at", Double),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    # most jobs it may share a microbatch with, itself included; lowered after a crash in company
    Column("max_company", Integer),
    # how many jobs are in the microbatch that it runs in, itself included; empty before it enters the model and
    # once its worker has begun the next microbatch
    Column("company", Integer),
    Column("created_at", Double, nullable=False),
    Column("claimed_at", Double),
    # when it entered the model: its deadline counts from here
    Column("entered_at", Double),
    # when its time in the model is up, as its worker reckons; empty where it has no limit or has not begun
    Column("deadline_at", Double),
    Column("finished_at", Double),
    # share of its steps that are done, 0..1
    Column("progress", Double),
    Column("error_code", String(64)),
    Column("error_message", Text),
    # what it asks for, as a digest; only where its owner wants identical work done once (`cache`)
    Column("fingerprint", String(64)),
    # what makes it, or has made it, as a digest: model revision, number type, generator and its version, device
    Column("maker", String(64)),
    # the job whose files it was given instead of being made
    Column("same_as", String(64)),
    # since when identical jobs wait for it
    Column("awaited_at", Double),
    UniqueConstraint("batch_id", "line"),
    CheckConstraint(f"state IN {JOB_STATES!r}", name="state"),
    Index(
        "ix_jobs_ready",
        "batch_id",
        "lane_id",
        "priority",
        "line",
        postgresql_where=_ready,
        sqlite_where=_ready,
    ),
    Index("ix_jobs_delayed", "available_at", postgresql_where=_delayed, sqlite_where=_delayed),
    Index("ix_jobs_running", "worker_session", postgresql_where=_running, sqlite_where=_running),
    Index("ix_jobs_timed", "deadline_at", postgresql_where=_timed, sqlite_where=_timed),
    Index("ix_jobs_perishable", "expires_at", postgresql_where=_perishable, sqlite_where=_perishable),
    Index(
        "ix_jobs_alike",
        "tenant_id",
        "fingerprint",
        "state",
        "priority",
        postgresql_where=_alike,
        sqlite_where=_alike,
    ),
    Index("ix_jobs_awaited", "state", postgresql_where=_awaited, sqlite_where=_awaited),
)

_open = text("ended_at IS NULL")

worker_sessions = Table(
    "worker_sessions",
    metadata,
    Column("id", _Id, primary_key=True),
    # host and device, the same across its lives
    Column("worker", String(200), nullable=False),
    Column("host", String(200), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", String(200), nullable=False),
    # comma separated
    Column("queues", String(500), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("lease_expires_at", Double, nullable=False),
    Column("ended_at", Double),
    # `stopped` or `lost`
    Column("end", String(16)),
    # versions of this project, torch, transformers, …
    Column("versions", JSON, nullable=False),
    # what an operator should know now: models in memory, a full disk, a model set aside
    Column("condition", JSON, nullable=False),
    # when an operator asked it to finish or give back what it holds, and to end
    Column("drain_requested_at", Double),
    Index("ix_worker_sessions_open", "lease_expires_at", postgresql_where=_open, sqlite_where=_open),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("worker_session", String(64), nullable=False),
    Column("claimed_at", Double),
    Column("ended_at", Double, nullable=False),
    # succeeded, failed, retried, given_back, lost, cancelled
    Column("outcome", String(16), nullable=False),
    Column("device_s", Double),
    Column("error_code", String(64)),
    Column("error_message", Text),
    # model revision, dtype, generator; with params and the session's versions, enough to make it again
    Column("record", JSON),
)

_loose = text("state <> 'stored'")

objects = Table(
    "objects",
    metadata,
    Column("key", String(512), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("worker_session", String(64), nullable=False),
    # `intended` before the upload, `stored` once an artifact refers to it, `dropped` when none does any more,
    # `condemned` once a keeper has begun to delete it: from then on nothing may refer to it. `uploading` is what an
    # owner of jobs sends in, until a file refers to it
    Column("state", String(16), nullable=False),
    Column("bytes", BigInteger),
    Column("created_at", Double, nullable=False),
    Index(None, "worker_session"),
    # what a collector looks through: few at any time, however many are stored
    Index("ix_objects_loose", "state", "created_at", postgresql_where=_loose, sqlite_where=_loose),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", _Serial, primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    # output, preview, checkpoint, metric
    Column("role", String(16), nullable=False),
    Column("position", Integer, nullable=False),
    Column("object_key", ForeignKey("objects.key"), nullable=False),
    # where it begins in its object: small outputs share one
    Column("start", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("media_type", String(100), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("facts", JSON, nullable=False),
    UniqueConstraint("job_id", "role", "position"),
    Index(None, "object_key"),
)

files = Table(
    "files",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("object_key", ForeignKey("objects.key"), nullable=False),
    # as its owner called it
    Column("name", String(255), nullable=False),
    # by its name: a worker looks at the content
    Column("media_type", String(100), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    # when it was last uploaded, or named by a batch
    Column("used_at", Double, nullable=False),
    UniqueConstraint("tenant_id", "sha256"),
    Index(None, "object_key"),
)

batch_files = Table(
    "batch_files",
    metadata,
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("file_id", ForeignKey("files.id"), primary_key=True),
    Index(None, "file_id"),
)

events = Table(
    "events",
    metadata,
    # the cursor
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("tenant_id", String(64), nullable=False),
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
    # submitted, claimed, succeeded, failed, retried, given_back, lost, cancelled, …
    Column("kind", String(32), nullable=False),
    # the jobs it happened to, as JSON list of [first, last] lines; empty = the batch as a whole
    Column("jobs", JSON),
    Column("count", BigInteger, nullable=False),
    Column("worker_session", String(64)),
    Column("data", JSON),
    Column("at", Double, nullable=False),
    Index(None, "batch_id", "id"),
    sqlite_autoincrement=True,
)

paused_queues = Table(
    "paused_queues",
    metadata,
    Column("queue", String(64), primary_key=True),
    Column("paused_at", Double, nullable=False),
    # in the operator's words
    Column("reason", Text),
)

#: the duty by which keepers say that they reach this database
PULSE = "pulse"

duties = Table(
    "duties",
    metadata,
    # a duty of the keepers that one of them does at a time; `pulse`: any of them has reached this database
    Column("name", String(32), primary_key=True),
    Column("done_at", Double, nullable=False),
)
