"""B0 for text: the model in one process, no queue, all prompts known at once, texts written as JSON Lines.

Two policies, of which the harness takes the better: `static`, batches sorted by length, and `continuous`, the
continuous batching of transformers fed with everything, longest first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

from benchmarks.baselines.serving import serve


class Texts:
    """A model, and both ways to run it."""

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
        self._managers: dict[tuple[int, int], Any] = {}

    @torch.inference_mode()
    def static(self, prompts: list[list[int]], new: list[int], size: int) -> list[list[int]]:
        """Sorted by new tokens, then by prompt: a batch runs as long as its longest, and the others hardly less."""
        order = sorted(range(len(prompts)), key=lambda i: (new[i], len(prompts[i])), reverse=True)
        made: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), size):
            share = order[start : start + size]
            width = max(len(prompts[i]) for i in share)
            ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in share])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in share])
            done = self._model.generate(
                input_ids=ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                generation_config=GenerationConfig(
                    max_new_tokens=max(new[i] for i in share), do_sample=False, pad_token_id=0
                ),
            )[:, width:].tolist()
            for i, tokens in zip(share, done, strict=True):
                made[i] = tokens[: new[i]]
        return made

    def continuous(self, prompts: list[list[int]], new: list[int], size: int, tokens: int) -> list[list[int]]:
        """At most `size` texts at a time, `tokens` per forward pass; the manager stays from round to round."""
        manager = self._manager(size, tokens)
        order = sorted(range(len(prompts)), key=lambda i: new[i], reverse=True)
        for i in order:
            manager.add_request(prompts[i], request_id=str(i), max_new_tokens=new[i], eos_token_id=-1)
        made: list[list[int]] = [[] for _ in prompts]
        for _ in order:
            result = manager.get_result(timeout=600)
            if result is None or result.error is not None:
                raise RuntimeError(f"continuous batching ended: {result and result.error}")
            made[int(result.request_id)] = result.generated_tokens
        return made

    def _manager(self, size: int, tokens: int) -> Any:
        if (size, tokens) not in self._managers:
            for manager in self._managers.values():
                manager.stop(block=True)
                manager.destroy()
            self._managers.clear()
            page = 32
            self._managers[size, tokens] = manager = self._model.init_continuous_batching(
                generation_config=GenerationConfig(do_sample=False, max_new_tokens=128, pad_token_id=0),
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=page, num_blocks=size * (512 // page), max_batch_tokens=tokens,
                    max_requests_per_batch=size, allow_block_sharing=False,
                ),
            )  # fmt: skip
            manager.start()
        return self._managers[size, tokens]

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """`jobs` and `out` are files; returns seconds from the first prompt read to the last text written."""
        jobs = [json.loads(line)["params"] for line in Path(command["jobs"]).read_text().splitlines()]
        started = time.monotonic()
        prompts = self._tokenizer([job["prompt"] for job in jobs])["input_ids"]
        new = [job["max_new_tokens"] for job in jobs]
        if command["policy"] == "static":
            made = self.static(prompts, new, command["size"])
        else:
            made = self.continuous(prompts, new, command["size"], command["tokens"])
        texts = self._tokenizer.batch_decode(made)
        with Path(command["out"]).open("w") as out:
            out.writelines(json.dumps({"index": i, "text": text}) + "\n" for i, text in enumerate(texts))
        return {"seconds": time.monotonic() - started, "tokens": sum(map(len, made))}


def main() -> None:
    """Serve commands with the model in memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    texts = Texts(arguments.model, arguments.device, arguments.dtype)
    serve(texts.run)


if __name__ == "__main__":
    main()
