"""The families of rows: each file measures what belongs together, over servers and workers that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.measure import Bench, Measured


@dataclass(frozen=True, slots=True)
class Family:
    """Where some rows are measured."""

    module: str
    function: str
    rows: tuple[str, ...]

    def load(self) -> Callable[[Bench], Iterable[Measured]]:
        """The function that measures them."""
        function: Callable[[Bench], Iterable[Measured]] = getattr(import_module(self.module), self.function)
        return function


FAMILIES: Mapping[str, Family] = {
    "noop": Family("benchmarks.rows.noop", "noop", ("noop_sqlite", "noop_postgres")),
    "idle": Family("benchmarks.rows.idle", "idle", ("idle",)),
    "submit": Family("benchmarks.rows.submit", "submit", ("submit",)),
    "million": Family("benchmarks.rows.million", "million", ("million_memory", "million_pace", "status")),
    "tiny": Family("benchmarks.rows.tiny", "tiny", ("tiny_b1",)),
    "texts": Family("benchmarks.rows.texts", "texts", ("text_b0", "text_b1", "text_b2")),
    "pictures": Family("benchmarks.rows.pictures", "pictures", ("pictures_b0",)),
    "modalities": Family(
        "benchmarks.rows.modalities",
        "modalities",
        (
            "embeddings_b0",
            "captions_b0",
            "super_resolution_b0",
            "speech_b0",
            "sound_b0",
            "recognition_b0",
            "video_b0",
        ),
    ),
    "small_latents": Family("benchmarks.rows.pictures", "small_latents", ("small_latents_b1",)),
    "slow_storage": Family("benchmarks.rows.slow_storage", "slow_storage", ("slow_storage",)),
    "models": Family("benchmarks.rows.four_models", "four_models", ("models_loads", "models_wall", "models_wait")),
    "tenants": Family("benchmarks.rows.sharing", "tenants", ("tenants",)),
    "two_workers": Family("benchmarks.rows.sharing", "two_workers", ("two_workers",)),
    "neighbour": Family("benchmarks.rows.neighbour", "neighbour", ("neighbour",)),
    "gpu_texts": Family("benchmarks.rows.gpu", "texts", ("gpu_text_b0", "gpu_text_b1", "gpu_busy", "gpu_sweep")),
    "gpu_pictures": Family("benchmarks.rows.gpu", "pictures", ("gpu_pictures_b0",)),
    "gpu_switch": Family("benchmarks.rows.gpu", "switch", ("gpu_switch",)),
}
