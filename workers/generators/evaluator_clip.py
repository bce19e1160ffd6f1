"""`evaluate` with CLIP: how well pictures show what their prompts say, and FID and KID over its picture features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from PIL import Image

from shared.errors import JobFailed, RequestError
from shared.picture_records import read_parameters
from workers.generators import ModelFiles
from workers.generators.evaluator_pictures import PASS, PictureEvaluator
from workers.generators.pretrained import load_tokenizer
from workers.scores import Score, Steps, Tick, features, mean, signed
from workers.scores.case import Case, Side

#: models of transformers that were trained as CLIP was
CLIPS = ("altclip", "chinese_clip", "clip", "metaclip_2")


def clip_score(case: Case, tick: Tick) -> Iterator[Score]:
    """CLIPScore (Hessel et al. 2021) without its factor 2.5: 100 x the cosine, where it is positive; the mean."""
    seen, read = (case.made[name].double() for name in ("features of outputs", "features of prompts"))
    cosines = torch.nn.functional.cosine_similarity(seen, read)
    if not cosines.isfinite().all():
        raise JobFailed("numerics", "the features are not finite: run the worker with AIGC_DTYPE=float32")
    items = []
    for cosine in cosines.tolist():
        items.append(100 * max(0.0, cosine))
        tick()
    cut = case.made["prompts cut"]
    signature = f"network:{case.made['network']}|{signed(scale=100, negative=0, over='mean_of_pictures')}"
    yield Score(
        "clip_score", mean(items), "higher", "0–100", "transformers", signature, len(items), items,
        {"prompts_cut": cut, "network": case.made["network"]},
        (f"of {cut} prompts the model reads the beginning only",) if cut else (),
    )  # fmt: skip


class ClipEvaluator(PictureEvaluator):
    """Looks at pictures and reads what they are to show."""

    what = "a CLIP model"
    own = {"clip_score": clip_score, "fid": features.fid, "kid": features.kid}  # noqa: RUF012 - a table

    @classmethod
    def _of(cls, files: ModelFiles, model: Any, processor: Any) -> Self:
        return cls(files, model, processor, load_tokenizer(files))

    @staticmethod
    def _why_not(config: Mapping[str, Any]) -> str | None:
        if "_class_name" in config:
            return f"it is a diffusion model ({config['_class_name']})"
        kind = config.get("model_type")
        return None if kind in CLIPS else f"model type {kind!r} is none of {', '.join(CLIPS)}"

    def __init__(self, files: ModelFiles, model: Any, processor: Any, tokenizer: Any) -> None:
        super().__init__(files, model, processor)
        self._tokenizer = tokenizer
        self._positions: int = model.config.text_config.max_position_embeddings

    def _sides(self, case: Case) -> list[Side]:
        return super()._sides(case) or ([case.outputs] if "clip_score" in case.params.metrics else [])

    def _prepare(self, case: Case, steps: Steps) -> None:
        super()._prepare(case, steps)
        if "clip_score" in case.params.metrics:
            prompts = _prompts(case)
            lengths = [len(self._tokenizer(prompt, verbose=False)["input_ids"]) for prompt in prompts]
            case.made["prompts cut"] = sum(1 for length in lengths if length > self._positions)
            case.made["features of prompts"] = torch.cat(
                [self._understood(prompts[start : start + PASS]) for start in range(0, len(prompts), PASS)]
            )

    def _seen(self, pictures: list[Image.Image]) -> torch.Tensor:
        with torch.inference_mode():
            return _projected(self._model.get_image_features(pixel_values=self._pixels(pictures)))

    def _understood(self, prompts: Sequence[str]) -> torch.Tensor:
        inputs = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self._positions, return_tensors="pt"
        )
        with torch.inference_mode():
            found = self._model.get_text_features(
                **{name: inputs[name].to(self._model.device) for name in ("input_ids", "attention_mask")}
            )
        return _projected(found).float().cpu()

    @property
    def _layer(self) -> str:
        return "projected"


def _projected(found: Any) -> torch.Tensor:
    made: torch.Tensor = getattr(found, "pooler_output", found)
    return made


def _prompts(case: Case) -> list[str]:
    """Those of the job, or those that the picture files carry."""
    if case.prompts is not None:
        return [text for [text] in case.prompts.texts]
    prompts = []
    for number, file in enumerate(case.outputs.files):
        try:
            prompt = read_parameters(file.path)["params"].get("prompt")
        except RequestError:
            prompt = None
        if not isinstance(prompt, str) or not prompt:
            message = f"{case.outputs.call(number)} does not say what it was to show: give `prompts`"
            raise JobFailed("prompts_missing", message)
        prompts.append(prompt)
    return prompts
