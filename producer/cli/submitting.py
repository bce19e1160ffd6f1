"""`aigc submit` and `aigc run`: the way in."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producer.cli import JSON_OPTION, note, show, show_json, trying_again
from producer.cli.hints import why_nothing_runs
from shared.errors import InvalidJobs, RequestError

if TYPE_CHECKING:
    from producer.aliases import Aliases
    from producer.client import Batch, Client
    from producer.gateway import Gateway
    from producer.inputs import Inputs
    from producer.sources import Defaults
    from producer.spool import Spool
    from shared.errors import Problem
    from shared.settings import Settings


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: aigc submit jobs.jsonl --name spring --wait --out out/")(submit)
    app.command(epilog="Example: aigc upload photo.jpg")(upload)
    app.command(epilog="Example: aigc run text-to-image --model starter/shapes prompt='a red circle on blue' seed=7")(
        run
    )


Task = Annotated[str | None, typer.Option("--task", help="task of the lines that name none")]
Model = Annotated[str | None, typer.Option("--model", help="model of the lines that name none")]


def submit(
    file: Annotated[
        str, typer.Argument(help="job file: JSON Lines, .csv, .txt (one text a line), or - for standard input")
    ],
    task: Task = None,
    model: Model = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="a param for lines that leave it out: k=v")] = None,
    name: Annotated[str | None, typer.Option(help="a name to find the batch by")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait until it is done; exit status 1 if a job failed")] = False,
    out: Annotated[
        Path | None, typer.Option(help="with --wait: write files, results.jsonl and index.html here")
    ] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="the same request under it gives the first batch")] = None,
    queue: Annotated[str | None, typer.Option(help="queue of the lines that name none")] = None,
    priority: Annotated[int | None, typer.Option(help="higher goes first")] = None,
    expires: Annotated[float | None, typer.Option(help="fail what has not started in so many seconds")] = None,
    cache: Annotated[
        bool | None, typer.Option("--cache", help="do identical work once: needs a seed in each line")
    ] = None,
    format: Annotated[str | None, typer.Option(help="jsonl, csv or text; default: by the name of the file")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check, count and estimate; store nothing")] = False,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="take the good lines, list the others")] = False,
    json: bool = JSON_OPTION,
) -> None:
    """Submit a file of jobs as one batch; prints the batch's id."""
    from producer.aliases import Aliases
    from producer.client import Client
    from producer.inputs import Inputs
    from shared.settings import load_settings

    if format not in (None, "jsonl", "csv", "text"):
        raise RequestError(f"--format must be jsonl, csv or text, got {format!r}")
    if out is not None and not wait:
        raise RequestError("--out goes with --wait; or fetch the files later with `aigc results`")
    if dry_run and wait:
        raise RequestError("--dry-run stores nothing, so there is nothing to wait for: leave --wait out")
    if out is not None:
        _make(out)
    settings = load_settings()
    params = _assignments(set_ or [], task)
    defaults = Client.defaults(task=task, model=model, params=params, queue=queue, priority=priority, cache=cache)
    reached = functools.cache(lambda: Client(settings))  # a dry run without files needs no database
    inputs = Inputs(lambda: reached().gateway, send=not dry_run)
    aliases = Aliases(settings, lambda: {} if dry_run else reached().gateway.aliases())
    with _checked(file, format, settings, defaults, inputs, aliases, skip_invalid=skip_invalid) as spool:
        if dry_run:
            _show_plan(spool, json=json)
            return
        client = reached()
        batch = client.submit_spool(spool, name=name, idempotency_key=idempotency_key, expires_s=expires)
    for warning in batch.warnings:
        note(f"aigc: warning: {warning}")
    answer = {"batch_id": batch.id, "total": spool.total, "skipped": spool.problem_count}
    if wait:
        _wait_and_answer(client, batch, out, answer, json=json)
    elif json:
        show_json(answer)
    else:
        show(batch.id)


def _checked(
    file: str,
    format: str | None,
    settings: Settings,
    defaults: Defaults,
    inputs: Inputs,
    aliases: Aliases,
    *,
    skip_invalid: bool,
) -> Spool:
    """The file's jobs, validated; says what was left out."""
    from producer.client import open_source
    from producer.sources import from_stream, guess_format
    from producer.spool import fill_spool
    from shared.ids import new_batch_id

    if file == "-" and sys.stdin is None:
        raise RequestError("there is no standard input to read jobs from")
    report = settings.data_dir / "problems" / f"{new_batch_id()}.txt"
    with open_source(sys.stdin.buffer if file == "-" else file) as stream:
        items = from_stream(stream, format or guess_format(file), defaults)  # type: ignore[arg-type]
        try:
            spool = fill_spool(
                items, settings.spool_dir, inputs=inputs, aliases=aliases, skip_invalid=skip_invalid, report=report
            )
        except InvalidJobs as error:
            if error.count > 20:
                note(f"all problems are listed in {report}")
            raise
    if spool.problem_count:
        _say_skipped(spool.problems, spool.problem_count, report)
    return spool


def _wait_and_answer(client: Client, batch: Batch, out: Path | None, answer: dict[str, Any], *, json: bool) -> None:
    (note if json else show)(batch.id)
    status = _wait_and_fetch(client, batch.id, out, json=json)
    if json:
        show_json({**client.gateway.batch(batch.id).to_json(), **answer})
    raise typer.Exit(status)


def _make(out: Path) -> None:
    """The folder for the results, before hours are spent on them. Raises `RequestError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out {out}: this folder cannot be made: {error.strerror}") from None


def _require_room(out: Path) -> None:
    """That files can be put below `out`, which need not be there yet. Raises `RequestError`; makes nothing."""
    there = next(each for each in (out, *out.absolute().parents) if each.exists())
    if not there.is_dir():
        raise RequestError(f"--out {out}: {there} is a file: name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RequestError(f"--out {out}: {there} may not be written: name another folder")


def _say_skipped(problems: list[Problem], count: int, report: Path) -> None:
    note(f"left out, {count} problem(s):")
    for problem in problems[:20]:
        note(f"  {problem}")
    if count > 20:
        note(f"  … and {count - 20} more; all are listed in {report}")


def _show_plan(spool: Spool, *, json: bool) -> None:
    counted: dict[tuple[str, str, str], int] = {}
    for (lane_number, _), n in spool.ready.items():
        lane = spool.lanes[lane_number]
        counted[lane.queue, lane.task, lane.model] = counted.get((lane.queue, lane.task, lane.model), 0) + n
    if json:
        lanes = [{"queue": q, "task": t, "model": m or None, "jobs": n} for (q, t, m), n in counted.items()]
        show_json({"total": spool.total, "problems": spool.problem_count, "estimated_cost": spool.cost, "lanes": lanes})
        return
    show(f"{spool.total} valid job(s), nothing was stored")
    for (queue, task, model), n in sorted(counted.items()):
        show(f"  {n:>8}  {task}  {model or '(no model)'}  in queue {queue}")
    for model in sorted({model for _, _, model in counted if model.startswith("/")}):
        if not Path(model).exists():
            note(f"aigc: warning: there is no {model} on this machine: the workers' machines must have it")
    show(f"rough estimate: {spool.cost:,.0f} s of one small device; a GPU is many times faster")


def _wait_and_fetch(client: Client, batch_id: str, out: Path | None, *, json: bool) -> int:
    from producer.results import follow
    from producer.watch import watch

    hint, quiet = why_nothing_runs(client, batch_id), json or None
    if out is not None:
        follow(client.gateway, client.gateway.batch(batch_id), out, quiet=quiet, hint=hint, on_trouble=trying_again)
        note(f"{out}/ holds the files, results.jsonl and index.html")
        record = client.gateway.batch(batch_id)
    else:
        record = watch(client.gateway, batch_id, quiet=quiet, hint=hint)
    for error in record.errors:
        note(f"{error.count} job(s) failed with {error.code}: {error.example}")
    return 1 if record.counts["failed"] or record.counts["cancelled"] else 0


def run(
    task: Annotated[str | None, typer.Argument(help="what to make: see `aigc tasks`; --from knows it")] = None,
    assignments: Annotated[
        list[str] | None, typer.Argument(metavar="k=v …", help="params, and seed=… if you like")
    ] = None,
    model: Model = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE|JOB",
            help="an earlier output: its task, model, params and seed, where nothing else is said",
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=1000, help="how many, each with its own seed")] = 1,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="one job for each value: guidance_scale=3,5,7; several of these make a grid"),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the files")] = Path("out"),
    queue: Annotated[str | None, typer.Option(help="queue to run in")] = None,
    json: bool = JSON_OPTION,
) -> None:
    """Make one thing (or a few), wait, and show where it is."""
    from producer.client import Client

    if task is not None and "=" in task:
        assignments, task = [task, *(assignments or [])], None
    reached = functools.cache(Client)
    jobs = _planned(
        task, assignments or [], vary or [], n, model=model, earlier=from_, gateway=lambda: reached().gateway
    )
    client = reached()
    _require_room(out)
    batch = client.submit(jobs, queue=queue)
    for warning in batch.warnings:
        note(f"aigc: warning: {warning}")
    status = _wait_and_fetch(client, batch.id, None, json=json)
    for result in batch.results():
        if json:
            show_json(result)
        elif result.get("text") is not None:
            show("\n\n".join(result.get("texts") or [result["text"]]))
        elif result.get("data") is not None:
            show_json(result["data"])
    # The texts are told; only what is a file by nature becomes one.
    told = ("text/", "application/json")
    if any(not a.media_type.startswith(told) for job in batch.jobs() for a in job.artifacts):
        folder = batch.download(out / batch.id)
        for path in sorted(folder.iterdir()) if not json else ():
            if path.suffix not in (".jsonl", ".html"):
                show(str(path))
        note(f"{folder}/index.html shows them")
    raise typer.Exit(status)


def upload(
    files: Annotated[list[Path], typer.Argument(help="pictures, sound, anything that a job is to read")],
    json: bool = JSON_OPTION,
) -> None:
    """Store files for jobs to read; prints what a param names each by. A path in a job is uploaded without this."""
    from producer.client import Client

    client = Client()
    for path in files:
        file = client.gateway.upload(path.expanduser())
        if json:
            show_json({"reference": f"file:{file.id}", "name": file.name, "bytes": file.bytes, "sha256": file.sha256})
        else:
            show(f"file:{file.id}")


def _planned(
    task: str | None, assignments: list[str], vary: list[str], n: int,
    *, model: str | None, earlier: str | None, gateway: Callable[[], Gateway],
) -> list[dict[str, Any]]:  # fmt: skip
    """The jobs of one `run`: what an earlier output says, what the command line says, and every combination."""
    from producer.earlier import paths_in, recipe_of
    from producer.grids import axis, in_words, planned

    recipe = recipe_of(earlier, gateway) if earlier is not None else None
    task = task or (recipe.task if recipe else None)
    if task is None:
        raise RequestError("say what to make first, such as text-to-image (see `aigc tasks`), or --from what")
    params = _assignments(assignments, task)
    axes = [axis(item, task) for item in vary]
    fixed = {*params, *(["model"] if model is not None else [])}
    for each in axes:
        if each.name in fixed:
            raise RequestError(f"{each.name} is set and varied: leave one out")
    own = {*params, *(each.name for each in axes)}
    seed = params.pop("seed", recipe.seed if recipe else None)
    if seed is not None and not isinstance(seed, int):
        raise RequestError(f"seed: must be a whole number from 0, got {seed!r}")
    if recipe is not None:
        params = {**recipe.params, **params}
        model = model or recipe.model
    jobs = planned(task, params, model=model, seed=seed, axes=axes, n=n)
    if recipe is not None and (paths := [path for job in jobs for path in paths_in(job, own)]):
        raise RequestError(f"--from {earlier}: its {paths[0]} names a file of the machine that made it: give your own")
    if len(jobs) > 1:
        note(in_words(axes, n, len(jobs)))
    return jobs


def _assignments(items: list[str], task: str | None) -> dict[str, Any]:
    """`k=v` pairs; values are what the task's param takes."""
    from producer.requests import from_text

    made: dict[str, Any] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise RequestError(f"{item!r} must be written k=v, for example max_new_tokens=40")
        if name == "seed":
            made[name] = int(value) if value.isascii() and value.isdigit() else value
            continue
        made[name] = from_text(task, name, value) if task else _as_json(value)
    return made


def _as_json(value: str) -> Any:
    from pydantic_core import from_json

    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError:
        return value
