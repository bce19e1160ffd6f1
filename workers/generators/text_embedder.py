"""`feature-extraction`: embeddings of texts, with an encoder (or decoder) of transformers."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from shared.errors import JobFailed, ModelRejected
from shared.tasks.feature_extraction import FeatureExtractionParams
from workers.generators import Device, ModelFiles, Output, Work
from workers.generators.encoder_texts import EncoderTexts, Row

#: sentence-transformers' names of poolings → ours
_POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}


class TextEmbedder(EncoderTexts):
    """Pools the last hidden states of a model."""

    what = "a reader of texts"

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether transformers knows the type, and it reads texts by itself."""
        return files is not None and _why_not(files.config) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "feature-extraction needs a model")
        if (reason := _why_not(files.config)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} makes no vectors of texts: {reason}")
        model, tokenizer = cls._load(files, device, AutoModel)
        return cls(model, tokenizer, _own_pooling(files.folder))

    def __init__(self, model: Any, tokenizer: Any, pooling: str) -> None:
        super().__init__(model, tokenizer)
        self._pooling = pooling

    def _texts(self, params: FeatureExtractionParams) -> Sequence[tuple[str, str | None]]:
        return [(params.prefix + text, None) for text in params.texts]

    def _read(self, inputs: Mapping[str, torch.Tensor], rows: Sequence[Row]) -> list[torch.Tensor]:
        states = self._model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"]
        every = torch.arange(len(rows), device=states.device)
        places = torch.arange(mask.shape[1], device=mask.device)
        pooled = {
            "mean": lambda: (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
            "cls": lambda: states[every, mask.argmax(1)],
            "last": lambda: states[every, (mask * places).argmax(1)],
        }
        wanted = [row.job.params.pooling or self._pooling for row in rows]
        made = {name: pooled[name]().cpu() for name in set(wanted)}
        return [made[name][number] for number, name in enumerate(wanted)]

    def _output(self, job: Work, results: Sequence[Any]) -> Output:
        params: FeatureExtractionParams = job.params
        vectors = torch.stack(list(results))
        width = vectors.shape[1]
        if (params.dimensions or 0) > width:
            raise JobFailed("param_unsupported", f"dimensions={params.dimensions}: this model's vectors have {width}")
        vectors = vectors[:, : params.dimensions]
        if not vectors.isfinite().all():
            raise JobFailed("numerics", "the model's numbers overflowed: run the worker with AIGC_DTYPE=float32")
        if params.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        array = vectors.numpy().astype(np.float32)
        facts = {
            "texts": len(array),
            "dimensions": int(array.shape[1]),
            "pooling": params.pooling or self._pooling,
            "normalized": params.normalize,
        }
        if params.format == "json":
            data = array.tolist()
            return Output(
                "application/json", json.dumps(data[0] if isinstance(params.text, str) else data).encode(), facts
            )
        body = io.BytesIO()
        np.save(body, array, allow_pickle=False)
        return Output("application/x-npy", body.getvalue(), facts)


def _own_pooling(folder: Path) -> str:
    """What a sentence-transformers repository says; `mean` where there is nothing."""
    try:
        said = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "mean"
    modes = [ours for theirs, ours in _POOLINGS.items() if said.get(theirs)]
    return modes[0] if len(modes) == 1 else "mean"


def _why_not(config: Mapping[str, Any]) -> str | None:
    if "_class_name" in config:
        return f"it is a diffusion model ({config['_class_name']})"
    kind = config.get("model_type")
    if kind not in MODEL_MAPPING_NAMES:
        return f"model type {kind!r} is not part of transformers"
    if config.get("is_encoder_decoder"):
        return f"it is an encoder-decoder model ({kind})"
    if (
        "vision_config" in config
        or "num_channels" in config
        or "num_mel_bins" in config
        or "feat_extract_norm" in config
    ):
        return f"{kind} reads pictures or sound"
    return None
