"""Where files lie: keys, and packs of small texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from shared.jobs import ClaimedJob, StoredArtifact
from workers.finisher.parcel import File, Parcel, Published

#: outputs up to this many bytes share one object with their neighbours of the batch
PACK_BELOW = 64 * 1024
#: most texts, and most bytes, that share one
PACK_FILES, PACK_BYTES = 1024, 4 << 20

_PACKED_TYPES = ("text/", "application/json")
_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "text/plain": "txt",
    "application/json": "json",
    "application/x-npy": "npy",
}


@dataclass(slots=True, eq=False)
class Upload:
    """An object on its way to the storage, and the parcels that wait for it."""

    key: str
    tenant_id: str
    body: bytes
    media_type: str
    parcels: Sequence[Parcel]


class Places:
    """Hands out keys that no other worker session uses."""

    def __init__(self, session: str) -> None:
        """`session` is the id of the worker session."""
        self._session = session
        self._packs = itertools.count(1)
        self._publications = itertools.count(1)

    def place(self, parcels: Sequence[Parcel]) -> list[Upload]:
        """The objects that hold the files of these parcels. Each parcel learns where its files lie."""
        uploads: list[Upload] = []
        packs: dict[tuple[str, str], list[tuple[Parcel, File]]] = {}
        for parcel in parcels:
            job = parcel.job
            for file in parcel.files or ():
                if _fits_a_pack(file) and not isinstance(parcel.item, Published):
                    packs.setdefault((job.tenant_id, job.batch_id), []).append((parcel, file))
                else:
                    key = self._own_key(parcel, file)
                    uploads.append(Upload(key, job.tenant_id, file.body, file.media_type, (parcel,)))
                    _put(parcel, file, key, len(file.body), 0)
            parcel.files = None
        for (tenant, batch_id), members in packs.items():
            uploads += [self._pack(tenant, batch_id, part) for part in _parts(members)]
        for upload in uploads:
            for parcel in upload.parcels:
                parcel.uploads += 1
        return uploads

    def _pack(self, tenant: str, batch_id: str, members: Sequence[tuple[Parcel, File]]) -> Upload:
        key = f"{tenant}/{batch_id}/packs/{self._session}-{next(self._packs)}"
        body = b"".join(file.body for _, file in members)
        start = 0
        for parcel, file in members:
            _put(parcel, file, key, len(body), start)
            start += len(file.body)
        return Upload(key, tenant, body, "application/octet-stream", list({id(p): p for p, _ in members}.values()))

    def _own_key(self, parcel: Parcel, file: File) -> str:
        extension = _EXTENSIONS.get(file.media_type, "bin")
        name = f"p{next(self._publications)}" if isinstance(parcel.item, Published) else str(file.position)
        return f"{self._folder(parcel.job)}/{name}.{extension}"

    def _folder(self, job: ClaimedJob) -> str:
        """Tenant, batch, job, epoch and session: what a zombie writes never lands on a winner's object."""
        return f"{job.tenant_id}/{job.batch_id}/{job.id}/{job.epoch}-{self._session}"


def _fits_a_pack(file: File) -> bool:
    return len(file.body) <= PACK_BELOW and file.media_type.startswith(_PACKED_TYPES)


def _parts(members: Sequence[tuple[Parcel, File]]) -> list[list[tuple[Parcel, File]]]:
    """The same in parts that fit into a pack each."""
    parts: list[list[tuple[Parcel, File]]] = [[]]
    size = 0
    for member in members:
        length = len(member[1].body)
        if parts[-1] and (len(parts[-1]) >= PACK_FILES or size + length > PACK_BYTES):
            parts.append([])
            size = 0
        parts[-1].append(member)
        size += length
    return parts


def _put(parcel: Parcel, file: File, key: str, object_bytes: int, start: int) -> None:
    parcel.artifacts.append(
        StoredArtifact(
            object_key=key, object_bytes=object_bytes, role=file.role, position=file.position, start=start,
            bytes=len(file.body), media_type=file.media_type, sha256=file.sha256, facts=file.facts,
        )
    )  # fmt: skip
