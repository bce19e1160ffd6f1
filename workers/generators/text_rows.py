"""What every text engine shares: a job's prompts as token ids that fit the model, and tokens as outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from shared.errors import JobFailed
from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Output, Work
from workers.generators.seeded_sampling import Draw
from workers.generators.structured import Grammar, Grammars

# Tokens before the completion that are decoded with it, so that its first blank survives.
_CONTEXT = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One text to generate: sequence `index` of a job, or all its sequences if it searches with beams."""

    job: Work
    index: int
    #: token ids that the text goes on from: the prompt, or what an encoder-decoder model begins every answer with
    prompt: list[int]
    #: most tokens to generate
    new_tokens: int
    #: token ids that the encoder of such a model reads
    source: list[int] | None = None
    #: what the text keeps to, if it may not be any
    grammar: Grammar | None = None

    @property
    def params(self) -> TextGenerationParams:
        """What the job asks for."""
        params: TextGenerationParams = self.job.params
        return params

    @property
    def draw(self) -> Draw | None:
        """How its tokens are drawn; None if the likeliest are taken."""
        params = self.params
        if not params.samples:
            return None
        temperature = 1.0 if params.temperature is None else params.temperature
        top_p = 1.0 if params.top_p is None else params.top_p
        return Draw(self.job.seed + self.index, temperature, params.top_k or 0, top_p)

    @property
    def reach(self) -> int:
        """How many tokens back a stop text may begin: each token is at least one byte of it, and a few are special."""
        return max((len(stop.encode()) + 8 for stop in self.params.stop), default=1)


class Texts:
    """A model's tokenizer and limits."""

    def __init__(self, tokenizer: Any, *, ends: Sequence[int], positions: int | None, vocabulary: int) -> None:
        self.tokenizer = tokenizer
        #: ids that end a text
        self.ends: list[int] = list(ends)
        #: most tokens of prompt and completion that the model has positions for; None = it does not say
        self.positions = positions
        #: ids below this have an embedding
        self.vocabulary = vocabulary
        self._grammars = Grammars(tokenizer, ends=ends, vocabulary=vocabulary)

    # --- jobs to tokens ---

    def rows(self, job: Work) -> list[Row]:
        """The rows of a job, checked against the model; raises `JobFailed` if it cannot run."""
        params: TextGenerationParams = job.params
        prompt = self.fit(self._encode(params), params)
        if max(prompt) >= self.vocabulary:
            raise JobFailed("prompt_unreadable", f"the model has no embedding for token {max(prompt)} of its tokenizer")
        new = params.new_tokens(len(prompt))
        if (params.min_new_tokens or 0) > new:
            raise JobFailed(
                "length_unsupported",
                f"max_length={params.max_length} leaves {new} tokens after a prompt of {len(prompt)}: "
                f"fewer than min_new_tokens={params.min_new_tokens}",
            )
        sequences = 1 if params.num_beams > 1 else params.num_return_sequences
        grammar = self.grammar(params)
        return [Row(job, index, prompt, new, grammar=grammar) for index in range(sequences)]

    def grammar(self, params: TextGenerationParams) -> Grammar | None:
        """What the job's texts keep to; raises `JobFailed` if this model cannot."""
        schema = params.schema_of_answer
        return None if schema is None else self._grammars.of(schema)

    def _encode(self, params: TextGenerationParams) -> list[int]:
        """Token ids of the prompt, or of the conversation in the form that the model was trained on."""
        if params.messages is None:
            ids = self.tokenizer(params.prompt, truncation=False)["input_ids"]
        else:
            if not self.tokenizer.chat_template:
                raise JobFailed("no_chat_template", "this model has no chat template: give `prompt`, not `messages`")
            messages = [message.model_dump() for message in params.messages]
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except TemplateError as error:
                message = f"the model's chat template refuses these messages: {error}"
                raise JobFailed("chat_template_refused", message) from None
            ids = self.tokenizer(text, truncation=False, add_special_tokens=False)["input_ids"]
        if not ids:
            raise JobFailed("prompt_empty", "the model's tokenizer makes no token of this prompt")
        return list(ids)

    def fit(self, prompt: list[int], params: TextGenerationParams) -> list[int]:
        """The prompt as it fits the model and the length asked for; raises `prompt_too_long` with both numbers."""
        positions = self.positions
        if positions is not None and params.max_length is not None and params.max_length > positions:
            raise JobFailed(
                "length_unsupported",
                f"max_length={params.max_length} is more than this model's {positions} tokens: lower it",
            )
        if params.max_length is not None:
            room, why = params.max_length - 1, f"max_length={params.max_length}"
        elif positions is not None:
            new = params.new_tokens(0)
            room, why = positions - new, f"this model's {positions} tokens less {new} new ones"
        else:
            return prompt
        if room < 1:
            raise JobFailed("length_unsupported", f"{why} leaves no room for a prompt: lower max_new_tokens")
        if len(prompt) <= room:
            return prompt
        if params.long_prompt == "fail":
            raise JobFailed(
                "prompt_too_long",
                f"the prompt has {len(prompt)} tokens, and {why} leaves room for {room}: shorten it, ask for fewer new "
                "tokens, or set long_prompt=truncate to keep its end",
            )
        if prompt[0] == self.tokenizer.bos_token_id and room > 1:  # the beginning mark is not text
            return [prompt[0], *prompt[len(prompt) - room + 1 :]]
        return prompt[len(prompt) - room :]

    # --- tokens to outputs ---

    def ended(self, row: Row, tail: Sequence[int], generated: int) -> bool:
        """Whether the row ends with the last of `generated` tokens, of which `tail` holds the last `row.reach`."""
        return generated >= row.new_tokens or self.stopped(row, tail)

    def stopped(self, row: Row, tail: Sequence[int]) -> bool:
        """Whether these tokens end with an end token, or their text has come to a stop text."""
        if not tail or tail[-1] in self.ends:
            return bool(tail)
        if not row.params.stop:
            return False
        text = self.tokenizer.decode(list(tail), skip_special_tokens=True)
        return any(stop in text for stop in row.params.stop)

    def length(self, row: Row, tokens: Sequence[int]) -> int:
        """How many of these tokens belong to the row: it may have ended before they do."""
        reach = row.reach
        ends = (n for n in range(1, len(tokens)) if self.ended(row, tokens[max(0, n - reach) : n], n))
        return min(next(ends, len(tokens)), row.new_tokens)

    def output(self, row: Row, tokens: Sequence[int], index: int) -> Output:
        """The text of sequence `index`, which these tokens are, without prompt, special tokens and stop text."""
        text = self._decode(row.prompt, list(tokens))
        cuts = [at for stop in row.params.stop if (at := text.find(stop)) >= 0]
        facts = {
            "finish_reason": "stop" if self.stopped(row, tokens[-row.reach :]) else "length",
            "prompt_tokens": len(row.prompt if row.source is None else row.source),
            "completion_tokens": len(tokens),  # the end token counts
            "seed": row.job.seed + index,
        }
        return Output("text/plain", text[: min(cuts, default=len(text))].encode(), facts)

    def _decode(self, prompt: list[int], tokens: list[int]) -> str:
        context = prompt[-_CONTEXT:]
        before: str = self.tokenizer.decode(context, skip_special_tokens=True)
        text: str = self.tokenizer.decode(context + tokens, skip_special_tokens=True)
        if text.startswith(before):
            return text[len(before) :]
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
