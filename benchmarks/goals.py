"""The table of goals: what is measured, and what is aimed at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table."""

    what: str
    goal: float
    #: what would be better still; None if nothing is named
    beyond: float | None
    #: whether the ratio should be at most this, rather than at least
    at_most: bool = False
    #: how the figure is written
    unit: str = "×"

    def met(self, ratio: float) -> bool:
        """Whether a ratio reaches the goal."""
        return ratio <= self.goal if self.at_most else ratio >= self.goal

    def surpassed(self, ratio: float) -> bool:
        """Whether it goes beyond."""
        if self.beyond is None:
            return False
        return ratio <= self.beyond if self.at_most else ratio >= self.beyond

    def written(self, value: float | None) -> str:
        """A goal as it stands in the table."""
        if value is None:
            return ""
        return f"{'≤' if self.at_most else '≥'} {value:g}{self.unit if self.unit != '×' else ' ×'}"


GOALS: Mapping[str, Goal] = {
    "text_b0": Goal("text 124M, mixed: pipeline / B0", 0.90, 0.95),
    "pictures_b0": Goal("pictures: pipeline / B0 (webp)", 0.88, 0.93),
    "embeddings_b0": Goal("embeddings: pipeline / B0", 0.88, None),
    "captions_b0": Goal("captions: pipeline / B0", 0.88, None),
    "super_resolution_b0": Goal("super-resolution: pipeline / B0 (webp)", 0.88, None),
    "speech_b0": Goal("speech: pipeline / B0 (flac)", 0.88, None),
    "sound_b0": Goal("sound: pipeline / B0 (wav)", 0.88, None),
    "recognition_b0": Goal("recognition of speech: pipeline / B0", 0.88, None),
    "video_b0": Goal("video: pipeline / B0 (mp4)", 0.88, None),
    "text_b1": Goal("text 124M, mixed: pipeline / B1", 4, 6),
    "text_b2": Goal("text 124M, mixed: pipeline / B2", 1.7, 2.2),
    "small_latents_b1": Goal("pictures, small latents: pipeline / B1", 2.5, 4),
    "tiny_b1": Goal("tiny texts (1–8 tokens, 7M), stored, with status: pipeline / B1", 5, 10),
    "noop_sqlite": Goal("no-op jobs with durable status, SQLite: pipeline / B3", 8, 20),
    "noop_postgres": Goal("no-op jobs with durable status, PostgreSQL: pipeline / B3", 5, 10),
    "submit": Goal("durable submit of 100k jobs / `.delay()` and a row each", 15, 23),
    "million_memory": Goal("one million lines: growth of memory", 150, 64, at_most=True, unit=" MB"),
    "million_pace": Goal("one million lines: pace of the last 100k / first 100k", 0.8, 0.9),
    "status": Goal("status of a batch of 1M / of 1k", 2, 1.2, at_most=True),
    "slow_storage": Goal("pictures, storage 100 ms slower: throughput kept", 0.95, 0.98),
    "models_loads": Goal("four models, room for two: loads / arrival-order LRU", 1 / 5, 1 / 20, at_most=True),
    "models_wall": Goal("four models, room for two: arrival-order LRU's time / ours", 2, 3),
    "models_wait": Goal("four models, room for two: worst wait / age bound", 1, None, at_most=True),
    "tenants": Goal("a tenant's 50 jobs behind another's 100k: time / alone", 3, 2.2, at_most=True),
    "idle": Goal("one job on an idle system, client to client / bare Celery round trip", 2, 1.2, at_most=True),
    "two_workers": Goal("two workers / one (no-op with 50 ms sleep)", 1.9, 1.97),
    "neighbour": Goal("a busy neighbour on one core: throughput / quiet", 0.45, 0.5),
    "gpu_text_b0": Goal("GPU, text 1B: pipeline / B0", 0.95, None),
    "gpu_pictures_b0": Goal("GPU, pictures of SD 1.5's size: pipeline / B0", 0.95, None),
    "gpu_busy": Goal("GPU: share of time in which the device is busy", 0.95, None),
    "gpu_text_b1": Goal("GPU, text 1B: pipeline / B1", 15, None),
    "gpu_switch": Goal("GPU: `from_pretrained` / warm model switch", 5, None),
    "gpu_sweep": Goal("GPU: microbatch found / best of a sweep", 0.95, None),
}
