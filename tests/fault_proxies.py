"""Proxies that stand before a real server and do to its clients what networks and servers do on a bad day.

`HttpFaultProxy` stands before an S3 server, `TcpFaultProxy` before PostgreSQL. Both listen on 127.0.0.1, run in threads
of this process, pass everything on until they are told otherwise, and count in `injected` what they did, by kind.

    with HttpFaultProxy(swift.endpoint_url) as proxy:
        proxy.script("full", method="PUT")      # the next PUT is answered "507 Insufficient Storage"
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Self, get_args
from urllib.parse import urlsplit

HOST = "127.0.0.1"
#: seconds that a pump waits before it looks whether its connection was cut
_LOOK_S = 0.1

HttpFault = Literal[
    "error",  # 500; the server has seen nothing
    "unavailable",  # 503; the server has seen nothing
    "full",  # 507; the server has seen nothing
    "error-after",  # the server did as asked, the client is told 500
    "lost-answer",  # the server did as asked, and the connection ends without an answer
    "stall",  # no answer before it is released; until then the server has seen nothing
    "slow",  # the server did as asked, the answer drips for `drip_s`
    "corrupt",  # a bit of the body was flipped on the way to the server
    "reset",  # the connection is reset; the server has seen nothing
]

_STATUS: dict[str, tuple[int, str]] = {
    "error": (500, "InternalError"),
    "error-after": (500, "InternalError"),
    "unavailable": (503, "ServiceUnavailable"),
    "full": (507, "InsufficientStorage"),
}


class _Proxy:
    """What both have in common: a listener, a thread per connection, a sure end."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        #: what was done to clients, by kind
        self.injected: Counter[str] = Counter()
        self._guard = threading.Lock()
        self._closed = threading.Event()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, name=f"{type(self).__name__}-{self.port}", daemon=True).start()

    def count(self, kind: str) -> None:
        """Note that a fault was done."""
        with self._guard:
            self.injected[kind] += 1

    def heal(self) -> None:
        """From now on everything passes."""
        raise NotImplementedError

    def close(self) -> None:
        """Listen no more and end every connection."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._guard:
            left = list(self._open)
        for connection in left:
            _reset(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        with self._guard:
            self._open.add(connection)
        try:
            self._serve(connection)
        except (OSError, http.client.HTTPException):
            pass  # one of the ends went away: the other one learns it from the close
        finally:
            with self._guard:
                self._open.discard(connection)
            with suppress(OSError):
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


def _reset(connection: socket.socket) -> None:
    """End a connection as a crash does: the other end gets a reset, and whatever was under way is gone."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # wakes whoever reads from it
    with suppress(OSError):
        connection.close()


# --- HTTP ---


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, read to its end."""

    method: str
    #: path and query as they came
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """The value of a header; empty if it is not there."""
        return next((value for key, value in self.headers if key.lower() == name), "")


@dataclass(slots=True, eq=False)
class Stall:
    """A request that is to stall, or does."""

    #: the request, once there is one
    request: Request | None = None
    hit: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let it go on to the server."""
        self.released.set()


@dataclass(slots=True, eq=False)
class _Scripted:
    fault: HttpFault
    times: int
    method: str | None
    target: str
    stall: Stall


class HttpFaultProxy(_Proxy):
    """Stands before an HTTP server. `Host` is passed on as it came: requests are signed with it."""

    def __init__(self, upstream: str, *, drip_s: float = 1.0) -> None:
        """`upstream` is `http://host:port`; a slow answer takes `drip_s` seconds."""
        parts = urlsplit(upstream)
        assert parts.hostname
        self._upstream = (parts.hostname, parts.port or 80)
        self._drip_s = drip_s
        self._script: list[_Scripted] = []
        self._stalls: set[Stall] = set()
        #: which fault a request meets, if the script has none for it
        self.rule: Callable[[Request], HttpFault | None] | None = None
        super().__init__()

    @property
    def endpoint_url(self) -> str:
        """Where clients find it."""
        return f"http://{HOST}:{self.port}"

    def script(self, fault: HttpFault, *, times: int = 1, method: str | None = None, target: str = "") -> Stall:
        """The next `times` requests of this method whose path and query contain `target` meet the fault.

        Those that stall do so until what is returned here is released.
        """
        assert fault in get_args(HttpFault)
        stall = Stall()
        with self._guard:
            self._script.append(_Scripted(fault, times, method, target, stall))
        return stall

    def heal(self) -> None:
        """From now on everything passes, and what has stalled goes on."""
        with self._guard:
            self._script.clear()
            stalls = list(self._stalls)
        self.rule = None
        for stall in stalls:
            stall.release()

    def close(self) -> None:
        """Listen no more and end every connection, stalled ones too."""
        super().close()
        self.heal()

    def _serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while (request := _read_request(stream.readline, stream.read, connection)) is not None:
                fault, stall = self._fault_for(request)
                if fault is not None:
                    self.count(fault)
                if fault == "stall":
                    self._wait(stall, request)
                if not self._answer(connection, request, fault):
                    return

    def _wait(self, stall: Stall, request: Request) -> None:
        stall.request = request
        with self._guard:
            self._stalls.add(stall)
        stall.hit.set()
        stall.released.wait()
        with self._guard:
            self._stalls.discard(stall)

    def _fault_for(self, request: Request) -> tuple[HttpFault | None, Stall]:
        with self._guard:
            for scripted in self._script:
                if scripted.method in (None, request.method) and scripted.target in request.target:
                    if scripted.fault == "corrupt" and not request.body:
                        continue
                    scripted.times -= 1
                    if scripted.times == 0:
                        self._script.remove(scripted)
                    return scripted.fault, scripted.stall
        rule = self.rule
        fault = rule(request) if rule else None
        return None if fault == "corrupt" and not request.body else fault, Stall()

    def _answer(self, connection: socket.socket, request: Request, fault: HttpFault | None) -> bool:
        """Whether the connection can take another request."""
        if fault == "reset":
            _reset(connection)
            return False
        if self._closed.is_set():
            return False
        if fault in ("error", "unavailable", "full"):
            return _say(connection, *_STATUS[fault], request)
        if fault == "corrupt":
            middle = len(request.body) // 2
            flipped = bytes([request.body[middle] ^ 1])
            body = request.body[:middle] + flipped + request.body[middle + 1 :]
            request = Request(request.method, request.target, request.headers, body)
        try:
            status, head, body = self._ask(request)
        except (OSError, http.client.HTTPException):
            return _say(connection, 502, "BadGateway", request)
        if fault == "lost-answer":
            _reset(connection)
            return False
        if fault == "error-after":
            return _say(connection, *_STATUS[fault], request)
        return self._pass_on(connection, status, head, body, drip=fault == "slow")

    def _ask(self, request: Request) -> tuple[str, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(*self._upstream, timeout=60)
        try:
            upstream.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                if name.lower() not in ("connection", "expect", "transfer-encoding", "content-length"):
                    upstream.putheader(name, value)
            if request.body or request.method in ("PUT", "POST"):
                upstream.putheader("Content-Length", str(len(request.body)))
            upstream.putheader("Connection", "close")
            upstream.endheaders(request.body or None)
            answer = upstream.getresponse()
            body = answer.read()
            head = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
            if request.method != "HEAD" and answer.status not in (204, 304):
                head.append(("Content-Length", str(len(body))))
            elif (length := answer.getheader("Content-Length")) is not None:
                head.append(("Content-Length", length))
            return f"{answer.status} {answer.reason}", head, body
        finally:
            upstream.close()

    def _pass_on(
        self, connection: socket.socket, status: str, head: list[tuple[str, str]], body: bytes, *, drip: bool
    ) -> bool:
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in head)]
        answer = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
        pieces = 20 if drip else 1
        cuts = sorted({round(len(answer) * n / pieces) for n in range(pieces + 1)})
        for start, end in pairwise(cuts):
            if drip and self._closed.wait(self._drip_s / pieces):
                return False
            connection.sendall(answer[start:end])
        return True


_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


def _read_request(line: Callable[[], bytes], read: Callable[[int], bytes], connection: socket.socket) -> Request | None:
    """The next request of a connection; None at its end. A client that waits for "100 Continue" gets it."""
    first = line().decode("latin-1").split()
    if len(first) != 3:
        return None
    headers = []
    while (text := line().decode("latin-1").rstrip("\r\n")) != "":
        name, _, value = text.partition(":")
        headers.append((name, value.strip()))
    request = Request(first[0], first[1], tuple(headers), b"")
    if request.header("expect").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if request.header("transfer-encoding").lower() == "chunked":
        body = b""
        while size := int(line().split(b";")[0], 16):
            body += read(size)
            line()
        line()
    else:
        length = int(request.header("content-length") or 0)
        body = read(length)
        if len(body) < length:
            return None
    return Request(request.method, request.target, request.headers, body)


def _say(connection: socket.socket, status: int, code: str, request: Request) -> bool:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + (b"" if request.method == "HEAD" else body))
    return True


# --- PostgreSQL ---

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104

CutAt = Literal["statement", "commit-before", "commit-after"]


@dataclass(slots=True, eq=False)
class _Link:
    """A connection of a client, and ours to the server in its place."""

    client: socket.socket
    server: socket.socket
    #: whether the server's answers are held back from here on
    mute: bool = False
    #: the server has answered what it was sent while the client was held back
    answered: threading.Event = field(default_factory=threading.Event)
    dead: bool = False

    def cut(self) -> None:
        """Reset both ends."""
        self.dead = True
        self.answered.set()
        _reset(self.client)
        _reset(self.server)


class TcpFaultProxy(_Proxy):
    """Stands before PostgreSQL (without TLS), and knows as much of its protocol as it takes to recognise a COMMIT."""

    def __init__(self, host: str, port: int) -> None:
        """`host` and `port` of the server, which may be away."""
        self._upstream = (host, port)
        self._links: set[_Link] = set()
        self._passing = threading.Event()
        self._passing.set()
        self._delay_s = 0.0
        #: where, and what the transaction must have written
        self._armed: list[tuple[CutAt, bytes]] = []
        super().__init__()

    def url(self, server_url: str) -> str:
        """The URL of a database of the server, through here."""
        return server_url.replace(f"@{self._upstream[0]}:{self._upstream[1]}/", f"@{HOST}:{self.port}/")

    @property
    def connections(self) -> int:
        """How many are open."""
        with self._guard:
            return len(self._links)

    def cut_all(self) -> int:
        """Cut every connection now; returns how many."""
        with self._guard:
            links = list(self._links)
        for link in links:
            link.cut()
        if links:
            self.count("cut")
        return len(links)

    def arm(self, where: CutAt, *, times: int = 1, writing: str = "") -> None:
        """Cut the next connections that come to this point, `times` in all.

        With `writing`, only in a transaction whose statements so far contain this text, such as a table's name.

        `statement`: the server has the whole of a statement that writes, the client gets no answer. `commit-before`:
        the server never sees the COMMIT. `commit-after`: it has committed, and the client does not hear of it.
        """
        with self._guard:
            self._armed += [(where, writing.encode())] * times

    def disarm(self) -> None:
        """Cut nobody any more."""
        with self._guard:
            self._armed.clear()

    def black_hole(self) -> None:
        """From now on nothing passes, and connections stay: new ones are taken, and hear nothing."""
        self._passing.clear()
        self.count("black-hole")

    def slow(self, delay_s: float) -> None:
        """From now on each piece, either way, takes so many seconds longer."""
        self._delay_s = delay_s
        self.count("slow")

    def heal(self) -> None:
        """From now on everything passes; what was held back goes on."""
        self.disarm()
        self._delay_s = 0.0
        self._passing.set()

    def _serve(self, connection: socket.socket) -> None:
        self._wait_until_it_passes(None)
        server = socket.create_connection(self._upstream, timeout=10)
        server.settimeout(None)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(connection, server)
        with self._guard:
            self._links.add(link)
        back = threading.Thread(target=self._answers, args=(link,), daemon=True)
        back.start()
        try:
            self._requests(link)
        finally:
            # The client's end is the server's end: a transaction of a dead client is rolled back at once.
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join()
            server.close()
            with self._guard:
                self._links.discard(link)

    def _wait_until_it_passes(self, link: _Link | None) -> None:
        while not self._passing.wait(_LOOK_S):
            if self._closed.is_set() or (link is not None and link.dead):
                raise ConnectionAbortedError
        if self._delay_s and self._closed.wait(self._delay_s):
            raise ConnectionAbortedError

    def _answers(self, link: _Link) -> None:
        """Server → client, piece by piece."""
        try:
            while data := link.server.recv(65536):
                if link.mute:
                    # ReadyForQuery ends an answer.
                    if data[-6:-1] == b"Z\x00\x00\x00\x05":
                        link.answered.set()
                    continue
                self._wait_until_it_passes(link)
                link.client.sendall(data)
        except OSError:
            pass
        finally:
            link.answered.set()
            with suppress(OSError):
                link.client.shutdown(socket.SHUT_RDWR)

    def _requests(self, link: _Link) -> None:
        """Client → server, message by message."""
        while True:  # TLS or GSS may be asked for first; the server says no, and the same connection goes on
            length = _exactly(link.client, 4)
            packet = _exactly(link.client, struct.unpack("!i", length)[0] - 4)
            self._wait_until_it_passes(link)
            link.server.sendall(length + packet)
            if struct.unpack("!i", packet[:4])[0] not in (_SSL_REQUEST, _GSS_REQUEST):
                break
        verb, transaction = b"", b""
        while True:
            head = _exactly(link.client, 5)
            kind, length = head[:1], struct.unpack("!i", head[1:])[0]
            message = _exactly(link.client, length - 4)
            if kind in (b"Q", b"P"):
                sql = _sql(kind, message)
                verb = sql.split(None, 1)[0].rstrip(b";").upper() if sql.split() else b""
                transaction = b"" if verb in (b"ROLLBACK", b"BEGIN") else transaction[-_REMEMBERED:] + sql
            self._wait_until_it_passes(link)
            # A simple query is a message of its own; an extended one ends with Sync.
            if kind in (b"Q", b"S") and (where := self._cut_here(verb, transaction)):
                self._cut_at(link, where, head + message)
                return
            if verb == b"COMMIT":
                transaction = b""
            link.server.sendall(head + message)

    def _cut_here(self, verb: bytes, transaction: bytes) -> CutAt | None:
        points = _POINTS.get(verb, ())
        with self._guard:
            for where, writing in self._armed:
                if where in points and writing in transaction:
                    self._armed.remove((where, writing))
                    self.injected[where] += 1
                    return where
        return None

    @staticmethod
    def _cut_at(link: _Link, where: CutAt, message: bytes) -> None:
        if where != "commit-before":
            link.mute = True
            link.answered.clear()
            link.server.sendall(message)
        if where == "commit-after":
            link.answered.wait(10)
        link.cut()


_POINTS: dict[bytes, tuple[CutAt, ...]] = {
    b"COMMIT": ("commit-before", "commit-after"),
    **dict.fromkeys((b"INSERT", b"UPDATE", b"DELETE"), ("statement",)),
}


#: bytes of a transaction's statements that are remembered
_REMEMBERED = 1 << 16


def _sql(kind: bytes, message: bytes) -> bytes:
    """The statement in a Query or Parse message."""
    parts = message.split(b"\0")
    return parts[0] if kind == b"Q" else parts[1]


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise ConnectionAbortedError
        data += piece
    return data
