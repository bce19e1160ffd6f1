"""Names of single files of weights: `file:name.safetensors`, below the operator's `AIGC_MODELS_DIR`.

ComfyUI and AUTOMATIC1111's web UI keep checkpoints and adapters so. A name may have folders in it, and never leads out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

PREFIX = "file:"
#: by what a file is for (None: it is the model itself): the folders of ComfyUI and of AUTOMATIC1111's web UI, below the
#: one that holds them all
PLACES: Mapping[str | None, tuple[str, ...]] = {
    None: ("", "checkpoints", "Stable-diffusion"),
    "lora": ("", "loras", "Lora"),
    "controlnet": ("", "controlnet", "ControlNet"),
    "ip-adapter": ("", "ipadapter", "ip_adapter"),
}

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f]")


def wrong_file(ref: str) -> str | None:
    """What is wrong with the form of such a reference, or None; whether the file is there is seen by the worker."""
    name = ref.removeprefix(PREFIX)
    if name.lower().endswith(_PICKLES):
        return "is a pickle, which can run code when it is opened: convert it to safetensors"
    if not name.endswith(".safetensors"):
        return f"must name a file of weights, like {PREFIX}name.safetensors"
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or name.startswith("~") or {"..", "."} & set(name.split("/")):
        return "must not lead out of the folder of models: give a name below it"
    return "must not contain control characters" if _NOT_PRINTABLE.search(name) else None
