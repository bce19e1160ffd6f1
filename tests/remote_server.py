"""A service that speaks the API of OpenAI over real HTTP: seeded answers, and every lie that a test asks for."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import threading
import time
import wave
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from PIL import Image

WORDS = ("apples", "birds", "clouds", "dawn", "echoes", "fields", "gardens", "hills", "islands", "kites", "rain")
RATE = 24_000


@dataclass
class Asked:
    """One request, as it came in."""

    path: str
    headers: Mapping[str, str]
    body: Any
    at: float = field(default_factory=time.monotonic)


#: does something else than to answer
Lie = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as `server.service` wants."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.service.connections += 1

    @property
    def service(self) -> RemoteServer:
        return self.server.service  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        if not self._refused():
            self.answer(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service = self.service
        with service.guard:
            service.asked.append(Asked(self.path, dict(self.headers.items()), body))
            service.under_way += 1
            service.most_at_once = max(service.most_at_once, service.under_way)
            lie = service.lies.popleft() if service.lies else service.always(body)
        try:
            service.gate.wait(30)
            if service.takes_s:
                time.sleep(service.takes_s)
            if lie is not None:
                lie(self)
            elif not self._refused():
                ANSWERS[self.path.removeprefix("/v1")](self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with service.guard:
                service.under_way -= 1

    def _refused(self) -> bool:
        if self.service.key is None or self.headers.get("Authorization") == f"Bearer {self.service.key}":
            return False
        said = f"Incorrect API key provided: {self.headers.get('Authorization')}"
        self.error(401, said, code="invalid_api_key")
        return True

    def answer(self, status: int, body: Any, **headers: str) -> None:
        """JSON, or bytes as they are."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def error(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        self.answer(status, {"error": {"message": message, "type": "error", "param": None, "code": code}}, **headers)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class RemoteServer:
    """Listens on loopback until it is closed (`with`)."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.guard = threading.Lock()
        self.asked: list[Asked] = []
        #: what the next requests meet, in order; then what `always` says of them; then the truth
        self.lies: deque[Lie] = deque()
        self.always: Callable[[Any], Lie | None] = lambda body: None
        self.connections = 0
        self.takes_s = 0.0
        #: while it is not set, nobody is answered
        self.gate = threading.Event()
        self.gate.set()
        self.under_way = 0
        self.most_at_once = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.service = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Nobody is answered any more."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- lies ---


def status(code: int, message: str = "no", kind: str | None = None, **headers: str) -> Lie:
    """An error, as OpenAI words it."""
    return lambda handler: handler.error(code, message, kind, **headers)


def says(body: Any, **headers: str) -> Lie:
    """All is well, with this body."""
    return lambda handler: handler.answer(200, body, **headers)


def html(code: int) -> Lie:
    """What a gateway shows to people."""
    return lambda handler: handler.answer(code, b"<html><h1>Bad gateway</h1></html>", Content_Type="text/html")


def cut_off(handler: Handler) -> None:
    """Half an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    """No answer at all."""
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then, for a long time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


# --- the truth ---


def _drawn(*what: Any) -> random.Random:
    return random.Random(hashlib.sha256(json.dumps(what, sort_keys=True).encode()).digest())


def _chat(handler: Handler, body: Mapping[str, Any]) -> None:
    said = body["messages"][-1]["content"]
    if "refuse" in said:
        handler.error(400, "Your request was rejected by our safety system", "content_policy_violation")
        return
    if len(said) > 500:
        handler.error(400, "This model's maximum context length is 128 tokens", "context_length_exceeded")
        return
    most = body.get("max_tokens") or body.get("max_completion_tokens")
    seed = body["seed"] if body["temperature"] else None
    rng = _drawn(body["messages"], body["temperature"], body.get("top_p"), seed)
    words = [rng.choice(WORDS) for _ in range(rng.randint(6, 12))]
    text, reason = " ".join(words[:most]), "length" if most < len(words) else "stop"
    for stop in body.get("stop", ()):
        text, found, _ = text.partition(stop)
        reason = "stop" if found else reason
    handler.answer(200, {
        "id": "chatcmpl-1", "object": "chat.completion", "model": f"{body['model']}-2026-11-01",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": None},
                     "finish_reason": reason}],
        "usage": {"prompt_tokens": len(said.split()), "completion_tokens": min(most, len(words)), "total_tokens": 1},
    })  # fmt: skip


def _images(handler: Handler, body: Mapping[str, Any]) -> None:
    if "refuse" in body["prompt"]:
        handler.error(400, "moderated", "moderation_blocked")
        return
    width, height = map(int, body.get("size", "48x32").split("x"))
    rng = _drawn(body["prompt"], body.get("seed"), width)
    picture = io.BytesIO()
    Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(picture, "PNG")
    made = {"b64_json": base64.b64encode(picture.getvalue()).decode(), "revised_prompt": f"{body['prompt']}, nicely"}
    handler.answer(200, {"created": 1, "data": [made], "usage": {"input_tokens": 3, "output_tokens": 64}})


def sound(text: str, rate: int = RATE) -> bytes:
    """Noise of a length by the text, as a wave file."""
    body = io.BytesIO()
    with wave.open(body, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(_drawn(text).randbytes(2 * (rate // 10 + 50 * len(text))))
    return body.getvalue()


def _speech(handler: Handler, body: Mapping[str, Any]) -> None:
    if body.get("voice") not in (None, "alloy", "nova"):
        handler.error(400, f"unknown voice {body['voice']!r}", "invalid_value")
        return
    handler.answer(200, sound(body["input"] + str(body.get("voice"))), Content_Type="audio/wav")


def _embeddings(handler: Handler, body: Mapping[str, Any]) -> None:
    width = body.get("dimensions", 16)
    vectors = [[_drawn(text, n).gauss(0, 1) for n in range(min(width, 16))] for text in body["input"]]
    data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
    random.Random(len(data)).shuffle(data)
    handler.answer(200, {"data": data, "model": body["model"], "usage": {"prompt_tokens": 2 * len(data)}})


ANSWERS: Mapping[str, Callable[[Handler, Any], None]] = {
    "/chat/completions": _chat, "/images/generations": _images, "/audio/speech": _speech, "/embeddings": _embeddings,
}  # fmt: skip
