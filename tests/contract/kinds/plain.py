"""What needs no model."""

from __future__ import annotations

from contract import Kind

KINDS = [
    Kind(
        "echo",
        "echo",
        "echo:Echo",
        None,
        mixed=({"message": "hi", "steps": 2}, {"message": {"a": [1]}}, {"message": "ünï", "steps": 3}),
        bad=(({"message": "x", "fail": True}, "echo_failed"),),
    ),
]
