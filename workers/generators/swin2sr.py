"""`super-resolution` with Swin2SR of transformers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from transformers import Swin2SRForImageSuperResolution

from shared.errors import JobFailed, ModelRejected
from shared.tasks.super_resolution import SuperResolutionParams
from workers.generators import Device, Done, Failed, ModelFiles, Outcome, Output, Run, Work
from workers.generators.input_pictures import open_picture
from workers.generators.picture_files import MEDIA_TYPES, encode
from workers.generators.pretrained import Pretrained, load_model
from workers.generators.tiles import Canvas, Shades, Tile, tiles

#: side of a tile where a job does not say
_SIDE = {"cpu": 128, "cuda": 512}


class Swin2SR(Pretrained):
    """Enlarges pictures by a whole factor, tile by tile."""

    microbatch: ClassVar[int | None] = 8

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the model is a Swin2SR."""
        return files is not None and files.config.get("model_type") == "swin2sr"

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "super-resolution needs a model")
        if not cls.serves(files):
            kind = files.config.get("model_type") or files.config.get("_class_name")
            raise ModelRejected("model_wrong_task", f"{files.ref} enlarges no pictures: it is of type {kind!r}")
        model = load_model(files, Swin2SRForImageSuperResolution, device, what="an enlarger of pictures")
        return cls(model, files)

    def __init__(self, model: Any, files: ModelFiles) -> None:
        super().__init__(model)
        self._files = files
        self._scale = int(model.config.upscale)
        self._window = int(model.config.window_size)

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """The side of the tiles."""
        return jobs[0].params.tile

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """One picture after the other; tiles are the steps."""
        for job in jobs:
            if not run.wanted(job.job_id):
                continue
            try:
                output = self._enlarged(job, run)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                if output is not None:
                    yield Done(job.job_id, [output])

    def _enlarged(self, job: Work, run: Run) -> Output | None:
        params: SuperResolutionParams = job.params
        for name, neutral in (("prompt", ""), ("num_inference_steps", None)):
            if getattr(params, name) != neutral:
                raise JobFailed("param_unsupported", f"this model has no `{name}`: remove it")
        picture = np.asarray(open_picture(job.inputs["image"].path), dtype=np.float32) / 255
        height, width = picture.shape[:2]
        side = params.tile or _SIDE["cuda" if self._model.device.type == "cuda" else "cpu"]
        canvas = Canvas(height, width, scale=self._scale, overlap=params.overlap)
        pieces = tiles(height, width, side=side, overlap=params.overlap)
        for number, tile in enumerate(pieces, start=1):
            if not run.wanted(job.job_id):
                return None
            canvas.put(tile, self._piece(picture, tile))
            run.step([job.job_id], number, len(pieces))
        shades = canvas.picture()
        return self._output(job, shades)

    @torch.inference_mode()
    def _piece(self, picture: Shades, tile: Tile) -> Shades:
        """One tile, enlarged; the model wants whole windows, so its edge is mirrored and cut off again."""
        piece = tile.of(picture)
        down, right = (-side % self._window for side in piece.shape[:2])
        padded = np.pad(piece, ((0, down), (0, right), (0, 0)), mode="symmetric")
        pixels = torch.from_numpy(padded).movedim(-1, 0)[None].to(self._model.device, self._model.dtype)
        made = self._model(pixel_values=pixels).reconstruction[0].float()
        if not bool(made.isfinite().all()):
            raise JobFailed("numerics", "the model's numbers overflowed: run the worker with AIGC_DTYPE=float32")
        shades: Shades = made.movedim(0, -1).cpu().numpy()
        return shades[: piece.shape[0] * self._scale, : piece.shape[1] * self._scale]

    def _output(self, job: Work, shades: Any) -> Output:
        params: SuperResolutionParams = job.params
        height, width = shades.shape[:2]
        record = {
            "task": job.task,
            "model": self._files.ref,
            "revision": self._files.revision,
            "params": params.model_dump(mode="json", exclude_none=True),
            "seed": job.seed,
            "width": width,
            "height": height,
            "guidance_scale": None,
        }
        body = partial(_file, shades, params.format, params.quality, record)
        facts = {"width": width, "height": height, "scale": self._scale, "format": params.format}
        return Output(MEDIA_TYPES[params.format], body, facts, size=shades.nbytes)


def _file(shades: Any, form: str, quality: int | None, record: dict[str, Any]) -> bytes:
    return encode(Image.fromarray(shades), form, quality, record, "")
