"""Texts that are JSON as a job's schema wants it: each token can still lead there. By llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from shared.errors import JobFailed

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

#: no blanks but single ones after `,` and `:`: a model that is unsure would write them without end
_COMPACT: JsonCompileOptions = {"whitespace_flexible": False}


class Grammars:
    """What a model's tokens can spell; the tables are made when a job first asks."""

    def __init__(self, tokenizer: Any, *, ends: Sequence[int], vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._ends = list(ends)
        self._vocabulary = vocabulary
        self._tokens: LLTokenizer | None = None

    def of(self, schema: Mapping[str, Any]) -> Grammar:
        """Raises `JobFailed` for a schema that cannot be kept to, or with a model that cannot."""
        tokens = self._table()
        try:
            text = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_COMPACT)
            broken, problems = LLMatcher.validate_grammar_with_warnings(text, tokens)
        except ValueError as error:
            broken, problems = True, [str(error)]
        if broken or problems:
            raise JobFailed(
                "response_format_unsupported",
                f"response_format: no text can be held to this schema: {'; '.join(problems)[:500]}",
            )
        fresh = LLMatcher(tokens, text)
        _require_way(fresh.deep_copy())
        return Grammar(fresh, self._ends)

    def _table(self) -> LLTokenizer:
        if not self._ends:
            raise JobFailed("response_format_unsupported", "response_format wants a model that can end its texts")
        if self._tokens is None:
            try:
                self._tokens = from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._ends)
            except ValueError as error:
                raise JobFailed(
                    "response_format_unsupported",
                    f"response_format: this model's tokenizer cannot be followed: {error}",
                ) from None
        return self._tokens


def _require_way(matcher: LLMatcher) -> None:
    """That something can be written, also after what every text begins with. Raises `JobFailed`.

    A schema that wants itself within itself is a grammar without texts: each would have no end.
    """
    matcher.consume_tokens(matcher.compute_ff_tokens())
    matcher.compute_bitmask()
    if matcher.is_error():
        message = "response_format: no text can be held to this schema: what it requires refers to itself without end"
        raise JobFailed("response_format_unsupported", message)


class Grammar:
    """A schema in a model's tokens."""

    def __init__(self, fresh: LLMatcher, ends: Sequence[int]) -> None:
        self._fresh = fresh
        self._ends = ends

    def begin(self) -> Follower:
        """For a text of its own."""
        return Follower(self._fresh.deep_copy(), self._ends)


class Follower:
    """Where one text stands in its grammar."""

    def __init__(self, matcher: LLMatcher, ends: Sequence[int]) -> None:
        self._matcher = matcher
        self._ends = list(ends)
        self._read = 0

    def allow(self, tokens: Sequence[int], scores: torch.Tensor) -> None:
        """Leave in `scores` (vocabulary), in place, what may come after these tokens of the text."""
        new = list(tokens[self._read :])
        if any(token in self._ends for token in new):  # it has ended; what stands after its end is padding
            return
        if new and not self._matcher.consume_tokens(new):
            raise RuntimeError(f"a text left its grammar: {self._matcher.get_error()}")
        self._read = len(tokens)
        allowed = torch.zeros(len(scores), dtype=torch.bool)
        if self._matcher.is_stopped():  # it is whole
            allowed[self._ends] = True
        else:
            bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
            known = min(len(bits), len(scores))
            allowed[:known] = torch.from_numpy(bits[:known].astype(bool))
        if self._matcher.is_error():
            raise RuntimeError(f"a grammar cannot go on: {self._matcher.get_error()}")
        scores.masked_fill_(~allowed.to(scores.device), -torch.inf)
