"""what operators and keepers note: paused queues, drained workers, duties, loose objects, deadlines

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LOOSE = sa.text("state <> 'stored'")
_TIMED = sa.text("state = 'running' AND deadline_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "paused_queues",
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("paused_at", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_paused_queues")),
    )
    op.create_table(
        "duties",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("done_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_duties")),
    )
    op.add_column("worker_sessions", sa.Column("drain_requested_at", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("deadline_at", sa.Double(), nullable=True))
    op.create_index("ix_jobs_timed", "jobs", ["deadline_at"], postgresql_where=_TIMED, sqlite_where=_TIMED)
    op.create_index(
        "ix_objects_loose", "objects", ["state", "created_at"], postgresql_where=_LOOSE, sqlite_where=_LOOSE
    )


def downgrade() -> None:
    op.drop_index("ix_objects_loose", table_name="objects")
    op.drop_index("ix_jobs_timed", table_name="jobs")
    op.drop_column("jobs", "deadline_at")
    op.drop_column("worker_sessions", "drain_requested_at")
    op.drop_table("duties")
    op.drop_table("paused_queues")
