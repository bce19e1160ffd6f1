"""The small models that ship with the project, under `starter/<name>`."""

from __future__ import annotations

from pathlib import Path

_INDEXES = ("config.json", "model_index.json")


def starter_folders() -> dict[str, Path]:
    """Their folders by name: in `models/` of a source checkout, inside the `workers` package of an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    checkout = [root / "models"] if (root / "pyproject.toml").is_file() else []
    found: dict[str, Path] = {}
    for folder in (*checkout, root / "workers" / "starter"):
        for index in _INDEXES:
            found.update({path.parent.name: path.parent for path in sorted(folder.glob(f"*/{index}"))})
    return found
