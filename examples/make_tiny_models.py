"""Tiny models with random weights, for trying every task without a network: python examples/make_tiny_models.py

They make noise and nonsense, in seconds, on any machine. The job files in `examples/tiny` name them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tiny_models
from tiny_models.input_pictures import write_pictures
from tiny_models.input_sounds import write_sounds

if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "tiny" / "models"
    for name in tiny_models.__all__:
        print(getattr(tiny_models, name)(root))
    inputs = root.parent / "inputs"
    for path in (*write_pictures(inputs), *write_sounds(inputs)):
        print(path)
