"""`text-generation` with a causal language model of transformers (GPT-2, Llama, Qwen, Mistral, …).

Two engines run it. Texts that join and leave a running model (`continuous_text.py`) take every job without beams, of
models that can be stepped so; `generate()` of transformers (`static_text.py`) takes the rest, and gives the same texts.
Nothing is taken over from the model's own `generation_config.json` but the ids that begin, end and pad a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shared.errors import JobFailed, ModelRejected
from workers.generators import Device, Feed, ModelFiles, Outcome, Run, Work
from workers.generators.continuous_text import Continuous
from workers.generators.pretrained import load_model, load_tokenizer
from workers.generators.static_passes import StaticPasses, ends_of
from workers.generators.text_rows import Row, Texts
from workers.generators.text_stream import stream_texts


class CausalLM(StaticPasses):
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
        model = load_model(files, AutoModelForCausalLM, device, what="a text generator")
        return cls(model, load_tokenizer(files, clean_up_tokenization_spaces=False))

    def __init__(self, model: Any, tokenizer: Any) -> None:
        config = model.config.get_text_config()
        texts = Texts(
            tokenizer,
            ends=ends_of(model, config, tokenizer),
            positions=getattr(config, "max_position_embeddings", None),
            vocabulary=model.get_input_embeddings().weight.shape[0],
        )
        super().__init__(model, texts)
        self._flow = Continuous.of(model, self._texts)

    @property
    def chats(self) -> bool:
        """Whether it was trained on conversations, and can be told what to do."""
        return bool(self._texts.tokenizer.chat_template)

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

    def unload(self) -> None:
        """Drop the model, and what steps it."""
        self._flow = None
        super().unload()

    def _rows(self, job: Work) -> list[Row]:
        if job.params.num_beams > 1 and getattr(self._model, "_is_stateful", False):
            raise JobFailed("param_unsupported", "this model has no beam search: set num_beams=1 and sample instead")
        return super()._rows(job)


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
