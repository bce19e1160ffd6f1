"""The command line. Commands live beside this file by what they are for; heavy imports wait until a command runs."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import typer

from shared.errors import AigcError

app = typer.Typer(
    name="aigc",
    help="A job queue for AI-generated content: submit batches, watch them, fetch the files.\n\n"
    "Start with [bold]aigc up[/bold] in one terminal, and in another: "
    "[bold]aigc run text-generation --model starter/ads-gpt2 prompt='New shoes:'[/bold]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: a user's mistake gets a sentence and an exit status, a defect of ours its traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode shows what it can
    from producer.cli import looking, running, steering, submitting

    for module in (running, submitting, looking, steering):
        module.add_to(app)
    try:
        app(prog_name="aigc")
    except AigcError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def fail(error: AigcError) -> None:
    """Say what is wrong and leave with the status that belongs to it."""
    note(f"aigc: {error}")
    sys.exit(error.exit_status)


def note(text: str) -> None:
    """To the person at the terminal; standard output belongs to results."""
    print(text, file=sys.stderr)  # noqa: T201 - the face of a command


def show(text: str) -> None:
    """A result."""
    print(text)  # noqa: T201 - the face of a command


def show_json(value: Any) -> None:
    """A result for machines, on one line."""
    show(json.dumps(value, ensure_ascii=False, default=str))


JSON_OPTION = typer.Option(False, "--json", help="print JSON for machines")
