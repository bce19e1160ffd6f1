"""Uploaded files: one per content, there as long as a batch names them, gone with the retention, never half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from producer.gateway import DirectGateway
from producer.uploads import upload
from shared import files as transitions
from shared.database import Database
from shared.errors import NotAllowed, NotFound, RequestError, Unavailable
from shared.garbage import collect
from shared.jobs import NewBatch, abandon_batch, begin_batch
from shared.settings import Settings
from shared.storage import Storage, open_storage
from shared.tables import batch_files, files, objects

TENANT, DAY_S = "default", 86_400.0


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return open_storage(settings)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "hat.png"
    path.write_bytes(b"a picture of a hat")
    return path


def count(db: Database, table: Any) -> int:
    with db.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def aged(db: Database, days: float) -> None:
    """All files, and objects, as if they were older."""
    for table, column in ((files, "used_at"), (objects, "created_at")):
        db.write(lambda c, t=table, n=column: c.execute(update(t).values({n: t.c[n] - days * DAY_S})))


def batch_of(db: Database, name: str, *ids: str) -> str:
    return begin_batch(db, NewBatch(name, TENANT, None, 1, None, "digest", ids))


def test_the_same_content_is_stored_once(db: Database, storage: Storage, photo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other-name.png"
    copy.write_bytes(photo.read_bytes())

    first, second = upload(db, storage, TENANT, photo), upload(db, storage, TENANT, copy)

    assert first == second
    assert (first.name, first.media_type, first.bytes) == ("hat.png", "image/png", len(photo.read_bytes()))
    assert [entry.key for entry in storage.list()] == [first.key]
    assert upload(db, storage, "other", photo).id != first.id


def test_what_came_in_at_the_same_moment_is_one_file(db: Database, storage: Storage, photo: Path) -> None:
    first = upload(db, storage, TENANT, photo)
    late = transitions.File("flate", f"{TENANT}/files/flate", "hat.png", "image/png", first.bytes, first.sha256)
    transitions.announce(db, TENANT, late.key)
    storage.put(late.key, photo, media_type="image/png")

    assert transitions.keep(db, TENANT, late) == first
    assert collect(db, storage) == 1
    assert [entry.key for entry in storage.list()] == [first.key]


@pytest.mark.parametrize(("body", "reason"), [(None, "cannot be read"), (b"", "is empty")])
def test_what_cannot_be_read_is_refused(
    body: bytes | None, reason: str, db: Database, storage: Storage, tmp_path: Path
) -> None:
    path = tmp_path / "hat.png"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(RequestError, match=reason):
        upload(db, storage, TENANT, path)
    with pytest.raises(RequestError, match="is not a file"):
        upload(db, storage, TENANT, tmp_path)
    assert count(db, objects) == 0


def test_an_upload_that_broke_leaves_nothing_for_long(
    db: Database, storage: Storage, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = type(storage).put

    def broken(self: Storage, *args: Any, **more: Any) -> Any:
        put(self, *args, **more)
        raise Unavailable("storage", "here", "the answer was lost")

    monkeypatch.setattr(type(storage), "put", broken)
    with pytest.raises(Unavailable):
        upload(db, storage, TENANT, photo)

    assert collect(db, storage) == 0  # it may be going on
    aged(db, 2)
    assert collect(db, storage) == 1
    assert list(storage.list()) == []


def test_an_upload_that_was_given_up_cannot_be_kept(db: Database, storage: Storage) -> None:
    transitions.announce(db, TENANT, f"{TENANT}/files/fold")
    aged(db, 2)
    collect(db, storage)

    with pytest.raises(NotAllowed, match="upload it again"):
        transitions.keep(db, TENANT, transitions.File("fold", f"{TENANT}/files/fold", "a", "image/png", 1, "0" * 64))


def test_a_file_stays_as_long_as_a_batch_names_it(db: Database, storage: Storage, photo: Path) -> None:
    file = upload(db, storage, TENANT, photo)
    batch = batch_of(db, "b1", file.id)
    aged(db, 30)

    assert transitions.forget_unused(db, DAY_S) == 0
    assert collect(db, storage) == 0

    abandon_batch(db, batch)
    assert transitions.forget_unused(db, 31 * DAY_S) == 0
    assert transitions.forget_unused(db, DAY_S) == 1
    assert collect(db, storage) == 1
    assert (count(db, files), count(db, objects), count(db, batch_files), list(storage.list())) == (0, 0, 0, [])


def test_a_file_that_is_used_again_is_young_again(db: Database, storage: Storage, photo: Path) -> None:
    file = upload(db, storage, TENANT, photo)
    for use in (lambda: upload(db, storage, TENANT, photo), lambda: batch_of(db, "b1", file.id)):
        aged(db, 30)
        use()
        assert transitions.forget_unused(db, DAY_S) == 0


def test_a_batch_cannot_name_a_file_that_is_gone_or_belongs_to_somebody_else(
    db: Database, storage: Storage, photo: Path
) -> None:
    foreign = upload(db, storage, "other", photo)
    for id_ in ("fgone", foreign.id):
        with pytest.raises(NotAllowed, match=f"there is no file:{id_}"):
            batch_of(db, "b1", id_)
    assert count(db, batch_files) == 0


def test_the_gateway_knows_a_tenants_own_files(settings: Settings, photo: Path) -> None:
    gateway = DirectGateway(settings)
    file = gateway.upload(photo)

    assert gateway.file(file.id) == file
    with pytest.raises(NotFound, match="aigc upload"):
        gateway.file("fgone")
    with pytest.raises(NotFound):
        DirectGateway(settings.model_copy(update={"tenant": "other"})).file(file.id)
    assert not gateway.has_output("b0123456789abcdef-1", 0)
