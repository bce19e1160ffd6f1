"""Models that are a single file of weights: where they are on this host, and which configs go with them.

    file:name.safetensors     below `AIGC_MODELS_DIR`, at its top or where ComfyUI and the web UI keep such files

A file says by names and shapes of its tensors what it is. Configs of the usual families come with this package; a
folder `name.config` beside the file, as `save_pretrained` would fill it but without weights, takes their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.errors import ModelRejected
from shared.single_files import PLACES, PREFIX, wrong_file
from shared.tasks.adapters import Role

_BUNDLED = Path(__file__).parent / "pipeline_configs"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: longest list of tensors that a file may begin with; that of the largest pipelines has a megabyte
_MAX_HEADER = 64 * 2**20

_UNET = "model.diffusion_model."
_FIRST = f"{_UNET}input_blocks.0.0.weight"
_TEXT = ("cond_stage_model.", "conditioner.")
#: (width of what the prompt becomes, channels that the model reads) → configs
_FAMILIES = {
    (768, 4): "stable-diffusion-v1-5",
    (768, 9): "stable-diffusion-v1-5-inpainting",
    (2048, 4): "stable-diffusion-xl",
    (2048, 9): "stable-diffusion-xl-inpainting",
}
#: how names in a ControlNet begin, in the original code and in diffusers
_CONTROL = ("control_model.input_blocks.", "input_hint_block.", "controlnet_cond_embedding.")
#: width of what the prompt becomes → config
_CONTROLS = {768: "controlnet-stable-diffusion-v1-5", 2048: "controlnet-stable-diffusion-xl"}
#: by what stands in the names of its tensors: what a file without a pipeline's parts may be
_INSTEAD = {
    "lora": "a LoRA adapter, which goes into `adapters`",
    "control": "a ControlNet",
    "double_blocks.": "Flux without its text encoders",
    "joint_blocks.": "SD3 without its text encoders",
}


def located(ref: str, models_dir: Path | None, role: Role | None = None) -> Path:
    """The file that `file:…` means on this host. Raises `ModelRejected` with `model_not_found`."""
    if wrong := wrong_file(ref):
        raise ModelRejected("model_not_found", f"{ref} {wrong}")
    if models_dir is None:
        raise ModelRejected("model_not_found", f"{ref}: this worker has no folder of such files (AIGC_MODELS_DIR)")
    root, name = models_dir.expanduser().resolve(), ref.removeprefix(PREFIX)
    for place in PLACES[role]:
        path = root / place / name
        if path.is_file():
            if not path.resolve().is_relative_to(root):
                raise ModelRejected("model_not_found", f"{ref} links out of the folder of models: put the file there")
            return path
    raise ModelRejected("model_not_found", f"{ref}: there is no such file in AIGC_MODELS_DIR of this worker's host")


def configs_for(ref: str, path: Path) -> Path:
    """The folder of configs for a checkpoint. Raises `ModelRejected` if there are none, with what it is instead."""
    own = path.with_suffix(".config")
    if own.is_dir():
        return own
    shapes = shapes_in(ref, path)
    width = next((shapes[name][1] for name in sorted(shapes) if _reads_prompts(name)), 0)
    channels = shapes.get(_FIRST, (0, 0))[1]
    if _FIRST not in shapes:
        raise ModelRejected("model_not_a_model", f"{ref} is no checkpoint of a whole pipeline{_instead(shapes)}")
    odd = next((name for name in ("v_pred", "edm_mean", "ztsnr") if name in shapes), None)
    family = None if odd else _FAMILIES.get((width, channels))
    if family is None:
        what = f"it is marked {odd}" if odd else f"its prompts have a width of {width}, its model reads {channels}"
        raise ModelRejected(
            "model_not_a_model",
            f"{ref} is of no family whose configs are known here (Stable Diffusion 1.x and XL): {what}; "
            f"put its configs into a folder {own.name} beside it, or save it as a folder (save_pretrained)",
        )
    for part, prefix in (("text encoder", _TEXT), ("VAE", ("first_stage_model.",))):
        if not any(name.startswith(prefix) for name in shapes):
            raise ModelRejected("model_not_a_model", f"{ref} has no {part} in it: use a checkpoint that is whole")
    return _BUNDLED / family


def control_configs_for(ref: str, path: Path) -> Path:
    """The folder of the config for a ControlNet in one file. Raises `ModelRejected` if it is none known here."""
    own = path.with_suffix(".config")
    if own.is_dir():
        return own
    shapes = shapes_in(ref, path)
    width = next((shapes[name][1] for name in sorted(shapes) if name.endswith(".attn2.to_k.weight")), 0)
    family = _CONTROLS.get(width) if any(name.startswith(_CONTROL) for name in shapes) else None
    deep = "down_blocks.2.attentions.0.transformer_blocks.9.norm1.weight" in shapes  # not one of XL's small ones
    if family is None or (width == 2048 and not deep):
        raise ModelRejected(
            "model_not_a_model",
            f"{ref} is no ControlNet whose config is known here (Stable Diffusion 1.x and XL): put config.json into "
            f"a folder {own.name} beside it, or save it as a folder (save_pretrained)",
        )
    return _BUNDLED / family


def _reads_prompts(name: str) -> bool:
    return name.startswith(f"{_UNET}input_blocks.") and name.endswith(".attn2.to_k.weight")


def _instead(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What such a file may be instead."""
    found = (what for mark, what in _INSTEAD.items() if any(mark in name for name in shapes))
    return next((f": it looks like {what}" for what in found), "")


def shapes_in(ref: str, path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a file, from its header alone. Raises `ModelRejected`."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= _MAX_HEADER:
                raise ValueError("it does not begin with a list of tensors")
            header = json.loads(file.read(size))
        return {name: tuple(about["shape"]) for name, about in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelRejected("model_not_a_model", f"{ref} cannot be read as safetensors: {error}") from None


def adapter_in(ref: str, place: Path) -> Path:
    """A file itself, or the one in a folder."""
    if place.is_file() and place.suffix == ".safetensors":
        return place
    if not place.is_dir():
        raise ModelRejected("model_not_found", f"{ref}: no such folder or safetensors file on this worker's host")
    path = place / adapter_among(ref, [path.name for path in place.iterdir() if path.is_file()])
    if not path.resolve().is_relative_to(place.resolve()):
        raise ModelRejected(
            "model_not_a_model", f"{ref}: {path.name} links out of the folder; put the file itself there"
        )
    return path


def adapter_among(ref: str, names: Sequence[str], wanted: str = "") -> str:
    """Which of these files is the adapter: the one that is named, the usual one, or the only one."""
    safe = [name for name in names if name.endswith(".safetensors")]
    if wanted:
        if wanted in safe:
            return wanted
        raise ModelRejected("model_not_found", f"{ref}: there is no {wanted} in it")
    top = [name for name in safe if "/" not in name]
    if "pytorch_lora_weights.safetensors" in top:
        return "pytorch_lora_weights.safetensors"
    if len(top) == 1:
        return top[0]
    if top:
        raise ModelRejected(
            "model_not_a_model", f"{ref} has several files of weights; add the one that is meant, like /{min(top)}"
        )
    if any(name.endswith(_PICKLES) for name in names):
        raise ModelRejected(
            "model_pickle_only",
            f"{ref} has weights only as pickle files, which can run code when opened: use one in safetensors",
        )
    raise ModelRejected("model_not_a_model", f"{ref} has no weights in safetensors")
