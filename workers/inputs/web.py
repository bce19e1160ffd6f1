"""Fetching an address that a user wrote, without being led anywhere else: not into the operator's own network.

The host is resolved once and every address of it has to be a public one; the connection goes to the address that was
looked at, under the name that was asked for. No redirects, no cookies, a cap on bytes and on time.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote, urlsplit

import urllib3

from shared.errors import JobFailed

#: seconds to connect, between two pieces, and in all
CONNECT_S, READ_S, WHOLE_S = 5.0, 30.0, 300.0
PIECE = 1 << 20
#: what a server says about itself for now
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({404, 410})


class _Cut:
    """Cuts connections that were begun too long ago, whoever waits for what trickles in from them."""

    def __init__(self) -> None:
        self._at = time.monotonic() + WHOLE_S
        self._begun: list[tuple[threading.Timer, socket.socket]] = []

    def watch(self, connection: socket.socket) -> None:
        """From now on."""
        same = connection.dup()  # TLS takes the first one away
        timer = threading.Timer(max(0.0, self._at - time.monotonic()), _shut, (same,))
        timer.daemon = True
        self._begun.append((timer, same))
        timer.start()

    def require_time(self, url: str) -> None:
        """Raise `JobFailed` if there is none left: a connection that was cut may look like one that has ended."""
        if time.monotonic() >= self._at:
            raise JobFailed("input_unreachable", f"{url} took more than {WHOLE_S:.0f} s", retryable=True)

    def close(self) -> None:
        """Cut nothing any more."""
        for timer, same in self._begun:
            timer.cancel()
            same.close()


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Connection(urllib3.connection.HTTPSConnection):
    cut: _Cut

    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        self.cut.watch(made)
        return made


def fetch(url: str, into: Path, *, most_bytes: int, private_hosts: Collection[str] = ()) -> int:
    """Write what an https address holds into a file; returns its bytes.

    Hosts that match one of `private_hosts` may be at any address. Raises `JobFailed`: `input_refused` (an address that
    may not be fetched, a redirect, a refusal), `input_not_found`, `input_too_big`; `input_unreachable`, retryable.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port or 443
    except (ValueError, UnicodeError):
        raise JobFailed("input_refused", f"{url} is no address") from None
    if parts.scheme != "https" or not host:
        raise JobFailed("input_refused", f"{url}: only https:// addresses are fetched")
    cut = _Cut()
    address = _resolved(host, port, anywhere=any(fnmatchcase(host, pattern) for pattern in private_hosts))
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=-._~") + (f"?{parts.query}" if parts.query else "")
    named = host if port == 443 else f"{host}:{port}"
    pool = urllib3.HTTPSConnectionPool(
        address, port, server_hostname=host, assert_hostname=host, ssl_context=ssl.create_default_context(), maxsize=1,
        timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S), retries=False,
    )  # fmt: skip
    pool.ConnectionCls = type("_Watched", (_Connection,), {"cut": cut})
    try:
        response = pool.urlopen(
            "GET", target, headers={"Host": named, "User-Agent": "aigc", "Accept-Encoding": "identity"},
            redirect=False, preload_content=False, assert_same_host=False,
        )  # fmt: skip
        try:
            _require_content(url, response.status, response.headers.get("Location"))
            return _save(url, response.stream(PIECE), into, most_bytes, cut)
        finally:
            response.close()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        cut.require_time(url)
        if isinstance(error, urllib3.exceptions.SSLError) and not _is_broken_off(error):
            raise JobFailed("input_refused", f"{url}: its certificate is not trusted: {error}") from None
        raise JobFailed("input_unreachable", f"{url}: {type(error).__name__}: {error}", retryable=True) from None
    finally:
        pool.close()
        cut.close()


def _is_broken_off(error: urllib3.exceptions.SSLError) -> bool:
    """Whether TLS came to an end before anything was said of the certificate."""
    return any(isinstance(each, ssl.SSLError) and not isinstance(each, ssl.CertificateError) for each in error.args)


def _resolved(host: str, port: int, *, anywhere: bool) -> str:
    """The address to connect to. Raises `JobFailed` if there is none, or one of them is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise JobFailed("input_unreachable", f"{host} has no address: {error}", retryable=True) from None
    addresses = [str(entry[4][0]) for entry in found]
    if not anywhere and (inner := next((each for each in addresses if not _is_public(each)), None)):
        raise JobFailed(
            "input_refused",
            f"{host} is at {inner}, which is not a public address: upload the file instead, or have the operator name "
            "the host in AIGC_FETCH_HOSTS",
        )
    return addresses[0]


def _is_public(text: str) -> bool:
    """Whether an address, or the one that it wraps, belongs to the public internet."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if wrapped is not None:
            return _is_public(str(wrapped))
        if address in _NAT64:
            return _is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _require_content(url: str, status: int, location: str | None) -> None:
    if status == 200:
        return
    if 300 <= status < 400:
        raise JobFailed("input_refused", f"{url} leads on to {location or 'somewhere else'}: name that address itself")
    if status in _GONE:
        raise JobFailed("input_not_found", f"{url} is not there (status {status})")
    if status in _LATER:
        raise JobFailed("input_unreachable", f"{url}: the server answers with status {status}", retryable=True)
    raise JobFailed("input_refused", f"{url}: the server refuses it (status {status})")


def _save(url: str, pieces: Iterator[bytes], into: Path, most_bytes: int, cut: _Cut) -> int:
    total = 0
    with into.open("wb") as file:
        for piece in pieces:
            total += len(piece)
            if total > most_bytes:
                raise JobFailed("input_too_big", f"{url} has more than {most_bytes / 1e6:,.0f} MB (AIGC_INPUT_MB)")
            cut.require_time(url)
            file.write(piece)
    cut.require_time(url)
    return total
