"""`aigc models`: what this host has, the operator has named and the workers have in memory; fetch ahead, check."""

from __future__ import annotations

import json as json_module
import subprocess
import sys
from enum import StrEnum
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from producer.cli import JSON_OPTION, note, show, show_json
from shared.errors import RequestError, Unavailable


class Action(StrEnum):
    """What `aigc models` does."""

    LIST = "list"
    PULL = "pull"
    VERIFY = "verify"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog="Example: aigc models pull house-style")(models)


def models(
    action: Annotated[Action, typer.Argument(help="list them, pull them ahead of the jobs, or verify them")] = (
        Action.LIST
    ),
    names: Annotated[
        list[str] | None, typer.Argument(help="aliases or references; default: every alias of models.toml")
    ] = None,
    json: bool = JSON_OPTION,
) -> None:
    """List the models of this host, pull them ahead of the jobs that want them, or verify that they are whole.

    Exit status of pull and verify: 0 all is well, 1 a model is not, 3 the hub does not answer.
    """
    if action is Action.LIST:
        _list(names or [], json=json)
        return
    if not _can_run_jobs():
        raise RequestError('this host has no models: pip install "aigc[worker]" to run jobs here')
    sys.stdout.flush()
    raise typer.Exit(subprocess.call(_workers_side(action, names or [], json=json)))


def _workers_side(action: Action, names: list[str], *, json: bool) -> list[str]:
    """The same in the world that knows torch."""
    return [sys.executable, "-m", "workers.models", *(["--json"] if json else []), "--", action.value, *names]


def _can_run_jobs() -> bool:
    return find_spec("torch") is not None


def _list(names: list[str], *, json: bool) -> None:
    from shared.starters import starter_folders

    starters = [] if names else [f"starter/{name}" for name in sorted(starter_folders())]
    named, loaded = _on_this_host(names), _in_memory()
    if json:
        show_json({"starters": starters, "loaded": loaded, "models": named})
        return
    from producer.words import plain

    for model in starters:
        show(model)
    for about in named:
        for line in _told(about):
            show(plain(line))
    for model in loaded:
        show(plain(f"{model}  (in memory)"))
    show("any hub id (gpt2, org/name@revision) or local folder works too")


def _on_this_host(names: list[str]) -> list[dict[str, Any]]:
    """What the operator has named, with what is here of it where jobs can run here."""
    from shared.models_file import read_models_file
    from shared.settings import load_settings

    said = read_models_file(load_settings()).models
    if not said and not names:
        return []
    if not _can_run_jobs():
        return [{"name": alias, "model": named.reference, "alias": named.to_json()} for alias, named in said.items()]
    ask = _workers_side(Action.LIST, names, json=True)
    done = subprocess.run(ask, stdout=subprocess.PIPE, check=False, encoding="utf-8")
    if done.returncode != 0:
        raise typer.Exit(done.returncode)
    listed: list[dict[str, Any]] = json_module.loads(done.stdout.splitlines()[-1])["models"]
    return listed


def _in_memory() -> list[str]:
    """Models in the workers' memory, as far as the database tells."""
    from producer.client import Client

    try:
        workers = Client().workers()
    except Unavailable as error:
        note(f"aigc: which models are in memory is not known: {error}")
        return []
    return sorted({model for worker in workers for model in worker.condition.get("models", [])})


def _told(about: dict[str, Any]) -> list[str]:
    """One model, in a line or two."""
    from shared.sizes import gigabytes

    alias = about["alias"] or {}
    parts = [about["name"]] if about["name"] == about["model"] else [about["name"], about["model"]]
    if about.get("here"):
        size, memory = gigabytes(about["bytes"]), gigabytes(about["memory_bytes"])
        parts += [about["revision"], f"here ({size}, takes about {memory} as {about['dtype']} on a GPU)"]
    elif "here" in about:
        parts.append("not here")
    parts += [f"queue {alias['queue']}"] if alias.get("queue") else []
    parts += [f"for {', '.join(alias['tenants'])}"] if alias.get("tenants") else []
    parts += [f"{name} {value}" for name, value in (alias.get("memory") or {}).items()]
    lines = ["  ".join(parts)]
    if about.get("tasks"):
        lines.append("  " + ", ".join(f"{task} ({generator})" for task, generator in about["tasks"].items()))
    return lines + [f"  {problem}" for problem in about.get("problems") or ()]
