"""`evaluate` with a causal language model: perplexity.

Negative log-likelihoods are summed over all tokens of all texts before anything is divided: the perplexity of the whole
is no mean of those of its texts. A text that is longer than the window moves through it, and each token is scored once,
with what stands before it in the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM

from shared.errors import JobFailed, ModelRejected
from shared.tasks.evaluate import PerplexityOptions
from workers.generators import Device, ModelFiles
from workers.generators.causal_lm import CausalLM
from workers.generators.evaluator import Evaluator
from workers.generators.pretrained import Pretrained, load_model, load_tokenizer
from workers.scores import Score, Steps, Tick, signed
from workers.scores.case import Case

#: texts of a step, alike in length
GROUP = 16
#: tokens of a window, where the model reads more
WINDOW = 2048
#: numbers that a pass may make: windows x tokens x vocabulary
_NUMBERS = 2**27


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that the model reads at once."""

    tokens: Sequence[int]
    #: the first of them that is scored; those before it were, or are never
    first: int


@dataclass(frozen=True, slots=True)
class Surprise:
    """What the model makes of a text."""

    #: negative log-likelihood in nats, summed over the tokens that are scored
    nll: float
    tokens: int


def perplexity(case: Case, tick: Tick) -> Iterator[Score]:
    """The exponential of the mean surprise per token, over all tokens of all texts."""
    surprises: list[Surprise] = case.made["surprises"]
    items: list[float | None] = []
    for each in surprises:
        items.append(math.exp(each.nll / each.tokens) if each.tokens else None)
        tick()
    nll, tokens = sum(each.nll for each in surprises), sum(each.tokens for each in surprises)
    size = sum(len(text.encode()) for text in case.texts)
    whole = case.made["every token is scored"]
    unscored = items.count(None)
    notes = ["only perplexities by the same tokenizer can be compared; bits_per_byte by any"]
    if unscored:
        notes.append(f"{unscored} texts have no token that can be scored, and are left out")
    yield Score(
        "perplexity", math.exp(nll / tokens), "lower", "1 = certain", "transformers", case.made["read"],
        len(items) - unscored, items,
        {"nll": nll, "tokens": tokens, "bytes": size, "bits_per_byte": nll / math.log(2) / size if whole else None},
        notes,
    )  # fmt: skip


class LanguageEvaluator(Evaluator, Pretrained):
    """Reads texts and says how likely they are."""

    what = "a causal language model"
    own = {"perplexity": perplexity}  # noqa: RUF012 - a table

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the config names a causal language model with its head."""
        return CausalLM.serves(files)

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "perplexity needs a model")
        if not cls.serves(files):
            raise ModelRejected("model_wrong_task", f"{files.ref} is no causal language model")
        model = load_model(files, AutoModelForCausalLM, device, what=cls.what)
        return cls(files, model, load_tokenizer(files))

    def __init__(self, files: ModelFiles, model: Any, tokenizer: Any) -> None:
        Evaluator.__init__(self, files)
        Pretrained.__init__(self, model)
        self._tokenizer = tokenizer
        self._positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._vocabulary: int = model.get_input_embeddings().weight.shape[0]

    def _steps(self, case: Case) -> int:
        return -(-len(case.outputs) // GROUP) if "perplexity" in case.params.metrics else 0

    def _prepare(self, case: Case, steps: Steps) -> None:
        if "perplexity" not in case.params.metrics:
            return
        window, stride = self._window(case.params.told("perplexity"))
        begin = self._tokenizer.bos_token_id
        rows = [self._tokens(text, begin) for text in case.texts]
        nlls = [0.0] * len(rows)
        ordered = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        for start in range(0, len(ordered), GROUP):
            group = ordered[start : start + GROUP]
            windows = [(number, each) for number in group for each in windows_of(rows[number], window, stride)]
            for number, nll in self._surprises(windows):
                nlls[number] += nll
            steps()
        surprises = [Surprise(nll, max(0, len(row) - 1)) for nll, row in zip(nlls, rows, strict=True)]
        if not any(each.tokens for each in surprises):
            raise JobFailed("texts_empty", "no text has a token that can be scored")
        case.made["surprises"] = surprises
        case.made["every token is scored"] = begin is not None
        dtype = str(self._model.dtype).removeprefix("torch.")
        said = signed(first_token=begin is not None, window=window, stride=stride, dtype=dtype, log_softmax="float32")
        case.made["read"] = f"model:{self._network}|{said}"

    def _tokens(self, text: str, begin: int | None) -> list[int]:
        """Of a text, behind the token that begins one, where the tokenizer has such a token."""
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens if begin is None or not tokens else [begin, *tokens]

    def _window(self, told: PerplexityOptions) -> tuple[int, int]:
        most = self._positions or WINDOW
        window = told.window or min(most, WINDOW)
        if window > most:
            raise JobFailed("param_unsupported", f"perplexity.window={window}: this model reads {most} tokens")
        stride = told.stride or max(1, window // 2)
        if stride >= window:
            raise JobFailed("param_unsupported", f"perplexity.stride={stride} must be less than the window of {window}")
        return window, stride

    def _surprises(self, windows: Sequence[tuple[int, Window]]) -> Iterator[tuple[int, float]]:
        """Of each window, with the number of its text; as many in a pass as there is room for their numbers."""
        width = max((len(each.tokens) for _, each in windows), default=1)
        most = max(1, _NUMBERS // (width * self._vocabulary))
        for start in range(0, len(windows), most):
            share = windows[start : start + most]
            for (number, _), nll in zip(share, self._read([each for _, each in share]), strict=True):
                if not math.isfinite(nll):
                    message = "the model's numbers overflowed: run the worker with AIGC_DTYPE=float32"
                    raise JobFailed("numerics", message)
                yield number, nll

    def _read(self, windows: Sequence[Window]) -> list[float]:
        """One pass over windows, padded on the right: what each of them surprises the model by, in nats."""
        ids = torch.zeros((len(windows), max(len(each.tokens) for each in windows)), dtype=torch.long)
        mask, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, each in enumerate(windows):
            length = len(each.tokens)
            ids[row, :length] = torch.tensor(each.tokens)
            mask[row, :length] = 1
            targets[row, each.first : length] = ids[row, each.first : length]
        home = self._model.device
        with torch.inference_mode():
            logits = self._model(input_ids=ids.to(home), attention_mask=mask.to(home), use_cache=False).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), targets[:, 1:].to(home), ignore_index=-100, reduction="none"
            )
        nlls: list[float] = losses.double().sum(1).tolist()
        return nlls


def windows_of(tokens: Sequence[int], window: int, stride: int) -> Iterator[Window]:
    """Windows in which each token but the very first is scored once."""
    end = min(window, len(tokens))
    if end > 1:
        yield Window(tokens[:end], 1)
    while end < len(tokens):
        done, end = end, min(end + stride, len(tokens))
        begin = end - window
        yield Window(tokens[begin:end], done - begin)
