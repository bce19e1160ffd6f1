"""`text-generation` with a causal language model of transformers (GPT-2, Llama, Qwen, Mistral, …).

Two engines run it. Texts that join and leave a running model (`continuous_text.py`) take every job without beams, of
models that can be stepped so; `generate()` of transformers (`static_text.py`) takes the rest, and gives the same texts.
Nothing is taken over from the model's own `generation_config.json` but the ids that begin, end and pad a text.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from shared.errors import JobFailed, ModelRejected
from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Device, Done, Failed, Feed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.generators.continuous_text import Continuous
from workers.generators.static_text import generate_together
from workers.generators.text_rows import Row, Texts
from workers.generators.text_stream import stream_texts

#: most tokens, prompts and padding included, of a static microbatch
_TOKENS = {"cpu": 2**15, "cuda": 2**18}


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
        config = model.config.get_text_config()
        ends = model.generation_config.eos_token_id
        ends = config.eos_token_id if ends is None else ends
        ends = tokenizer.eos_token_id if ends is None else ends
        self._texts = Texts(
            tokenizer,
            ends=[] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends],
            positions=getattr(config, "max_position_embeddings", None),
            vocabulary=model.get_input_embeddings().weight.shape[0],
        )
        pad = tokenizer.pad_token_id
        self._pad: int = pad if pad is not None else (self._texts.ends or [0])[0]
        # Without a mask a padded prompt would be another prompt: such models take rows of one length only.
        self._masks = "attention_mask" in inspect.signature(model.forward).parameters
        #: where the model computes, should it be parked
        self._home: torch.device = model.device
        #: most rows at a time, as the engine last said
        self._limit: int | None = None
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=self._texts.ends or None, pad_token_id=self._pad
        )
        self._flow = Continuous.of(model, self._texts)

    # --- texts that join and leave ---

    def streams(self, job: Work) -> bool:
        """Every job without beams, if the model can be stepped."""
        return self._flow is not None and job.params.num_beams == 1

    def room(self) -> int | None:
        """As many as the kind of device makes use of."""
        return None if self._flow is None else self._flow.rows

    def stream(self, jobs: Sequence[Work], feed: Feed, run: Run) -> Iterator[Outcome]:
        """Step the model with all texts that are there; a job leaves with the last of its sequences."""
        if self._flow is None:
            raise RuntimeError(f"{type(self._model).__name__} cannot be stepped, and was asked to stream")
        return stream_texts(self._flow, self._texts, jobs, feed, run, rows=self._rows)

    # --- static passes ---

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

    def park(self) -> bool:
        """Move the weights to the host, into pages that a GPU can read by itself on the way back."""
        self._home = self._model.device
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            host = tensor.data.to("cpu")
            tensor.data = host.pin_memory() if torch.cuda.is_available() else host
        return True

    def unpark(self) -> None:
        """Move the weights back."""
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            tensor.data = tensor.data.to(self._home, non_blocking=True)

    def unload(self) -> None:
        """Drop the model and give its memory back."""
        self._model = self._texts = self._flow = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rows(self, job: Work) -> list[Row]:
        if job.params.num_beams > 1 and getattr(self._model, "_is_stateful", False):
            raise JobFailed("param_unsupported", "this model has no beam search: set num_beams=1 and sample instead")
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
