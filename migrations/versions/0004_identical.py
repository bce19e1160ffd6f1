"""identical work once: what a job asks for, what makes it, whose files it was given

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ALIKE = sa.text("fingerprint IS NOT NULL AND same_as IS NULL")
_AWAITED = sa.text("awaited_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("fingerprint", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("maker", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("same_as", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("awaited_at", sa.Double(), nullable=True))
    op.create_index(
        "ix_jobs_alike", "jobs", ["tenant_id", "fingerprint", "state", "priority"], postgresql_where=_ALIKE,
        sqlite_where=_ALIKE,
    )  # fmt: skip
    op.create_index("ix_jobs_awaited", "jobs", ["state"], postgresql_where=_AWAITED, sqlite_where=_AWAITED)


def downgrade() -> None:
    op.drop_index("ix_jobs_awaited", table_name="jobs")
    op.drop_index("ix_jobs_alike", table_name="jobs")
    for column in ("awaited_at", "same_as", "maker", "fingerprint"):
        op.drop_column("jobs", column)
