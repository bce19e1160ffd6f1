"""The producer's side stays light: a fresh process never loads what only workers need."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "diffusers", "accelerate", "numpy", "pandas", "scipy"}
#: what `aigc --help` can do without
LATER = {"celery", "kombu", "boto3", "botocore", "alembic", "sqlalchemy", "psycopg", "redis"}
COMMANDS = (
    "up", "down", "worker", "keeper", "migrate", "doctor", "submit", "run", "status", "watch", "list", "results", "why",
    "events", "tasks", "models", "cancel", "retry", "pause", "resume", "drain", "upload",
)  # fmt: skip


def loaded(code: str) -> set[str]:
    """Names of top-level modules in a fresh process after this code."""
    report = "\nimport sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import aigc", "import producer.cli", "import producer.up, producer.doctor"])
def test_importing_a_face_loads_nothing_heavy(code: str) -> None:
    assert loaded(code) & HEAVY == set()


def test_submitting_and_polling_loads_nothing_heavy() -> None:
    code = """
import tempfile
from aigc import Client, Settings
client = Client(Settings(_env_file=None, data_dir=tempfile.mkdtemp()))
batch = client.submit(["a", "b"], task="echo")
assert batch.status().total == 2 and len(list(batch.jobs())) == 2
batch.cancel()
"""
    assert loaded(code) & HEAVY == set()


_HELP = """
import contextlib, io, sys
from producer.cli import main
said = {{}}
for command in {commands!r}:
    sys.argv = ["aigc", *command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    assert "Usage" in out.getvalue(), command
"""


def test_help_of_aigc_waits_for_nothing_that_commands_need() -> None:
    assert loaded(_HELP.format(commands=[[]])) & (HEAVY | LATER) == set()


def test_help_of_every_command_loads_nothing_heavy() -> None:
    from producer.cli import app, looking, models, running, steering, submitting

    for module in (running, submitting, looking, models, steering):
        module.add_to(app)
    registered = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}
    assert registered == set(COMMANDS), "a command that this test does not know"
    assert loaded(_HELP.format(commands=[[name] for name in COMMANDS])) & (HEAVY | LATER) == set()
