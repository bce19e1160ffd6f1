"""files: what was uploaded to be the input of jobs, and which batches name it

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(length=64), primary_key=True),
        sa.Column("tenant_id", sa.String(length=64), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("object_key", sa.String(length=512), sa.ForeignKey("objects.key"), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("media_type", sa.String(length=100), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("tenant_id", "sha256", name="uq_files_tenant_id_sha256"),
    )
    op.create_index("ix_files_object_key", "files", ["object_key"])
    op.create_table(
        "batch_files",
        sa.Column("batch_id", sa.String(length=64), sa.ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
        sa.Column("file_id", sa.String(length=64), sa.ForeignKey("files.id"), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "file_id", name="pk_batch_files"),
    )
    op.create_index("ix_batch_files_file_id", "batch_files", ["file_id"])


def downgrade() -> None:
    op.drop_table("batch_files")
    op.drop_table("files")
