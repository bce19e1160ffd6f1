"""`text-generation` by a remote service: chat completions.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from shared.errors import JobFailed
from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Output, Work
from workers.generators.remote import Remote, refuse
from workers.remote import Answer

#: params that the API does not know, with the values that ask for nothing
_UNKNOWN: Mapping[str, Any] = {
    "max_length": None, "min_new_tokens": (None, 0), "top_k": (None, 0), "num_beams": 1, "no_repeat_ngram_size": 0,
    "repetition_penalty": 1, "long_prompt": "fail",
}  # fmt: skip


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    model: str | None = None
    usage: _Usage | None = None
    system_fingerprint: str | None = None


class RemoteChat(Remote):
    """A request per text; the i-th has seed + i, and the service may or may not heed it."""

    path: ClassVar[str] = "/chat/completions"

    def questions(self, job: Work) -> Sequence[Mapping[str, Any]]:
        """A prompt is what a user says."""
        params: TextGenerationParams = job.params
        refuse(job, neutral=_UNKNOWN, why="remove it; use max_new_tokens, temperature, top_p and stop")
        messages = [{"role": message.role, "content": message.content} for message in params.messages or ()]
        asked: dict[str, Any] = {
            "model": self._model,
            "messages": messages or [{"role": "user", "content": params.prompt}],
            self._service.tokens_name: params.new_tokens(0),
            "temperature": 0,
        }
        if params.samples:
            asked["temperature"] = 1 if params.temperature is None else params.temperature
            if params.top_p is not None:
                asked["top_p"] = params.top_p
        if params.response_format is not None:
            asked["response_format"] = _named(params.response_format)
        if params.stop:
            asked["stop"] = list(params.stop)
        return [asked | {"seed": job.seed + index} for index in range(params.num_return_sequences)]

    def read(self, job: Work, number: int, answer: Answer) -> Output:
        """The text, which ends before the first stop text. Raises `content_refused` if there is a refusal instead."""
        made = answer.read(_Completion)
        choice = made.choices[0]
        if choice.finish_reason == "content_filter" or choice.message.refusal:
            why = choice.message.refusal or "its filter hid the answer"
            raise JobFailed("content_refused", f"{self._service.name} refuses: {why}")
        text = choice.message.content or ""
        cuts = [at for stop in job.params.stop if (at := text.find(stop)) >= 0]
        facts = {
            "finish_reason": choice.finish_reason,
            "prompt_tokens": made.usage.prompt_tokens if made.usage else None,
            "completion_tokens": made.usage.completion_tokens if made.usage else None,
            "seed": job.seed + number,
            "model": made.model,
            "system_fingerprint": made.system_fingerprint,
        }
        known = {name: value for name, value in facts.items() if value is not None}
        return Output("text/plain", text[: min(cuts, default=len(text))].encode(), known)

    def outputs(self, job: Work, parts: Sequence[Output]) -> Sequence[Output]:
        """As they were read."""
        return parts


def _named(form: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema has to have a name there."""
    if "json_schema" not in form:
        return form
    return {**form, "json_schema": {"name": "answer", **form["json_schema"]}}
