"""`text-classification` with a sequence classifier of transformers (BERT, DistilBERT, RoBERTa, DeBERTa, …)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from transformers import AutoModelForSequenceClassification

from shared.errors import JobFailed, ModelRejected
from shared.tasks.text_classification import TextClassificationParams
from workers.generators import Device, ModelFiles, Output, Work
from workers.generators.encoder_texts import EncoderTexts, Row

#: digits behind the point: what a neighbour in the microbatch changes is smaller
DIGITS = 5


class TextClassifier(EncoderTexts):
    """A model with a head that tells classes of texts."""

    what = "a classifier of texts"

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the model was saved as a sequence classifier."""
        return files is not None and why_no_classifier(files.config) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "text-classification needs a model")
        if (reason := why_no_classifier(files.config)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot classify texts: {reason}")
        return cls(*cls._load(files, device, AutoModelForSequenceClassification))

    def _read(self, inputs: Mapping[str, torch.Tensor], rows: Sequence[Row]) -> list[list[float]]:
        """Logits."""
        logits = self._model(**inputs).logits.float()
        scores: list[list[float]] = []
        for row, each in zip(rows, logits, strict=True):
            function = self._function(row.job.params)
            made = each.softmax(-1) if function == "softmax" else each.sigmoid() if function == "sigmoid" else each
            scores.append(made.tolist())
        return scores

    def _function(self, params: TextClassificationParams) -> str:
        """What makes scores of logits, as transformers' own pipeline decides it."""
        if params.function_to_apply is not None:
            return params.function_to_apply
        config = self._model.config
        if config.problem_type == "regression":
            return "none"
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return "sigmoid"
        return "softmax"

    def _output(self, job: Work, results: Sequence[Any]) -> Output:
        params: TextClassificationParams = job.params
        names = self._model.config.id2label
        found = []
        for scores in results:
            if not all(map(math.isfinite, scores)):
                raise JobFailed("numerics", "the model's numbers overflowed: run the worker with AIGC_DTYPE=float32")
            order = sorted(range(len(scores)), key=lambda label: (-scores[label], label))[: params.top_k]
            found.append([{"label": names[label], "score": round(scores[label], DIGITS)} for label in order])
        facts: dict[str, Any] = {"texts": len(found)}
        if len(found) == 1:
            facts |= found[0][0]
        data = found[0] if isinstance(params.text, str) else found
        return Output("application/json", json.dumps(data, ensure_ascii=False).encode(), facts)


def why_no_classifier(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` is no sequence classifier; None if it is one."""
    if "_class_name" in config:
        return f"it is a diffusion model ({config['_class_name']})"
    saved = config.get("architectures") or []
    if any(name.endswith("ForSequenceClassification") for name in saved):
        return None
    return f"it was saved as {', '.join(saved) or 'nothing in particular'}, which has no head that tells classes"
