"""What S3 promises beyond `test_storage`: links, prefixes, and errors that say what to mend."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest
from pydantic import SecretStr
from servers import free_port
from swift_server import SwiftServer
from test_storage import keys, put, read

from shared.errors import RequestError, Unavailable
from shared.settings import Settings
from shared.storage import Storage, open_storage

pytestmark = pytest.mark.s3


def changed(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update=values)


class TestS3:
    def test_a_listing_goes_over_many_pages(self, settings_for_s3: Settings, swift_server: SwiftServer) -> None:
        from shared.storage.s3 import S3Storage

        bucket = swift_server.new_bucket()
        storage = S3Storage(settings_for_s3, bucket=bucket, page=7)
        there = sorted(f"j/{number}" for number in range(24))
        for key in there:
            put(storage, key, b"")

        assert keys(storage) == there
        assert [entry.key for entry in itertools.islice(storage.list(), 3)] == there[:3]

    def test_a_prefix_is_a_world_of_its_own(self, settings_for_s3: Settings) -> None:
        bucket = str(settings_for_s3.store_url).removeprefix("s3://").partition("/")[0]
        inner, beside, whole = (
            open_storage(changed(settings_for_s3, store_url=f"s3://{bucket}{end}")) for end in ("/p", "/p2", "")
        )
        put(inner, "a", b"inner")
        put(beside, "a", b"beside")

        assert (keys(inner), keys(beside), keys(whole)) == (["a"], ["a"], ["p/a", "p2/a"])
        assert read(whole, "p/a") == b"inner"

    def test_a_link_is_good_for_the_one_object_alone(self, settings_for_s3: Settings) -> None:
        storage = open_storage(settings_for_s3)
        storage.put("mine.png", b"picture", media_type="image/png")
        storage.put("mine.pnh", b"not yours", media_type="image/png")

        link = storage.link("mine.png", expires_s=60)
        with urllib.request.urlopen(link) as answer:
            assert answer.read() == b"picture"
            assert answer.headers["Content-Type"] == "image/png"
        assert status(link.replace("mine.png", "mine.pnh")) == 403
        assert status(link.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")) == 403
        assert status(link[:-1] + ("0" if link[-1] != "0" else "1")) == 403
        assert settings_for_s3.s3_secret_access_key is not None
        assert settings_for_s3.s3_secret_access_key.get_secret_value() not in link

    def test_a_link_says_name_and_type(self, settings_for_s3: Settings) -> None:
        storage = open_storage(settings_for_s3)
        put(storage, "a")

        link = storage.link("a", expires_s=60, download_name='Tür/"1"\r\n.png', media_type="image/png")
        with urllib.request.urlopen(link) as answer:
            assert answer.headers["Content-Type"] == "image/png"
            assert answer.headers["Content-Disposition"] == (
                "attachment; filename=\"T_r__1___.png\"; filename*=UTF-8''T%C3%BCr%2F%221%22%0D%0A.png"
            )

    def test_a_link_expires(self, settings_for_s3: Settings) -> None:
        storage = open_storage(settings_for_s3)
        put(storage, "a")
        link = storage.link("a", expires_s=2)
        deadline = time.monotonic() + 10

        assert status(link) == 200
        while status(link) != 403:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    @pytest.mark.parametrize("expires_s", [0, -1, 604_801])
    def test_a_link_may_not_hold_for_ever(self, settings_for_s3: Settings, expires_s: int) -> None:
        with pytest.raises(ValueError, match="604800"):
            open_storage(settings_for_s3).link("a", expires_s=expires_s)

    def test_links_lead_to_the_public_endpoint(self, settings_for_s3: Settings) -> None:
        storage = open_storage(changed(settings_for_s3, s3_public_endpoint_url="https://media.example.org"))

        assert storage.link("a", expires_s=60).startswith("https://media.example.org/test-")

    def test_an_upload_that_breaks_off_leaves_nothing(
        self, settings_for_s3: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from shared.storage import s3

        path = tmp_path / "big"
        path.write_bytes(b"x" * (12 << 20))
        monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
        pieces = iter([b"x" * (5 << 20), b"", OSError(errno.EIO, os.strerror(errno.EIO))])

        class Reader:
            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None: ...

            def read(self, _: int) -> bytes:
                piece = next(pieces)
                if isinstance(piece, OSError):
                    raise piece
                return piece

        monkeypatch.setattr(s3, "_opened", lambda _: Reader())
        storage = open_storage(settings_for_s3)
        with pytest.raises(ValueError, match="cannot read the source"):
            put(storage, "a", path)

        assert keys(storage) == []
        assert isinstance(storage, s3.S3Storage)
        unfinished = storage._client.list_multipart_uploads(Bucket=storage._bucket)
        assert unfinished.get("Uploads", []) == []

    def test_what_is_stored_survives_a_restart(self, settings_for_s3: Settings, swift_server: SwiftServer) -> None:
        storage = open_storage(settings_for_s3)
        put(storage, "a", b"kept")
        swift_server.stop()
        try:
            with pytest.raises(Unavailable, match="nobody listens"):
                put(storage, "b")
        finally:
            swift_server.start()

        assert read(storage, "a") == b"kept"
        assert keys(storage) == ["a"]


class TestUnfinishedUploads:
    def test_those_of_a_neighbour_are_left_alone(self, settings_for_s3: Settings) -> None:
        bucket = str(settings_for_s3.store_url).removeprefix("s3://").partition("/")[0]
        ours, beside = (
            open_storage(changed(settings_for_s3, store_url=f"s3://{bucket}{end}")) for end in ("/p", "/p2")
        )
        for storage in (ours, beside):
            for number in range(3):
                begin_upload(storage, f"t/{number}")

        assert ours.clear_unfinished(-10) == 3
        assert ours.clear_unfinished(-10) == 0
        assert beside.clear_unfinished(-10) == 3

    @pytest.mark.parametrize(("code", "name"), [(501, "NotImplemented"), (405, "MethodNotAllowed"), (501, "")])
    def test_a_store_that_does_not_know_of_them_has_none(self, code: int, name: str) -> None:
        with answering(code, name) as endpoint:
            assert elsewhere(endpoint).clear_unfinished(0) == 0

    def test_a_store_that_refuses_to_tell_is_trouble(self) -> None:
        with answering(403, "AccessDenied") as endpoint, pytest.raises(Unavailable, match="refuses us access"):
            elsewhere(endpoint).clear_unfinished(0)


def begin_upload(storage: Storage, key: str) -> None:
    from shared.storage.s3 import S3Storage

    assert isinstance(storage, S3Storage)
    storage._client.create_multipart_upload(Bucket=storage._bucket, Key=storage._under + key)


def elsewhere(endpoint: str) -> Storage:
    return open_storage(
        Settings(
            _env_file=None,
            store_url="s3://bucket/p",
            s3_endpoint_url=endpoint,
            s3_access_key_id="key",
            s3_secret_access_key=SecretStr("secret"),
        )
    )


@contextmanager
def answering(status_code: int, name: str) -> Iterator[str]:
    """A server that gives every request this one answer."""
    body = f"<Error><Code>{name}</Code><Message>because</Message></Error>".encode() if name else b""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status_code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class TestWhatAnOperatorGetsWrong:
    """Each mistake has its own reason and advice, comes soon, and repeats no secret."""

    SECRET = "not-the-right-secret-7f3a"

    @pytest.mark.parametrize(
        ("values", "reason", "advice"),
        [
            (
                {"s3_secret_access_key": SecretStr(SECRET)},
                "access key or its secret is wrong",
                "AIGC_S3_SECRET_ACCESS_KEY",
            ),
            ({"s3_access_key_id": "test:nobody"}, "access key", "AIGC_S3_ACCESS_KEY_ID"),
            ({"store_url": "s3://no-such-bucket-here/p"}, "no bucket 'no-such-bucket-here'", "AIGC_STORE_URL"),
            ({"s3_endpoint_url": f"http://127.0.0.1:{free_port()}"}, "nobody listens", "AIGC_S3_ENDPOINT_URL"),
            ({"s3_endpoint_url": "http://no-such-host.invalid"}, "host name is not known", "AIGC_S3_ENDPOINT_URL"),
        ],
        ids=["wrong-secret", "unknown-key", "no-bucket", "nobody-listens", "unknown-host"],
    )
    def test_it_is_told(self, settings_for_s3: Settings, values: dict[str, object], reason: str, advice: str) -> None:
        storage = open_storage(changed(settings_for_s3, **values))
        calls: list[Callable[[], object]] = [
            storage.check,
            lambda: put(storage, "a"),
            lambda: storage.open("a"),
            lambda: storage.open("a", length=0),
            lambda: storage.delete("a"),
            lambda: keys(storage),
            lambda: storage.clear_unfinished(0),
        ]
        for call in calls:
            began = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                call()
            assert time.monotonic() - began < 10
            told = caught.value
            assert reason in told.reason
            assert advice in told.advice
            assert told.part == "storage"
            assert told.address.startswith("s3://")
            everything = "".join(traceback.format_exception(told))
            assert self.SECRET not in everything

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"store_url": "http://host/bucket"}, "file:///folder or s3://bucket"),
            ({"store_url": "/data/store"}, "file:///folder or s3://bucket"),
            ({"store_url": "file://store"}, "three slashes"),
            ({"store_url": "s3:///prefix"}, "name of a bucket"),
            ({"store_url": "s3://bucket/a?b=c"}, "nothing may follow"),
            ({"store_url": "s3://bucket/../a"}, "a prefix has"),
            ({"store_url": f"s3://key:{SECRET}@bucket/a"}, "AIGC_S3_SECRET_ACCESS_KEY"),
            ({"store_url": f"ftp://key:{SECRET}@bucket/a"}, "file:///folder or s3://bucket"),
            ({"s3_secret_access_key": None}, "or neither"),
            ({"s3_endpoint_url": "127.0.0.1:9000"}, "http://host:port"),
            ({"s3_endpoint_url": f"http://key:{SECRET}@host"}, "http://host:port"),
            ({"s3_public_endpoint_url": "media.example.org"}, "http://host:port"),
            ({"s3_ca": Path("no-such-ca.pem")}, "AIGC_S3_CA"),
        ],
    )
    def test_settings_that_make_no_sense(self, settings_for_s3: Settings, values: dict[str, object], said: str) -> None:
        with pytest.raises(RequestError, match=said) as caught:
            open_storage(changed(settings_for_s3, **values))
        assert self.SECRET not in "".join(traceback.format_exception(caught.value))


def status(link: str) -> int:
    try:
        with urllib.request.urlopen(link) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
