"""A hub on this machine: repositories of files by commit, over the HTTP that its client speaks; notes what is asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)/tree/(?P<revision>[^/]+)(?:/.*)?")
_FILE = re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass
class Repo:
    """One repository: contents by name, by commit; branches and tags by name."""

    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add a commit; returns its name."""
        every = b"".join(name.encode() + content for name, content in sorted(files.items()))
        name = hashlib.sha1(every).hexdigest()
        self.commits[name] = dict(files)
        self.refs[ref] = name
        return name


class Hub:
    """The server; ends with `with`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        #: (method, path, range) of every request
        self.asked: list[tuple[str, str, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def repo(self, name: str) -> Repo:
        return self.repos.setdefault(name, Repo())

    @property
    def fetched(self) -> set[str]:
        """Names of the files whose whole content was asked for."""
        asked = [_FILE.fullmatch(path) for method, path, wanted in self.asked if method == "GET" and wanted is None]
        return {match["name"] for match in asked if match}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """As if the network were gone."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        for pattern, answer in ((_TREE, self._tree), (_FILE, self._file), (_INFO, self._info)):
            if match := pattern.fullmatch(path):
                repo = self.hub.repos.get(match["repo"])
                if repo is None:
                    self._refuse(404, "RepoNotFound")
                    return
                wanted = match.groupdict().get("revision") or "main"
                commit = repo.refs.get(wanted, wanted)
                if commit not in repo.commits:
                    self._refuse(404, "RevisionNotFound")
                    return
                answer(match.groupdict(), commit, repo.commits[commit])
                return
        self._refuse(404, "EntryNotFound")

    def _info(self, asked: Mapping[str, Any], commit: str, files: Mapping[str, bytes]) -> None:
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": _git(content), **_lfs(name, content, "sha256")}
            for name, content in files.items()
        ]
        self._json({"id": asked["repo"], "modelId": asked["repo"], "sha": commit, "siblings": siblings, "tags": []})

    def _tree(self, _: Mapping[str, Any], commit: str, files: Mapping[str, bytes]) -> None:
        self._json([
            {"type": "file", "path": name, "size": len(content), "oid": _git(content),
             **_lfs(name, content, "oid")}
            for name, content in files.items()
        ])  # fmt: skip

    def _file(self, asked: Mapping[str, Any], commit: str, files: Mapping[str, bytes]) -> None:
        content = files.get(asked["name"])
        if content is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        etag = hashlib.sha256(content).hexdigest() if _is_large(asked["name"]) else _git(content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part is None:
            self._send(200, content, headers)
            return
        begin, end = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        about = {"Content-Range": f"bytes {begin}-{end}/{len(content)}"}
        self._send(206, content[begin : end + 1], headers | about)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, more: Mapping[str, str] | None = None) -> None:
        self._send(status, b"", {"X-Error-Code": code, **(more or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _is_large(name: str) -> bool:
    """What the hub keeps beside git."""
    return name.endswith((".safetensors", ".bin"))


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _lfs(name: str, content: bytes, key: str) -> dict[str, Any]:
    if not _is_large(name):
        return {}
    return {"lfs": {key: hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}
