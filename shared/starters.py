"""The small models that ship with the project, under `starter/<name>`."""

from __future__ import annotations

from pathlib import Path


def starters_folder() -> Path:
    """Where they lie: inside the installed `workers` package, or in `models/` of a source checkout."""
    root = Path(__file__).parent.parent
    installed = root / "workers" / "starter"
    return installed if installed.is_dir() else root / "models"


def starter_models() -> list[str]:
    """Their names."""
    folder = starters_folder()
    if not folder.is_dir():
        return []
    return sorted(
        path.name for path in folder.iterdir() if any((path / f).is_file() for f in ("config.json", "model_index.json"))
    )
