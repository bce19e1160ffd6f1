"""Processors of models that see: they put pictures and words into the numbers that a model takes."""

from __future__ import annotations

import json
from typing import Any, Self

import transformers
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import VideoProcessorMixin

from shared.errors import ModelRejected
from workers.generators import ModelFiles
from workers.generators.pretrained import load_part


class NoVideos(VideoProcessorMixin):  # type: ignore[misc]  # transformers has no types
    """Stands where a processor has one for videos: that one wants torchvision, and jobs bring no videos."""

    num_frames = fps = None

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Self:
        """There is nothing to read."""
        return cls()


def load_processor(files: ModelFiles) -> Any:
    """The processor of a model, from its own files.

    Raises `ModelRejected`: `model_not_a_model` if they cannot be read, `model_needs_package` if it wants a library that
    is not installed here.
    """
    try:
        kind = _kind(files)
        if kind is None or "video_processor" not in kind.get_attributes() or is_torchvision_available():
            return load_part(files, AutoProcessor)
        return load_part(files, _without_videos(kind))
    except ImportError as error:
        raise ModelRejected("model_needs_package", f"{files.ref} cannot be loaded on this worker: {error}") from error


def _kind(files: ModelFiles) -> Any:
    """The class of the processor, as the model's files name it or its type has it; None if neither does."""
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        path = files.folder / name
        said = json.loads(path.read_text(encoding="utf-8")).get("processor_class") if path.is_file() else None
        if said is not None:
            return getattr(transformers, said, None)
    known = PROCESSOR_MAPPING_NAMES.get(load_part(files, AutoConfig).model_type)
    return None if known is None else getattr(transformers, known, None)


def _without_videos(kind: Any) -> type:
    """The same, with `NoVideos` in its place."""

    def find(name: str) -> Any:
        # The base class of video processors is hidden where torchvision is not installed.
        known = {"NoVideos": NoVideos, "VideoProcessorMixin": VideoProcessorMixin}
        return known.get(name) or kind.get_possibly_dynamic_module(name)

    parts = {"video_processor_class": "NoVideos", "get_possibly_dynamic_module": staticmethod(find)}
    return type(kind.__name__, (kind,), parts)
