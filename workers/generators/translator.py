"""`translation` with a translation model (Marian, M2M100, NLLB, mBART, T5) or a model that chats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from shared.errors import JobFailed
from shared.tasks.text_generation import Message, TextGenerationParams
from shared.tasks.translation import TranslationParams
from workers.generators import Device, Generator, ModelFiles
from workers.generators.encoder_decoder import EncoderDecoder
from workers.generators.reworded import Reworded
from workers.generators.text_writers import serves, writer_for


class Asked(TextGenerationParams):
    """A text to write in another language."""

    source_language: str | None = None
    target_language: str | None = None


class Translator(Reworded):
    """Tells the model which languages are meant, in the way that its kind wants it."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the model writes texts."""
        return serves(files)

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model that writes no texts, or cannot be told what to write."""
        writer = writer_for(files, device, task="translation")
        return cls(writer, files.config if files else {})

    def __init__(self, writer: Generator, config: Mapping[str, Any]) -> None:
        super().__init__(writer)
        self._reword = self._how(writer, config)

    def reword(self, params: TranslationParams) -> TextGenerationParams:
        """As the model was trained to be asked; raises `JobFailed` if it does not know the languages, or needs them."""
        return self._reword(params)

    def _how(self, writer: Generator, config: Mapping[str, Any]) -> Callable[[TranslationParams], TextGenerationParams]:
        if not isinstance(writer, EncoderDecoder):
            return _in_a_conversation
        prefixes = {
            name.removeprefix("translation_"): str(about.get("prefix", ""))
            for name, about in (config.get("task_specific_params") or {}).items()
            if name.startswith("translation_") and isinstance(about, dict)
        }
        if prefixes:
            return lambda params: _asked(params, prefix=_of_pair(prefixes, params))
        return lambda params: _asked(params, prefix="")


def _asked(params: TranslationParams, *, prefix: str) -> TextGenerationParams:
    return Asked(
        prompt=prefix + params.text,
        source_language=params.source_language,
        target_language=params.target_language,
        long_prompt=params.long_text,
        max_new_tokens=params.max_new_tokens,
        num_beams=params.num_beams or 4,
        length_penalty=params.length_penalty,
    )


def _in_a_conversation(params: TranslationParams) -> TextGenerationParams:
    if params.target_language is None:
        raise JobFailed("language_missing", "say which language you want: set target_language, such as German")
    source = f" from {params.source_language}" if params.source_language else ""
    words = (
        f"Translate the following text{source} into {params.target_language}. Answer with the translation alone.\n\n"
    )
    return TextGenerationParams(
        messages=[Message(role="user", content=words + params.text)],
        max_new_tokens=params.max_new_tokens,
        num_beams=params.num_beams or 1,
        length_penalty=params.length_penalty,
    )


def _of_pair(prefixes: Mapping[str, str], params: TranslationParams) -> str:
    """The prefix of a model of several pairs, such as T5."""
    pair = f"{params.source_language}_to_{params.target_language}"
    if pair not in prefixes:
        known = ", ".join(name.replace("_to_", " to ") for name in sorted(prefixes))
        raise JobFailed(
            "language_unknown", f"this model translates {known}: set source_language and target_language so"
        )
    return prefixes[pair]
