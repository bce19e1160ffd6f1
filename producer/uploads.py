"""Files that jobs are to read: sent to the storage once per content, and known by an id from then on."""

from __future__ import annotations

import hashlib
import mimetypes
import stat
from pathlib import Path

from shared import files
from shared.database import Database
from shared.errors import RequestError
from shared.files import File
from shared.ids import new_file_id
from shared.storage import Storage

#: of a name, so many characters are kept
MAX_NAME = 255
#: a kind of file whose name says nothing
UNKNOWN = "application/octet-stream"


def upload(db: Database, storage: Storage, tenant: str, path: Path) -> File:
    """Store a file for the jobs of a tenant; one whose content is there already is not sent again.

    Raises `RequestError` if it cannot be read or is empty, `Unavailable` if a part does not answer.
    """
    digest = _digest(path)
    known = files.find(db, tenant, digest)
    if known is not None:
        return known
    id_ = new_file_id()
    key = f"{tenant}/files/{id_}"
    files.announce(db, tenant, key)
    media_type = mimetypes.guess_type(path.name)[0] or UNKNOWN
    try:
        stored = storage.put(key, path, media_type=media_type)
    except ValueError as error:
        raise RequestError(f"{path} cannot be read: {error}") from None
    if stored.sha256 != digest:
        raise RequestError(f"{path} changed while it was being uploaded: try again")
    return files.keep(db, tenant, File(id_, key, _shown(path.name), media_type, stored.bytes, digest))


def _digest(path: Path) -> str:
    """SHA-256 of a file. Raises `RequestError`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RequestError(f"{path} is not a file")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            empty = not file.tell()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    if empty:
        raise RequestError(f"{path} is empty")
    return digest


def _shown(name: str) -> str:
    """A name as it can be stored and shown."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)[:MAX_NAME]
