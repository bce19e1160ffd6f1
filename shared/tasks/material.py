"""Params that name many things of one kind: texts, or files of texts, pictures or recordings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from shared.tasks import Params
from shared.tasks.inputs import AudioInput, ImageInput, TextInput

#: most of them
MOST_ITEMS = 10_000

What = Literal["texts", "pictures", "recordings"]

#: in a list of texts these are no texts
_NAMED = re.compile(r"(batch|artifact|file):\S+")


class Sparse(Params):
    """Params that are written down without what nobody set."""

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class Material(Sparse):
    """Several of one kind, in order."""

    #: as they stand; where something is compared with them, an entry may be a list of several
    texts: Annotated[list[str | list[str]] | None, Field(min_length=1, max_length=MOST_ITEMS)] = None
    #: files, each of them one text
    text_files: Annotated[list[TextInput] | None, Field(min_length=1, max_length=MOST_ITEMS)] = None
    #: a file of texts, one a line
    lines: TextInput | None = None
    images: Annotated[list[ImageInput] | None, Field(min_length=1, max_length=MOST_ITEMS)] = None
    recordings: Annotated[list[AudioInput] | None, Field(min_length=1, max_length=MOST_ITEMS)] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(self._given) != 1:
            raise ValueError("give one of `texts`, `text_files`, `lines`, `images` and `recordings`")
        return self

    @property
    def _given(self) -> list[str]:
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @property
    def form(self) -> str:
        """Which of its fields is set."""
        return self._given[0]

    @property
    def what(self) -> What:
        """What they are."""
        kinds: dict[str, What] = {"images": "pictures", "recordings": "recordings"}
        return kinds.get(self.form, "texts")

    @property
    def count(self) -> int | None:
        """How many there are; None where that is not known yet: of lines, a batch, and a path, maybe of a folder."""
        items: Sequence[object] = getattr(self, self.form)
        if self.form == "lines":
            return None
        if self.form != "texts" and not all(re.match(r"(https|s3|artifact|file):", str(item)) for item in items):
            return None
        return len(items)


def spelt_out(value: Any, kind: What) -> Any:
    """The short forms: one reference, or a list of references or texts."""
    if isinstance(value, str) and kind == "texts":
        whole = value.startswith(("batch:", "artifact:"))
        return {"text_files": [value]} if whole else {"lines": value}
    if not isinstance(value, (str, list, tuple)):
        return value
    items = [value] if isinstance(value, str) else list(value)
    if kind != "texts":
        return {"images" if kind == "pictures" else "recordings": items}
    named = sum(1 for item in items if isinstance(item, str) and _NAMED.fullmatch(item))
    if 0 < named < len(items):
        raise ValueError('a list holds texts, or references to files: say {"texts": […]} or {"text_files": […]}')
    return {"text_files" if named else "texts": items}
