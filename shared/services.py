"""Remote services that carry out jobs on machines of their own: how a job names them, and how they are reached.

`openai:gpt-4o-mini` is the model `gpt-4o-mini` of the service `openai`. What stands behind a name is the operator's to
say (`AIGC_SERVICES`): any address that speaks the HTTP API of OpenAI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

#: where jobs of a remote model wait unless they say otherwise: they compute nothing here
REMOTE_QUEUE = "cpu"
#: where they may not wait: whoever serves it holds a GPU meanwhile
GPU_QUEUE = "gpu"
#: the service that is known without being configured, and where it is
OPENAI, OPENAI_URL = "openai", "https://api.openai.com/v1"

#: beginnings of references that mean something else
_RESERVED = frozenset({"artifact", "data", "file", "ftp", "hf", "http", "https", "s3", "starter"})
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_REFERENCE = re.compile(rf"({_NAME.pattern}):([A-Za-z0-9][\w.:/@+-]*)")


class Service(BaseModel):
    """One service, and how much may be asked of it by each worker."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    #: what stands before the colon in a reference
    name: str
    #: what its paths begin with: `https://host/v1`
    url: str
    #: sent as a bearer token; never shown
    key: SecretStr | None = None
    #: most requests that one worker begins in a minute, evenly spaced; 0 = any number
    requests_per_minute: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    #: most requests of one worker that are under way at once
    at_a_time: Annotated[int, Field(ge=1, le=256)] = 8
    #: seconds that one request may take
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 300.0
    #: how it calls the most tokens of an answer; by default as OpenAI itself does, or everybody else
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] | None = None
    #: whether it takes a `seed` with a picture; OpenAI's own refuses it
    image_seed: bool = False

    @field_validator("name")
    @classmethod
    def _fit_for_references(cls, name: str) -> str:
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ValueError(
                f"{name[:40]!r} cannot name a service: lower-case letters, digits, - and _, and none of "
                + ", ".join(sorted(_RESERVED))
            )
        return name

    @field_validator("url")
    @classmethod
    def _reachable(cls, url: str) -> str:
        return service_url(url)

    @field_validator("key")
    @classmethod
    def _fit_for_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        return service_key(key)

    @property
    def is_openai_itself(self) -> bool:
        """Whether it is OpenAI's own, rather than one that speaks like it."""
        return self.url == OPENAI_URL

    @property
    def tokens_name(self) -> str:
        """How it calls the most tokens of an answer."""
        return self.max_tokens_name or ("max_completion_tokens" if self.is_openai_itself else "max_tokens")


def service_url(url: str) -> str:
    """The address without a slash at its end. Raises `ValueError` for what is none; never shows it."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.username or parts.password or parts.query or parts.fragment or not url.isascii():
        raise ValueError("must be of the form https://host/v1 (or http://host:port/v1), without a user and a query")
    return url.rstrip("/")


def service_key(key: SecretStr | None) -> SecretStr | None:
    """The key, or None where it is empty. Raises `ValueError` for one that cannot be sent; never shows it."""
    if key is None or not key.get_secret_value():
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()):
        raise ValueError("the key holds blanks or other characters that cannot be sent")
    return key


def read_services(text: str) -> tuple[Service, ...]:
    """Services as the setting names them: a JSON object, by name. Raises `ValueError` that shows nothing of it."""
    try:
        said = json.loads(text)
    except ValueError as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"is not JSON{where}") from None
    if not isinstance(said, dict) or not all(isinstance(each, dict) for each in said.values()):
        raise ValueError('must be a JSON object such as {"lab": {"url": "http://host:8000/v1"}}')
    return tuple(_read(name, each) for name, each in said.items())


def _read(name: str, said: Mapping[str, object]) -> Service:
    try:
        return Service.model_validate({**said, "name": name})
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ValueError(f"{name}: {'; '.join(wrong).replace('Value error, ', '')}") from None


def remote_model(reference: str) -> tuple[str, str] | None:
    """(service, model) of a reference to a remote model; None for one that means something else."""
    found = _REFERENCE.fullmatch(reference)
    return None if found is None or found[1] in _RESERVED else (found[1], found[2])


def is_remote(reference: str) -> bool:
    """Whether a model reference names a model of a remote service."""
    return remote_model(reference) is not None
