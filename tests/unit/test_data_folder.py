"""The data folder: any name will do, it is its owner's alone, and a full disk under it is told in a sentence."""

from __future__ import annotations

import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from producer import up
from producer.embedded_redis import EmbeddedRedis
from producer.spool import fill_spool
from shared.database import Database
from shared.errors import RequestError, Unavailable
from shared.jobs import nothing_stored_yet
from shared.settings import Settings, load_settings
from shared.storage import open_storage
from shared.tables import objects

ODD = 'a?b=c %41 #1 "quoted" \'n ü'


def settings_in(folder: Path) -> Settings:
    return Settings(_env_file=None, data_dir=folder)


def test_a_data_folder_may_have_any_name(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / ODD)
    database = Database(settings)
    database.prepare()
    assert nothing_stored_yet(database)
    open_storage(settings).check()

    row = {"key": "a", "tenant_id": "t", "worker_session": "w", "state": "intended", "created_at": 0.0}
    database.write(lambda connection: connection.execute(insert(objects), row))
    assert nothing_stored_yet(database)
    database.write(lambda connection: connection.execute(update(objects).values(state="stored")))
    assert not nothing_stored_yet(database)

    assert [path.name for path in tmp_path.iterdir()] == [ODD]
    assert {"aigc.db", "store"} <= {path.name for path in (tmp_path / ODD).iterdir()}


def test_the_embedded_redis_starts_in_a_folder_of_any_name(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / ODD)
    settings.run_dir.mkdir(parents=True)
    redis = EmbeddedRedis(settings)
    try:
        redis.start()
        assert settings.broker_url == redis.url
    finally:
        redis.stop()


ECHO = {"task": "echo", "params": {"message": "hi"}}
MAKERS: dict[str, Callable[[Settings], object]] = {
    "database": lambda settings: Database(settings).prepare(),
    "spool": lambda settings: fill_spool([(1, ECHO)], settings.spool_dir).file.close(),
    "storage": open_storage,
    "up": lambda settings: up._lock(settings).close(),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_whoever_makes_the_data_folder_makes_it_for_its_owner_alone(maker: str, tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "data")
    MAKERS[maker](settings)
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700

    settings.data_dir.chmod(0o755)
    settings.make_data_dir()
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o755


def test_a_full_disk_under_up_is_a_sentence(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.run_dir.mkdir()
    for name in ("processes.json", "redis.tmp"):
        (settings.run_dir / name).symlink_to("/dev/full")
    supervisor = up.Up.__new__(up.Up)
    supervisor._settings, supervisor._workers, supervisor._redis = settings, None, None
    redis = EmbeddedRedis(settings)
    try:
        for call in (supervisor._note_processes, redis.start):
            with pytest.raises(Unavailable, match=r"cannot be written: No space left on device\. free some space"):
                call()
    finally:
        redis.stop()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # /dev/full cannot be truncated, as a lock is
    try:
        with pytest.raises(Unavailable, match=r"cannot be written: File too large\. free some space"):
            up._lock(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    up._lock(settings).close()


def test_no_home_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(RequestError, match="there is no home folder: set AIGC_DATA_DIR"):
        load_settings(_env_file=None)
