"""Every generator over every kind of model that it takes: what the contract is held against. A module per family."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

KINDS = [kind for module in iter_modules(__path__) for kind in import_module(f"kinds.{module.name}").KINDS]
