"""What a folder promises beyond `test_storage`: crashes, full and vanished disks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_storage import keys, put, read

from shared.errors import ObjectMissing, StorageFull, Unavailable
from shared.settings import Settings
from shared.storage import Storage, open_storage


@pytest.fixture
def folder(settings_for_folder: Settings) -> Storage:
    return open_storage(settings_for_folder)


class TestFolder:
    def test_more_than_a_thousand_objects(self, folder: Storage, tmp_path: Path) -> None:
        there = sorted(f"j/{number % 7}/{number}" for number in range(1_200))
        for key in there:  # as files: a thousand waits for the disk would prove no more
            path = tmp_path / "store" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

        assert keys(folder) == there

    def test_a_link_opens_the_file(self, folder: Storage) -> None:
        put(folder, "a/b.txt", b"text")

        with urllib.request.urlopen(folder.link("a/b.txt", expires_s=60, download_name="b.txt")) as answer:
            assert answer.read() == b"text"

    def test_its_place_may_have_any_name(self, tmp_path: Path) -> None:
        place = tmp_path / "a b" / "ü#%20"
        storage = open_storage(Settings(_env_file=None, store_url=place.as_uri()))
        put(storage, "x")

        assert (place / "x").read_bytes() == b"content"
        assert storage.url == place.as_uri()

    def test_folders_that_become_empty_go(self, folder: Storage, tmp_path: Path) -> None:
        put(folder, "a/b/c/d")
        put(folder, "a/e")
        folder.delete("a/b/c/d")

        assert [path.name for path in (tmp_path / "store" / "a").iterdir()] == ["e"]

    def test_a_put_beside_deletes_of_the_same_folder_succeeds(self, folder: Storage) -> None:
        def work(name: int) -> None:
            for _ in range(60):
                put(folder, f"a/b/{name}", b"x")
                folder.delete(f"a/b/{name}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert keys(folder) == []

    def test_a_key_that_is_the_folder_of_another_is_our_defect(self, folder: Storage) -> None:
        put(folder, "a/b")
        put(folder, "c")
        for key in ("a", "c/d", "c/d/e"):
            with pytest.raises(ValueError, match="folder of another"):
                put(folder, key)
        assert keys(folder) == ["a/b", "c"]

    def test_a_full_disk_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with small_disk(tmp_path / "disk", monkeypatch) as (place, relieve):
            storage = open_storage(Settings(_env_file=None, store_url=(place / "store").as_uri()))
            with pytest.raises(StorageFull, match="No space"):
                put(storage, "a/b", b"x" * 2_000_000)
            assert keys(storage) == []
            assert list((place / "store" / "~incoming").iterdir()) == []

            relieve()
            put(storage, "a/b", b"small")
            assert read(storage, "a/b") == b"small"

    @pytest.mark.parametrize(
        ("number", "kind", "said"),
        [
            (errno.EDQUOT, StorageFull, "quota of the user"),
            (errno.EACCES, Unavailable, "Let the user that runs this write there"),
            (errno.EROFS, Unavailable, "mounted read-only"),
            (errno.EIO, Unavailable, "Look at the disk"),
        ],
    )
    def test_a_disk_that_refuses_is_told(
        self, folder: Storage, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Unavailable], said: str
    ) -> None:
        def refuse(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(kind, match=said) as caught:
            put(folder, "a")
        assert type(caught.value) is kind
        assert keys(folder) == []

    def test_a_crash_before_the_rename_leaves_nothing_listed(self, folder: Storage, tmp_path: Path) -> None:
        script = (
            "import os, pathlib, signal, sys\n"
            "from shared.storage.folder import FolderStorage\n"
            "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "FolderStorage(pathlib.Path(sys.argv[1])).put('a/b', b'half', media_type='text/plain')\n"
        )
        place = tmp_path / "store"
        ended = subprocess.run([sys.executable, "-c", script, str(place)], check=False)

        assert ended.returncode == -signal.SIGKILL
        (left,) = (place / "~incoming").iterdir()
        assert left.read_bytes() == b"half"
        assert keys(folder) == []
        with pytest.raises(ObjectMissing):
            folder.open("a/b")

        two_days_ago = time.time() - 2 * 24 * 3600
        os.utime(left, (two_days_ago, two_days_ago))
        open_storage(Settings(_env_file=None, store_url=place.as_uri()))
        assert not left.exists()

    def test_nothing_half_written_is_ever_seen(self, folder: Storage) -> None:
        done = threading.Event()

        def write() -> None:
            for number in range(60):
                put(folder, "a", bytes([number]) * 200_000)
            done.set()

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            while not done.is_set() and not writing.done():
                for entry in folder.list():
                    content = read(folder, entry.key)
                    assert (entry.bytes, len(content), len(set(content))) == (200_000, 200_000, 1)
            writing.result()

    def test_a_folder_that_cannot_be_made_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        for place in (tmp_path / "file", tmp_path / "file" / "store"):
            with pytest.raises(Unavailable, match="AIGC_STORE_URL") as caught:
                open_storage(Settings(_env_file=None, store_url=place.as_uri()))
            assert caught.value.part == "storage"
            assert caught.value.address == place.as_uri()

    def test_a_disk_that_is_gone_is_not_an_empty_storage(self, folder: Storage, tmp_path: Path) -> None:
        put(folder, "a")
        (tmp_path / "store").rename(tmp_path / "away")
        (tmp_path / "store").mkdir()
        calls: list[Callable[[], object]] = [
            lambda: folder.open("a"),
            lambda: keys(folder),
            lambda: put(folder, "a"),
            lambda: folder.delete("a"),
            folder.check,
        ]
        for call in calls:
            with pytest.raises(Unavailable, match="mounted"):
                call()

    def test_a_folder_that_is_gone_is_not_made_anew_where_something_was_stored(self, tmp_path: Path) -> None:
        settings = Settings(_env_file=None, data_dir=tmp_path / "data")
        with pytest.raises(Unavailable, match=r"the folder is not there\. Is its disk mounted\?"):
            open_storage(settings, create=False)
        assert list(tmp_path.iterdir()) == []

        put(open_storage(settings), "a")
        assert read(open_storage(settings, create=False), "a") == b"content"
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


@contextmanager
def small_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A disk of 512 KiB where we may mount one; elsewhere one that says so when asked to keep something."""
    place.mkdir()
    mount = shutil.which("mount") if os.geteuid() == 0 else None
    command = [str(mount), "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if mount and subprocess.run(command, check=False, capture_output=True).returncode == 0:
        try:
            yield place, lambda: None
        finally:
            subprocess.run(["umount", str(place)], check=True)
        return

    def full(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        yield place, patch.undo
