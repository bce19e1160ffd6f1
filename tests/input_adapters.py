"""Tiny models that jobs name beside their own: places of them, which are filled when a test needs them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tiny_models

from shared.settings import Settings
from shared.tasks.adapters import models_beside
from workers.generators import ModelFiles
from workers.model_files import resolve_adapter

_ROOT = Path(tempfile.mkdtemp(prefix="aigc-adapters-"))
atexit.register(shutil.rmtree, _ROOT, ignore_errors=True)


def place(name: str) -> str:
    """Where a tiny model of this name is, or will be."""
    return str(_ROOT / name.replace("_", "-"))


def made(name: str) -> str:
    """The same, and it is there."""
    return str(getattr(tiny_models, name)(_ROOT))


def settings() -> Settings:
    """Those of a worker whose folder of single files is the tiny one."""
    return Settings(_env_file=None, data_dir=_ROOT, models_dir=_ROOT / "comfyui")


def found(params: Any) -> dict[str, ModelFiles]:
    """What these params name beside the model, resolved as a worker does it."""
    files = {}
    for role, name in models_beside(params):
        path = _ROOT / "comfyui" if name.startswith("file:") else Path(name)
        if path.is_relative_to(_ROOT) and not path.exists():
            made(path.name.replace("-", "_"))
        files[name] = resolve_adapter(role, name, settings=settings())
    return files
