"""`summarization` with an encoder-decoder model (BART, Pegasus, T5, …) or one that chats."""

from __future__ import annotations

from typing import Any, Self

from shared.tasks.summarization import SummarizationParams
from shared.tasks.text_generation import Message, TextGenerationParams
from workers.generators import Device, Generator, ModelFiles
from workers.generators.encoder_decoder import EncoderDecoder
from workers.generators.reworded import Reworded
from workers.generators.text_writers import own_prefix, serves, writer_for

_INSTRUCTION = "Summarise the following text. Answer with the summary alone, in the language of the text.\n\n"


class Summarizer(Reworded):
    """Puts the text behind the prefix that the model was trained with, or into a conversation."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the model writes texts."""
        return serves(files)

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model that writes no texts, or cannot be told what to write."""
        writer = writer_for(files, device, task="summarization")
        return cls(writer, own_prefix(files.config if files else {}, "summarization") or "")

    def __init__(self, writer: Generator, prefix: str) -> None:
        super().__init__(writer)
        self._prefix = prefix

    def reword(self, params: SummarizationParams) -> TextGenerationParams:
        """As the model was trained to be asked."""
        reads = isinstance(self._writer, EncoderDecoder)
        beams, run = (4, 3) if reads else (1, 0)
        how: dict[str, Any] = {
            "max_new_tokens": params.max_new_tokens,
            "min_new_tokens": params.min_new_tokens or None,
            "num_beams": beams if params.num_beams is None else params.num_beams,
            "length_penalty": params.length_penalty,
            "no_repeat_ngram_size": run if params.no_repeat_ngram_size is None else params.no_repeat_ngram_size,
        }
        if reads:
            return TextGenerationParams(prompt=self._prefix + params.text, long_prompt=params.long_text, **how)
        return TextGenerationParams(messages=[Message(role="user", content=_INSTRUCTION + params.text)], **how)
