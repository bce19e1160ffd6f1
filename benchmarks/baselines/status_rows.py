"""The status table of the Celery baselines, as an ORM model, and where they put outputs: a folder or S3."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, DateTime, Engine, String, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Declarative base."""


class JobRow(Base):
    """One job and how it is."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(16), default="queued", index=True)
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    seed: Mapped[int] = mapped_column(default=0)
    output: Mapped[str | None] = mapped_column(String(500))
    error: Mapped[str | None] = mapped_column(String(2000))
    created_at: Mapped[datetime] = mapped_column(DateTime, default=lambda: datetime.now(UTC))
    started_at: Mapped[datetime | None] = mapped_column(DateTime)
    finished_at: Mapped[datetime | None] = mapped_column(DateTime)


@cache
def engine(url: str) -> Engine:
    """An engine; on SQLite with a write-ahead log that survives a crash, as this project's own has."""
    made = create_engine(url)
    if url.startswith("sqlite"):

        @event.listens_for(made, "connect")
        def _set_up(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA busy_timeout=30000")

    return made


def put(key: str, body: bytes, media_type: str) -> str:
    """Store an output; returns where."""
    bucket = os.environ.get("BASELINE_S3_BUCKET")
    if bucket:
        _s3().put_object(Bucket=bucket, Key=key, Body=body, ContentType=media_type)
        return f"s3://{bucket}/{key}"
    path = Path(os.environ["BASELINE_OUT"]) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return str(path)


@cache
def _s3() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=os.environ["BASELINE_S3_ENDPOINT"],
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
