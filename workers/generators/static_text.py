"""Texts that go through `generate()` of transformers together: one left-padded pass, until the last of them is done.

Beams need it, and so does a model that cannot be stepped by `continuous_text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from workers.generators import Output, Run
from workers.generators.seeded_sampling import SeededSampling
from workers.generators.text_rows import Row, Texts


def generate_together(
    model: Any, texts: Texts, rows: Sequence[Row], run: Run, *, pad: int, masks: bool, before: int, total: int
) -> list[list[Output]]:
    """One `generate()`, begun after `before` of `total` steps of the microbatch: the outputs of each row.

    `masks` says whether the model takes an attention mask. Rows that search with beams want their like beside them.
    """
    width = max(len(row.prompt) for row in rows)
    inputs = {name: torch.tensor(ids, device=model.device) for name, ids in _inputs(rows, width, pad, masks).items()}
    params = rows[0].params
    beams = params.num_beams > 1
    config = GenerationConfig(
        max_new_tokens=max(row.new_tokens for row in rows),
        do_sample=False,
        num_beams=params.num_beams,
        early_stopping=bool(params.early_stopping) if params.early_stopping != "never" else "never",
        length_penalty=1.0 if params.length_penalty is None else params.length_penalty,
        num_return_sequences=params.num_return_sequences if beams else 1,
        eos_token_id=texts.ends or None,
        pad_token_id=pad,
        decoder_start_token_id=None if rows[0].source is None else rows[0].prompt[0],
        use_cache=True,
    )
    processors = LogitsProcessorList([_Constraints(rows, width, texts.ends)])
    if not beams:
        processors.append(SeededSampling([row.draw for row in rows], width))
    watch = _Watch(rows, width, texts, run, before=before, total=total)
    made = model.generate(
        **inputs,
        generation_config=config,
        logits_processor=processors,
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    completions = made[:, width:].tolist()
    each = len(completions) // len(rows)
    outputs: list[list[Output]] = []
    for i, row in enumerate(rows):
        mine = completions[i * each : (i + 1) * each]
        outputs.append(
            [texts.output(row, tokens[: texts.length(row, tokens)], row.index + j) for j, tokens in enumerate(mine)]
        )
    return outputs


def _inputs(rows: Sequence[Row], width: int, pad: int, masks: bool) -> dict[str, list[list[int]]]:
    """What `generate()` is given: prompts padded on the left; or what the encoder reads, padded on the right."""
    prompts = [[pad] * (width - len(row.prompt)) + row.prompt for row in rows]
    if rows[0].source is None:
        inputs = {"input_ids": prompts}
        if masks:
            inputs["attention_mask"] = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        return inputs
    sources = [row.source or [] for row in rows]
    longest = max(map(len, sources))
    return {
        "input_ids": [source + [pad] * (longest - len(source)) for source in sources],
        "attention_mask": [[1] * len(source) + [0] * (longest - len(source)) for source in sources],
        "decoder_input_ids": prompts,
    }


class RowConstraints:
    """Penalties, the least length and the grammar of one row, so that neither padding nor neighbours weigh in."""

    def __init__(self, row: Row, ends: Sequence[int]) -> None:
        self._least = row.params.min_new_tokens or 0
        self._most = row.new_tokens
        self._ends = list(ends)
        self._follower = row.grammar.begin() if row.grammar else None
        self._processors: list[Any] = []
        if row.params.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(row.params.repetition_penalty))
        if row.params.no_repeat_ngram_size:
            self._processors.append(NoRepeatNGramLogitsProcessor(row.params.no_repeat_ngram_size))

    def active(self, generated: int) -> bool:
        """Whether they change anything after this many tokens."""
        return generated < self._most and (self.reads or generated < self._least)

    @property
    def reads(self) -> bool:
        """Whether they look at the tokens so far."""
        return bool(self._processors) or self._follower is not None

    def apply(self, ids: torch.Tensor | None, scores: torch.Tensor, generated: int) -> None:
        """Change `scores` (vocabulary) in place; `ids` (1, tokens) are prompt and completion, if it `reads` them."""
        for processor in self._processors:
            scores[:] = processor(ids, scores[None])[0]
        if self._follower is not None and ids is not None:
            self._follower.allow(ids[0, ids.shape[1] - generated :].tolist(), scores)
        if generated < self._least:
            scores[self._ends] = -torch.inf


class _Constraints(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """The constraints of each row of a pass."""

    def __init__(self, rows: Sequence[Row], width: int, ends: Sequence[int]) -> None:
        self._rows = rows
        self._width = width
        self._each = [RowConstraints(row, ends) for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` has `num_beams` lines per row."""
        generated = input_ids.shape[1] - self._width
        lines = len(scores) // len(self._rows)
        for i, (row, constraints) in enumerate(zip(self._rows, self._each, strict=True)):
            if constraints.active(generated):
                for line in range(i * lines, (i + 1) * lines):
                    ids = input_ids[line : line + 1, self._width - len(row.prompt) :]
                    constraints.apply(ids, scores[line], generated)
        return scores


class _Watch(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """Ends each row at its own length, end token or stop text, and says after each token how far they are."""

    def __init__(self, rows: Sequence[Row], width: int, texts: Texts, run: Run, *, before: int, total: int) -> None:
        #: its presence makes `generate()` pad the rows that are done, also for a model without an end token
        self.eos_token_id = texts.ends
        self._rows = rows
        self._width = width
        self._texts = texts
        self._run = run
        self._job_ids = list(dict.fromkeys(row.job.job_id for row in rows))
        self._before = before
        self._total = total
        self._done = [False] * len(rows)
        self._reach = max(row.reach for row in rows)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Which lines of `input_ids` are done; a beam search shows several candidates per row, anew at each step."""
        generated = input_ids.shape[1] - self._width
        self._run.step(self._job_ids, self._before + generated, self._total)
        unwanted = {job_id for job_id in self._job_ids if not self._run.wanted(job_id)}
        lines = input_ids[:, max(self._width, input_ids.shape[1] - self._reach) :].tolist()
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
