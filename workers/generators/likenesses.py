"""IP-Adapters on a pipeline of diffusers: pictures that take after others, beside what their prompt says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from safetensors import SafetensorError
from transformers import CLIPVisionModelWithProjection

from shared.errors import JobFailed
from workers.generators import ModelFiles
from workers.pinned import out_of_memory

#: where the model that looks at the pictures lies, beside the adapter's file
ENCODER = "image_encoder"


class Likenesses:
    """The IP-Adapter of one pipeline: one is in force at a time, and none for jobs that name none."""

    def __init__(self, pipe: Any, accepts: Mapping[str, Any]) -> None:
        """`accepts` is what the pipeline's call takes."""
        self._pipe = pipe
        self._takes = hasattr(pipe, "load_ip_adapter") and hasattr(pipe, "unet")
        self._takes = self._takes and "ip_adapter_image_embeds" in accepts
        self._in_force = ""
        #: what the pipeline had before: parts by name, and how its model attends
        self._parts: dict[str, Any] = {}
        self._processors: dict[str, Any] = {}

    def check(self) -> None:
        """Raise `JobFailed` if this kind of model takes none."""
        if not self._takes:
            raise JobFailed(
                "param_unsupported",
                f"{type(self._pipe).__name__} takes no IP-Adapter here; Stable Diffusion 1.x and XL do: "
                "remove `ip_adapter`, or use another model",
            )

    def use(self, files: ModelFiles | None) -> None:
        """Have this adapter in force, or none. Raises `JobFailed` with `adapter_unfit`; then none is."""
        name = f"{files.ref} {files.revision}" if files is not None else ""
        if name == self._in_force:
            return
        self.clear()
        if files is None:
            return
        self._parts = {part: getattr(self._pipe, part, None) for part in ("image_encoder", "feature_extractor")}
        self._processors = dict(self._pipe.unet.attn_processors)
        self._in_force = name
        try:
            self._load(files)
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Take it out: the model attends as it did before."""
        if not self._in_force:
            return
        self._pipe.unload_ip_adapter()
        self._pipe.unet.set_attn_processor(dict(self._processors))
        self._pipe.register_modules(**self._parts)
        self._in_force, self._parts, self._processors = "", {}, {}

    def embeddings(self, pictures: Sequence[Image.Image], scale: float, guided: bool) -> list[torch.Tensor]:
        """What a call is given for pictures to take after; for all pictures of the call the same."""
        self._pipe.set_ip_adapter_scale(scale)
        guided = guided and self._pipe.unet.config.time_cond_proj_dim is None  # else it is told the scale itself
        with torch.no_grad():
            made: list[torch.Tensor] = self._pipe.prepare_ip_adapter_image_embeds(
                [list(pictures)],
                None,
                self._pipe.unet.device,
                1,
                guided,
            )
        return made

    def _load(self, files: ModelFiles) -> None:
        if files.weights is None:
            raise JobFailed("adapter_unfit", f"{files.ref} is no IP-Adapter: name its file of weights")
        pipe, folder = self._pipe, files.weights.parent
        try:
            if self._parts["image_encoder"] is None:
                if not (folder / ENCODER / "config.json").is_file():
                    raise JobFailed(
                        "adapter_unfit",
                        f"{files.ref} has no folder {ENCODER} beside it, with the model that looks at pictures",
                    )
                encoder = CLIPVisionModelWithProjection.from_pretrained(
                    folder / ENCODER, dtype=pipe.dtype, use_safetensors=True, local_files_only=True
                )
                pipe.register_modules(image_encoder=encoder.to(pipe.device).eval())
            pipe.unet.set_attn_processor(AttnProcessor2_0())  # of those in slices it makes none
            pipe.load_ip_adapter(
                str(folder), subfolder="", weight_name=files.weights.name, image_encoder_folder=None,
                local_files_only=True,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            if out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise JobFailed(
                "adapter_unfit",
                f"{files.ref} does not fit this model ({reason}): use an adapter that was made for its kind",
            ) from error
