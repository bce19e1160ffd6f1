"""`text-generation` by vLLM, on CUDA, where it is installed (`pip install "aigc[vllm]"`).

It takes the place of `causal_lm.py` for every causal language model there, for it is several times faster on a GPU.
Beams and bans of repeated n-grams, which vLLM does not have, go to a `CausalLM` that is loaded when the first of them
comes; so does every job of a model that vLLM cannot run. A job's seed is vLLM's own: it gives the same text on the same
engine whenever vLLM's kernels do, and another text than transformers. The facts of an output name the engine.

Written against vLLM's documented interface (`LLMEngine`: add_request, step, abort_request) from 0.10 on.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Self

import torch
from transformers import AutoTokenizer

from shared.errors import ModelRejected
from workers.generators import Device, Done, Feed, Generator, ModelFiles, Outcome, Run, Work
from workers.generators.causal_lm import CausalLM
from workers.generators.text_rows import Row, Texts
from workers.generators.text_stream import Going, NoFeed, stream_texts

log = logging.getLogger("aigc.worker")

#: most texts in the model at once
_ROWS = 256
#: share of the memory that is free at load time, for weights, keys and values together
_SHARE = 0.8
# torch's random generators take 63 bits and a sign.
_SEEDS = 2**63


class VllmText(Generator):
    """A causal language model in a vLLM engine."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether there are CUDA, vLLM, and a model that `CausalLM` would serve; imports none of them."""
        return find_spec("vllm") is not None and torch.cuda.is_available() and CausalLM.serves(files)

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Start an engine with the model; where vLLM cannot run it, transformers will."""
        if files is None:
            raise ModelRejected("model_not_found", "text-generation needs a model")
        # A worker's child may have no children, and vLLM would start one for its engine.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import EngineArgs, LLMEngine

        free, total = torch.cuda.mem_get_info(device.name)
        try:
            arguments = EngineArgs(
                model=str(files.folder),
                dtype=device.dtype,
                load_format="safetensors",
                trust_remote_code=False,
                generation_config="vllm",  # nothing of the model's own defaults
                gpu_memory_utilization=round(_SHARE * free / total, 3),
                max_num_seqs=_ROWS,
                disable_log_stats=True,
            )
            engine = LLMEngine.from_engine_args(arguments)
            tokenizer = AutoTokenizer.from_pretrained(
                files.folder, clean_up_tokenization_spaces=False, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            log.warning("vLLM cannot run %s, transformers does: %s", files.ref, error)
            gc.collect()
            return cls(files, device, None, CausalLM.load(files, device))
        config = engine.model_config
        ends = config.hf_text_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        texts = Texts(
            tokenizer,
            ends=[] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends],
            positions=config.max_model_len,
            vocabulary=config.hf_text_config.vocab_size,
        )
        return cls(files, device, _VllmFlow(engine, texts), None)

    def __init__(self, files: ModelFiles, device: Device, flow: _VllmFlow | None, other: CausalLM | None) -> None:
        self._files, self._device = files, device
        self._flow = flow
        self._other = other

    def streams(self, job: Work) -> bool:
        """What vLLM has by itself; the rest if the other engine can."""
        return self._ours(job) or (self._flow is None and self._transformers.streams(job))

    def room(self) -> int | None:
        """As many as the engine was started for."""
        return self._transformers.room() if self._flow is None else _ROWS

    def stream(self, jobs: Sequence[Work], feed: Feed, run: Run) -> Iterator[Outcome]:
        """Step the engine with all texts that are there."""
        if self._flow is None:
            return _named("transformers", self._transformers.stream(jobs, feed, run))
        texts = self._flow.texts
        return _named("vllm", stream_texts(self._flow, texts, jobs, feed, run, rows=texts.rows))

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Jobs that vLLM takes by number, it mixes lengths at no cost; the others as `CausalLM` wants them."""
        ours = [job for job in jobs if self._ours(job)]
        others = [job for job in jobs if not self._ours(job)]
        return [*super().cut(ours, limit), *(self._transformers.cut(others, limit) if others else ())]

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """The engine shares its memory out by itself, whatever comes."""
        return () if self._ours(jobs[0]) else self._transformers.shape(jobs)

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """A stream of these alone, or what `CausalLM` does with them."""
        if self._ours(jobs[0]):
            return self.stream(jobs, NoFeed(), run)
        return _named("transformers", self._transformers.generate(jobs, run))

    def unload(self) -> None:
        """End the engine, and give its memory back."""
        if self._other is not None:
            self._other.unload()
        if self._flow is not None:
            self._flow.close()
        self._flow = self._other = None
        gc.collect()
        torch.cuda.empty_cache()

    def _ours(self, job: Work) -> bool:
        params = job.params
        plain = params.num_beams == 1 and not params.no_repeat_ngram_size and params.response_format is None
        return self._flow is not None and plain

    @property
    def _transformers(self) -> CausalLM:
        if self._other is None:
            self._other = CausalLM.load(self._files, self._device)
        return self._other


class _VllmFlow:
    """A vLLM engine as texts join and leave it; vLLM itself decides when each begins."""

    def __init__(self, engine: Any, texts: Texts) -> None:
        self._engine = engine
        self.texts = texts
        self._by_id: dict[str, Going] = {}
        self._count = 0

    @property
    def room(self) -> int:
        return max(0, _ROWS - len(self._by_id))

    @property
    def idle(self) -> bool:
        return not self._by_id

    @property
    def going(self) -> Sequence[Going]:
        return list(self._by_id.values())

    def add(self, rows: Iterable[Row]) -> Sequence[Going]:
        from vllm import TokensPrompt

        added = []
        for row in rows:
            self._count += 1
            going = Going(row)
            name = f"{row.job.job_id}/{row.index}/{self._count}"
            self._engine.add_request(name, TokensPrompt(prompt_token_ids=row.prompt), _sampling(row, self.texts.ends))
            self._by_id[name] = going
            added.append(going)
        return added

    def drop(self, goings: Iterable[Going]) -> None:
        gone = set(map(id, goings))
        names = [name for name, going in self._by_id.items() if id(going) in gone]
        for name in names:
            del self._by_id[name]
        if names:
            self._engine.abort_request(names)

    def step(self) -> Sequence[Going]:
        ended = []
        for output in self._engine.step():
            going = self._by_id.get(output.request_id)
            if going is None:
                continue
            for token in output.outputs[0].token_ids:
                going.tokens.append(token)
                if self.texts.ended(going.row, going.tokens[-going.row.reach :], len(going.tokens)):
                    going.done = True
                    break
            going.done = going.done or output.finished
            if going.done:
                ended.append(going)
                if output.finished:
                    del self._by_id[output.request_id]
        self.drop(ended)
        return ended

    def clear(self) -> None:
        self.drop(list(self._by_id.values()))

    def close(self) -> None:
        self.clear()
        core = getattr(self._engine, "engine_core", None)
        if core is not None:
            core.shutdown()
        self._engine = None


def _named(engine: str, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    for outcome in outcomes:
        if isinstance(outcome, Done):
            outputs = [replace(output, facts={**output.facts, "engine": engine}) for output in outcome.outputs]
            yield Done(outcome.job_id, outputs)
        else:
            yield outcome


def _sampling(row: Row, ends: Sequence[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params, draw = row.params, row.draw
    return SamplingParams(
        max_tokens=row.new_tokens,
        min_tokens=params.min_new_tokens or 0,
        repetition_penalty=params.repetition_penalty,
        temperature=draw.temperature if draw else 0.0,
        top_k=draw.top_k if draw else 0,
        top_p=draw.top_p if draw else 1.0,
        seed=draw.seed % _SEEDS if draw else None,
        stop_token_ids=list(ends),
        ignore_eos=True,  # its idea of it is among `ends`
        detokenize=False,  # stop texts are found as in every engine of ours
        output_kind=RequestOutputKind.DELTA,
    )
