"""How models that see are asked: each family wants its pictures and words in a form of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image

from shared.errors import JobFailed
from shared.tasks.image_to_text import ImageToTextParams

_CAPTIONS_ONLY = "this model writes captions and answers no questions: leave `question` out, or take a model that chats"
_ONE_PICTURE = "this model looks at one picture at a time: give one `image`, not a list"


@dataclass(frozen=True, slots=True)
class Asked:
    """A job as its model takes it."""

    #: what `generate()` is given, one row each
    inputs: Mapping[str, torch.Tensor]
    #: token ids that the text goes on from
    prompt: list[int]
    #: token ids that an encoder reads; None where there is none, or it sees only
    source: list[int] | None = None


class Asker(ABC):
    """Puts jobs into the form that a family of models was trained on."""

    tokenizer: Any
    #: what every text begins with, where the words are read by an encoder or not at all; None if texts go on with them
    begin: int | None = None

    @abstractmethod
    def ask(self, params: ImageToTextParams, pictures: Sequence[Image.Image]) -> Asked:
        """Raises `JobFailed` if such a model cannot be asked so."""


class Chatting(Asker):
    """Models with a chat template (LLaVA, Qwen-VL, SmolVLM, InternVL, Gemma 3, …): a question is the user's turn."""

    def __init__(self, processor: Any, begin: int | None) -> None:
        self._processor = processor
        self.begin = begin
        self.tokenizer = processor.tokenizer

    def ask(self, params: ImageToTextParams, pictures: Sequence[Image.Image]) -> Asked:
        """The pictures, then the words."""
        words = params.question or params.prompt
        if words is None:
            words = "Describe this picture." if len(pictures) == 1 else "Describe these pictures."
        _require_no_marks(self._processor, words)
        content = [{"type": "image", "image": picture} for picture in pictures]
        turn = {"role": "user", "content": [*content, {"type": "text", "text": words}]}
        try:
            made = self._processor.apply_chat_template(
                [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except TemplateError as error:
            raise JobFailed("chat_template_refused", f"the model's chat template refuses this: {error}") from None
        except ValueError as error:
            raise _refused(error) from None
        inputs = _tensors(made)
        read = inputs["input_ids"][0].tolist()
        return Asked(inputs, read) if self.begin is None else Asked(inputs, [self.begin], read)


class BlipCaptions(Asker):
    """BLIP as it captions: it may be told how the caption begins."""

    def __init__(self, processor: Any, begin: int) -> None:
        self._processor = processor
        self._begin = begin
        self.tokenizer = processor.tokenizer

    def ask(self, params: ImageToTextParams, pictures: Sequence[Image.Image]) -> Asked:
        """The picture, and the words that the caption begins with."""
        picture = _only(pictures)
        if params.question is not None:
            raise JobFailed("param_unsupported", _CAPTIONS_ONLY)
        inputs = _processed(self._processor, picture, params.prompt)
        ids = inputs["input_ids"][0].tolist() if params.prompt else [self._begin, 0]
        return Asked(inputs, [self._begin, *ids[1:-1]])  # the model takes the last one, an end mark, away


class BlipAnswers(Asker):
    """BLIP as it answers questions: an encoder reads the question, a decoder writes the answer."""

    def __init__(self, processor: Any, begin: int) -> None:
        self._processor = processor
        self._begin = begin
        self.tokenizer = processor.tokenizer

    def ask(self, params: ImageToTextParams, pictures: Sequence[Image.Image]) -> Asked:
        """The picture and the question."""
        picture = _only(pictures)
        if params.question is None:
            raise JobFailed("question_missing", "this model answers questions about a picture: give `question`")
        inputs = _processed(self._processor, picture, params.question)
        return Asked(inputs, [self._begin], inputs["input_ids"][0].tolist())


class Captioning(Asker):
    """VisionEncoderDecoder models (TrOCR, Donut, ViT-GPT2): what was seen is written down.

    A prompt is what the text begins with: Donut and its like are told their task so.
    """

    def __init__(self, images: Any, tokenizer: Any, begin: int, *, bare: bool) -> None:
        """With `bare` a prompt stands for the usual beginning, not after it."""
        self._images = images
        self._bare = bare
        self.begin: int = begin
        self.tokenizer = tokenizer

    def ask(self, params: ImageToTextParams, pictures: Sequence[Image.Image]) -> Asked:
        """The picture, and what the text begins with."""
        picture = _only(pictures)
        if params.question is not None:
            raise JobFailed("param_unsupported", _CAPTIONS_ONLY)
        try:
            inputs = _tensors(self._images(images=picture, return_tensors="pt"))
        except ValueError as error:
            raise _refused(error) from None
        begin = [self.begin]
        if params.prompt:
            ids = self.tokenizer(params.prompt, add_special_tokens=False)["input_ids"]
            begin = ids if self._bare else [*begin, *ids]
        return Asked({"pixel_values": inputs["pixel_values"], "decoder_input_ids": torch.tensor([begin])}, begin)


@dataclass(frozen=True, slots=True)
class Family:
    """What models without a chat template want to be told."""

    #: how a question is put; None if they take none
    question: str | None = None
    #: what they are told where a job says nothing; None for nothing at all
    default: str | None = None
    #: whether the mark for a picture is to stand before it
    marked: bool = False


#: by type of model; what was published with each
FAMILIES: Mapping[str, Family] = {
    "blip-2": Family(question="Question: {} Answer:"),
    "florence2": Family(default="<CAPTION>"),
    "git": Family(),
    "instructblip": Family(question="{}", default="Describe this picture."),
    "kosmos-2": Family(question="<grounding> Question: {} Answer:", default="<grounding> An image of"),
    "paligemma": Family(question="answer en {}", default="caption en", marked=True),
    "pix2struct": Family(),
}


class Prompted(Asker):
    """Models without a chat template, which are prompted as they were trained."""

    def __init__(self, processor: Any, family: Family | None, begin: int | None, *, bare: bool) -> None:
        """`bare` models want no end mark after their prompt."""
        self._processor = processor
        self._family = family
        self.begin = begin
        self._bare = bare
        self.tokenizer = processor.tokenizer

    def ask(self, params: ImageToTextParams, pictures: Sequence[Image.Image]) -> Asked:
        """The picture and the prompt."""
        picture = _only(pictures)
        words = self._words(params)
        inputs = _processed(self._processor, picture, words)
        if self._bare:
            inputs = self._without_end(inputs)
        read = inputs["input_ids"][0].tolist() if "input_ids" in inputs else None
        if self.begin is not None:
            return Asked(inputs, [self.begin], read)
        return Asked(inputs, read or [self.tokenizer.bos_token_id or 0])

    def _words(self, params: ImageToTextParams) -> str | None:
        family = self._family or Family(marked=True)
        _require_no_marks(self._processor, params.question or params.prompt or "")
        words = params.prompt or family.default
        if params.question is not None:
            if family.question is None:
                raise JobFailed(
                    "param_unsupported",
                    "this model takes no question as such: give `prompt`, in the form that it was trained on, or take "
                    "a model that chats",
                )
            words = family.question.format(params.question)
        if words is None and self._family is None:
            raise JobFailed(
                "prompt_missing", "this model has no chat template: give `prompt`, in the form that it was trained on"
            )
        return f"{_marks(self._processor)[0]}{words}" if family.marked else words

    def _without_end(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The prompt begins a text: it ends with no mark."""
        if "input_ids" not in inputs:
            return inputs | {"input_ids": torch.tensor([[self.tokenizer.cls_token_id]])}
        return {name: value[:, :-1] if name in ("input_ids", "attention_mask") else value
                for name, value in inputs.items()}  # fmt: skip


def _only(pictures: Sequence[Image.Image]) -> Image.Image:
    if len(pictures) > 1:
        raise JobFailed("param_unsupported", _ONE_PICTURE)
    return pictures[0]


def _processed(processor: Any, picture: Image.Image, words: str | None) -> dict[str, torch.Tensor]:
    try:
        made = processor(images=picture, **({} if words is None else {"text": words}), return_tensors="pt")
    except ValueError as error:
        raise _refused(error) from None
    return _tensors(made)


def _tensors(made: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What goes into the model; what it would be trained by does not."""
    return {name: value for name, value in made.items() if torch.is_tensor(value) and name != "labels"}


def _refused(error: ValueError) -> JobFailed:
    return JobFailed("input_unsupported", f"the model's processor refuses this: {error}")


def _marks(processor: Any) -> list[str]:
    """What stands in a text for a picture, a video, a sound."""
    said = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio"))
    return [str(mark) for mark in said if mark] or [""]


def _require_no_marks(processor: Any, words: str) -> None:
    found = [mark for mark in _marks(processor) if mark and mark in words]
    if found:
        raise JobFailed(
            "prompt_refused", f"{found[0]} stands for the picture itself to this model: write it in another way"
        )
