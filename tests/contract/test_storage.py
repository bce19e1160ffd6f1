"""What every storage promises, asked of a folder and of a real S3 server."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.errors import ObjectMissing, Unavailable
from shared.storage import Storage, StoredObject, open_storage

KINDS = ["settings_for_folder", pytest.param("settings_for_s3", marks=pytest.mark.s3)]


@pytest.fixture(params=KINDS, ids=["folder", "s3"])
def storage(request: pytest.FixtureRequest) -> Storage:
    return open_storage(request.getfixturevalue(request.param))


def put(storage: Storage, key: str, source: bytes | Path = b"content") -> StoredObject:
    return storage.put(key, source, media_type="application/octet-stream")


def read(storage: Storage, key: str, start: int = 0, length: int | None = None) -> bytes:
    with storage.open(key, start=start, length=length) as stream:
        return stream.read()


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [entry.key for entry in storage.list(prefix)]


class TestPutAndOpen:
    @pytest.mark.parametrize("content", [b"some bytes \x00\xff", b"", b"x" * 300_000])
    def test_what_was_put_comes_back(self, storage: Storage, content: bytes) -> None:
        stored = put(storage, "tenant/job/a.bin", content)

        assert stored == StoredObject("tenant/job/a.bin", len(content), hashlib.sha256(content).hexdigest())
        assert read(storage, "tenant/job/a.bin") == content

    @pytest.mark.parametrize("size", [0, 1000, 5 << 20, (10 << 20) + 1, 20_000_000])
    def test_a_file_is_put_whatever_its_size(
        self, storage: Storage, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if size < 20_000_000:  # the last one runs with the sizes that are in force
            monkeypatch.setattr("shared.storage.s3.PART_BYTES", 5 << 20)
        content = os.urandom(size)
        path = tmp_path / "video.mp4"
        path.write_bytes(content)

        stored = storage.put("v.mp4", path, media_type="video/mp4")

        assert (stored.bytes, stored.sha256) == (size, hashlib.sha256(content).hexdigest())
        assert read(storage, "v.mp4") == content
        assert [entry.bytes for entry in storage.list()] == [size]
        boundary = 16 << 20
        assert read(storage, "v.mp4", boundary - 5, 10) == content[boundary - 5 : boundary + 5]
        assert path.read_bytes() == content

    def test_a_range_is_like_a_slice(self, storage: Storage) -> None:
        put(storage, "pack", b"0123456789")
        put(storage, "empty", b"")

        for start, length in (
            (0, 4), (3, 4), (3, None), (0, 10), (9, 1), (9, 99), (10, None), (10, 1), (500, 7), (0, 0), (4, 0), (99, 0),
        ):  # fmt: skip
            expected = b"0123456789"[start : None if length is None else start + length]
            assert read(storage, "pack", start, length) == expected, (start, length)
            assert read(storage, "empty", start, length) == b"", (start, length)

    def test_a_stream_can_be_read_in_pieces_and_left_early(self, storage: Storage) -> None:
        content = os.urandom(400_000)
        put(storage, "a", content)

        with storage.open("a", start=10, length=300_000) as stream:
            assert stream.read(7) + stream.read(250_000) == content[10:250_017]
        assert stream.closed

    def test_the_later_put_wins(self, storage: Storage) -> None:
        put(storage, "a", b"first, and longer")
        put(storage, "a", b"second")

        assert read(storage, "a") == b"second"
        assert keys(storage) == ["a"]

    @pytest.mark.parametrize(("start", "length"), [(0, None), (3, 2), (0, 0)])
    def test_a_missing_object_is_told_as_such(self, storage: Storage, start: int, length: int | None) -> None:
        put(storage, "there/is", b"one")

        for key in ("no/such", "there", "there/is/none", "there/isnt"):
            with pytest.raises(ObjectMissing, match=key):
                storage.open(key, start=start, length=length)

    def test_a_source_that_cannot_be_read_is_our_defect_and_stores_nothing(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="cannot read"):
            put(storage, "a", tmp_path / "absent")
        with pytest.raises(ValueError, match="cannot read"):
            put(storage, "a", tmp_path)
        assert keys(storage) == []

    def test_eight_threads_put_at_once(self, storage: Storage) -> None:
        contents = {f"t/{number % 4}/{number}": os.urandom(50_000 + number) for number in range(40)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda item: put(storage, *item), contents.items()))
            list(pool.map(lambda number: put(storage, "t/same", bytes([number]) * 70_000), range(8)))

        assert {key: read(storage, key) for key in contents} == contents
        assert len(set(read(storage, "t/same"))) == 1
        assert keys(storage) == sorted([*contents, "t/same"])

    def test_a_bad_key_is_our_defect(self, storage: Storage) -> None:
        for key in (
            "", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/./b", "ä", "a b", "a\\b", "a\n", "~incoming/x", "a%2e",
            "x" * 513, "x" * 256, "a\x00",
        ):  # fmt: skip
            with pytest.raises(ValueError, match="not a key"):
                put(storage, key)
            with pytest.raises(ValueError, match="not a key"):
                storage.open(key)
            with pytest.raises(ValueError, match="not a key"):
                storage.delete(key)
            with pytest.raises(ValueError, match="not a key"):
                storage.link(key, expires_s=60)

    def test_the_longest_key_and_odd_ones_work(self, storage: Storage) -> None:
        odd = ["/".join(["x" * 127] * 4), "a..b/...", "-/_/.hidden"]
        for key in odd:
            put(storage, key, key.encode())

        assert keys(storage) == sorted(odd)
        assert [read(storage, key) for key in odd] == [key.encode() for key in odd]

    def test_a_bad_range_is_our_defect(self, storage: Storage) -> None:
        for start, length in ((-1, None), (0, -1)):
            with pytest.raises(ValueError, match="not a range"):
                storage.open("a", start=start, length=length)


class TestDeleteAndList:
    def test_delete_may_be_repeated(self, storage: Storage) -> None:
        put(storage, "a/b")
        put(storage, "a/c")

        for _ in range(2):
            storage.delete("a/b")
            storage.delete("never/was")
        storage.delete("a")  # a folder is no object

        assert keys(storage) == ["a/c"]

    def test_list_gives_what_begins_with_the_prefix_in_order(self, storage: Storage) -> None:
        before = time.time()
        there = ["a-1", "a.b", "a/b", "a/b.c", "a/bc/d", "a/c", "a0", "b/a"]
        for key in reversed(there):
            put(storage, key, key.encode())

        for prefix in ("", "a", "a/", "a/b", "a/b.", "a/bc/", "a/bc/d", "b/a", "c", "a/b/", "a/bc/d/", "a/bc/de"):
            assert keys(storage, prefix) == [key for key in there if key.startswith(prefix)], prefix
        entry = next(iter(storage.list("a/bc")))
        assert entry.bytes == len("a/bc/d")
        assert before - 5 < entry.modified < time.time() + 5

    def test_a_prefix_that_no_key_has_is_our_defect(self, storage: Storage) -> None:
        for prefix in ("/", "/a", "a//", "../a", "a/../b", "ä", "~"):
            with pytest.raises(ValueError, match="no key begins"):
                keys(storage, prefix)
        assert keys(storage, "..") == []  # "..a" is a key

    def test_objects_may_go_while_they_are_listed(self, storage: Storage) -> None:
        for number in range(20):
            put(storage, f"a/{number:02}")

        for entry in storage.list():
            storage.delete(entry.key)

        assert keys(storage) == []

    def test_check_leaves_nothing_behind(self, storage: Storage) -> None:
        storage.check()

        assert keys(storage) == []


class Cut(Exception):
    """The process that uploads is killed."""


class TestUnfinished:
    """What an upload leaves behind that was cut off, so that nobody could clean up after it."""

    @pytest.fixture(params=KINDS, ids=["folder", "s3"])
    def cut_off(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Storage:
        storage = open_storage(request.getfixturevalue(request.param))
        put(storage, "t/whole", b"whole")
        with monkeypatch.context() as patched:
            if request.param == "settings_for_folder":
                from shared.storage import folder

                patched.setattr(folder.FolderStorage, "_move_into_place", raising(Cut))
                patched.setattr(Path, "unlink", raising(OSError))
            else:
                from shared.storage.s3 import S3Storage

                patched.setattr("shared.storage.s3.PART_BYTES", 5 << 20)
                assert isinstance(storage, S3Storage)
                patched.setattr(storage._client, "complete_multipart_upload", raising(Cut))
                patched.setattr(storage._client, "abort_multipart_upload", raising(Cut))
            with pytest.raises(Cut):
                put(storage, "t/half", os.urandom(6 << 20))
        return storage

    def test_it_is_no_object_and_goes_when_it_is_old_enough(self, cut_off: Storage) -> None:
        assert keys(cut_off) == ["t/whole"]
        assert cut_off.clear_unfinished(3600) == 0, "somebody may be at it"
        assert cut_off.clear_unfinished(-10) == 1
        assert cut_off.clear_unfinished(-10) == 0
        assert read(cut_off, "t/whole") == b"whole"

    def test_an_upload_that_is_cut_off_so_fails_and_leaves_nothing(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Given a clean-up that is far too eager: the one who uploads learns that it did not work."""
        monkeypatch.setattr("shared.storage.s3.PART_BYTES", 5 << 20)
        if not hasattr(storage, "_client"):
            make_folders = storage._make_folders  # type: ignore[attr-defined]

            def clear_first(target: Path) -> None:
                storage.clear_unfinished(-10)
                make_folders(target)

            monkeypatch.setattr(storage, "_make_folders", clear_first)
        else:
            complete = storage._client.complete_multipart_upload

            def clear_first(**asked: object) -> object:
                storage.clear_unfinished(-10)
                return complete(**asked)

            monkeypatch.setattr(storage._client, "complete_multipart_upload", clear_first)
        with pytest.raises(Unavailable):
            put(storage, "t/big", os.urandom(6 << 20))
        monkeypatch.undo()
        assert keys(storage) == []
        assert storage.clear_unfinished(-10) == 0


def raising(error: type[Exception]) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_importing_the_port_is_cheap() -> None:
    script = "import sys, shared.storage; sys.exit(any(name in sys.modules for name in ('boto3', 'botocore')))"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
