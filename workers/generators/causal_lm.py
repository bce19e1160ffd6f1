"""`text-generation` with a causal language model of transformers (GPT-2, Llama, Qwen, Mistral, …).

One microbatch is one `model.generate()` with left padding. Greedy and sampled jobs share it: temperature, top-k, top-p,
seed, length, stop texts, penalties belong to a row, not to the batch. Only a beam search wants its like beside it.
Nothing is taken over from the model's own `generation_config.json` but the ids that begin, end and pad a text.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from shared.errors import JobFailed, ModelRejected
from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.generators.seeded_sampling import Draw, SeededSampling

# Tokens before the completion that are decoded with it, so that its first blank survives.
_CONTEXT = 6


@dataclass(frozen=True, slots=True)
class _Row:
    """One text to generate: sequence `index` of a job, or all its sequences if it searches with beams."""

    job: Work
    index: int
    #: token ids of the prompt
    prompt: list[int]
    #: most tokens to generate
    new_tokens: int

    @property
    def params(self) -> TextGenerationParams:
        params: TextGenerationParams = self.job.params
        return params

    @property
    def draw(self) -> Draw | None:
        params = self.params
        if not params.samples:
            return None
        temperature = 1.0 if params.temperature is None else params.temperature
        top_p = 1.0 if params.top_p is None else params.top_p
        return Draw(self.job.seed + self.index, temperature, params.top_k or 0, top_p)


class CausalLM(Generator):
    """A causal language model and its tokenizer."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the config names a causal language model with its head."""
        return files is not None and _why_not(files.config) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Load safetensors only, and no code of the model's own.

        Raises `ModelRejected`: `model_wrong_task` for a model of another kind or without a trained head,
        `model_not_a_model` if files are missing or cannot be read.
        """
        if files is None:
            raise ModelRejected("model_not_found", "text-generation needs a model")
        if (reason := _why_not(files.config)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot generate text: {reason}")
        logging.disable_progress_bar()
        safely = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(files.folder, clean_up_tokenization_spaces=False, **safely)
            model, info = AutoModelForCausalLM.from_pretrained(
                files.folder, dtype=_dtype(device), use_safetensors=True, output_loading_info=True, **safely
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelRejected("model_not_a_model", f"{files.ref} cannot be loaded: {error}") from error
        if info["missing_keys"]:
            missing = min(info["missing_keys"])
            raise ModelRejected("model_wrong_task", f"{files.ref} lacks weights of a text generator, such as {missing}")
        return cls(model.to(device.name).eval(), tokenizer)

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        config = model.config.get_text_config()
        ends = model.generation_config.eos_token_id
        ends = config.eos_token_id if ends is None else ends
        ends = tokenizer.eos_token_id if ends is None else ends
        #: ids that end a text
        self._ends: list[int] = [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]
        pad = tokenizer.pad_token_id
        self._pad: int = pad if pad is not None else (self._ends or [0])[0]
        #: most tokens of prompt and completion that the model has positions for; None = it does not say
        self._positions: int | None = getattr(config, "max_position_embeddings", None)
        self._vocabulary: int = model.get_input_embeddings().weight.shape[0]
        # Without a mask a padded prompt would be another prompt: such models take rows of one length only.
        self._masks = "attention_mask" in inspect.signature(model.forward).parameters
        #: most rows at a time, as the engine last said
        self._limit: int | None = None
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=self._ends or None, pad_token_id=self._pad
        )

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Cut into microbatches of at most `limit` rows, alike in length; a job counts its sequences or beams.

        A job with more rows than that comes alone; `generate` then takes it in slices (except its beams).
        """
        self._limit = limit
        groups: list[list[Work]] = []
        last: object = None
        rows = 0
        for job in sorted(jobs, key=_length):
            width = max(job.params.num_beams, job.params.num_return_sequences)
            beams = _beam_key(job.params)
            if not groups or beams != last or rows + width > limit:
                groups.append([])
                rows = 0
            groups[-1].append(job)
            rows += width
            last = beams
        return groups

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run the jobs, usually in one pass; more where lengths would not fit the model's positions together."""
        rows: list[_Row] = []
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
            for row, texts in zip(wanted, self._run(wanted, run, sum(steps[:at]), sum(steps)), strict=True):
                made = outputs.setdefault(row.job.job_id, [])
                made += texts
                if len(made) == row.params.num_return_sequences and run.wanted(row.job.job_id):
                    yield Done(row.job.job_id, made)

    def unload(self) -> None:
        """Drop the model and give its memory back."""
        self._model = self._tokenizer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rows(self, job: Work) -> list[_Row]:
        """The rows of a job, checked against the model; raises `JobFailed` if it cannot run."""
        params: TextGenerationParams = job.params
        if params.num_beams > 1 and getattr(self._model, "_is_stateful", False):
            raise JobFailed("param_unsupported", "this model has no beam search: set num_beams=1 and sample instead")
        prompt = self._fit(self._encode(params), params)
        if max(prompt) >= self._vocabulary:
            raise JobFailed("prompt_unreadable", f"the model has no embedding for token {max(prompt)} of its tokenizer")
        new = params.new_tokens(len(prompt))
        if (params.min_new_tokens or 0) > new:
            raise JobFailed(
                "length_unsupported",
                f"max_length={params.max_length} leaves {new} tokens after a prompt of {len(prompt)}: "
                f"fewer than min_new_tokens={params.min_new_tokens}",
            )
        sequences = 1 if params.num_beams > 1 else params.num_return_sequences
        return [_Row(job, index, prompt, new) for index in range(sequences)]

    def _encode(self, params: TextGenerationParams) -> list[int]:
        """Token ids of the prompt, or of the conversation in the form that the model was trained on."""
        if params.messages is None:
            ids = self._tokenizer(params.prompt, truncation=False)["input_ids"]
        else:
            if not self._tokenizer.chat_template:
                raise JobFailed("no_chat_template", "this model has no chat template: give `prompt`, not `messages`")
            messages = [message.model_dump() for message in params.messages]
            try:
                text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except TemplateError as error:
                message = f"the model's chat template refuses these messages: {error}"
                raise JobFailed("chat_template_refused", message) from None
            ids = self._tokenizer(text, truncation=False, add_special_tokens=False)["input_ids"]
        if not ids:
            raise JobFailed("prompt_empty", "the model's tokenizer makes no token of this prompt")
        return list(ids)

    def _fit(self, prompt: list[int], params: TextGenerationParams) -> list[int]:
        """The prompt as it fits the model and the length asked for; raises `prompt_too_long` with both numbers."""
        positions = self._positions
        if positions is not None and params.max_length is not None and params.max_length > positions:
            raise JobFailed(
                "length_unsupported",
                f"max_length={params.max_length} is more than this model's {positions} tokens: lower it",
            )
        if params.max_length is not None:
            room, why = params.max_length - 1, f"max_length={params.max_length}"
        elif positions is not None:
            new = params.new_tokens(0)
            room, why = positions - new, f"this model's {positions} tokens less {new} new ones"
        else:
            return prompt
        if room < 1:
            raise JobFailed("length_unsupported", f"{why} leaves no room for a prompt: lower max_new_tokens")
        if len(prompt) <= room:
            return prompt
        if params.long_prompt == "fail":
            raise JobFailed(
                "prompt_too_long",
                f"the prompt has {len(prompt)} tokens, and {why} leaves room for {room}: shorten it, ask for fewer new "
                "tokens, or set long_prompt=truncate to keep its end",
            )
        if prompt[0] == self._tokenizer.bos_token_id and room > 1:  # the beginning mark is not text
            return [prompt[0], *prompt[len(prompt) - room + 1 :]]
        return prompt[len(prompt) - room :]

    def _passes(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Cut rows into what one `generate()` can take together."""
        share: list[_Row] = []
        for row in rows:
            together = [*share, row]
            longest = max(len(r.prompt) for r in together)
            most = max(r.new_tokens for r in together)
            width = sum(r.params.num_beams for r in together)
            if share and (
                (self._limit is not None and width > self._limit)
                or (self._positions is not None and longest + most > self._positions)
                or _beam_key(row.params) != _beam_key(share[0].params)
                or (row.params.num_beams > 1 and row.new_tokens != share[0].new_tokens)
                or (not self._masks and len(row.prompt) != len(share[0].prompt))
            ):
                yield share
                together = [row]
            share = together
        if share:
            yield share

    def _run(self, rows: list[_Row], run: Run, before: int, total: int) -> list[list[Output]]:
        """One `generate()`, begun after `before` of `total` steps of the microbatch: the outputs of each row."""
        width = max(len(row.prompt) for row in rows)
        device = self._model.device
        prompts = [[self._pad] * (width - len(row.prompt)) + row.prompt for row in rows]
        masks = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        inputs = {"input_ids": torch.tensor(prompts, device=device)}
        if self._masks:
            inputs["attention_mask"] = torch.tensor(masks, device=device)
        params = rows[0].params
        beams = params.num_beams > 1
        config = GenerationConfig(
            max_new_tokens=max(row.new_tokens for row in rows),
            do_sample=False,
            num_beams=params.num_beams,
            early_stopping=bool(params.early_stopping) if params.early_stopping != "never" else "never",
            length_penalty=1.0 if params.length_penalty is None else params.length_penalty,
            num_return_sequences=params.num_return_sequences if beams else 1,
            eos_token_id=self._ends or None,
            pad_token_id=self._pad,
            use_cache=True,
        )
        processors = LogitsProcessorList([_Constraints(rows, width, self._ends)])
        if not beams:
            processors.append(SeededSampling([row.draw for row in rows], width))
        watch = _Watch(rows, width, self._ends, self._tokenizer, run, before=before, total=total)
        made = self._model.generate(
            **inputs,
            generation_config=config,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        completions = made[:, width:].tolist()
        each = len(completions) // len(rows)
        return [
            [self._output(row, completions[i * each + j], row.index + j, watch) for j in range(each)]
            for i, row in enumerate(rows)
        ]

    def _output(self, row: _Row, tokens: list[int], index: int, watch: _Watch) -> Output:
        """The text of one sequence, without prompt, special tokens, and whatever follows its end."""
        ends = (n for n in range(1, len(tokens)) if watch.ended(row, tokens[max(0, n - watch.reach) : n], n))
        length = min(next(ends, len(tokens)), row.new_tokens)
        stopped = watch.stopped(row, tokens[max(0, length - watch.reach) : length])
        text = self._decode(row.prompt, tokens[:length])
        cuts = [at for stop in row.params.stop if (at := text.find(stop)) >= 0]
        facts = {
            "finish_reason": "stop" if stopped else "length",
            "prompt_tokens": len(row.prompt),
            "completion_tokens": length,  # the end token counts
            "seed": row.job.seed + index,
        }
        return Output("text/plain", text[: min(cuts, default=len(text))].encode(), facts)

    def _decode(self, prompt: list[int], tokens: list[int]) -> str:
        context = prompt[-_CONTEXT:]
        before: str = self._tokenizer.decode(context, skip_special_tokens=True)
        text: str = self._tokenizer.decode(context + tokens, skip_special_tokens=True)
        if text.startswith(before):
            return text[len(before) :]
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class _Constraints(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Penalties and the least length, row by row, so that neither padding nor neighbours weigh in."""

    def __init__(self, rows: Sequence[_Row], width: int, ends: list[int]) -> None:
        self._rows = rows
        self._width = width
        self._ends = ends
        self._processors: list[list[Any]] = []
        for row in rows:
            mine: list[Any] = []
            if row.params.repetition_penalty != 1:
                mine.append(RepetitionPenaltyLogitsProcessor(row.params.repetition_penalty))
            if row.params.no_repeat_ngram_size:
                mine.append(NoRepeatNGramLogitsProcessor(row.params.no_repeat_ngram_size))
            self._processors.append(mine)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` has `num_beams` lines per row."""
        generated = input_ids.shape[1] - self._width
        each = len(scores) // len(self._rows)
        for i, row in enumerate(self._rows):
            for line in range(i * each, (i + 1) * each):
                ids = input_ids[line : line + 1, self._width - len(row.prompt) :]
                for processor in self._processors[i]:
                    scores[line] = processor(ids, scores[line : line + 1])[0]
                if generated < (row.params.min_new_tokens or 0):
                    scores[line, self._ends] = -torch.inf
        return scores


class _Watch(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """Ends each row at its own length, end token or stop text, and says after each token how far they are."""

    def __init__(
        self, rows: Sequence[_Row], width: int, ends: list[int], tokenizer: Any, run: Run, *, before: int, total: int
    ) -> None:
        #: its presence makes `generate()` pad the rows that are done, also for a model without an end token
        self.eos_token_id = ends
        self._rows = rows
        self._width = width
        self._tokenizer = tokenizer
        self._run = run
        self._job_ids = list(dict.fromkeys(row.job.job_id for row in rows))
        self._before = before
        self._total = total
        self._done = [False] * len(rows)
        #: how many tokens back a stop text may begin: each token is at least one byte of it, and a few are special
        self.reach = max((len(stop.encode()) + 8 for row in rows for stop in row.params.stop), default=1)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Which lines of `input_ids` are done; a beam search shows several candidates per row, anew at each step."""
        generated = input_ids.shape[1] - self._width
        self._run.step(self._job_ids, self._before + generated, self._total)
        unwanted = {job_id for job_id in self._job_ids if not self._run.wanted(job_id)}
        lines = input_ids[:, max(self._width, input_ids.shape[1] - self.reach) :].tolist()
        each = len(lines) // len(self._rows)
        searching = self._rows[0].params.num_beams > 1
        done: list[bool] = []
        for line, tokens in enumerate(lines):
            row = self._rows[line // each]
            over = (
                row.job.job_id in unwanted or (not searching and self._done[line]) or self.ended(row, tokens, generated)
            )
            if not searching:
                self._done[line] = over
            done.append(over)
        return torch.tensor(done, device=input_ids.device)

    def ended(self, row: _Row, tail: list[int], generated: int) -> bool:
        """Whether the row ends with the last of `generated` tokens, of which `tail` holds the last `reach`."""
        return generated >= row.new_tokens or self.stopped(row, tail)

    def stopped(self, row: _Row, tail: list[int]) -> bool:
        """Whether these tokens end with an end token, or their text has come to a stop text."""
        if not tail or tail[-1] in self.eos_token_id:
            return bool(tail)
        if not row.params.stop:
            return False
        text = self._tokenizer.decode(tail, skip_special_tokens=True)
        return any(stop in text for stop in row.params.stop)


def _why_not(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` is no causal language model; None if it is one."""
    kind = config.get("model_type")
    architectures = config.get("architectures") or []
    if "_class_name" in config:
        return f"it is a diffusion model ({config['_class_name']})"
    if config.get("is_encoder_decoder"):
        return f"it is an encoder-decoder model ({kind})"
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if known is None:
        return f"model type {kind!r} is not one of a causal language model"
    if architectures and not any(
        name == known or name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures
    ):
        return f"it was saved as {', '.join(architectures)}, which has no head for text"
    return None


def _dtype(device: Device) -> torch.dtype:
    """A CPU always computes in float32."""
    return torch.float32 if device.name == "cpu" else getattr(torch, device.dtype)


def _beam_key(params: TextGenerationParams) -> object:
    """What jobs that search with beams have to share; None for all others."""
    if params.num_beams == 1:
        return None
    names = ("num_beams", "num_return_sequences", "early_stopping", "length_penalty", "max_new_tokens", "max_length")
    return tuple(getattr(params, name) for name in names)


def _length(job: Work) -> tuple[bool, str, int, int]:
    """Sorts alike jobs together: beams apart, then by tokens to come, then by characters of the prompt."""
    params: TextGenerationParams = job.params
    characters = len(params.prompt or "") + sum(len(message.content) for message in params.messages or ())
    return params.num_beams > 1, repr(_beam_key(params)), params.new_tokens(characters // 4), characters
