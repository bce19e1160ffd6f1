"""What no generator, or not the one asked, can use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tiny_models.building import cached
from tiny_models.pictures import stable_diffusion
from tiny_models.texts import gpt2, llama, save_gpt2


@cached
def headless(folder: Path) -> None:
    """A GPT-2 saved without its head."""
    save_gpt2(folder, chat=False, kind="GPT2Model")


@cached
def no_head_weights(folder: Path) -> None:
    """A Llama whose config promises a head that its weights do not have."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(llama(folder.parent), folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@cached
def pickle_only(folder: Path) -> None:
    """A GPT-2 whose weights are a pickle."""
    import torch

    shutil.copytree(gpt2(folder.parent), folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


@cached
def remote_code(folder: Path) -> None:
    """A model of a type that only its own Python file knows."""
    shutil.copytree(gpt2(folder.parent), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoModelForCausalLM": "modeling_homemade.Homemade"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_homemade.py").write_text("raise SystemExit('this must never run')\n")


@cached
def empty(folder: Path) -> None:
    """A folder with a text file and no model."""
    (folder / "readme.txt").write_text("nothing here")


@cached
def custom_pipeline(folder: Path) -> None:
    """A Stable Diffusion that wants to run a pipeline of its own."""
    shutil.copytree(stable_diffusion(folder.parent), folder, dirs_exist_ok=True)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "Homemade"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "pipeline.py").write_text("raise SystemExit('this must never run')\n")
