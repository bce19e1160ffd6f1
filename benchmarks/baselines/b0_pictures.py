"""B0 for pictures: the pipeline in one process, no queue, all prompts known at once, files encoded and written.

Jobs are grouped by size and steps, and run in batches of the size that the harness found best for each group; a
thread encodes and writes a batch while the next one is computed.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image

from benchmarks.baselines.serving import serve


class Pictures:
    """A pipeline and the best way to feed it."""

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        self._pipe = AutoPipelineForText2Image.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
        self._pipe.set_progress_bar_config(disable=True)
        if device != "cpu":
            self._pipe.unet.to(memory_format=torch.channels_last)
        self._pool = ThreadPoolExecutor(1)

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """`jobs` is a file, `out` a folder; `sizes` says how many pictures of a side run together."""
        jobs = [json.loads(line) for line in Path(command["jobs"]).read_text().splitlines()]
        out = Path(command["out"])
        out.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        groups: dict[tuple[int, int], list[int]] = {}
        for i, job in enumerate(jobs):
            key = (job["params"]["width"], job["params"]["num_inference_steps"])
            groups.setdefault(key, []).append(i)
        writing = []
        seconds: dict[str, float] = {}
        for (side, steps), members in groups.items():
            size = command["sizes"][str(side)]
            began = time.monotonic()
            for start in range(0, len(members), size):
                share = members[start : start + size]
                arrays = self._call([jobs[i] for i in share], side, steps)
                for i, array in zip(share, arrays, strict=True):
                    writing.append(self._pool.submit(_write, array, jobs[i]["params"], out / f"{i}"))
            seconds[f"{side}/{steps}"] = time.monotonic() - began
        for written in writing:
            written.result()
        return {"seconds": time.monotonic() - started, "pictures": len(jobs), "groups": seconds}

    def _call(self, jobs: list[dict[str, Any]], side: int, steps: int) -> Any:
        return self._pipe(
            [job["params"]["prompt"] for job in jobs],
            negative_prompt=[""] * len(jobs),
            width=side,
            height=side,
            num_inference_steps=steps,
            guidance_scale=jobs[0]["params"]["guidance_scale"],
            generator=[torch.Generator("cpu").manual_seed(job["seed"]) for job in jobs],
            output_type="np",
        ).images


def _write(array: Any, params: dict[str, Any], path: Path) -> None:
    image = Image.fromarray((array * 255).round().astype("uint8"))
    form = params["format"]
    quality = {} if form == "png" else {"quality": params["quality"]}
    image.save(path.with_suffix(f".{form}"), form.upper(), **quality)


def main() -> None:
    """Serve commands with the pipeline in memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    pictures = Pictures(arguments.model, arguments.device, arguments.dtype)
    serve(pictures.run)


if __name__ == "__main__":
    main()
