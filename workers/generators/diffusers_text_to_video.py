"""`text-to-video` with a pipeline of diffusers (Wan, LTX, CogVideoX, HunyuanVideo, AnimateDiff, …)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from workers.generators.diffusers_videos import DiffusersVideos
from workers.generators.video_pipelines import from_words


class DiffusersTextToVideo(DiffusersVideos):
    """Videos from words alone."""

    deed: ClassVar[str] = "make videos from a prompt"

    @classmethod
    def pipeline(cls, config: Mapping[str, Any]) -> type | str:
        """The one that the model names, or its twin for words."""
        return from_words(config)
