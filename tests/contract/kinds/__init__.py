"""Every generator over every kind of model that it takes: what the contract is held against."""

from __future__ import annotations

from kinds import adapters, pictures, plain, texts

KINDS = [*plain.KINDS, *texts.KINDS, *pictures.KINDS, *adapters.KINDS]
