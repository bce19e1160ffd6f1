"""what tenants were served, and when a lane was last served: fair shares and the age bound

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ACTIVE = sa.text("active")


def upgrade() -> None:
    op.create_table(
        "service",
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("served_s", sa.Double(), nullable=False),
        sa.Column("claimed_s", sa.Double(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("queue", "priority", "tenant_id", name=op.f("pk_service")),
    )
    op.create_index("ix_service_active", "service", ["queue"], postgresql_where=_ACTIVE, sqlite_where=_ACTIVE)
    op.add_column("lanes", sa.Column("claimed_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("lanes", "claimed_at")
    op.drop_index("ix_service_active", table_name="service")
    op.drop_table("service")
