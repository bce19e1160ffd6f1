"""A storage in a folder: of one machine, or mounted on all of them.

An object is a file at its key. It is written to `~incoming` first, a name that no key can have, and moved
into place once it is on the disk; so nothing half-written ever stands where objects are read or listed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shared.errors import ObjectMissing, StorageFull, Unavailable
from shared.storage import (
    FOLDER_MISSING,
    ObjectInfo,
    StoredObject,
    checked_expiry,
    checked_key,
    checked_prefix,
    checked_range,
    is_key,
    prove,
)
from shared.storage.reader import RangeReader

_INCOMING = "~incoming"
#: a file in `~incoming` that nobody has written to for so long is what a crash left
_ABANDONED_S = 24 * 3600
_CHUNK = 1 << 20
_MOST_KEPT = 10_000


class FolderStorage:
    """Objects as files below `root`."""

    def __init__(self, root: Path, *, create: bool = True) -> None:
        """A missing `root` is made if `create`. Raises `Unavailable`."""
        self._root = root
        self._incoming = root / _INCOMING
        #: folders that are known to be on the disk: waiting for it is most of the cost of a `put`
        self._kept: set[Path] = set()
        try:
            if not create:
                self._refuse_if_missing()
            missing = [path for path in (self._incoming, *self._incoming.parents) if not path.exists()]
            self._incoming.mkdir(parents=True, exist_ok=True)
            for path in missing:
                with suppress(PermissionError):  # a parent that we may use and not read
                    _sync_folder(path.parent)
            self._drop_abandoned(_ABANDONED_S)
        except OSError as error:
            raise self._explain(error) from error

    @property
    def url(self) -> str:
        """`file://` and the folder."""
        return self._root.as_uri()

    def put(self, key: str, source: bytes | Path, *, media_type: str) -> StoredObject:
        """See `Storage.put`. On a full disk or after a crash the object is as it was before, or absent."""
        target = self._root / checked_key(key)
        incoming = self._incoming / uuid.uuid4().hex
        reader = _opened(source)
        try:
            with reader:
                size, sha256 = _write(reader, incoming)
            self._move_into_place(incoming, target)
        except OSError as error:
            with suppress(OSError):
                incoming.unlink(missing_ok=True)
            if error.errno in {errno.EISDIR, errno.ENOTDIR, errno.EEXIST} and self._incoming.is_dir():
                raise ValueError(f"a key cannot be the folder of another: {key!r}") from error
            raise self._explain(error) from error
        except BaseException:
            with suppress(OSError):
                incoming.unlink(missing_ok=True)
            raise
        return StoredObject(key=key, bytes=size, sha256=sha256)

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> BinaryIO:
        """See `Storage.open`."""
        path = self._root / checked_key(key)
        checked_range(start, length)
        try:
            file = path.open("rb", buffering=0)
            there = max(0, os.fstat(file.fileno()).st_size - start)
            file.seek(start)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            self._refuse_if_gone()
            raise ObjectMissing(f"storage at {self.url}: there is no object {key}") from error
        except OSError as error:
            raise self._explain(error) from error
        wanted = there if length is None else min(there, length)
        return io.BufferedReader(RangeReader(file.read, file.close, wanted, self._explain), 128 << 10)

    def link(
        self,
        key: str,
        *,
        expires_s: int,
        download_name: str | None = None,
        media_type: str | None = None,
    ) -> str:
        """See `Storage.link`: the path as an address. It does not expire."""
        checked_expiry(expires_s)
        return (self._root / checked_key(key)).as_uri()

    def delete(self, key: str) -> None:
        """See `Storage.delete`. Folders that become empty go as well."""
        path = self._root / checked_key(key)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._refuse_if_gone()
        except OSError as error:
            if not path.is_dir():
                raise self._explain(error) from error
        for folder in _folders(path, self._root):
            try:
                folder.rmdir()
            except OSError:
                break  # not empty, or somebody else removed it

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.list`. Holds the names of one folder at a time in memory."""
        checked_prefix(prefix)
        try:
            self._refuse_if_gone()
            yield from self._walk(prefix.rpartition("/")[0], prefix)
        except OSError as error:
            raise self._explain(error) from error

    def clear_unfinished(self, older_than_s: float) -> int:
        """See `Storage.clear_unfinished`: files in `~incoming` that nobody has written to for so long."""
        try:
            return self._drop_abandoned(older_than_s)
        except OSError as error:
            raise self._explain(error) from error

    def check(self) -> None:
        """See `Storage.check`."""
        prove(self, self.url)

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        """The objects below one folder of the root, in the order of their keys."""
        try:
            with os.scandir(self._root / folder) as entries:
                # A folder sorts as if its name ended in "/", as its keys do: "a-1", "a/b", "a0".
                named = sorted((e.name + "/" if e.is_dir(follow_symlinks=False) else e.name) for e in entries)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in named:
            key = f"{folder}/{name}" if folder else name
            if not key.startswith(prefix) or not is_key(key.removesuffix("/")):
                continue
            if key.endswith("/"):
                yield from self._walk(key.removesuffix("/"), prefix)
                continue
            with suppress(FileNotFoundError):
                facts = (self._root / key).stat()
                yield ObjectInfo(key=key, bytes=facts.st_size, modified=facts.st_mtime)

    def _move_into_place(self, incoming: Path, target: Path) -> None:
        """Rename, making the folders of the target, and keep all of that over a loss of power."""
        for attempt in range(10):
            try:
                self._make_folders(target)
                incoming.replace(target)
                break
            except FileNotFoundError:  # a `delete` beside us has just removed the empty folder
                if attempt == 9:
                    raise
        fresh = [folder for folder in _folders(target, self._root) if folder not in self._kept]
        for folder in {target.parent, *(folder.parent for folder in fresh)}:
            with suppress(FileNotFoundError):
                _sync_folder(folder)
        if len(self._kept) > _MOST_KEPT:
            self._kept.clear()
        self._kept.update(fresh)

    def _make_folders(self, target: Path) -> None:
        for folder in reversed(list(_folders(target, self._root))):
            with suppress(FileExistsError):
                folder.mkdir()
                self._kept.discard(folder)

    def _drop_abandoned(self, older_than_s: float) -> int:
        oldest, dropped = time.time() - older_than_s, 0
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    dropped += 1
        return dropped

    def _refuse_if_missing(self) -> None:
        try:
            self._root.stat()
        except FileNotFoundError:
            advice = "Is its disk mounted? If it is to begin anew, make the folder"
            raise Unavailable("storage", self.url, FOLDER_MISSING, advice) from None

    def _refuse_if_gone(self) -> None:
        """An unmounted disk must not look like an empty storage; `~incoming` tells them apart."""
        try:
            self._incoming.stat()
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> Unavailable:
        number = error.errno if isinstance(error, OSError) else None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        kind, advice = _ADVICE.get(number or 0, (Unavailable, "Look at the disk or the mount; then try again"))
        return kind(part="storage", address=self.url, reason=reason, advice=advice)


_ADVICE: dict[int, tuple[type[Unavailable], str]] = {
    errno.ENOSPC: (StorageFull, "Make room on that disk, or point AIGC_STORE_URL elsewhere"),
    errno.EDQUOT: (StorageFull, "Raise the disk quota of the user that runs this, or make room"),
    errno.EACCES: (Unavailable, "Let the user that runs this write there, or point AIGC_STORE_URL elsewhere"),
    errno.EPERM: (Unavailable, "Let the user that runs this write there, or point AIGC_STORE_URL elsewhere"),
    errno.EROFS: (
        Unavailable,
        "That disk is mounted read-only; mount it for writing, or point AIGC_STORE_URL elsewhere",
    ),
    errno.ENOTDIR: (
        Unavailable,
        "A file stands where a folder has to be; move it, or point AIGC_STORE_URL elsewhere",
    ),
    errno.EEXIST: (
        Unavailable,
        "A file stands where a folder has to be; move it, or point AIGC_STORE_URL elsewhere",
    ),
    errno.ENOENT: (Unavailable, "The folder of the storage is gone; is its disk still mounted?"),
    errno.ESTALE: (Unavailable, "The network mount has gone stale; mount it again"),
}


def _folders(path: Path, root: Path) -> Iterator[Path]:
    """The folders between `path` and `root`, innermost first, neither of the two included."""
    folder = path.parent
    while folder != root:
        yield folder
        folder = folder.parent


def _opened(source: bytes | Path) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read {source}: {error.strerror}") from error


def _write(reader: BinaryIO, path: Path) -> tuple[int, str]:
    """Copy to a new file and wait for the disk. Gives size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb", buffering=0) as file:
        while chunk := _read(reader):
            digest.update(chunk)
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
            size += len(chunk)
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _read(reader: BinaryIO) -> bytes:
    try:
        return reader.read(_CHUNK)
    except OSError as error:
        raise ValueError(f"cannot read the source: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
