"""What a child says is seen by its parent, in another process, also after the child's death."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from workers.pulse import NOTHING, Pulse, alive

CHILD = """
import os, sys
from pathlib import Path
from workers.pulse import Pulse
pulse = Pulse(Path(sys.argv[1]))
pulse.begin()
pulse.session("w123")
pulse.wait(12.5, 60.0, 99.0)
os.kill(os.getpid(), 9)
"""


def test_the_last_word_of_a_killed_child_is_still_read() -> None:
    pulse = Pulse.make()
    child = subprocess.run([sys.executable, "-c", CHILD, str(pulse.path)], check=False)
    reading = pulse.read()

    assert child.returncode == -9
    assert (reading.session, reading.stepped_at, reading.patience_s, reading.deadline) == ("w123", 12.5, 60.0, 99.0)
    assert reading.pid > 0
    assert not alive(reading)


def test_nothing_said_is_read_as_nothing() -> None:
    assert Pulse.make().read() == NOTHING


def test_out_of_the_model_no_step_is_waited_for() -> None:
    pulse = Pulse.private()
    pulse.begin()
    pulse.wait(5.0, 60.0)
    pulse.rest()
    pulse.session("")
    assert (pulse.read().stepped_at, pulse.read().session) == (0.0, "")


def test_a_place_that_is_not_there_is_an_error() -> None:
    pulse = Pulse.private()
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's affair
        Pulse(pulse.path.with_name("nowhere"))


def test_a_number_that_another_process_came_to_have_is_not_the_child() -> None:
    pulse = Pulse.private()
    pulse.begin()
    reading = pulse.read()
    assert alive(reading)
    assert not alive(replace(reading, started=reading.started + 1))
