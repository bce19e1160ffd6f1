"""The outputs of jobs: what they are called, and their content, checked against what the worker recorded."""

from __future__ import annotations

import hashlib
import re
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

from producer.records import ArtifactRecord, JobRecord
from shared.errors import AigcError, ObjectMissing, Unavailable

if TYPE_CHECKING:
    from producer.gateway import Gateway
    from producer.results import Downloaded

R = TypeVar("R")

#: larger texts and JSON become files
INLINE_MOST = 1 << 20
#: bytes of packs that are kept while the jobs in them go by; a longer run of one is read artifact by artifact
PACKS_MOST = 8 << 20
#: pauses before a broken transfer is tried again
PAUSES_S = (0.5, 2.0)

_EXTENSIONS = {
    "image/png": "png", "image/jpeg": "jpg", "image/jpg": "jpg", "image/webp": "webp", "image/gif": "gif",
    "image/avif": "avif", "image/tiff": "tif", "image/svg+xml": "svg",
    "audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/flac": "flac", "audio/ogg": "ogg",
    "audio/opus": "opus", "text/vtt": "vtt", "application/x-subrip": "srt",
    "audio/mp4": "m4a", "audio/aac": "aac", "audio/webm": "weba",
    "video/mp4": "mp4", "video/webm": "webm", "video/quicktime": "mov", "video/x-matroska": "mkv",
    "application/json": "json", "application/jsonl": "jsonl", "application/x-ndjson": "jsonl", "application/zip": "zip",
    "application/x-safetensors": "safetensors", "application/x-npy": "npy", "application/gzip": "gz",
    "application/x-tar": "tar", "application/pdf": "pdf", "model/gltf-binary": "glb",
}  # fmt: skip


class DamagedOutput(AigcError):
    """An output cannot be had: the storage has lost it, or holds something else than what the worker stored."""

    exit_status = 3

    def __init__(self, message: str, downloaded: Downloaded | None = None) -> None:
        super().__init__(message)
        #: what could be had all the same
        self.downloaded = downloaded


def result_artifacts(job: JobRecord) -> list[ArtifactRecord]:
    """What belongs to a job's result: nothing before it has succeeded, and never a checkpoint."""
    return [a for a in job.artifacts if a.role != "checkpoint"] if job.status == "succeeded" else []


def outputs(job: JobRecord) -> list[ArtifactRecord]:
    """The artifacts that a download fetches, in order."""
    found = [a for a in result_artifacts(job) if a.role == "output"]
    return sorted(found, key=lambda a: a.position) if len(found) > 1 else found


def file_name(job: JobRecord, artifact: ArtifactRecord) -> str:
    """`000017-ad-17.png`, and `000017-ad-17-2.png` if the job has several outputs.

    The line number makes it one-to-one within a batch, so the custom id is only decoration: at most 40 of `a-z 0-9 -`.
    """
    plain = unicodedata.normalize("NFKD", job.custom_id[:400]).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].rstrip("-")
    position = str(artifact.position) if len(outputs(job)) > 1 else ""
    kind = _kind(artifact.media_type)
    extension = _EXTENSIONS.get(kind, "txt" if kind.startswith("text/") else "bin")
    return "-".join(part for part in (f"{job.line:06}", slug, position) if part) + f".{extension}"


def _kind(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()


def inline_as(artifact: ArtifactRecord) -> Literal["text", "data"] | None:
    """Whether its content stands inside the line, and under which key."""
    return _inline_as(artifact.media_type) if artifact.bytes <= INLINE_MOST else None


@lru_cache(maxsize=1000)
def _inline_as(media_type: str) -> Literal["text", "data"] | None:
    kind = _kind(media_type)
    if kind.startswith("text/") and kind not in _EXTENSIONS:
        return "text"
    return "data" if kind == "application/json" else None


class Contents:
    """Reads small outputs whole. A run of a pack is read once for all jobs of a page that lie in it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        #: per pack, the bytes that the jobs of this page need: from, to
        self._runs: dict[str, tuple[int, int]] = {}
        #: per pack, where the run begins and its bytes; the one used last stands last
        self._kept: OrderedDict[str, tuple[int, bytes]] = OrderedDict()

    def expect(self, page: Sequence[JobRecord]) -> None:
        """Say which jobs come next."""
        self._runs.clear()
        self._kept.clear()
        for job in page:
            for a in outputs(job):
                if "/packs/" in a.key and inline_as(a):
                    first, last = self._runs.get(a.key, (a.start, a.start))
                    self._runs[a.key] = min(first, a.start), max(last, a.start + a.bytes)

    def read(self, job: JobRecord, artifact: ArtifactRecord) -> bytes:
        """The content of an output, checked."""
        first, last = self._runs.get(artifact.key, (0, 0))
        if artifact.bytes < last - first <= PACKS_MOST:
            start, run = self._run(job, artifact, first, last)
            body = run[artifact.start - start :][: artifact.bytes]
        else:
            body = self._whole(job, artifact)
        check(job, artifact, len(body), hashlib.sha256(body).hexdigest())
        return body

    def _run(self, job: JobRecord, artifact: ArtifactRecord, first: int, last: int) -> tuple[int, bytes]:
        if artifact.key not in self._kept:
            kept = sum(len(run) for _, run in self._kept.values())
            while self._kept and kept + last - first > PACKS_MOST:
                key, (_, run) = self._kept.popitem(last=False)
                kept -= len(run)
                del self._runs[key]  # it did not fit beside the others: not read as a whole over and over
            self._kept[artifact.key] = first, self._whole(job, replace(artifact, start=first, bytes=last - first))
        self._kept.move_to_end(artifact.key)
        return self._kept[artifact.key]

    def _whole(self, job: JobRecord, artifact: ArtifactRecord) -> bytes:
        def read() -> bytes:
            with opened(self._gateway, job, artifact) as stream:
                return stream.read(artifact.bytes + 1)

        return insist(read)


def insist(read: Callable[[], R]) -> R:
    """Read from the storage, again if the transfer breaks."""
    for pause in PAUSES_S:
        try:
            return read()
        except Unavailable as error:
            if error.part != "storage":
                raise
            time.sleep(pause)
    return read()


@contextmanager
def opened(gateway: Gateway, job: JobRecord, artifact: ArtifactRecord) -> Iterator[BinaryIO]:
    """The content as a stream; `DamagedOutput` if it is gone."""
    try:
        stream = gateway.open(artifact)
    except ObjectMissing as error:
        raise DamagedOutput(f"{_named(job, artifact)}: the storage has no such object any more") from error
    with stream:
        yield stream


def check(job: JobRecord, artifact: ArtifactRecord, size: int, sha256: str) -> None:
    """Raise `DamagedOutput` unless size and checksum are those that the worker recorded."""
    if (size, sha256) != (artifact.bytes, artifact.sha256):
        found = f"{size} bytes instead of {artifact.bytes}" if size != artifact.bytes else f"sha256 {sha256[:12]}…"
        raise DamagedOutput(
            f"{_named(job, artifact)}: the storage holds something else than what was stored ({found}); "
            "submit the job again to have it made anew"
        )


def _named(job: JobRecord, artifact: ArtifactRecord) -> str:
    return f"job {job.id} ({job.custom_id[:60]!r}), {artifact.role} {artifact.position}"
