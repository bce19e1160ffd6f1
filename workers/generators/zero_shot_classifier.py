"""`zero-shot-classification` with a classifier that was trained to say what follows from what (MNLI)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from transformers import AutoModelForSequenceClassification

from shared.errors import JobFailed, ModelRejected
from shared.tasks.zero_shot_classification import ZeroShotClassificationParams
from workers.generators import Device, ModelFiles, Output, Work
from workers.generators.encoder_texts import EncoderTexts, Row
from workers.generators.text_classifier import DIGITS, why_no_classifier


class ZeroShotClassifier(EncoderTexts):
    """Reads each text with a sentence for each label, and asks whether the one follows from the other."""

    what = "a classifier of texts"

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether one of the model's labels is `entailment`."""
        return files is not None and _why_not(files.config) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "zero-shot-classification needs a model")
        if (reason := _why_not(files.config)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot classify by labels of your own: {reason}")
        return cls(*cls._load(files, device, AutoModelForSequenceClassification))

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        names = {name.lower(): int(number) for number, name in model.config.id2label.items()}
        self._follows = next(number for name, number in names.items() if name.startswith("entail"))
        others = [number for name, number in names.items() if name.startswith("contradict")]
        self._contradicts = others[0] if others else (0 if self._follows else -1)

    def _texts(self, params: ZeroShotClassificationParams) -> Sequence[tuple[str, str | None]]:
        return [(text, sentence) for text in params.texts for sentence in params.hypotheses]

    def _read(self, inputs: Mapping[str, torch.Tensor], rows: Sequence[Row]) -> list[tuple[float, float]]:
        """Logits of: it contradicts, it follows."""
        logits = self._model(**inputs).logits.float()
        return [(float(each[self._contradicts]), float(each[self._follows])) for each in logits]

    def _output(self, job: Work, results: Sequence[Any]) -> Output:
        params: ZeroShotClassificationParams = job.params
        labels = params.candidate_labels
        found = []
        for start in range(0, len(results), len(labels)):
            logits = torch.tensor(results[start : start + len(labels)], dtype=torch.float64)
            if not logits.isfinite().all():
                raise JobFailed("numerics", "the model's numbers overflowed: run the worker with AIGC_DTYPE=float32")
            scores = (logits.softmax(1)[:, 1] if params.multi_label else logits[:, 1].softmax(0)).tolist()
            order = sorted(range(len(labels)), key=lambda n: (-scores[n], n))
            found.append([{"label": labels[n], "score": round(scores[n], DIGITS)} for n in order])
        facts: dict[str, Any] = {"texts": len(found)}
        if len(found) == 1:
            facts |= found[0][0]
        data = found[0] if isinstance(params.text, str) else found
        return Output("application/json", json.dumps(data, ensure_ascii=False).encode(), facts)


def _why_not(config: Mapping[str, Any]) -> str | None:
    if (reason := why_no_classifier(config)) is not None:
        return reason
    labels = [str(name) for name in (config.get("id2label") or {}).values()]
    if any(name.lower().startswith("entail") for name in labels):
        return None
    return (
        f"none of its labels ({', '.join(labels[:6]) or 'it names none'}) is `entailment`: take a model trained on MNLI"
    )
