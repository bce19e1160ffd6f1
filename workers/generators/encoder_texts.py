"""What every generator that reads texts in one pass shares: rows that fit the model, cut alike in length, and results.

One microbatch is a few passes over all texts of its jobs, sorted by length, so that little is padded. A job is done as
soon as the last of its texts is.
"""

from __future__ import annotations

import traceback
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shared.errors import JobFailed
from shared.tasks.texts import TextsParams
from workers.generators import Device, Done, Failed, ModelFiles, Outcome, Output, Run, Work
from workers.generators.pretrained import Pretrained, load_model, load_tokenizer
from workers.pinned import free_cached, out_of_memory

#: most texts in a pass, and most tokens with padding
_ROWS = {"cpu": 32, "cuda": 256}
_TOKENS = {"cpu": 2**13, "cuda": 2**16}
#: in these, positions begin behind the padding's own
_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "ibert",
    "xmod",
    "data2vec-text",
)
#: tokenizers that know of no limit say a number like this
_NO_LIMIT = 10**6


@dataclass(frozen=True, slots=True)
class Row:
    """One text (or pair) of a job, as the model reads it."""

    job: Work
    #: its place among the results of the job
    index: int
    #: what the tokenizer made: `input_ids` and what goes with it
    inputs: Mapping[str, list[int]]
    #: whether its end was cut off
    cut: bool = False

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.inputs["input_ids"])


class EncoderTexts(Pretrained):
    """Reads texts and gives one result per text."""

    #: what the weights have to be able to do, in words
    what: str

    @classmethod
    def _load(cls, files: ModelFiles, device: Device, auto: Any) -> tuple[Any, Any]:
        """Model and tokenizer."""
        return load_model(files, auto, device, what=cls.what), load_tokenizer(files)

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model)
        self._tokenizer = tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        self._positions = _positions(model.config, tokenizer)
        kind = "cuda" if model.device.type == "cuda" else "cpu"
        self._most_rows, self._most_tokens = _ROWS[kind], _TOKENS[kind]

    # --- what a task adds ---

    def _texts(self, params: Any) -> Sequence[tuple[str, str | None]]:
        """The texts of a job, each with its second half if it is a pair."""
        shared: TextsParams = params
        return [(text, None) for text in shared.texts]

    @abstractmethod
    def _read(self, inputs: Mapping[str, torch.Tensor], rows: Sequence[Row]) -> Sequence[Any]:
        """One pass: a result per row."""

    @abstractmethod
    def _output(self, job: Work, results: Sequence[Any]) -> Output:
        """The file of a job; raises `JobFailed` if the results are no such thing."""

    # --- the engine's side ---

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """By length, so that those of a microbatch are alike."""
        ordered = sorted(jobs, key=_characters)
        return [ordered[start : start + limit] for start in range(0, len(ordered), limit)]

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """How many tokens there are per job, to the next power of two."""
        return 1 << max(int(job.params.tokens) for job in jobs).bit_length()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Pass after pass, each job's outcome with its last text."""
        rows: list[Row] = []
        results: dict[str, list[Any]] = {}
        for job in jobs:
            try:
                mine = self._rows(job)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                rows += mine
                results[job.job_id] = [None] * len(mine)
        open_: dict[str, tuple[Work, int]] = {
            job.job_id: (job, len(results[job.job_id])) for job in jobs if job.job_id in results
        }
        passes = list(self._passes(rows))
        for at, share in enumerate(passes, start=1):
            wanted = [row for row in share if run.wanted(row.job.job_id)]
            for row, result in zip(wanted, self._fitting(wanted) if wanted else (), strict=True):
                results[row.job.job_id][row.index] = result
            names = [job_id for job_id in open_ if run.wanted(job_id)]
            if names:
                run.step(names, at, len(passes))
            for row in share:
                job, left = open_[row.job.job_id]
                open_[job.job_id] = job, left - 1
            for job, left in list(open_.values()):
                if left == 0:
                    del open_[job.job_id]
                    if run.wanted(job.job_id):
                        yield self._outcome(job, results.pop(job.job_id))

    def _outcome(self, job: Work, results: Sequence[Any]) -> Outcome:
        try:
            return Done(job.job_id, [self._output(job, results)])
        except JobFailed as error:
            return Failed(job.job_id, error)

    def _rows(self, job: Work) -> list[Row]:
        """The texts of a job as tokens; raises `JobFailed` if one does not fit."""
        rows: list[Row] = []
        most = self._positions
        for index, (text, pair) in enumerate(self._texts(job.params)):
            inputs = self._tokenizer(text, pair, truncation=False)
            count = len(inputs["input_ids"])
            if count == 0:
                raise JobFailed("text_unreadable", f"the model's tokenizer makes no token of text {index + 1}")
            over = most is not None and count > most
            if over and job.params.long_text == "fail":
                raise JobFailed(
                    "text_too_long",
                    f"text {index + 1} has {count} tokens, and this model reads {most}: shorten it, or set "
                    "long_text=truncate to keep its beginning",
                )
            if over:
                how = True if pair is None else "only_first"
                inputs = self._tokenizer(text, pair, truncation=how, max_length=most)
            rows.append(Row(job, index, dict(inputs), over))
        return rows

    def _passes(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows by length, in shares of at most so many rows and tokens."""
        share: list[Row] = []
        for row in sorted(rows, key=lambda row: row.length):
            if share and (len(share) == self._most_rows or (len(share) + 1) * row.length > self._most_tokens):
                yield share
                share = []
            share.append(row)
        if share:
            yield share

    def _fitting(self, rows: Sequence[Row]) -> Sequence[Any]:
        """A pass; in halves, if it does not fit into memory."""
        try:
            with torch.inference_mode():
                padded = self._tokenizer.pad([dict(row.inputs) for row in rows], return_tensors="pt")
                return self._read(padded.to(self._model.device), rows)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(rows) == 1:
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the halves need
        free_cached(str(self._model.device))
        half = (len(rows) + 1) // 2
        self._most_rows = min(self._most_rows, half)
        return [*self._fitting(rows[:half]), *self._fitting(rows[half:])]


def _characters(job: Work) -> int:
    return max(len(text) for text in job.params.texts)


def _positions(config: Any, tokenizer: Any) -> int | None:
    """Most tokens of a text; None = there is no limit."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LIMIT else []
    if (most := getattr(config, "max_position_embeddings", None)) and most > 0:
        limits.append(most - (tokenizer.pad_token_id + 1 if config.model_type in _AFTER_PADDING else 0))
    return min(limits, default=None)
