"""What `aigc tasks TASK` says of a param beside its description."""

from __future__ import annotations

import subprocess
import sys

import pytest

from producer.cli.ranges import may_be
from shared.tasks import get_task


@pytest.mark.parametrize(
    ("task", "param", "words"),
    [
        ("text-to-image", "num_images", "1 to 64"),
        ("text-to-image", "width", "16 to 4096"),
        ("text-to-image", "format", "png, jpeg or webp"),
        ("text-to-audio", "seconds", "more than 0, at most 600"),
        ("audio-to-audio", "channels", "1 or 2"),
        ("automatic-speech-recognition", "translate", "true or false"),
        ("text-generation", "early_stopping", "true or false or never"),
        ("text-to-image", "prompt", ""),
        ("text-to-image", "controlnet", ""),
    ],
)
def test_choices_and_ranges_are_told_in_words(task: str, param: str, words: str) -> None:
    assert may_be(get_task(task).params.model_json_schema()["properties"][param]) == words


def test_the_command_line_tells_them() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "producer.cli", "tasks", "text-to-image"], capture_output=True, text=True, check=True
    )
    told = dict(line.strip().split(": ", 1) for line in done.stdout.splitlines())
    assert told["prompt"].endswith("(required)")
    assert told["num_images"].endswith("(1 to 64; default 1)")
    assert told["format"].endswith('(png, jpeg or webp; default "png")')
    assert "default null" not in done.stdout
