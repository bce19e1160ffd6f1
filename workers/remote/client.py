"""One client per service and process: its connections are kept, and all that ask it share its pace.

A request runs in a thread of its own, so that many wait for the service at once; nothing is tried again in here. What
may be tried again is said by what is raised, and done by who asks and by the queue.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import urllib3
from pydantic import BaseModel, ValidationError
from urllib3 import exceptions

from shared.errors import JobFailed
from shared.services import Service
from workers.remote.meanings import KEY_REFUSED, Later, bad_answer, meaning
from workers.remote.pace import Pace

#: seconds to connect
CONNECT_S = 10.0
#: seconds for which nobody is asked again after a key was refused
REFUSED_S = 30.0
#: most bytes of an answer
MOST_BYTES = 256 * 2**20
_PIECE = 1 << 16

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service gave, with status 200."""

    service: Service
    body: bytes

    def read(self, as_: type[M]) -> M:
        """The body as JSON of this form. Raises `JobFailed`, retryable, if it is not."""
        try:
            return as_.model_validate_json(self.body)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise bad_answer(self.service, f"answered with something else: {where or 'it'}: {first['msg']}") from None


class RemoteClient:
    """A service, as all generators of this process ask it."""

    def __init__(self, service: Service) -> None:
        """Connects when it is asked for the first time."""
        self.service = service
        self._pool = urllib3.PoolManager(maxsize=service.at_a_time, retries=False)
        self._headers = {"Content-Type": "application/json", "User-Agent": "aigc"}
        if service.key is not None:
            self._headers["Authorization"] = f"Bearer {service.key.get_secret_value()}"
        self._guard = threading.Lock()
        self._pace = Pace(service.requests_per_minute, service.at_a_time)
        #: why the key was refused, and until when nobody asks with it
        self._refused = ("", 0.0)
        #: the last trouble that was nobody's fault, and since when there is such trouble, in seconds since 1970
        self._trouble: tuple[Later, float] | None = None
        #: requests that were answered, be it by a refusal
        self.answered = 0

    # --- when to ask ---

    @property
    def trouble(self) -> tuple[Later, float] | None:
        """Why it is left alone, and since when; None if it is not."""
        with self._guard:
            return self._trouble if self._pace.held_s(time.monotonic()) else None

    def wait_s(self) -> float:
        """Seconds until a request may go, should there be a free place then."""
        with self._guard:
            return self._pace.wait_s(time.monotonic())

    @property
    def free(self) -> int:
        """How many more requests may be under way."""
        with self._guard:
            return self._pace.free

    # --- asking ---

    def send(
        self,
        path: str,
        asked: Mapping[str, Any],
        read: Callable[[Answer], R],
        deliver: Callable[[R | Exception], None],
    ) -> None:
        """Ask beside whatever goes on; `deliver` is given what `read` makes of the answer, or what either raised.

        To be called where `free` and `wait_s` allow it.
        """
        with self._guard:
            self._pace.sent(time.monotonic())
        threading.Thread(
            target=self._ask_beside, args=(path, asked, read, deliver), name=f"ask {self.service.name}", daemon=True
        ).start()

    def _ask_beside(
        self, path: str, asked: Mapping[str, Any], read: Callable[[Answer], R], deliver: Callable[[R | Exception], None]
    ) -> None:
        result: R | Exception
        try:
            result = read(self._ask(path, asked))
        except Exception as error:  # noqa: BLE001 - whoever asked is told, whatever it is
            result = error
        with self._guard:
            self._pace.over()
            self._note(result if isinstance(result, Exception) else None)
        deliver(result)

    def _note(self, error: Exception | None) -> None:
        if isinstance(error, Later):
            self._trouble = (error, self._trouble[1] if self._trouble else time.time())
            self._pace.hold(time.monotonic(), error.after_s)
            return
        if isinstance(error, JobFailed) and error.code == KEY_REFUSED:
            self._refused = (error.message, time.monotonic() + REFUSED_S)
        if error is None or (isinstance(error, JobFailed) and not error.retryable):  # it is there, and knows its mind
            self.answered += 1
            self._trouble = None
            self._pace.went_well()

    def _ask(self, path: str, asked: Mapping[str, Any]) -> Answer:
        """One request. Raises `Later`, or `JobFailed` with what is wrong with this one."""
        why, until = self._refused
        if time.monotonic() < until:
            raise JobFailed(KEY_REFUSED, why)  # ten thousand jobs need not ask ten thousand times
        service = self.service
        deadline = time.monotonic() + service.timeout_s
        try:
            response = self._pool.request(
                "POST", service.url + path, body=json.dumps(asked).encode(), headers=self._headers,
                timeout=urllib3.Timeout(connect=min(CONNECT_S, service.timeout_s), read=service.timeout_s),
                redirect=False, preload_content=False,
            )  # fmt: skip
            try:
                body = self._whole(response, deadline)
                response.release_conn()
            finally:
                response.close()
        except (exceptions.ConnectTimeoutError, exceptions.SSLError) as error:  # nothing was asked yet
            raise Later("service_unreachable", f"{service.name} cannot be reached: {_brief(error)}") from None
        except exceptions.ReadTimeoutError:
            raise _too_slow(service) from None
        except (exceptions.HTTPError, OSError) as error:
            message = f"{service.name} broke off before its answer was whole: {_brief(error)}"
            raise JobFailed("service_broke_off", message, retryable=True) from None
        if response.status != 200:
            raise meaning(service, response.status, response.headers, body)
        return Answer(service, body)

    def _whole(self, response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
        """The body, within the time that is left: a service that drips is cut off."""
        late = threading.Event()

        def cut_off() -> None:
            late.set()
            with suppress(ValueError, RuntimeError, OSError):  # it has ended in this very moment
                response.shutdown()

        timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut_off)
        timer.daemon = True
        timer.start()
        body = bytearray()
        try:
            for piece in response.stream(_PIECE):
                body += piece
                if len(body) > MOST_BYTES:
                    raise bad_answer(self.service, f"answered with more than {MOST_BYTES >> 20} MB")
        except exceptions.HTTPError:
            if late.is_set():
                raise _too_slow(self.service) from None
            raise
        finally:
            timer.cancel()
        if late.is_set():
            raise _too_slow(self.service)
        return bytes(body)


@cache
def client_of(service: Service) -> RemoteClient:
    """The client of this process for a service."""
    return RemoteClient(service)


def _too_slow(service: Service) -> JobFailed:
    message = f"{service.name} did not answer within {service.timeout_s:g} s (timeout_s of the service)"
    return JobFailed("service_timeout", message, retryable=True)


def _brief(error: Exception) -> str:
    """Without the names of objects that urllib3 begins its messages with."""
    return str(error).rpartition(">: ")[2] or type(error).__name__
