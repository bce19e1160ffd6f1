"""Where outputs are kept: one small port, and behind it two storages, a folder and anything that speaks S3.

Importing this module is cheap; boto3 is loaded when an `s3://` address is opened.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from shared.errors import ObjectMissing, RequestError, Unavailable
from shared.settings import Settings, without_password

#: the reason of `Unavailable` where a folder is missing that was not to be made
FOLDER_MISSING = "the folder is not there"

_SEGMENT = r"[A-Za-z0-9._-]{1,255}"
_KEY = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_PREFIX = re.compile(rf"({_SEGMENT}/)*([A-Za-z0-9._-]{{0,255}})")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was stored."""

    key: str
    #: size
    bytes: int
    #: SHA-256 of the content, 64 lower-case hexadecimal digits
    sha256: str


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing shows it."""

    key: str
    #: size
    bytes: int
    #: when it was last written, in seconds since the epoch, by the clock of the storage
    modified: float


class Storage(Protocol):
    """A place for objects, each a run of bytes under a key. Safe to share between threads.

    Keys are made by the server, never by users: relative, `/` between segments of `[A-Za-z0-9._-]`, no
    segment `.` or `..`, at most 512 characters, 255 a segment. No key may be the folder of another (`a`
    beside `a/b`). A key that breaks this is a defect of ours: `ValueError`.

    Every method may raise `Unavailable` (it does not answer, refuses us, or broke the transfer; trying again
    may work) and nothing else from the outside world: no exception of the file system or of a client library.
    `put` raises its subclass `StorageFull` where there is no room.
    """

    @property
    def url(self) -> str:
        """Where this is, fit to be shown."""
        ...

    def put(self, key: str, source: bytes | Path, *, media_type: str) -> StoredObject:
        """Store a content under `key`, in place of what was there before.

        When it returns, the object is durable and is what was sent. When it raises, nothing half-written is
        visible or listed; whether the object exists is open only where the answer of the storage was lost. A
        file is streamed: memory does not grow with it. A folder keeps no media type.

        Raises `StorageFull`; `ValueError` if the file `source` cannot be read.
        """
        ...

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> BinaryIO:
        """Read `length` bytes from byte `start` on (None: to the end), as far as the object has them.

        Like a slice, a range beyond the end is short or empty, no error. Close the stream (`with`). Reading
        from it raises `Unavailable` if the transfer breaks: it never just ends early. Raises `ObjectMissing`.
        """
        ...

    def link(self, key: str, *, expires_s: int, download_name: str | None = None, media_type: str | None = None) -> str:
        """An address from which a browser or `curl` can fetch the object without knowing any secret.

        It holds for `expires_s` seconds, 1 to 604800 (a week); made without a look whether the object exists.
        `download_name` and `media_type` are what the one who fetches is told. A folder gives a `file://`
        address, which does not expire, tells neither, and is of use only where that folder is mounted.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; that there is none is fine."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key begins with these characters (not: this folder), in byte order of the keys.

        Streamed. Objects written or deleted meanwhile may be seen or not; what is not ours is left out.
        """
        ...

    def clear_unfinished(self, older_than_s: float) -> int:
        """Remove what uploads have left behind that were begun longer ago and never came to an end; returns how many.

        They are no objects, are not listed, and may take room. An upload that is cut off so fails as if its transfer
        broke, so the age has to be beyond any upload's time. A store that cannot tell of them has none: 0.
        """
        ...

    def check(self) -> None:
        """Prove that writing, reading and deleting work, with one small object under `probe/`."""
        ...


def open_storage(settings: Settings, *, create: bool = True) -> Storage:
    """The storage that the settings name. A missing folder is made if `create`; S3 is not spoken to yet.

    Where objects have been stored, a folder that is missing is a disk that is gone: open it without `create`.

    Raises `RequestError` if the address or the S3 settings make no sense, `Unavailable` if a folder cannot be
    used.
    """
    url = settings.storage_url
    shown = without_password(url)
    if url.lower().startswith("s3:") and "@" in url:
        raise RequestError(
            "AIGC_STORE_URL: a key does not belong into the address; "
            "set AIGC_S3_ACCESS_KEY_ID and AIGC_S3_SECRET_ACCESS_KEY"
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise RequestError(
            f"AIGC_STORE_URL: {error} in {shown!r}: write file:///folder or s3://bucket/prefix"
        ) from None
    if parts.query or parts.fragment:
        raise RequestError(f"AIGC_STORE_URL: nothing may follow ? or # in {shown!r}")
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            raise RequestError(f"AIGC_STORE_URL: write file:///absolute/folder, with three slashes, not {shown!r}")
        from shared.storage.folder import FolderStorage

        root = Path(url2pathname(parts.path))
        if create and root.is_relative_to(settings.data_dir):
            with suppress(OSError):  # the storage says why, in its words
                settings.make_data_dir()
        return FolderStorage(root, create=create)
    if parts.scheme == "s3":
        prefix = parts.path.strip("/")
        if not _BUCKET.fullmatch(parts.netloc):
            raise RequestError(f"AIGC_STORE_URL: write s3://bucket/prefix with the name of a bucket, not {shown!r}")
        if prefix and (not is_key(prefix) or len(prefix) > 400):
            raise RequestError(f"AIGC_STORE_URL: a prefix has up to 400 of A-Z a-z 0-9 . _ - /, unlike {prefix!r}")
        from shared.storage.s3 import S3Storage

        return S3Storage(settings, bucket=parts.netloc, prefix=prefix)
    raise RequestError(f"AIGC_STORE_URL: write file:///folder or s3://bucket/prefix, not {shown!r}")


def is_key(text: str) -> bool:
    """Whether this may be the key of an object, as `Storage` defines it."""
    return len(text) <= 512 and _KEY.fullmatch(text) is not None and not _has_dots(text)


def checked_key(key: str) -> str:
    """The same key; raises `ValueError` if it is none."""
    if not is_key(key):
        raise ValueError(f"not a key of an object: {key!r}")
    return key


def checked_prefix(prefix: str) -> str:
    """The same beginning of a key, empty included; raises `ValueError` if no key can begin so."""
    if len(prefix) > 512 or not _PREFIX.fullmatch(prefix) or _has_dots(prefix.rpartition("/")[0]):
        raise ValueError(f"no key begins with {prefix!r}")
    return prefix


def checked_range(start: int, length: int | None) -> None:
    """Raises `ValueError` if no bytes can be named so."""
    if start < 0 or (length is not None and length < 0):
        raise ValueError(f"not a range of bytes: start {start}, length {length}")


def checked_expiry(expires_s: int) -> int:
    """The same number of seconds; raises `ValueError` if no link may hold that long."""
    if not 1 <= expires_s <= 604_800:
        raise ValueError(f"a link holds for 1 to 604800 seconds, not {expires_s}")
    return expires_s


def prove(storage: Storage, address: str) -> None:
    """Write, read and delete one small object; what `Storage.check` promises."""
    key, content = f"probe/{uuid.uuid4().hex}", b"written to see whether the storage works"
    storage.put(key, content, media_type="text/plain")
    try:
        with storage.open(key) as stream:
            same = stream.read() == content
    except ObjectMissing:
        same = False
    storage.delete(key)
    if not same:
        raise Unavailable(
            part="storage",
            address=address,
            reason="what was just written does not come back",
            advice="Look at the storage itself before anything is entrusted to it",
        )


def _has_dots(path: str) -> bool:
    return any(segment in {".", ".."} for segment in path.split("/"))
