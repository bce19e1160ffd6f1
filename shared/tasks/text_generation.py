"""`text-generation`: continue a prompt, or answer a conversation, with a causal language model."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from shared.tasks import Params, Task

#: new tokens where neither `max_new_tokens` nor `max_length` is given
DEFAULT_NEW_TOKENS = 64
#: most characters of a JSON schema
_SCHEMA_CHARACTERS = 100_000


class Message(Params):
    """One turn of a conversation."""

    role: Annotated[Literal["system", "user", "assistant"], Field(description="who speaks")]
    content: Annotated[str, Field(min_length=1, description="what is said")]


class TextGenerationParams(Params):
    """What a `text-generation` job may set.

    Whatever is left out has the neutral value that its description states: nothing is taken over from the model's own
    generation defaults except the tokens that begin, end and pad a text.
    """

    prompt: Annotated[str | None, Field(min_length=1, description="the text to continue; or give `messages`")] = None
    messages: Annotated[
        list[Message] | None,
        Field(min_length=1, description="a conversation for a model with a chat template; or give `prompt`"),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=32768,
            description=f"most tokens to generate; {DEFAULT_NEW_TOKENS} unless `max_length` is given",
        ),
    ] = None
    max_length: Annotated[
        int | None,
        Field(
            ge=2,
            le=1_048_576,
            description="most tokens of prompt and completion together; not with `max_new_tokens`",
        ),
    ] = None
    min_new_tokens: Annotated[
        int | None, Field(ge=0, le=32768, description="fewest tokens before the model may end the text")
    ] = None
    do_sample: Annotated[
        bool | None,
        Field(
            description="draw tokens (true) or take the likeliest (false); by default true if `temperature`, `top_k` "
            "or `top_p` is given or several sequences are asked for without beams"
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
    early_stopping: Annotated[
        bool | Literal["never"] | None,
        Field(description="beam search: stop at `num_beams` finished texts (true), by estimate (false), or `never`"),
    ] = None
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
        Field(ge=0, le=1024, description="no run of this many tokens occurs twice, prompt included; 0 means off"),
    ] = 0
    repetition_penalty: Annotated[
        float,
        Field(gt=0, le=100, description="above 1 disfavours tokens seen before, prompt included; 1 means off"),
    ] = 1.0
    num_return_sequences: Annotated[
        int,
        Field(ge=1, le=64, description="texts per job; the i-th uses seed + i (with beams: the i-th best)"),
    ] = 1
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...],
        Field(max_length=16, description="one text or up to 16: the output ends before the first that occurs"),
    ] = ()
    response_format: Annotated[
        dict[str, Any] | None,
        Field(
            description='`{"type": "json_object"}`: the text is a JSON object; `{"type": "json_schema", "json_schema": '
            '{"schema": {…}}}`: one that keeps to this schema; not with beams'
        ),
    ] = None
    long_prompt: Annotated[
        Literal["fail", "truncate"],
        Field(description="a prompt that does not fit the model: `fail`, or `truncate` it to its end"),
    ] = "fail"

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for problem in (
            self._input_problem(),
            self._length_problem(),
            self._beam_problem(),
            self._sampling_problem(),
            self._format_problem(),
        ):
            if problem:
                raise ValueError(problem)
        return self

    def _input_problem(self) -> str | None:
        if (self.prompt is None) == (self.messages is None):
            return "give either `prompt` or `messages`" + ("" if self.prompt is None else ", not both")
        if self.messages is not None and self.long_prompt == "truncate":
            return "long_prompt=truncate would cut into the conversation's form: drop early `messages` instead"
        return None

    def _length_problem(self) -> str | None:
        if self.max_new_tokens is not None and self.max_length is not None:
            return "`max_new_tokens` and `max_length` exclude each other: remove one of them"
        most = self.max_new_tokens or (None if self.max_length is not None else DEFAULT_NEW_TOKENS)
        if self.min_new_tokens and most is not None and self.min_new_tokens > most:
            return (
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={most}: lower it, or raise the other"
            )
        return None

    def _beam_problem(self) -> str | None:
        if self.num_beams == 1:
            for name in ("early_stopping", "length_penalty"):
                if getattr(self, name) is not None:
                    return f"`{name}` has no effect without beams: remove it or set num_beams above 1"
            return None
        for name in ("temperature", "top_k", "top_p"):
            if getattr(self, name) is not None:
                return f"`{name}` has no effect with num_beams > 1: remove it or set num_beams=1"
        if self.do_sample:
            return "do_sample=true is not supported with num_beams > 1: remove it or set num_beams=1"
        if self.num_return_sequences > self.num_beams:
            return (
                f"num_return_sequences={self.num_return_sequences} is more than num_beams={self.num_beams}: "
                "a beam search yields at most as many texts as it has beams"
            )
        return None

    def _sampling_problem(self) -> str | None:
        if self.num_beams > 1:
            return None
        if self.temperature == 0 and self.do_sample:
            return "temperature=0 means greedy and contradicts do_sample=true: remove one of them"
        if not self.samples:
            why = "temperature=0" if self.temperature == 0 else "do_sample=false"
            for name, neutral in (("temperature", 0), ("top_k", 0), ("top_p", 1)):
                if getattr(self, name) not in (None, neutral):
                    return f"`{name}` has no effect with {why}: remove one of them"
            if self.num_return_sequences > 1:
                return f"several sequences would all be equal with {why}: sample, use num_beams, or ask for one"
        return None

    def _format_problem(self) -> str | None:
        asked = self.response_format
        if asked is None:
            return None
        match asked:
            case {"type": "json_object", **rest} if not rest:
                pass
            case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
                if len(json.dumps(schema)) > _SCHEMA_CHARACTERS:
                    return f"the schema of response_format has more than {_SCHEMA_CHARACTERS:,} characters"
            case _:
                return (
                    'response_format is {"type": "json_object"} or {"type": "json_schema", "json_schema": '
                    '{"schema": {…}}}'
                )
        for name, neutral in (("num_beams", 1), ("no_repeat_ngram_size", 0), ("min_new_tokens", None), ("stop", ())):
            if getattr(self, name) not in (neutral, 0):
                return f"`{name}` and `response_format` exclude each other: remove one of them"
        return None

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that the text keeps to; None if it may be anything."""
        if self.response_format is None:
            return None
        schema: dict[str, Any] = self.response_format.get("json_schema", {}).get("schema", {"type": "object"})
        return schema

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn, rather than the likeliest taken."""
        if self.do_sample is not None:
            return self.do_sample
        if self.num_beams > 1 or self.temperature == 0:
            return False
        return self.num_return_sequences > 1 or any(v is not None for v in (self.temperature, self.top_k, self.top_p))

    def new_tokens(self, prompt_tokens: int) -> int:
        """Most tokens to generate after a prompt of this many; not positive if `max_length` leaves no room."""
        if self.max_length is not None:
            return self.max_length - prompt_tokens
        return self.max_new_tokens or DEFAULT_NEW_TOKENS


def _cost(params: TextGenerationParams) -> float:
    """Each sequence pays per token; the prompt is read once per sequence, and far faster than it could be written."""
    characters = len(params.prompt or "") + sum(len(message.content) for message in params.messages or ())
    prompt_tokens = characters // 4 + 1
    tokens = max(params.new_tokens(prompt_tokens), 1) + prompt_tokens / 50
    return 0.005 * tokens * max(params.num_beams, params.num_return_sequences)


TASK = Task(
    name="text-generation",
    summary="continue a prompt or answer a conversation with a causal language model",
    params=TextGenerationParams,
    needs_model=True,
    queue="gpu",
    cost=_cost,
    example={
        "task": "text-generation",
        "model": "starter/ads-gpt2",
        "params": {"prompt": "New shoes:", "max_new_tokens": 40, "temperature": 0.8},
        "seed": 7,
    },
)
