"""Params that the tasks which read texts have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from shared.tasks import Params

#: most texts of one job
MOST_TEXTS = 4096

Text = Annotated[str, StringConstraints(min_length=1)]
LongText = Annotated[
    Literal["fail", "truncate"],
    Field(description="a text that is longer than the model reads: `fail`, or `truncate` it to its beginning"),
]


class TextsParams(Params):
    """One text, or several whose results come in one file, in their order."""

    text: Annotated[
        Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)],
        Field(description=f"one text, or a list of up to {MOST_TEXTS:,}"),
    ]
    long_text: LongText = "fail"

    @property
    def texts(self) -> list[str]:
        """All of them, also where there is one."""
        return [self.text] if isinstance(self.text, str) else self.text

    @property
    def tokens(self) -> int:
        """About how many there are in all."""
        return sum(len(text) // 4 + 3 for text in self.texts)
