"""An address that a user wrote is fetched, and leads nowhere else."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from shared.errors import JobFailed
from workers.inputs import web
from workers.inputs.web import fetch

BODY = b"a picture" * 1000


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        kind = self.path.rpartition("/")[2].partition("?")[0]
        if kind.isdigit():
            self.send_response(int(kind))
            self.send_header("Location", "https://127.0.0.1/secret")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"0" * 65536)
        elif kind in ("trickle", "slow-head"):
            self.send_response(200)
            if kind == "trickle":
                self.end_headers()
            with suppress(OSError):
                while not self.server.over.wait(0.05):  # type: ignore[attr-defined]
                    self.wfile.write(b"0")
        elif kind == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[:100])
            self.connection.close()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[http.server.ThreadingHTTPServer]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.daemon_threads = True
    made.asked = []  # type: ignore[attr-defined]
    made.over = threading.Event()  # type: ignore[attr-defined]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("pictures.example").configure_cert(context)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.over.set()  # type: ignore[attr-defined]
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def get(
    server: http.server.ThreadingHTTPServer, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., bytes]:
    """Fetch a path of the server under a public name; the address behind it is taken for a public one."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    lookup = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: lookup("127.0.0.1", *more, **named))
    monkeypatch.setattr(web, "_is_public", lambda address: True)

    def get(path: str, *, host: str = "pictures.example", most: int = 10**6) -> bytes:
        fetch(f"https://{host}:{server.server_address[1]}{path}", tmp_path / "content", most_bytes=most)
        return (tmp_path / "content").read_bytes()

    return get


def failed(call: Callable[[], object]) -> JobFailed:
    with pytest.raises(JobFailed) as error:
        call()
    return error.value


def test_a_file_is_fetched_under_the_name_that_was_asked_for(get: Callable[..., bytes], server: Any) -> None:
    assert get("/a b/ü.png?size=2&x=%20y") == BODY
    [(path, headers)] = server.asked
    assert path == "/a%20b/%C3%BC.png?size=2&x=%20y"
    assert headers["Host"].startswith("pictures.example:")
    assert {name.lower() for name in headers} == {"host", "user-agent", "accept-encoding"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(get: Callable[..., bytes], server: Any, status: int) -> None:
    error = failed(lambda: get(f"/{status}"))

    assert (error.code, error.retryable) == ("input_refused", False)
    assert "https://127.0.0.1/secret" in error.message
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [(404, "input_not_found", False), (410, "input_not_found", False), (403, "input_refused", False),
     (429, "input_unreachable", True), (503, "input_unreachable", True)],
)  # fmt: skip
def test_what_a_server_answers_decides_whether_it_is_tried_again(
    get: Callable[..., bytes], status: int, code: str, retryable: bool
) -> None:
    error = failed(lambda: get(f"/{status}"))
    assert (error.code, error.retryable) == (code, retryable)


def test_an_answer_without_end_ends_at_the_cap(get: Callable[..., bytes]) -> None:
    assert failed(lambda: get("/endless", most=3 * 10**6)).code == "input_too_big"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("path", ["/trickle", "/slow-head"])
def test_an_answer_that_trickles_in_holds_nobody_up(
    get: Callable[..., bytes], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "WHOLE_S", 0.5)
    error = failed(lambda: get(path))
    assert (error.code, error.retryable) == ("input_unreachable", True)
    assert "took more than" in error.message


def test_an_answer_that_is_cut_off_is_tried_again(get: Callable[..., bytes]) -> None:
    error = failed(lambda: get("/cut"))
    assert (error.code, error.retryable) == ("input_unreachable", True)


def test_a_certificate_for_another_name_is_not_trusted(get: Callable[..., bytes]) -> None:
    assert failed(lambda: get("/a", host="other.example")).code == "input_refused"


def test_a_server_that_hangs_up_is_tried_again(get: Callable[..., bytes], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:

        def hang_up() -> None:
            connection, _ = busy.accept()
            connection.recv(65536)
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        url = f"https://pictures.example:{busy.getsockname()[1]}/a"
        error = failed(lambda: fetch(url, tmp_path / "content", most_bytes=10**6))
    assert (error.code, error.retryable) == ("input_unreachable", True)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
     "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1"],
)  # fmt: skip
def test_a_name_that_leads_into_a_private_network_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = [(family, socket.SOCK_STREAM, 6, "", (each, 443)) for each in ("93.184.216.34", address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("nobody is to be connected to"))

    error = failed(lambda: fetch("https://pictures.example/a", tmp_path / "content", most_bytes=10**6))

    assert (error.code, error.retryable) == ("input_refused", False)
    assert "AIGC_FETCH_HOSTS" in error.message


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"])
def test_public_addresses_are_public(address: str) -> None:
    assert web._is_public(address)


def test_the_operator_may_let_a_private_host_be_fetched(
    get: Callable[..., bytes], server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(web, "_is_public", lambda address: False)
    url = f"https://pictures.example:{server.server_address[1]}/a"

    assert failed(lambda: fetch(url, tmp_path / "content", most_bytes=10**6)).code == "input_refused"
    assert fetch(url, tmp_path / "content", most_bytes=10**6, private_hosts=("*.example",)) == len(BODY)


@pytest.mark.parametrize("url", ["http://pictures.example/a", "https://", "https://[::1/a", "file:///etc/passwd"])
def test_only_https_addresses_are_fetched(url: str, tmp_path: Path) -> None:
    assert failed(lambda: fetch(url, tmp_path / "content", most_bytes=10**6)).code == "input_refused"
