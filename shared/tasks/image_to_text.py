"""`image-to-text`: what a picture shows, as a caption or as the answer to a question."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from shared.tasks import Params, Task
from shared.tasks.inputs import ImageInput
from shared.tasks.text_generation import TextGenerationParams

#: most pictures of one job
MOST_PICTURES = 16
#: new tokens where a job does not say, and the model has positions for them
DEFAULT_NEW_TOKENS = 256

#: params that stand for the same in `text-generation`
_WRITING = (
    "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "num_beams", "length_penalty",
    "no_repeat_ngram_size", "repetition_penalty", "num_return_sequences", "stop",
)  # fmt: skip


class ImageToTextParams(Params):
    """What an `image-to-text` job may set.

    Whatever is left out has the neutral value that its description states: nothing is taken over from the model's own
    generation defaults except the tokens that begin, end and pad a text, and those that no text may hold.
    """

    image: Annotated[
        ImageInput | Annotated[list[ImageInput], Field(min_length=1, max_length=MOST_PICTURES)],
        Field(
            description=f"the picture, or a list of up to {MOST_PICTURES} that are looked at together, for a model "
            "that takes several"
        ),
    ]
    question: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=32768,
            description="what is asked of the picture, or what a model that chats is told to do with it; by default "
            "it is to describe it",
        ),
    ] = None
    prompt: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=32768,
            description="the text that the model goes on with, as it was trained to be prompted: how a caption begins "
            "(`a photo of`), or words for its task (`<OCR>`, `caption en`); not with `question`",
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=32768,
            description=f"most tokens to generate; by default {DEFAULT_NEW_TOKENS}, or as many as there is room for",
        ),
    ] = None
    min_new_tokens: Annotated[
        int | None, Field(ge=0, le=32768, description="fewest tokens before the model may end the text")
    ] = None
    do_sample: Annotated[
        bool | None,
        Field(
            description="draw tokens (true) or take the likeliest (false); by default true if `temperature`, `top_k` "
            "or `top_p` is given or several texts are asked for without beams"
        ),
    ] = None
    temperature: Annotated[
        float | None,
        Field(ge=0, le=5, description="divides the logits; 1 if sampling without it; 0 means greedy"),
    ] = None
    top_k: Annotated[
        int | None, Field(ge=0, description="draw among the k likeliest tokens; 0, the default, means all")
    ] = None
    top_p: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="draw among the likeliest tokens that hold this share; 1, the default, means all",
        ),
    ] = None
    num_beams: Annotated[int, Field(ge=1, le=32, description="beams of a beam search; 1 means none")] = 1
    length_penalty: Annotated[
        float | None,
        Field(
            ge=-10,
            le=10,
            description="beam search: exponent on the length; above 0 favours long texts; default 1",
        ),
    ] = None
    no_repeat_ngram_size: Annotated[
        int,
        Field(ge=0, le=1024, description="no run of this many tokens occurs twice; 0 means off"),
    ] = 0
    repetition_penalty: Annotated[
        float,
        Field(gt=0, le=100, description="above 1 disfavours tokens seen before; 1 means off"),
    ] = 1.0
    num_return_sequences: Annotated[
        int,
        Field(ge=1, le=64, description="texts per job; the i-th uses seed + i (with beams: the i-th best)"),
    ] = 1
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...],
        Field(max_length=16, description="one text or up to 16: the output ends before the first that occurs"),
    ] = ()

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.question is not None and self.prompt is not None:
            raise ValueError("give either `question` or `prompt`, not both")
        try:
            _ = self.writing
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(str(part) for part in found["loc"])
            why = found.get("ctx", {}).get("error", found["msg"])
            raise ValueError(f"{where}: {why}" if where else str(why)) from None
        return self

    @property
    def images(self) -> list[str]:
        """All of them, also where there is one."""
        return [self.image] if isinstance(self.image, str) else self.image

    @property
    def places(self) -> list[str]:
        """Where they stand among a job's inputs."""
        return ["image"] if isinstance(self.image, str) else [f"image.{n}" for n in range(len(self.image))]

    @property
    def writing(self) -> TextGenerationParams:
        """How the text is to be written, in the words of `text-generation`."""
        said: dict[str, Any] = {name: getattr(self, name) for name in _WRITING}
        said["max_new_tokens"] = self.max_new_tokens or DEFAULT_NEW_TOKENS
        return TextGenerationParams(prompt=self.prompt or self.question or "-", **said)


def _cost(params: ImageToTextParams) -> float:
    """Each picture is looked at once per text; each text pays per token."""
    texts = max(params.num_beams, params.num_return_sequences)
    tokens = params.max_new_tokens or DEFAULT_NEW_TOKENS
    return len(params.images) * params.num_return_sequences + 0.005 * tokens * texts


TASK = Task(
    name="image-to-text",
    summary="a caption of a picture, or the answer to a question about it",
    params=ImageToTextParams,
    needs_model=True,
    queue="gpu",
    cost=_cost,
    example={
        "task": "image-to-text",
        "model": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "params": {"image": "https://example.org/shoe.jpg", "question": "What colour is the shoe?"},
    },
)
