"""Texts that join and leave a running model, each at its own pace: continuous batching.

Each text has a slot (`slots.py`). A step computes one token for every text in the model; a text that is done leaves at
once and its slot is filled again, so that a long one holds up nobody. A text joins by reading all of its prompt but the
last token into its slot; the last token goes the way of all others, in the next step.

transformers has a manager for this as well. It attends every query to the keys of all texts under one mask, in a thread
of its own; stepping the model here, over slots, is faster and needs none of the library's internals. See
docs/decisions/0014-stepping.md.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import psutil
import torch

from shared.tasks.text_generation import TextGenerationParams
from workers.generators import Work
from workers.generators.seeded_sampling import next_tokens
from workers.generators.slots import Slots
from workers.generators.static_text import RowConstraints
from workers.generators.text_rows import Row, Texts
from workers.generators.text_stream import Going

log = logging.getLogger("aigc.worker")

#: padded tokens of prompts that are read between two steps
_PROMPT_TOKENS = {"cpu": 256, "cuda": 4096}
#: most texts in the model at once
_ROWS = {"cpu": 64, "cuda": 256}
#: share of the memory that is free when the first text joins, for keys and values
_SHARE = 0.4
#: prompts are read together if the shortest has this share of the longest, or lacks so many tokens
_ALIKE, _NEAR = 0.75, 16


class _Placed(Going):
    """A text with a slot, or about to have one."""

    __slots__ = ("constraints", "draw")

    def __init__(self, row: Row, ends: Sequence[int]) -> None:
        super().__init__(row)
        self.constraints = RowConstraints(row, ends)
        self.draw = row.draw

    @property
    def last(self) -> int:
        """The token that the next step reads."""
        return self.tokens[-1] if self.tokens else self.row.prompt[-1]

    @property
    def position(self) -> int:
        """Where that token stands."""
        return len(self.row.prompt) - 1 + len(self.tokens)

    @property
    def most(self) -> int:
        """Tokens that it may come to, with its prompt."""
        return len(self.row.prompt) + self.row.new_tokens


class Continuous:
    """A model that is stepped with as many texts as are there."""

    def __init__(self, model: Any, texts: Texts) -> None:
        """For a model that can be stepped: see `of`."""
        self._model = model
        self._texts = texts
        self._layers: int = model.config.get_text_config().num_hidden_layers
        self._kind = "cuda" if model.device.type == "cuda" else "cpu"
        self._slots = Slots(self._layers)
        self._budget = 0
        #: bytes of keys and values per token of a text
        self._per_token = 0
        #: texts in the model, by slot, and those that have yet to join
        self._going: list[_Placed] = []
        self._waiting: deque[_Placed] = deque()
        #: most texts in the model at once
        self.rows = _ROWS[self._kind]
        # A step needs one token's logits; without this all of the prompts' would be computed as well.
        accepts = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}

    @classmethod
    def of(cls, model: Any, texts: Texts) -> Continuous | None:
        """What steps this model; None if it has to run in static batches.

        Its config may say that it cannot be stepped; otherwise it is tried, and has to give the same logits while texts
        join and leave as it gives each text alone.
        """
        if (reason := _why_not(model)) is None:
            try:
                trial = cls(model, Texts(texts.tokenizer, ends=(), positions=None, vocabulary=texts.vocabulary))
                reason = _tried(model, trial, texts.vocabulary)
            except Exception as error:  # noqa: BLE001 - whatever a model does not take, `generate()` is still there
                reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            log.info("%s runs in static batches only: %s", type(model).__name__, reason)
            return None
        flow = cls(model, texts)
        flow._per_token = trial._per_token
        return flow

    @property
    def going(self) -> Sequence[_Placed]:
        """The texts in the model."""
        return self._going

    @property
    def room(self) -> int:
        """How many more texts could be in the model."""
        return max(0, self.rows - len(self._going) - len(self._waiting))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._going and not self._waiting

    def add(self, rows: Iterable[Row]) -> list[_Placed]:
        """Have these texts join as soon as there is a slot for each."""
        added = [_Placed(row, self._texts.ends) for row in rows]
        self._waiting.extend(added)
        return added

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch has none here
    def drop(self, goings: Iterable[Going]) -> None:
        """Forget these texts, wherever they are."""
        gone = set(map(id, goings))
        self._waiting = deque(going for going in self._waiting if id(going) not in gone)
        for slot in range(len(self._going) - 1, -1, -1):
            if id(self._going[slot]) in gone:
                self._leave(slot)

    def clear(self) -> None:
        """Forget all texts, and give back the memory of the slots."""
        self._going, self._waiting = [], deque()
        self._slots, self._budget = Slots(self._layers), 0

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self) -> list[_Placed]:
        """One token for each text in the model, after a share of those that wait has joined; returns the ended ones."""
        self._join_some()
        scores = self.scores()
        generated = [len(going.tokens) for going in self._going]
        for slot, going in enumerate(self._going):
            self._constrain(going, scores[slot])
        tokens = next_tokens(scores, [going.draw for going in self._going], generated).tolist()
        for going, token in zip(self._going, tokens, strict=True):
            going.tokens.append(token)
            going.done = self._texts.ended(going.row, going.tokens[-going.row.reach :], len(going.tokens))
        ended = [going for going in self._going if going.done]
        self.drop(ended)
        return ended

    def scores(self) -> torch.Tensor:
        """What the model says about the next token of each text in it: (texts, vocabulary), float32."""
        device = self._model.device
        positions = torch.tensor([going.position for going in self._going], device=device)
        self._slots.step_at(positions)
        seen = torch.arange(self._slots.width, device=device)[None] <= positions[:, None]
        return self._forward([[going.last] for going in self._going], positions[:, None], seen[:, None, None])[:, -1]

    def _forward(self, ids: list[list[int]], positions: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """`seen` (rows or 1, 1, queries, keys) says what each query looks at."""
        mask = torch.zeros(seen.shape, dtype=self._model.dtype, device=seen.device)
        mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
        logits: torch.Tensor = self._model(
            input_ids=torch.tensor(ids, device=seen.device),
            position_ids=positions,
            attention_mask=mask.expand(len(ids), -1, -1, -1),
            past_key_values=self._slots,
            use_cache=True,
            **self._options,
        ).logits
        return logits.float()

    def _constrain(self, going: _Placed, scores: torch.Tensor) -> None:
        if going.constraints.active(len(going.tokens)):
            ids = [going.row.prompt + going.tokens] if going.constraints.reads else None
            seen = None if ids is None else torch.tensor(ids, device=scores.device)
            going.constraints.apply(seen, scores, len(going.tokens))

    # --- joining and leaving ---

    def _join_some(self) -> None:
        """Read prompts of those that wait, until a step has to come between."""
        left = _PROMPT_TOKENS[self._kind]
        while left > 0 and self._waiting and len(self._going) < self.rows:
            chosen = self._next_prompts(left)
            if not chosen:
                return
            left -= self._join(chosen)

    def _next_prompts(self, tokens: int) -> list[_Placed]:
        """The first of those that wait, and others that one call may read with it: alike in length, so many tokens.

        Nobody overtakes the first for lack of memory: it would wait for as long as short ones come.
        """
        first = self._waiting[0]
        if not self._fits([first]):
            return []
        longest = len(first.row.prompt) - 1
        shortest = min(longest * _ALIKE, longest - _NEAR)
        most = min(self.rows - len(self._going), max(1, tokens // max(1, longest)))
        chosen: list[_Placed] = []
        for going in self._waiting:
            if len(chosen) >= most:
                break
            if shortest <= len(going.row.prompt) - 1 <= longest and self._fits([*chosen, going]):
                chosen.append(going)
        taken = set(map(id, chosen))
        self._waiting = deque(going for going in self._waiting if id(going) not in taken)
        return chosen

    def _fits(self, joining: Sequence[_Placed]) -> bool:
        """Whether there is memory for these beside the others; a text alone is always tried."""
        together = [*self._going, *joining]
        return len(together) == 1 or self._bytes(len(together), together) <= self._most_bytes()

    def _bytes(self, rows: int, goings: Sequence[_Placed]) -> int:
        return rows * max(going.most for going in goings) * self._per_token

    def _most_bytes(self) -> int:
        if self._budget == 0:
            self._budget = int(_free_bytes(self._model.device) * _SHARE)
        return self._budget

    def _join(self, joining: Sequence[_Placed]) -> int:
        """Read the prompts into slots, equal ones once; returns how many tokens that were, with padding."""
        first = len(self._going)
        alike: dict[tuple[int, ...], list[_Placed]] = {}
        for going in joining:
            alike.setdefault(tuple(going.row.prompt[:-1]), []).append(going)
        together = [*self._going, *joining]
        rows = min(self.rows, len(together) + len(self._waiting))  # soon; growing now and then costs a copy each time
        rows = rows if self._bytes(rows, together) <= self._most_bytes() else len(together)
        self._slots.reserve(rows, max(going.most for going in together))
        if any(alike):
            self._read(list(alike), first)
        copies = []
        for slot, (prompt, goings) in enumerate(alike.items(), start=first):
            self._going.append(goings[0])
            copies += [(slot, len(prompt), going) for going in goings[1:]]
        for source, tokens, going in copies:
            if tokens:
                self._slots.copy(source, len(self._going), tokens)
            self._going.append(going)
        return len(alike) * max(map(len, alike))

    def _read(self, prompts: Sequence[tuple[int, ...]], first: int) -> None:
        width = max(map(len, prompts))
        device = self._model.device
        ids = [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]
        seen = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None]
        self._slots.prompts_at(first)
        self._forward(ids, torch.arange(width, device=device).expand(len(ids), -1), seen)
        self._per_token = self._slots.bytes_per_token

    def _leave(self, slot: int) -> None:
        """Free a slot; the last one moves there, so that those in use stay the first ones."""
        last = self._going.pop()
        if slot < len(self._going):
            self._slots.copy(len(self._going), slot, last.position)
            self._going[slot] = last


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    return int(psutil.virtual_memory().available)


# --- which models ---


def _why_not(model: Any) -> str | None:
    config = model.config.get_text_config()
    accepts = inspect.signature(model.forward).parameters
    if not {"attention_mask", "position_ids", "past_key_values"} <= set(accepts):
        return "it takes no masks or positions"
    if getattr(model, "_is_stateful", False):
        return "it keeps a state beside keys and values"
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return "not all of its layers attend to all of a text"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it attends to a window of a text"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in {"dynamic", "longrope"}:
        return "its positions depend on the longest text beside"
    if config._attn_implementation not in {"sdpa", "eager"}:  # noqa: SLF001 - there is no public name for it
        return "its attention takes no mask"
    return None


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _tried(model: Any, flow: Continuous, vocabulary: int) -> str | None:
    """Two texts of different lengths, one joining after the other, against each of them alone."""
    params = TextGenerationParams(prompt="-", max_new_tokens=8)
    prompts = [[(7 * i + 3) % vocabulary for i in range(length)] for length in (9, 4)]
    flow.add(Row(Work("trial", "text-generation", params, 0), 0, prompt, 8) for prompt in prompts)
    for _ in range(3):
        flow.step()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05
    for going, ours in zip(flow.going, flow.scores(), strict=True):
        ids = torch.tensor([going.row.prompt + going.tokens], device=model.device)
        theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1].float()
        theirs = theirs - theirs.mean()
        off = float((ours - ours.mean() - theirs).norm() / theirs.norm().clamp(min=1e-9))
        if not off <= tolerance:
            return f"its logits are off by {off:.3g} when texts join and leave"
    return None
