"""Params that name further models beside the job's own: adapters that change what it does, models that control it.

Which ones a job names is part of its lane, so that jobs with the same ones run together.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from shared.single_files import PREFIX, wrong_file
from shared.tasks import Params
from shared.tasks.inputs import ImageInput

#: what a model beside the job's own is for
Role = Literal["controlnet", "ip-adapter", "lora"]

#: longest list of them, as a lane holds it
MAX_LANE = 500

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+\.safetensors)?(@[\w./-]+)?")
_ALIAS = re.compile(r"[A-Za-z0-9][\w.-]*")
_LOCAL = ("/", "./", "../", "~")


@dataclass(frozen=True, slots=True)
class Names:
    """Marks a param that names a model beside the job's own."""

    role: Role


def _settled(name: str) -> str:
    """The same; a folder as a worker finds it, which works elsewhere. Raises `ValueError` with what is wrong."""
    if name.startswith(_LOCAL):
        try:
            return str(Path(name).expanduser().absolute())
        except RuntimeError:
            raise ValueError("there is no such home folder") from None
    if name.startswith(PREFIX):
        if wrong := wrong_file(name):
            raise ValueError(wrong)
    elif not (_HUB.fullmatch(name) or _ALIAS.fullmatch(name)) or ".." in name:
        raise ValueError(
            "must be a hub id (org/name, org/name/file.safetensors, with optional @revision), a folder, "
            f"{PREFIX}name.safetensors, or an alias of the operator's"
        )
    return name


_Name = Annotated[str, StringConstraints(min_length=1, max_length=300), AfterValidator(_settled)]
_WHERE = "a hub id (org/name, or org/name/file.safetensors), a folder, file:name.safetensors, or an alias"


class Lora(Params):
    """A LoRA adapter."""

    model: Annotated[_Name, Names("lora"), Field(description=_WHERE)]
    weight: Annotated[float, Field(ge=-4, le=4, description="how much of it; below 0 turns it around")] = 1.0


class Control(Params):
    """A ControlNet, and the picture that it follows."""

    model: Annotated[_Name, Names("controlnet"), Field(description="a hub id, a folder, file:…, or an alias")]
    image: Annotated[ImageInput, Field(description="what to follow: edges, depth, a pose, as the model was trained on")]
    scale: Annotated[float, Field(ge=0, le=4, description="how closely to follow it")] = 1.0
    start: Annotated[float, Field(ge=0, lt=1, description="share of the steps before it sets in")] = 0.0
    end: Annotated[float, Field(gt=0, le=1, description="share of the steps after which it leaves off")] = 1.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"`start` ({self.start:g}) must be less than `end` ({self.end:g})")
        return self


class Likeness(Params):
    """An IP-Adapter, and the pictures that it takes after."""

    model: Annotated[_Name, Names("ip-adapter"), Field(description="org/name/file.safetensors, a file, or an alias")]
    images: Annotated[tuple[ImageInput, ...], Field(min_length=1, max_length=4, description="what to take after")]
    scale: Annotated[float, Field(ge=0, le=2, description="how closely to take after them")] = 0.6


def models_beside(params: BaseModel) -> list[tuple[Role, str]]:
    """What these params name beside the job's own model, as (role, name), sorted, each once."""
    return sorted(set(_named(params))) if _may_name(type(params)) else []


def as_lane(models: list[tuple[Role, str]]) -> str:
    """As the lane of a job holds it: JSON; empty if there are none."""
    return json.dumps(models, separators=(",", ":")) if models else ""


def of_lane(adapters: str) -> list[tuple[Role, str]]:
    """What `as_lane` wrote."""
    return [(role, name) for role, name in json.loads(adapters)] if adapters else []


def is_plain(name: str) -> bool:
    """Whether this can be nothing but an alias: models beside others have an owner on the hub."""
    return _ALIAS.fullmatch(name) is not None


def _named(params: BaseModel) -> Iterator[tuple[Role, str]]:
    for field, about in type(params).model_fields.items():
        value = getattr(params, field)
        for mark in about.metadata:
            if isinstance(mark, Names):
                yield mark.role, value
        for inner in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(inner, BaseModel):
                yield from _named(inner)


@cache
def _may_name(params: type[BaseModel]) -> bool:
    return any(
        any(isinstance(mark, Names) for mark in about.metadata) or any(map(_may_name, _models(about.annotation)))
        for about in params.model_fields.values()
    )


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)
