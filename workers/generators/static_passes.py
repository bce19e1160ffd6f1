"""Text generation in whole microbatches: jobs cut alike in length, each pass one `generate()` of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from transformers import GenerationConfig

from shared.errors import JobFailed
from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Done, Failed, Outcome, Output, Run, Work
from workers.generators.pretrained import Pretrained
from workers.generators.static_text import generate_together
from workers.generators.text_rows import Row, Texts

#: most tokens, prompts and padding included, of a static microbatch
_TOKENS = {"cpu": 2**15, "cuda": 2**18}


class StaticPasses(Pretrained):
    """A model that writes texts, and its tokenizer.

    Nothing is taken over from the model's own generation defaults but the ids that begin, end and pad a text.
    """

    def __init__(self, model: Any, texts: Texts) -> None:
        super().__init__(model)
        self._texts = texts
        pad = texts.tokenizer.pad_token_id
        self._pad: int = pad if pad is not None else (texts.ends or [0])[0]
        # Without a mask a padded prompt would be another prompt: such models take rows of one length only.
        self._masks = "attention_mask" in inspect.signature(model.forward).parameters
        #: most rows at a time, as the engine last said
        self._limit: int | None = None
        model.generation_config = GenerationConfig(
            bos_token_id=texts.tokenizer.bos_token_id, eos_token_id=texts.ends or None, pad_token_id=self._pad
        )

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Cut into microbatches alike in length, of at most `limit` rows and a budget of tokens.

        A job counts its sequences or beams. One with more rows than that comes alone; `generate` then takes it in
        slices (except its beams).
        """
        self._limit = limit
        budget = _TOKENS["cuda" if self._model.device.type == "cuda" else "cpu"]
        groups: list[list[Work]] = []
        last: object = None
        rows = longest = 0
        for job in sorted(jobs, key=_length):
            width = max(job.params.num_beams, job.params.num_return_sequences)
            beams = _beam_key(job.params)
            tokens = max(longest, _tokens(job))
            if not groups or beams != last or rows + width > limit or (rows + width) * tokens > budget:
                groups.append([])
                rows, tokens = 0, _tokens(job)
            groups[-1].append(job)
            rows += width
            last, longest = beams, tokens
        return groups

    def most(self, jobs: Sequence[Work], limit: int) -> int:
        """As `cut` does it: by rows, and by tokens."""
        width: int = max(max(job.params.num_beams, job.params.num_return_sequences) for job in jobs)
        budget = _TOKENS["cuda" if self._model.device.type == "cuda" else "cpu"]
        return max(1, min(limit, budget // max(_tokens(job) for job in jobs)) // width)

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """How long the longest may become, to the next power of two, and how many beams there are."""
        beams = max(job.params.num_beams for job in jobs)
        return beams, 1 << max(_tokens(job) for job in jobs).bit_length()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run the jobs, usually in one pass; more where lengths would not fit the model's positions together."""
        rows: list[Row] = []
        for job in jobs:
            try:
                rows += self._rows(job)
            except JobFailed as error:
                yield Failed(job.job_id, error)
        outputs: dict[str, list[Output]] = {}
        passes = list(self._passes(rows))
        steps = [max(row.new_tokens for row in share) for share in passes]
        for at, share in enumerate(passes):
            wanted = [row for row in share if run.wanted(row.job.job_id)]
            if not wanted:
                continue
            made = generate_together(
                self._model, self._texts, wanted, run,
                pad=self._pad, masks=self._masks, before=sum(steps[:at]), total=sum(steps),
            )  # fmt: skip
            for row, texts in zip(wanted, made, strict=True):
                mine = outputs.setdefault(row.job.job_id, [])
                mine += texts
                if len(mine) == row.params.num_return_sequences and run.wanted(row.job.job_id):
                    yield Done(row.job.job_id, mine)

    def unload(self) -> None:
        """Drop the model and its tokenizer."""
        self._texts = None  # type: ignore[assignment]
        super().unload()

    def _rows(self, job: Work) -> list[Row]:
        """The rows of a job; raises `JobFailed` if the model cannot write them."""
        return self._texts.rows(job)

    def _passes(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Cut rows into what one `generate()` can take together."""
        share: list[Row] = []
        positions = self._texts.positions
        for row in rows:
            together = [*share, row]
            longest = max(len(r.prompt) for r in together)
            most = max(r.new_tokens for r in together)
            width = sum(r.params.num_beams for r in together)
            if share and (
                (self._limit is not None and width > self._limit)
                or (positions is not None and longest + most > positions)
                or _beam_key(row.params) != _beam_key(share[0].params)
                or (row.params.num_beams > 1 and row.new_tokens != share[0].new_tokens)
                or (not self._masks and len(row.prompt) != len(share[0].prompt))
            ):
                yield share
                together = [row]
            share = together
        if share:
            yield share


def ends_of(model: Any, config: Any, tokenizer: Any) -> list[int]:
    """The ids that end a text."""
    ends = model.generation_config.eos_token_id
    ends = config.eos_token_id if ends is None else ends
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]


def _beam_key(params: TextGenerationParams) -> object:
    """What jobs that search with beams have to share; None for all others."""
    if params.num_beams == 1:
        return None
    names = ("num_beams", "num_return_sequences", "early_stopping", "length_penalty", "max_new_tokens", "max_length")
    return tuple(getattr(params, name) for name in names)


def _characters(job: Work) -> int:
    params: TextGenerationParams = job.params
    return len(params.prompt or "") + sum(len(message.content) for message in params.messages or ())


def _tokens(job: Work) -> int:
    """About how many tokens prompt and completion have; the tokenizer knows better, and is slower."""
    prompt = _characters(job) // 4 + 1
    return prompt + max(1, int(job.params.new_tokens(prompt)))


def _length(job: Work) -> tuple[bool, str, int, int]:
    """Sorts alike jobs together: beams apart, then by tokens to come, then by characters of the prompt."""
    params: TextGenerationParams = job.params
    characters = _characters(job)
    return params.num_beams > 1, repr(_beam_key(params)), params.new_tokens(characters // 4), characters
