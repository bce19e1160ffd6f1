"""How the baselines without a queue are driven: one process each, told by lines of JSON what to do.

It stays in memory between rounds, as the workers of the other arms do, and answers each line with one line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Say that we are ready, then answer commands until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), file=answers)
    os._exit(0)  # continuous batching has a thread that would keep us
