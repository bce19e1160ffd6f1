"""What an answer of a remote service means, where it is none of what was asked for.

| answer | means | then |
|---|---|---|
| 401, 403 | our key is wrong, or may not do this | `service_key_refused`, `service_forbids`: failed, for an operator |
| 402; 429 that speaks of a quota | it is used up | `Later`: nobody is charged |
| 429, 502, 503, 529 | too much is asked, or it is overloaded | `Later`, as long as `Retry-After` says |
| 400, other 4xx | the job cannot be done | `content_refused`, `prompt_too_long`, `model_not_found`, `request_refused` |
| 408, 409, 5xx | it broke on this one, as far as anybody knows | `service_failed`: retryable, and charged |
| 3xx | it is not where the setting says | `service_misconfigured`: failed, for an operator |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from shared.errors import JobFailed
from shared.services import Service

#: code of a job that was refused for the key's sake
KEY_REFUSED = "service_key_refused"
#: longest pause that a service may ask for
LONGEST_HOLD_S = 3600.0
#: seconds for which a service is left alone whose quota is used up, unless it says for how long
QUOTA_HOLD_S = 60.0
#: most characters that are told of what a service says
MOST_TOLD = 500

_LATER = frozenset({429, 502, 503, 529})
_AGAIN = frozenset({408, 409, 425})
_QUOTA = re.compile(r"insufficient_quota|quota_exceeded|billing|credit", re.IGNORECASE)
_CONTENT = re.compile(r"content_policy|content_filter|moderation|responsibleai|safety", re.IGNORECASE)
_TOO_LONG = re.compile(r"context_length|context length|string_above_max_length", re.IGNORECASE)
_SECONDS = Retry(retry_after_max=int(LONGEST_HOLD_S))


class Later(Exception):
    """The service serves nobody right now, and no job is to blame."""

    def __init__(self, code: str, message: str, after_s: float | None = None) -> None:
        self.code = code
        self.message = message
        #: seconds for which it is to be left alone; None = it does not say
        self.after_s = after_s
        super().__init__(f"{code}: {message}")


def meaning(service: Service, status: int, headers: Mapping[str, str], body: bytes) -> JobFailed | Later:
    """Why an answer with this status holds nothing of use."""
    kind, said = _said(service, body)
    told = f"{service.name} answers with status {status}" + (f": {said}" if said else "")
    if status == 402 or (status == 429 and _QUOTA.search(kind)):
        return Later("service_quota", f"the quota is used up: {told}", _after(headers) or QUOTA_HOLD_S)
    if status in _LATER:
        return Later("service_busy", told, _after(headers))
    if status >= 500 or status in _AGAIN:
        return JobFailed("service_failed", told, retryable=True)
    if status < 400:
        return JobFailed("service_misconfigured", f"{told}: {service.url}, as an operator has set it, is not the place")
    if status == 401:
        return JobFailed(
            KEY_REFUSED, f"{told}. The key is the operator's to correct ({_key_setting(service)}), then retry"
        )
    return JobFailed(_code(status, kind, said), told)


def _code(status: int, kind: str, said: str) -> str:
    """By the kind of error; what is said may quote the prompt, and tells only where nothing else does."""
    if _CONTENT.search(kind) or (status == 403 and _CONTENT.search(said)):
        return "content_refused"
    if status == 400 and _TOO_LONG.search(f"{kind} {said}"):
        return "prompt_too_long"
    return {403: "service_forbids", 404: "model_not_found"}.get(status, "request_refused")


def bad_answer(service: Service, what: str) -> JobFailed:
    """The service says that all is well, and its answer is not what it has to be."""
    return JobFailed("service_bad_answer", f"{service.name} {what}", retryable=True)


def without_key(service: Service, text: str) -> str:
    """What a service says, fit to be kept: without our key, on one line, and not too long."""
    if service.key is not None:
        text = text.replace(service.key.get_secret_value(), "***")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= MOST_TOLD else f"{text[: MOST_TOLD - 1]}…"


def _key_setting(service: Service) -> str:
    return "AIGC_OPENAI_API_KEY" if service.name == "openai" else "AIGC_SERVICES"


def _after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or as a date; None where there is none that can be read."""
    try:
        return float(_SECONDS.parse_retry_after(headers["Retry-After"]))
    except (KeyError, InvalidHeader, ValueError, OverflowError):
        return None


def _said(service: Service, body: bytes) -> tuple[str, str]:
    """(kind of error, in its own words) as far as the body holds them; a page of HTML holds neither."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, str):
        return "", without_key(service, error)
    if not isinstance(error, dict):
        return "", ""
    inner = error.get("innererror") or {}
    kinds = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    words = next((error[name] for name in ("message", "detail") if error.get(name)), "")
    return " ".join(str(kind) for kind in kinds if kind), without_key(service, str(words))
