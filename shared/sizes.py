"""Sizes in words."""

from __future__ import annotations


def gigabytes(size: int) -> str:
    """`24 GB`, `1.5 GB`, `0.05 GB`: of 2**30 bytes each."""
    of = size / 2**30
    return f"{of:.0f} GB" if of >= 10 else f"{of:.1f} GB" if of >= 0.95 else f"{of:.2g} GB"
