"""`super-resolution` with Swin2SR of transformers.

A picture goes through the model in overlapping tiles that begin and end where the model's windows do: the wider the
overlap, the nearer they come to what the whole picture would give. Tiles of one size go together, also those of several
jobs.
"""

from __future__ import annotations

import traceback
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForImageToImage

from shared.errors import JobFailed, ModelRejected
from shared.tasks.super_resolution import SuperResolutionParams
from workers.generators import Device, Done, Failed, ModelFiles, Outcome, Run, Work
from workers.generators.enlarged import picture_output, refuse, require_room
from workers.generators.input_pictures import open_picture
from workers.generators.pretrained import Pretrained, load_model
from workers.generators.tiles import Canvas, Shades, Tile, tiles
from workers.pinned import free_cached, out_of_memory

#: side of a tile where a job does not say, and pixels that go through the model together
_SIDE = {"cpu": 128, "cuda": 512}
_TOGETHER = {"cpu": 2 * 128**2, "cuda": 4 * 512**2}
#: ways up that keep the factor of the config; a model without any restores a picture in its own size
_UPSAMPLERS = ("pixelshuffle", "pixelshuffle_aux", "pixelshuffledirect", "nearest+conv")
#: params that only diffusion models have
_FOREIGN = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "noise_level", "scheduler")


@dataclass(slots=True)
class _Growing:
    """A picture on its way."""

    job: Work
    #: (height, width, 3), filled up to whole windows
    shades: npt.NDArray[np.uint8]
    #: of the picture itself
    height: int
    width: int
    canvas: Canvas
    pieces: int
    done: int = 0
    failed: bool = False


class Swin2SR(Pretrained):
    """Enlarges pictures by a whole factor, tile by tile."""

    microbatch: ClassVar[int | None] = 8

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the model is a Swin2SR of coloured pictures."""
        return files is not None and _why_not(files) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "super-resolution needs a model")
        if (reason := _why_not(files)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot enlarge pictures: {reason}")
        return cls(load_model(files, AutoModelForImageToImage, device, what="an enlarger of pictures"), files)

    def __init__(self, model: Any, files: ModelFiles) -> None:
        super().__init__(model)
        self._files = files
        config = model.config
        self._scale = int(config.upscale) if config.upsampler in _UPSAMPLERS else 1
        self._window = int(config.window_size)
        #: most tiles of a size that went through together, where more did not fit into memory
        self._fits: dict[tuple[int, ...], int] = {}

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Pictures of one size side by side: their tiles go together."""
        return super().cut(sorted(jobs, key=_size), limit)

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """The side of the tiles."""
        side: int | None = jobs[0].params.tile
        return side

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Tile by tile, several in one pass; each of them is a step of its job."""
        waiting: list[tuple[_Growing, Tile]] = []
        for job in jobs:
            if not run.wanted(job.job_id):
                continue
            try:
                growing, pieces = self._begun(job)
            except JobFailed as error:
                yield Failed(job.job_id, error)
                continue
            for tile in pieces:
                if waiting and (_sides(tile) != _sides(waiting[0][1]) or len(waiting) >= self._together(tile)):
                    yield from self._passed(waiting, run)
                    waiting = []
                waiting.append((growing, tile))
        yield from self._passed(waiting, run)

    def _begun(self, job: Work) -> tuple[_Growing, list[Tile]]:
        """The picture, and its tiles."""
        params: SuperResolutionParams = job.params
        refuse(params, _FOREIGN)
        shades = np.asarray(open_picture(job.inputs["image"].path))
        height, width = shades.shape[:2]
        require_room(params, width * self._scale, height * self._scale)
        down, right = (-length % self._window for length in (height, width))
        # The model wants whole windows: beyond its edge the picture is mirrored, and cut off again.
        filled = np.pad(shades, ((0, down), (0, right), (0, 0)), mode="symmetric")
        side, overlap = self._tiling(params)
        pieces = tiles(height + down, width + right, side=side, overlap=overlap)
        canvas = Canvas(height + down, width + right, scale=self._scale, overlap=overlap)
        return _Growing(job, filled, height, width, canvas, len(pieces)), pieces

    def _tiling(self, params: SuperResolutionParams) -> tuple[int, int]:
        """Side and overlap of the tiles, in whole windows."""
        window = self._window
        overlap = -(-params.overlap // window) * window
        side = params.tile or max(_SIDE[self._kind], 4 * overlap)
        side = max(window, side // window * window)
        return side, min(overlap, side // 2 // window * window)

    @property
    def _kind(self) -> str:
        return "cuda" if self._model.device.type == "cuda" else "cpu"

    def _together(self, tile: Tile) -> int:
        """How many tiles of this size go through the model in one pass."""
        most = max(1, _TOGETHER[self._kind] // (tile.height * tile.width))
        return min(most, self._fits.get(_sides(tile), most))

    def _passed(self, waiting: Sequence[tuple[_Growing, Tile]], run: Run) -> Iterator[Outcome]:
        """Enlarge tiles of one size; whose last one it was is done. Pictures that nobody wants are left as they are."""
        wanted = [each for each in waiting if not each[0].failed and run.wanted(each[0].job.job_id)]
        if not wanted:
            return
        made = self._fitting([tile.of(growing.shades) for growing, tile in wanted], wanted[0][1])
        for (growing, tile), piece in zip(wanted, made, strict=True):
            if growing.failed:
                continue
            if not np.isfinite(piece).all():
                growing.failed = True
                message = "the model's numbers overflowed: run the worker with AIGC_DTYPE=float32"
                yield Failed(growing.job.job_id, JobFailed("numerics", message))
                continue
            growing.canvas.put(tile, piece)
            growing.done += 1
            run.step([growing.job.job_id], growing.done, growing.pieces)
            if growing.done == growing.pieces:
                scale = self._scale
                shades = growing.canvas.picture()[: growing.height * scale, : growing.width * scale]
                yield Done(growing.job.job_id, [picture_output(growing.job, self._files, shades, scale)])

    def _fitting(self, pieces: Sequence[npt.NDArray[np.uint8]], tile: Tile) -> list[Shades]:
        """Tiles that do not fit into memory together are enlarged in halves; the engine halves jobs only."""
        try:
            return self._enlarged(pieces)
        except (RuntimeError, MemoryError) as error:
            if not (out_of_memory(error) and len(pieces) > 1):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the halves need
        free_cached(str(self._model.device))
        half = (len(pieces) + 1) // 2
        self._fits[_sides(tile)] = half
        return [made for part in (pieces[:half], pieces[half:]) for made in self._fitting(part, tile)]

    def _enlarged(self, pieces: Sequence[npt.NDArray[np.uint8]]) -> list[Shades]:
        """(height, width, 3) each, as shades between 0 and 1, times the factor."""
        stacked = torch.from_numpy(np.stack(pieces)).to(self._model.device).movedim(-1, 1)
        with torch.inference_mode():
            made = self._model(pixel_values=stacked.to(self._model.dtype) / 255).reconstruction.float()
        return list(made.movedim(1, -1).cpu().numpy())


def _why_not(files: ModelFiles) -> str | None:
    kind = files.config.get("model_type") or files.config.get("_class_name")
    if kind != "swin2sr":
        return f"it is of type {kind!r}"
    saved = files.config.get("architectures") or []
    if saved and "Swin2SRForImageSuperResolution" not in saved:
        return f"it was saved as {', '.join(saved)}, which makes no pictures"
    colours = files.config.get("num_channels", 3)
    return None if colours == 3 else f"it takes pictures of {colours} colours, not of 3"


def _sides(tile: Tile) -> tuple[int, ...]:
    return tile.height, tile.width


def _size(job: Work) -> tuple[int, ...]:
    facts = job.inputs["image"].facts
    return job.params.tile or 0, job.params.overlap, facts["height"], facts["width"]
