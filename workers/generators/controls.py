"""ControlNets beside a pipeline of diffusers: a model that steers it along the edges, depths or poses of a picture."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from safetensors import SafetensorError

from shared.errors import JobFailed
from workers.generators import ModelFiles

#: kinds of pipelines whose ControlNets are known to work here, by diffusers' names
_KINDS = ("stable-diffusion", "stable-diffusion-xl")


class Controls:
    """The control models of one pipeline; one is in memory at a time.

    What it makes are pipelines over the same parts as the one that it belongs to: nothing of that is loaded twice, and
    nothing of it is changed.
    """

    def __init__(self, pipe: Any, dtype: torch.dtype, device: str) -> None:
        self._pipe = pipe
        self._dtype = dtype
        self._device = device
        self._kind = _controlled(type(pipe))
        self._made: tuple[str, Any] | None = None

    def check(self) -> None:
        """Raise `JobFailed` if there is no such pipeline for this kind of model."""
        if self._kind is None:
            raise JobFailed(
                "param_unsupported",
                f"{type(self._pipe).__name__} takes no ControlNet here; Stable Diffusion 1.x, 2.x and XL do: "
                "remove `controlnet`, or use another model",
            )

    def accepts(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of the call of the pipeline that is steered."""
        return inspect.signature(self._kind.__call__).parameters if self._kind is not None else {}

    def pipeline(self, files: ModelFiles) -> Any:
        """The pipeline that is steered by this model. Raises `JobFailed` with `controlnet_unfit` if it cannot be."""
        self.check()
        name = f"{files.ref} {files.revision}"
        if self._made is None or self._made[0] != name:
            self.clear()
            self._made = (name, self._steered(files))
        return self._made[1]

    def clear(self) -> None:
        """Drop the control model."""
        self._made = None

    def _steered(self, files: ModelFiles) -> Any:
        kind: Any = self._kind
        taken = inspect.signature(kind.__init__).parameters
        parts = {name: part for name, part in self._pipe.components.items() if name in taken}
        config = {name: value for name, value in self._pipe.config.items() if name in taken and name not in parts}
        pipe = kind(**parts, **config, controlnet=self._control(files))
        pipe.set_progress_bar_config(disable=True)
        logging.getLogger(kind.__module__).setLevel(logging.ERROR)  # prompts do not belong into logs
        return pipe

    def _control(self, files: ModelFiles) -> Any:
        said = files.config.get("_class_name")
        if said != "ControlNetModel":
            what = f"made for {said}" if said else "a model of another kind"
            raise JobFailed(
                "controlnet_unfit", f"{files.ref} is no ControlNet ({what}): name one by a hub id, a folder or its file"
            )
        try:
            options = {"dtype": self._dtype, "local_files_only": True}
            if files.weights is not None:
                kind = diffusers.ControlNetModel
                control = kind.from_single_file(str(files.weights), config=str(files.folder), **options)
            else:
                control = diffusers.ControlNetModel.from_pretrained(files.folder, use_safetensors=True, **options)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise JobFailed("controlnet_unfit", f"{files.ref} cannot be loaded: {error}") from error
        own, model = control.config, self._pipe.unet.config
        for name in ("cross_attention_dim", "block_out_channels"):
            if list(_many(own[name])) != list(_many(model[name])):
                raise JobFailed(
                    "controlnet_unfit",
                    f"{files.ref} does not fit this model ({name} {own[name]}, and not {model[name]}): "
                    "use a ControlNet that was made for its kind",
                )
        return control.to(self._device).eval()


def _many(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _controlled(pipeline: type) -> type | None:
    """The pipeline with a ControlNet of the same task and kind, by diffusers' own tables."""
    for table in (
        AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        AUTO_INPAINT_PIPELINES_MAPPING,
    ):
        for kind in _KINDS:
            if table.get(kind) is pipeline:
                steered: type | None = table.get(f"{kind}-controlnet")
                return steered
    return None
