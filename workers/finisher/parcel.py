"""What travels through the finisher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.errors import JobFailed, Unavailable
from shared.jobs import ClaimedJob, StoredArtifact
from workers.generators import Failed, Outcome, Output

#: what an output that is not encoded yet is taken for, where its generator does not say
UNKNOWN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Finished:
    """An outcome on its way out."""

    job: ClaimedJob
    outcome: Outcome
    device_s: float
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Published:
    """A preview, metric or checkpoint of a job that goes on."""

    job: ClaimedJob
    output: Output
    position: int


@dataclass(frozen=True, slots=True)
class File:
    """An encoded output."""

    role: str
    position: int
    media_type: str
    body: bytes
    sha256: str
    facts: Mapping[str, Any]


@dataclass(slots=True, eq=False)
class Parcel:
    """An outcome or a publication, and what has become of it. One thread at a time has it in hand."""

    item: Finished | Published
    #: bytes that it takes in memory, as far as that is known
    size: int
    #: what is to be encoded and stored
    outputs: Sequence[Output] = ()
    #: its outputs, once they are encoded and until they have their places
    files: Sequence[File] | None = None
    #: where its files lie
    artifacts: list[StoredArtifact] = field(default_factory=list)
    #: objects that have not come to their end
    uploads: int = 0
    #: why it ends in error
    error: JobFailed | None = None
    #: why it could not be stored
    trouble: Unavailable | None = None

    @property
    def calm(self) -> bool:
        """Whether it may wait a moment for others: an outcome of a job that no worker has died with."""
        return isinstance(self.item, Finished) and self.item.job.max_company is None

    @property
    def job(self) -> ClaimedJob:
        """Whose it is."""
        return self.item.job


def parcel(item: Finished | Published) -> Parcel:
    """Of an outcome or a publication, as it is handed over."""
    if isinstance(item, Published):
        return Parcel(item, _size(item.output), (item.output,))
    if isinstance(item.outcome, Failed):
        return Parcel(item, 0, error=item.outcome.error)
    outputs = item.outcome.outputs
    return Parcel(item, sum(map(_size, outputs)), outputs)


def _size(output: Output) -> int:
    return len(output.body) if isinstance(output.body, bytes) else output.size or UNKNOWN_BYTES
