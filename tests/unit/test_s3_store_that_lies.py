"""What becomes of an S3 store that is full, slow, damaged or ignorant: a small one that answers as it is told."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import ipaddress
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from shared.errors import ObjectMissing, StorageFull, Unavailable
from shared.settings import Settings
from shared.storage import Storage, open_storage


class Answer(NamedTuple):
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


class Store:
    """Keeps objects by path. A test hooks into `before`: an answer of its own instead of the honest one."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.before: Callable[[str, str], Answer | None] = lambda _method, _path: None
        self.ranges = True
        self.etag: Callable[[bytes], str] = lambda body: hashlib.md5(body).hexdigest()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.requests.append((method, path, headers))
        instead = self.before(method, path)
        if instead is not None:
            return instead
        if method == "PUT":
            self.objects.setdefault(path, body)
            return Answer(headers={"ETag": f'"{self.etag(body)}"'})
        if method == "DELETE":
            self.objects.pop(path, None)
            return Answer(204)
        if path not in self.objects:
            return refusal(404, "NoSuchKey")
        content = self.objects[path]
        if self.ranges and "range" in headers:
            first, last = headers["range"].removeprefix("bytes=").split("-")
            return Answer(206, content[int(first) : int(last) + 1 if last else None])
        return Answer(body=content)


def refusal(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>because</Message></Error>".encode())


@pytest.fixture
def store() -> Store:
    return Store()


def serve(store: Store, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # without it the client waits a second for "100 Continue"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = store.answer(self.command, self.path.partition("?")[0], headers, body)
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_PUT = do_DELETE = handle_any  # noqa: N815  what the base class looks for

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def endpoint(store: Store) -> Iterator[str]:
    yield from serve(store)


def settings(endpoint: str, **values: object) -> Settings:
    return Settings(
        _env_file=None,
        store_url="s3://bucket/p",
        s3_endpoint_url=endpoint,
        s3_access_key_id="key",
        s3_secret_access_key="secret",
        **values,
    )


@pytest.fixture
def storage(endpoint: str) -> Storage:
    return open_storage(settings(endpoint))


def put(storage: Storage, content: bytes = b"content") -> None:
    storage.put("a", content, media_type="text/plain")


def test_requests_are_such_as_every_store_understands(storage: Storage, store: Store) -> None:
    put(storage)

    ((method, path, headers),) = store.requests
    assert (method, path) == ("PUT", "/bucket/p/a")
    assert headers["content-md5"]
    assert headers["content-type"] == "text/plain"
    assert not [name for name in headers if "checksum" in name or name.startswith("if-") or "trailer" in name]
    assert "aws-chunked" not in headers.get("content-encoding", "")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(507),
        refusal(507, "XMinioStorageFull"),
        refusal(403, "QuotaExceeded"),
        refusal(400, "XMinioAdminBucketQuotaExceeded"),
    ],
)
def test_a_full_store_is_told_as_such(storage: Storage, store: Store, answer: Answer) -> None:
    store.before = lambda *_: answer

    with pytest.raises(StorageFull, match=r"no room left.*quota"):
        put(storage)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusal(403, "AccessDenied"), "refuses us access.*delete and list"),
        (Answer(403), "refuses us access"),
        (refusal(403, "RequestTimeTooSkewed"), "clock"),
        (refusal(400, "ExpiredToken"), "expired"),
        (refusal(400, "AuthorizationHeaderMalformed"), "AIGC_S3_REGION"),
        (refusal(404, "NoSuchBucket"), "no bucket 'bucket'.*AIGC_STORE_URL"),
        (Answer(413, b"<html>Request Entity Too Large</html>"), "refuses a request of this size.*proxy"),
        (refusal(400, "SomethingNew"), "SomethingNew, status 400"),
        (Answer(404, b"<html>no S3 here</html>"), "no bucket"),
    ],
)
def test_a_refusal_says_what_to_do(storage: Storage, store: Store, answer: Answer, said: str) -> None:
    store.before = lambda *_: answer

    with pytest.raises(Unavailable, match=said):
        put(storage)


def test_a_failure_that_passes_is_tried_again(storage: Storage, store: Store) -> None:
    answers = [refusal(503, "SlowDown"), refusal(500, "InternalError")]
    store.before = lambda *_: answers.pop() if answers else None

    put(storage)

    assert [method for method, *_ in store.requests] == ["PUT"] * 3
    assert store.objects == {"/bucket/p/a": b"content"}


def test_a_failure_that_stays_is_told(storage: Storage, store: Store) -> None:
    store.before = lambda *_: refusal(503, "SlowDown")
    began = time.monotonic()

    with pytest.raises(Unavailable, match=r"overloaded or failing.*SlowDown"):
        put(storage)

    assert len(store.requests) == 5
    assert time.monotonic() - began < 30


def test_an_etag_that_is_no_md5_is_fine_if_the_content_is(storage: Storage, store: Store) -> None:
    store.etag = lambda _: "opaque"

    put(storage)

    assert [method for method, *_ in store.requests] == ["PUT", "GET"]


@pytest.mark.parametrize("kept", [b"c0ntent", b"conten", b"", None])
def test_an_object_that_is_not_what_was_sent_is_not_accepted(
    storage: Storage, store: Store, kept: bytes | None
) -> None:
    store.etag = lambda _: "opaque"
    if kept is not None:
        store.objects["/bucket/p/a"] = kept
    else:
        store.before = lambda method, _: Answer(headers={"ETag": '"opaque"'}) if method == "PUT" else None

    with pytest.raises(Unavailable, match="holds something else"):
        put(storage)

    assert store.objects == {}


def test_check_finds_a_store_that_forgets(storage: Storage, store: Store) -> None:
    store.before = lambda method, _: Answer(headers={"ETag": '"opaque"'}) if method == "PUT" else None

    with pytest.raises(Unavailable, match="something else"):
        storage.check()


@pytest.mark.parametrize(("start", "length"), [(0, 3), (4, 3), (4, None), (10, None), (50, 2), (3, 0)])
def test_a_store_that_ignores_ranges_gives_the_right_bytes_still(
    storage: Storage, store: Store, start: int, length: int | None
) -> None:
    store.ranges = False
    store.objects["/bucket/p/a"] = b"0123456789"

    with storage.open("a", start=start, length=length) as stream:
        assert stream.read() == b"0123456789"[start : None if length is None else start + length]


def test_a_transfer_that_breaks_is_an_error_and_no_end_of_file(storage: Storage, store: Store) -> None:
    store.before = lambda *_: Answer(200, b"x" * 1000, {"Content-Length": "5000", "Connection": "close"})

    with storage.open("a") as stream, pytest.raises(Unavailable, match=r"broke|early"):
        stream.read()
    with storage.open("a") as stream, pytest.raises(Unavailable, match=r"broke|early"):
        shutil.copyfileobj(stream, io.BytesIO(), 100)


def test_a_missing_object_is_not_a_missing_store(storage: Storage, store: Store) -> None:
    with pytest.raises(ObjectMissing):
        storage.open("a")
    store.before = lambda *_: refusal(404, "NoSuchBucket")
    with pytest.raises(Unavailable):
        storage.open("a")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, and a certificate for 127.0.0.1 that it signed itself, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls_endpoint(store: Store, certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from serve(store, context)


def test_a_certificate_is_trusted_only_if_the_settings_say_so(tls_endpoint: str, certificate: Path) -> None:
    with pytest.raises(Unavailable, match=r"certificate is not trusted.*AIGC_S3_CA"):
        put(open_storage(settings(tls_endpoint)))

    put(open_storage(settings(tls_endpoint, s3_ca=certificate)))


def test_without_credentials_it_says_so(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    nobody = settings(endpoint).model_copy(update={"s3_access_key_id": None, "s3_secret_access_key": None})

    for call in (lambda: put(open_storage(nobody)), lambda: open_storage(nobody).link("a", expires_s=60)):
        with pytest.raises(Unavailable, match=r"no credentials.*AIGC_S3_ACCESS_KEY_ID"):
            call()
