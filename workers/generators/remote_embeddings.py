"""`feature-extraction` by a remote service: embeddings.

https://platform.openai.com/docs/api-reference/embeddings/create
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from shared.errors import JobFailed
from shared.tasks.feature_extraction import FeatureExtractionParams
from workers.generators import Output, Work
from workers.generators.remote import Remote, refuse
from workers.remote import Answer, bad_answer

#: texts of one request
TEXTS = 256
#: params that the API does not know, with the values that ask for nothing
_UNKNOWN: Mapping[str, Any] = {"pooling": None, "long_text": "fail"}

Vectors = npt.NDArray[np.float32]


class _Vector(BaseModel):
    index: int
    embedding: list[float]


class _Usage(BaseModel):
    prompt_tokens: int | None = None


class _Embeddings(BaseModel):
    data: list[_Vector]
    model: str | None = None
    usage: _Usage | None = None


class RemoteEmbeddings(Remote):
    """Many texts in one request; `normalize` is done here."""

    path: ClassVar[str] = "/embeddings"

    def questions(self, job: Work) -> Sequence[Mapping[str, Any]]:
        """So many texts in each."""
        params: FeatureExtractionParams = job.params
        refuse(job, neutral=_UNKNOWN, why="remove it")
        texts = [params.prefix + text for text in params.texts]
        asked: dict[str, Any] = {"model": self._model, "encoding_format": "float"}
        if params.dimensions is not None:
            asked["dimensions"] = params.dimensions
        return [asked | {"input": texts[start : start + TEXTS]} for start in range(0, len(texts), TEXTS)]

    def read(self, job: Work, number: int, answer: Answer) -> tuple[Vectors, _Embeddings]:
        """One vector for each text, in their order."""
        made = answer.read(_Embeddings)
        params: FeatureExtractionParams = job.params
        texts = len(params.texts[number * TEXTS : (number + 1) * TEXTS])
        if sorted(vector.index for vector in made.data) != list(range(texts)):
            raise bad_answer(self._service, f"answered with {len(made.data)} vectors for {texts} texts, or in no order")
        rows = [vector.embedding for vector in sorted(made.data, key=lambda vector: vector.index)]
        width = params.dimensions or len(rows[0])
        if {len(row) for row in rows} != {width} or not width:
            if params.dimensions is not None and len({len(row) for row in rows}) == 1:
                message = f"dimensions={params.dimensions}: the vectors of {self._model} have {len(rows[0])}"
                raise JobFailed("param_unsupported", message)
            raise bad_answer(self._service, "answered with vectors of different lengths")
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is found out
            vectors = np.asarray(rows, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise bad_answer(self._service, "answered with vectors that hold no finite numbers")
        return vectors, made

    def outputs(self, job: Work, parts: Sequence[tuple[Vectors, _Embeddings]]) -> Sequence[Output]:
        """One file."""
        params: FeatureExtractionParams = job.params
        if len({vectors.shape[1] for vectors, _ in parts}) != 1:
            raise bad_answer(self._service, "answered with vectors of different lengths")
        array = np.concatenate([vectors for vectors, _ in parts])
        if params.normalize:
            array = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12).astype(np.float32)
        tokens = [made.usage.prompt_tokens if made.usage else None for _, made in parts]
        facts: dict[str, Any] = {
            "texts": len(array),
            "dimensions": int(array.shape[1]),
            "normalized": params.normalize,
        }
        if all(each is not None for each in tokens):
            facts["prompt_tokens"] = sum(each or 0 for each in tokens)
        if parts[0][1].model is not None:
            facts["model"] = parts[0][1].model
        if params.format == "json":
            body = partial(_as_json, array, alone=isinstance(params.text, str))
            return [Output("application/json", body, facts, size=array.nbytes)]
        return [Output("application/x-npy", partial(_as_npy, array), facts, size=array.nbytes)]


def _as_json(array: Vectors, *, alone: bool) -> bytes:
    data = array.tolist()
    return json.dumps(data[0] if alone else data).encode()


def _as_npy(array: Vectors) -> bytes:
    body = io.BytesIO()
    np.save(body, array, allow_pickle=False)
    return body.getvalue()
