"""`text-generation` with an encoder-decoder model of transformers (T5, BART, Pegasus, …): it answers what it reads.

The prompt goes into the encoder, whole; the answer is a text of its own, not a continuation. Every answer is made by
`generate()` in a microbatch of answers that are alike in length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from transformers import AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from shared.errors import JobFailed, ModelRejected
from shared.tasks import did_you_mean
from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Device, ModelFiles, Work
from workers.generators.pretrained import load_model, load_tokenizer
from workers.generators.static_passes import StaticPasses, ends_of
from workers.generators.text_rows import Row, Texts

#: tokenizers that know of no limit say a number like this
_NO_LIMIT = 10**6


class EncoderDecoder(StaticPasses):
    """An encoder-decoder model and its tokenizer."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the config names an encoder-decoder model of texts, with its head."""
        return files is not None and why_no_encoder_decoder(files.config) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Load safetensors only, and no code of the model's own.

        Raises `ModelRejected`: `model_wrong_task` for a model of another kind or without a trained head,
        `model_not_a_model` if files are missing or cannot be read.
        """
        if files is None:
            raise ModelRejected("model_not_found", "text-generation needs a model")
        if (reason := why_no_encoder_decoder(files.config)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot answer texts: {reason}")
        model = load_model(files, AutoModelForSeq2SeqLM, device, what="a writer of texts")
        return cls(model, load_tokenizer(files))

    def __init__(self, model: Any, tokenizer: Any) -> None:
        config = model.config
        texts = Answers(
            tokenizer,
            ends=ends_of(model, config, tokenizer),
            positions=getattr(config, "max_position_embeddings", None),
            vocabulary=model.get_input_embeddings().weight.shape[0],
        )
        begin = config.decoder_start_token_id
        begin = model.generation_config.decoder_start_token_id if begin is None else begin
        begin = config.bos_token_id if begin is None else begin
        if begin is None:
            raise ModelRejected("model_not_a_model", "the model does not say what its answers begin with")
        #: what every answer begins with; some models want their own mark for the beginning of a text after it
        first = model.generation_config.forced_bos_token_id
        texts.begin = [begin] if first is None else [begin, first]
        texts.languages = _languages(tokenizer)
        super().__init__(model, texts)
        self._masks = True


class Answers(Texts):
    """What an encoder-decoder model reads, and where its answers begin."""

    begin: list[int]
    #: of a model of many languages, what stands for each of them; None for others
    languages: Mapping[str, int] | None = None

    def rows(self, job: Work) -> list[Row]:
        """The rows of a job, checked against the model; raises `JobFailed` if it cannot run."""
        params: TextGenerationParams = job.params
        begin = self.begin if self.languages is None else [self.begin[0], *self._language(params)]
        source = self._source(params)
        most = None if self.positions is None else self.positions - len(self.begin)
        new = params.new_tokens(0)
        if most is not None and new > most:
            raise JobFailed("length_unsupported", f"this model's answers have at most {most} tokens: ask for fewer")
        sequences = 1 if params.num_beams > 1 else params.num_return_sequences
        grammar = self.grammar(params)
        return [Row(job, index, begin, new, source, grammar) for index in range(sequences)]

    def _language(self, params: TextGenerationParams) -> list[int]:
        """Set the tokenizer to the language of the prompt; returns the mark of the one that the answer is to be in."""
        known = self.languages or {}
        marks: list[int] = []
        for name in ("source_language", "target_language"):
            language = getattr(params, name, None)
            if language is None:
                raise JobFailed("language_missing", f"this model wants to be told the languages: set {name}")
            if language not in known:
                hint = did_you_mean(language, known)
                raise JobFailed("language_unknown", f"this model knows no {name}={language}{hint}")
            marks.append(known[language])
        self.tokenizer.src_lang = params.source_language  # type: ignore[attr-defined]
        return marks[1:]

    def _source(self, params: TextGenerationParams) -> list[int]:
        """What the encoder reads, ended as the model was trained."""
        ids = self._encode(params)
        if max(ids) >= self.vocabulary:
            raise JobFailed("prompt_unreadable", f"the model has no embedding for token {max(ids)} of its tokenizer")
        limits = [self.positions] if self.positions is not None else []
        if self.tokenizer.model_max_length < _NO_LIMIT:
            limits.append(self.tokenizer.model_max_length)
        most = min(limits, default=None)
        if most is None or len(ids) <= most:
            return ids
        if params.long_prompt == "fail":
            raise JobFailed(
                "prompt_too_long",
                f"the prompt has {len(ids)} tokens, and this model reads {most}: shorten it, or set "
                "long_prompt=truncate to keep its beginning",
            )
        text = params.prompt or ""
        return list(self.tokenizer(text, truncation=True, max_length=most)["input_ids"])


def _languages(tokenizer: Any) -> dict[str, int] | None:
    """Marks of languages, by the names that the model's own tokenizer has for them (M2M100, NLLB, mBART)."""
    if not hasattr(tokenizer, "src_lang"):
        return None
    if hasattr(tokenizer, "lang_code_to_token"):
        return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokenizer.lang_code_to_token.items()}
    marks = {name: tokenizer.convert_tokens_to_ids(name) for name in tokenizer.additional_special_tokens}
    return marks or None


def why_no_encoder_decoder(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` is no encoder-decoder of texts; None if it is one."""
    if "_class_name" in config:
        return f"it is a diffusion model ({config['_class_name']})"
    kind = config.get("model_type")
    if kind not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES or not config.get("is_encoder_decoder", True):
        return f"model type {kind!r} is not one of an encoder-decoder"
    known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES[kind]
    saved: Sequence[str] = config.get("architectures") or []
    if saved and not any(name == known or name.endswith(("ForConditionalGeneration", "MTModel")) for name in saved):
        return f"it was saved as {', '.join(saved)}, which has no head for text"
    return None
