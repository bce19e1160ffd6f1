"""The jobs that are measured, the same for every arm: drawn once from a fixed seed, as lines of a job file.

A set is dealt in rounds of `DEAL` jobs that have the same mix each, so that a slow arm may be given fewer rounds than
a fast one and still does the same work per job.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: jobs in one deal; each deal holds the whole range of lengths
DEAL = 8
#: tokens of a prompt, new tokens
PROMPT_TOKENS, NEW_TOKENS = (8, 256), (8, 128)
#: sides in pixels and steps of the mixed pictures
SIDES, STEPS = (256, 384, 512), (4, 8)

Job = dict[str, Any]


def mixed_texts(model: Path, count: int, *, seed: int = 1) -> list[Job]:
    """Greedy texts: prompts of 8 to 256 tokens, 8 to 128 new ones, spread evenly over each deal."""
    return _texts(model, count, PROMPT_TOKENS, NEW_TOKENS, seed)


def tiny_texts(model: Path, count: int, *, seed: int = 2) -> list[Job]:
    """Greedy texts of 1 to 8 new tokens after prompts of 4 to 16."""
    return _texts(model, count, (4, 16), (1, 8), seed)


def short(jobs: Sequence[Job]) -> list[Job]:
    """The same with four new tokens each."""
    return [{**job, "params": {**job["params"], "max_new_tokens": 4}} for job in jobs]


def quarter(jobs: Sequence[Job]) -> list[Job]:
    """The same with a quarter of the new tokens each."""
    return [
        {**job, "params": {**job["params"], "max_new_tokens": job["params"]["max_new_tokens"] // 4}} for job in jobs
    ]


def _texts(model: Path, count: int, prompt: tuple[int, int], new: tuple[int, int], seed: int) -> list[Job]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rng = random.Random(seed)
    jobs: list[Job] = []
    while len(jobs) < count:
        lengths = zip(_spread(rng, *prompt), _spread(rng, *new), strict=True)
        for prompt_tokens, new_tokens in lengths:
            params = {
                "prompt": _prompt(rng, tokenizer, prompt_tokens),
                "max_new_tokens": new_tokens,
                "do_sample": False,
            }
            jobs.append({"task": "text-generation", "model": str(model), "params": params, "seed": len(jobs)})
    return jobs[:count]


def _spread(rng: random.Random, low: int, high: int) -> list[int]:
    """One number from each eighth of a range, shuffled."""
    width = (high - low + 1) / DEAL
    numbers = [min(high, low + int((i + rng.random()) * width)) for i in range(DEAL)]
    rng.shuffle(numbers)
    return numbers


def _prompt(rng: random.Random, tokenizer: Any, tokens: int) -> str:
    """ASCII text that the tokenizer makes into this many tokens, or at most two fewer."""
    words = ("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(tokens * 3))
    ids = tokenizer(" ".join(words))["input_ids"][:tokens]
    return str(tokenizer.decode(ids))


def pictures(
    model: Path, count: int, *, sides: Sequence[int] = SIDES, steps: Sequence[int] = STEPS, form: str = "webp"
) -> list[Job]:
    """Pictures in each side and number of steps, in arrival order mixed; with guidance."""
    rng = random.Random(3)
    kinds = [(side, step) for side in sides for step in steps]
    jobs: list[Job] = []
    while len(jobs) < count:
        rng.shuffle(kinds)
        for side, step in kinds:
            params: dict[str, Any] = {
                "prompt": " ".join(rng.choices(("red", "blue", "old", "new", "shoe", "hat", "cup", "road"), k=6)),
                "width": side, "height": side, "num_inference_steps": step, "guidance_scale": 5.0, "format": form,
            }  # fmt: skip
            params |= {} if form == "png" else {"quality": 90}
            jobs.append({"task": "text-to-image", "model": str(model), "params": params, "seed": len(jobs)})
    return jobs[:count]


def no_ops(count: int, step_s: float = 0.0) -> list[Job]:
    """Jobs that give their message back, after a sleep if so asked."""
    more = {"step_s": step_s} if step_s else {}
    return [{"task": "echo", "params": {"message": "hello", **more}} for _ in range(count)]


def tokens(jobs: Sequence[Job]) -> int:
    """New tokens that these jobs ask for."""
    return sum(int(job["params"]["max_new_tokens"]) for job in jobs)
