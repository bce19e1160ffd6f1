"""`evaluate` with a picture encoder of transformers (DINOv2, ViT, ConvNeXt, Swin, …): FID and KID over its features.

The network of the papers, an Inception trained in 2015, has no public class of transformers and no published weights in
safetensors. Which network was used stands in every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_MAPPING_NAMES,
)

from shared.errors import ModelRejected
from workers.generators import Device, ModelFiles
from workers.generators.evaluator import Evaluator
from workers.generators.input_pictures import open_picture
from workers.generators.pretrained import Pretrained, load_model, load_part
from workers.scores import Steps, features
from workers.scores.case import Case, Side

#: pictures of a pass
PASS = 16

_MORE = ("dinov3_convnext", "dinov3_vit")
#: these are none of transformers' own, or see no picture as a whole
_NOT = ("imagegpt", "timm_wrapper")


class PictureEvaluator(Evaluator, Pretrained):
    """Looks at pictures, and says how far two sets of them are from each other."""

    what = "a picture encoder"
    own = {"fid": features.fid, "kid": features.kid}  # noqa: RUF012 - a table

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the config is one of a picture encoder."""
        return files is not None and cls._why_not(files.config) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "fid and kid need a picture encoder: there are none without")
        if (reason := cls._why_not(files.config)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} is not {cls.what}: {reason}")
        # What pools for a classifier is often not saved, and not asked.
        model = load_model(files, AutoModel, device, what=cls.what, spare=("pooler.",))
        return cls._of(files, model, load_part(files, AutoImageProcessor))

    @classmethod
    def _of(cls, files: ModelFiles, model: Any, processor: Any) -> Self:
        return cls(files, model, processor)

    @staticmethod
    def _why_not(config: Mapping[str, Any]) -> str | None:
        kind = config.get("model_type")
        if "_class_name" in config:
            return f"it is a diffusion model ({config['_class_name']})"
        classes = kind in MODEL_FOR_IMAGE_MAPPING_NAMES and kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        if kind in _NOT or not (classes or kind in _MORE):
            return f"model type {kind!r} is none that sees pictures as a whole"
        return None

    def __init__(self, files: ModelFiles, model: Any, processor: Any) -> None:
        Evaluator.__init__(self, files)
        Pretrained.__init__(self, model)
        self._processor = processor
        self._has_cls = any(name.endswith("cls_token") for name, _ in model.named_parameters())

    def _sides(self, case: Case) -> list[Side]:
        """What has to be looked at."""
        return [case.outputs, case.compared] if {"fid", "kid"}.intersection(case.params.metrics) else []

    def _steps(self, case: Case) -> int:
        return sum(-(-len(side) // PASS) for side in self._sides(case))

    def _prepare(self, case: Case, steps: Steps) -> None:
        for side in self._sides(case):
            case.made[f"features of {side.name}"] = self._looked_at(side, steps)
        case.made["network"] = f"{self._network}|features:{self._layer}"

    def _looked_at(self, side: Side, steps: Steps) -> torch.Tensor:
        """Features as (pictures, numbers), on the host."""
        parts = []
        for start in range(0, len(side.files), PASS):
            shown = [open_picture(file.path) for file in side.files[start : start + PASS]]
            parts.append(self._seen(shown).float().cpu())
            steps()
        return torch.cat(parts)

    def _seen(self, pictures: list[Image.Image]) -> torch.Tensor:
        with torch.inference_mode():
            states = self._model(pixel_values=self._pixels(pictures)).last_hidden_state
            if states.ndim == 4:
                return states.mean((2, 3))
            return states[:, 0] if self._has_cls else states.mean(1)

    def _pixels(self, pictures: list[Image.Image]) -> torch.Tensor:
        """As the model's own processor scales and crops them."""
        pixels: torch.Tensor = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels.to(self._model.device, self._model.dtype)

    @property
    def _layer(self) -> str:
        return "cls" if self._has_cls else "mean"
