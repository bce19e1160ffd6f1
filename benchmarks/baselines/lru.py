"""Arrival order with an LRU of models: what a worker does that takes the next job, whatever model it is for.

It keeps as many models in memory as there is room for, drops the one that was not used for longest, and runs
neighbours of one model that have arrived together as one batch.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.baselines.serving import serve


class Lru:
    """Models in memory, least recently used first."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._models: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
        self.loads = 0

    def get(self, folder: str) -> tuple[Any, Any]:
        """A tokenizer and a model, loaded if need be."""
        if folder in self._models:
            self._models.move_to_end(folder)
            return self._models[folder]
        while len(self._models) >= self._room:
            self._models.popitem(last=False)
            gc.collect()
        self.loads += 1
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        tokenizer.pad_token_id = 0
        self._models[folder] = tokenizer, AutoModelForCausalLM.from_pretrained(folder).eval()
        return self._models[folder]

    @torch.inference_mode()
    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """`jobs` is a file whose lines say `at`, the second of arrival; returns seconds, loads and the worst wait.

        What the run before has left in memory stays there.
        """
        jobs = [json.loads(line) for line in Path(command["jobs"]).read_text().splitlines()]
        self.loads = 0
        worst, at = 0.0, 0
        started = time.monotonic()
        while at < len(jobs):
            time.sleep(max(0.0, jobs[at]["at"] - (time.monotonic() - started)))
            clock = time.monotonic() - started
            end = at + 1
            while end < len(jobs) and jobs[end]["at"] <= clock and jobs[end]["model"] == jobs[at]["model"]:
                end += 1
            worst = max(worst, clock - jobs[at]["at"])
            self._batch(jobs[at:end])
            at = end
        return {"seconds": time.monotonic() - started, "loads": self.loads, "worst_wait_s": worst}

    def _batch(self, jobs: list[dict[str, Any]]) -> None:
        tokenizer, model = self.get(jobs[0]["model"])
        inputs = tokenizer([job["params"]["prompt"] for job in jobs], return_tensors="pt", padding=True)
        longest = max(job["params"]["max_new_tokens"] for job in jobs)
        tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=longest, do_sample=False, pad_token_id=0))


def main() -> None:
    """Serve commands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--room", type=int, required=True)
    serve(Lru(parser.parse_args().room).run)


if __name__ == "__main__":
    main()
