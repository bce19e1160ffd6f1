"""Every generator over every kind of model that it takes: what the contract is held against."""

from __future__ import annotations

from kinds import pictures, plain, sounds, texts

KINDS = [*plain.KINDS, *texts.KINDS, *pictures.KINDS, *sounds.KINDS]
