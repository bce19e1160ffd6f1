"""The command line. Commands live beside this file by what they are for; heavy imports wait until a command runs."""

from __future__ import annotations

import io
import json
import os
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


class ReaderGone(BaseException):
    """Whoever read our standard output has gone, as in `aigc list | head -1`: there is nobody left to work for.

    No `OSError`, for typer and rich make exit status 1 of those.
    """


class _Out(io.FileIO):
    """Standard output that ends the command once its reader has gone."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise ReaderGone from None


def main() -> None:
    """Entry point: a user's mistake gets a sentence and an exit status, a defect of ours its traceback."""
    _prepare_streams()
    from producer.cli import looking, models, running, steering, submitting

    for module in (running, submitting, looking, models, steering):
        module.add_to(app)
    try:
        try:
            app(prog_name="aigc")
        finally:
            if sys.stdout is not None:  # closed by `>&-`
                sys.stdout.flush()
    except AigcError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except ReaderGone:
        # What is still buffered goes nowhere, instead of failing once more at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _prepare_streams() -> None:
    """A terminal without Unicode shows what it can, and a reader that goes away is noticed in one place."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout.flush()
        out = io.BufferedWriter(_Out(sys.stdout.fileno(), "w", closefd=False))
        lines = sys.stdout.line_buffering or sys.stdout.write_through
        sys.stdout = io.TextIOWrapper(out, sys.stdout.encoding, errors="backslashreplace", line_buffering=lines)


def fail(error: AigcError) -> None:
    """Say what is wrong and leave with the status that belongs to it."""
    note(f"aigc: {error}")
    sys.exit(error.exit_status)


def note(text: str) -> None:
    """To the person at the terminal; standard output belongs to results."""
    print(text, file=sys.stderr)  # noqa: T201 - the face of a command


def trying_again(error: AigcError) -> None:
    """What does not answer just now, and will be asked again."""
    note(f"aigc: {error}; trying again")


def show(text: str) -> None:
    """A result."""
    print(text)  # noqa: T201 - the face of a command


def show_json(value: Any) -> None:
    """A result for machines, on one line."""
    show(json.dumps(value, ensure_ascii=False, default=str))


JSON_OPTION = typer.Option(False, "--json", help="print JSON for machines")
