"""Params that name a file: what a reference may look like, and where references stand in the params of a job.

https://…             fetched by the worker
s3://bucket/key       an object of the configured store
artifact:<job>[/n]    output n (0 if left out) of a job that has succeeded
file:<id>             a file that was uploaded
anything else         a path on the machine that submits: uploaded there, and replaced by its `file:` id

A param that takes a list of files also takes what stands for several, in its list; they take its place at submit:

batch:<batch>         what fits of the outputs of a finished batch, by line; `batch:<batch>/succeeded` leaves out the
                      jobs that did not succeed, instead of refusing them
a folder              what fits of its files, by name
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, StringConstraints

InputKind = Literal["image", "audio", "video", "text", "file"]

#: longest reference
MAX_REFERENCE = 2048
#: how the media types of a kind begin
MEDIA: Mapping[InputKind, str] = {
    "image": "image/", "audio": "audio/", "video": "video/", "text": "text/plain", "file": "",
}  # fmt: skip

_SCHEME = re.compile(r"(https|s3|artifact|file|batch):")
_FOREIGN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


@dataclass(frozen=True, slots=True)
class Input:
    """Marks a param that names a file of this kind."""

    kind: InputKind


_Reference = Annotated[str, StringConstraints(min_length=1, max_length=MAX_REFERENCE)]
ImageInput = Annotated[_Reference, Input("image")]
AudioInput = Annotated[_Reference, Input("audio")]
VideoInput = Annotated[_Reference, Input("video")]
TextInput = Annotated[_Reference, Input("text")]
FileInput = Annotated[_Reference, Input("file")]


@dataclass(frozen=True, slots=True)
class Reference:
    """A file that a job names."""

    #: where in the params: `image`, `controls.0.image`
    place: str
    #: as it was given
    text: str
    kind: InputKind

    @property
    def scheme(self) -> str:
        """`https`, `s3`, `artifact`, `file`, `batch`; empty for a path. Raises `ValueError` for another scheme."""
        if known := _SCHEME.match(self.text):
            return known[1]
        if foreign := _FOREIGN.match(self.text):
            raise ValueError(f"{foreign[0]}… cannot be fetched: give https://…, s3://…, artifact:…, file:… or a path")
        return ""

    @property
    def among_others(self) -> bool:
        """Whether it stands in a list, where several may take its place."""
        return self.place.rpartition(".")[2].isdecimal()


def references(params: BaseModel) -> Iterator[Reference]:
    """Every file that these params name, in order."""
    if not takes_files(type(params)):
        return
    for name, about in type(params).model_fields.items():
        kind = _kind((about.annotation, *about.metadata))
        yield from _within(name, getattr(params, name), kind)


def _within(place: str, value: Any, kind: InputKind | None) -> Iterator[Reference]:
    if isinstance(value, str):
        if kind is not None:
            yield Reference(place, value, kind)
    elif isinstance(value, BaseModel):
        for inner in references(value):
            yield Reference(f"{place}.{inner.place}", inner.text, inner.kind)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _within(f"{place}.{number}", item, kind)


def replaced(said: dict[str, Any], texts: Callable[[str], str | list[str] | None]) -> dict[str, Any]:
    """The same params as plain JSON, with the references at some places replaced: those for which `texts` has one.

    Where it has several, they go into the list that the one stood in.
    """

    def walk(value: Any, at: str) -> Any:
        if isinstance(value, str):
            new = texts(at)
            return value if new is None else new
        if isinstance(value, dict):
            return {name: walk(item, f"{at}.{name}" if at else name) for name, item in value.items()}
        if isinstance(value, list):
            return [each for number, item in enumerate(value) for each in spread(item, f"{at}.{number}")]
        return value

    def spread(item: Any, at: str) -> list[Any]:
        new = walk(item, at)
        return new if isinstance(item, str) and isinstance(new, list) else [new]

    walked: dict[str, Any] = walk(said, "")
    return walked


@cache
def takes_files(params: type[BaseModel]) -> bool:
    """Whether jobs with such params may name files at all."""
    return any(
        _kind((about.annotation, *about.metadata)) is not None or any(map(takes_files, _models(about.annotation)))
        for about in params.model_fields.values()
    )


def _kind(said: object) -> InputKind | None:
    """The kind that an annotation, or what stands in it, is marked with."""
    if isinstance(said, Input):
        return said.kind
    inner = said if isinstance(said, tuple) else (*typing.get_args(said), *getattr(said, "__metadata__", ()))
    return next((kind for each in inner if (kind := _kind(each)) is not None), None)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)
