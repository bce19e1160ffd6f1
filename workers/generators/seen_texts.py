"""Texts about pictures that go through `generate()` of transformers together: all of one shape, so nothing is padded.

How many tokens the decoder begins with differs from family to family; it is learnt from the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from workers.generators import Output, Run
from workers.generators.seeded_sampling import SeededSampling
from workers.generators.static_text import RowConstraints
from workers.generators.text_rows import Row, Texts


@dataclass(frozen=True, slots=True)
class Seen:
    """One text to write, and what the model is given for it."""

    row: Row
    #: one row each
    inputs: Mapping[str, torch.Tensor]
    #: how many pictures it is about
    pictures: int

    @property
    def shape(self) -> tuple[object, ...]:
        """What texts have to share to be written together."""
        shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in sorted(self.inputs.items()))
        params = self.row.params
        if params.num_beams == 1:
            return shapes
        beams = params.num_beams, params.num_return_sequences, params.length_penalty, self.row.new_tokens
        return *shapes, *beams


def write_together(
    model: Any, texts: Texts, seen: Sequence[Seen], run: Run, *, before: int, total: int
) -> list[list[Output]]:
    """One `generate()` over texts of one shape, begun after `before` of `total` steps: the outputs of each."""
    rows = [each.row for each in seen]
    params = rows[0].params
    beams = params.num_beams > 1
    config = GenerationConfig(
        max_new_tokens=max(row.new_tokens for row in rows),
        do_sample=False,
        num_beams=params.num_beams,
        length_penalty=1.0 if params.length_penalty is None else params.length_penalty,
        num_return_sequences=params.num_return_sequences if beams else 1,
        use_cache=True,
    )
    watch = _Watch(rows, texts, run, before=before, total=total)
    made = model.generate(
        **_stacked(model, seen),
        generation_config=config,
        logits_processor=LogitsProcessorList([_Choice(rows, texts.ends)]),
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    completions = made[:, watch.width :].tolist()
    each = len(completions) // len(rows)
    outputs: list[list[Output]] = []
    for i, (one, row) in enumerate(zip(seen, rows, strict=True)):
        mine = completions[i * each : (i + 1) * each]
        outputs.append(
            [
                _output(texts, row, tokens[: texts.length(row, tokens)], row.index + j, one.pictures)
                for j, tokens in enumerate(mine)
            ]
        )
    return outputs


def _stacked(model: Any, seen: Sequence[Seen]) -> dict[str, torch.Tensor]:
    """The inputs of all texts, one after the other, where the model is and in its precision."""
    stacked: dict[str, torch.Tensor] = {}
    for name in seen[0].inputs:
        value = torch.cat([each.inputs[name] for each in seen]).to(model.device)
        stacked[name] = value.to(model.dtype) if value.is_floating_point() else value
    return stacked


def _output(texts: Texts, row: Row, tokens: Sequence[int], index: int, pictures: int) -> Output:
    made = texts.output(row, tokens, index)
    body = made.body if isinstance(made.body, bytes) else made.body()
    return replace(made, body=body.strip(), facts={**made.facts, "images": pictures})


class _Choice(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """The constraints of each row, and its draw."""

    def __init__(self, rows: Sequence[Row], ends: Sequence[int]) -> None:
        self._rows = rows
        self._each = [RowConstraints(row, ends) for row in rows]
        #: tokens that the decoder began with; known from the first step on
        self._width: int | None = None
        self._sampling: SeededSampling | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` (lines, tokens so far), `scores` (lines, vocabulary); `num_beams` lines per row."""
        if self._width is None:
            self._width = input_ids.shape[1]
            if self._rows[0].params.num_beams == 1:
                self._sampling = SeededSampling([row.draw for row in self._rows], self._width)
        generated = input_ids.shape[1] - self._width
        lines = len(scores) // len(self._rows)
        for i, constraints in enumerate(self._each):
            if constraints.active(generated):
                for line in range(i * lines, (i + 1) * lines):
                    constraints.apply(input_ids[line : line + 1], scores[line], generated)
        return scores if self._sampling is None else self._sampling(input_ids, scores)


class _Watch(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """Ends each row at its own length, end token or stop text, and says after each token how far they are."""

    def __init__(self, rows: Sequence[Row], texts: Texts, run: Run, *, before: int, total: int) -> None:
        #: its presence makes `generate()` pad the rows that are done, also for a model without an end token
        self.eos_token_id = texts.ends
        #: tokens that the decoder began with, once there has been a step
        self.width = 0
        self._rows = rows
        self._texts = texts
        self._run = run
        self._job_ids = list(dict.fromkeys(row.job.job_id for row in rows))
        self._before = before
        self._total = total
        self._begun = False
        self._done = [False] * len(rows)
        self._reach = max(row.reach for row in rows)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Which lines of `input_ids` are done; a beam search shows several candidates per row, anew at each step."""
        if not self._begun:
            self.width, self._begun = input_ids.shape[1] - 1, True
        generated = input_ids.shape[1] - self.width
        self._run.step(self._job_ids, self._before + generated, self._total)
        unwanted = {job_id for job_id in self._job_ids if not self._run.wanted(job_id)}
        lines = input_ids[:, max(self.width, input_ids.shape[1] - self._reach) :].tolist()
        each = len(lines) // len(self._rows)
        searching = self._rows[0].params.num_beams > 1
        done: list[bool] = []
        for line, tokens in enumerate(lines):
            row = self._rows[line // each]
            over = (
                row.job.job_id in unwanted
                or (not searching and self._done[line])
                or self._texts.ended(row, tokens[-row.reach :], generated)
            )
            if not searching:
                self._done[line] = over
            done.append(over)
        return torch.tensor(done, device=input_ids.device)
