"""Commands that look and change nothing: status, watch, list, results, why, events, tasks."""

from __future__ import annotations

import json as json_module
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producer.cli import JSON_OPTION, note, show, show_json, trying_again
from producer.cli.ranges import may_be
from shared.errors import NotFound, RequestError

if TYPE_CHECKING:
    from producer.client import Client
    from producer.records import BatchRecord

Reference = Annotated[str, typer.Argument(help="id of a batch (its beginning is enough), its name, or id of a job")]
BatchReference = Annotated[str, typer.Argument(help="id of a batch (its beginning is enough), or its name")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: aigc status spring")(status)
    app.command(epilog="Example: aigc watch spring")(watch)
    app.command(name="list", epilog="Example: aigc list --limit 5")(list_)
    app.command(epilog="Example: aigc results spring --out out/")(results)
    app.command(epilog="Example: aigc why b06h02w6d7ara8a9n-17")(why)
    app.command(epilog="Example: aigc events spring --after 120")(events)
    app.command(epilog="Example: aigc tasks text-generation")(tasks)


def status(
    reference: Annotated[str | None, typer.Argument(help="a batch or a job; without it, an overview")] = None,
    json: bool = JSON_OPTION,
) -> None:
    """How a batch or a job stands; without one, the batches that are not done and the workers that are alive."""
    from producer.client import Client

    client = Client()
    if reference is None:
        _overview(client, json=json)
        return
    try:
        batch = client.gateway.batch(reference)
    except NotFound:
        if "-" not in reference:
            raise
        _job_status(client, reference, json=json)
        return
    if json:
        show_json(batch.to_json())
        return
    from rich.console import Console

    from producer.watch import status_table

    Console().print(status_table(batch))


def _overview(client: Client, *, json: bool) -> None:
    batches, system = client.batches(limit=20), client.system()
    if json:
        show_json({"batches": [b.to_json() for b in batches], **system.to_json()})
        return
    from producer.words import keeper, paused, plain, span, troubles

    _show_batches([batch for batch in batches if batch.status != "done"] or batches[:5])
    if not system.workers:
        show("no worker is alive: start one with `aigc up` or `aigc worker`")
    for worker in system.workers:
        loaded = ", ".join(worker.condition.get("models", [])) or "no model loaded"
        about = f"worker {worker.worker} ({'+'.join(worker.queues)}): {worker.running} running, {loaded}"
        show(plain("; ".join([about, *troubles(worker)])))
    for queue, ready in system.ready.items():
        show(f"queue {queue!r}: {ready:,} ready")
    for one in system.paused:
        show(f"{plain(paused(one))}; `aigc resume {one.queue}` lets it go on")
    show(keeper(system) or f"keeper: alive, seen {span(system.keeper_silent_s or 0.0)} ago")


def _job_status(client: Client, job_id: str, *, json: bool) -> None:
    from producer.words import plain

    job = client.job(job_id)
    if json:
        show_json(job.to_json())
        return
    show(f"{job.id}  {job.status}  {job.task}  {job.model or ''}  custom_id {job.custom_id}  seed {job.seed}")
    if job.status not in ("succeeded", "failed") or job.identical_to:
        show(plain(client.why(job.id)))
    if job.error:
        show(plain(f"{job.error['code']}: {job.error['message']}"))
    for artifact in job.artifacts:
        facts = ", ".join(f"{key} {value}" for key, value in artifact.facts.items())
        kind = f"{artifact.media_type}, {artifact.bytes} bytes"
        show(plain(f"  {artifact.role} {artifact.position}: {kind}{', ' if facts else ''}{facts}"))


def watch(reference: BatchReference, json: bool = JSON_OPTION) -> None:
    """Follow a batch until it is done: progress, rate, time left."""
    from producer.cli.hints import why_nothing_runs
    from producer.client import Client
    from producer.watch import watch as follow

    client = Client()
    batch = client.batch(reference)
    record = follow(client.gateway, batch.id, quiet=json or None, hint=why_nothing_runs(client, batch.id))
    if json:
        show_json(record.to_json())
    raise typer.Exit(1 if record.counts["failed"] or record.counts["cancelled"] else 0)


def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="how many")] = 20,
    json: bool = JSON_OPTION,
) -> None:
    """The newest batches."""
    from producer.client import Client

    batches = Client().batches(limit=limit)
    if json:
        show_json({"batches": [batch.to_json() for batch in batches]})
    else:
        _show_batches(batches)


def _show_batches(batches: list[BatchRecord]) -> None:
    if not batches:
        show("no batches yet: submit one with `aigc submit FILE`")
    for batch in batches:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(batch.created_at))
        counts = ", ".join(f"{n} {state}" for state, n in batch.counts.items() if n)
        show(f"{batch.id}  {when}  {batch.status:<8} {batch.name or ''}  {counts}")


def results(
    reference: BatchReference,
    out: Annotated[Path | None, typer.Option(help="folder for files, results.jsonl and index.html")] = None,
    text_files: Annotated[bool, typer.Option("--text-files", help="write texts as .txt files too")] = False,
    format: Annotated[str, typer.Option(help="jsonl or csv")] = "jsonl",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="go on with what comes, until it is done; an open index.html grows")
    ] = False,
    json: bool = JSON_OPTION,
) -> None:
    """Fetch what a batch has made, also while it runs. Without --out, the lines of results.jsonl are printed."""
    from producer.cli.hints import why_nothing_runs
    from producer.client import Client
    from producer.results import download, result_lines
    from producer.results import follow as go_on

    if format not in ("jsonl", "csv"):
        raise RequestError(f"--format must be jsonl or csv, got {format!r}")
    if follow and out is None:
        raise RequestError("--follow goes with --out DIR, which holds the page that grows")
    client = Client()
    batch = client.gateway.batch(reference)
    if out is None:
        for line in result_lines(client.gateway, batch.id):
            show(json_module.dumps(line, ensure_ascii=False))
        return
    how: dict[str, Any] = {"text_files": text_files, "format": format}
    if follow:
        if batch.status != "done":
            note(f"{out}/index.html shows what there is, and grows")
        hint = why_nothing_runs(client, batch.id)
        downloaded = go_on(client.gateway, batch, out, quiet=json or None, hint=hint, on_trouble=trying_again, **how)
    else:
        downloaded = download(client.gateway, batch, out, **how)
    if json:
        show_json({"out": str(out), "written": downloaded.written, "skipped": downloaded.skipped})
    else:
        note(f"{out}/ holds {downloaded.written + downloaded.skipped} file(s), results.{format} and index.html")


def why(job: Annotated[str, typer.Argument(help="id of a job: <batch>-<line>")], json: bool = JSON_OPTION) -> None:
    """In words, why a job is not done."""
    from producer.client import Client
    from producer.words import plain

    reason = Client().why(job)
    if json:
        show_json({"job_id": job, "why": reason})
    else:
        show(plain(reason))


def events(
    reference: Reference,
    after: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="cursor: only what came after it")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with what comes, until it is done")] = False,
    json: bool = JSON_OPTION,
) -> None:
    """Every change of state of a batch or a job, from a cursor on: the number that each event begins with."""
    from producer import happenings
    from producer.client import Client
    from producer.words import moment, plain
    from shared.ids import batch_of

    gateway = Client().gateway
    line = None
    try:
        batch_id = gateway.batch(reference).id
    except NotFound:
        if "-" not in reference:
            raise
        job = gateway.job(reference)
        batch_id, line = batch_of(job.id), job.line
    found = happenings.happened(gateway, batch_id, after=after, line=line)
    if follow:
        found = happenings.follow(gateway, batch_id, after=after, line=line, on_silence=trying_again)
    for event in found:
        if json:
            show_json(event.to_json())
        else:
            said = happenings.in_words(event, of_one_job=line is not None)
            show(f"{event.id:>8}  {moment(event.at)}  {plain(said)}")
        if follow:
            sys.stdout.flush()


def tasks(
    name: Annotated[str | None, typer.Argument(help="one task, with its params")] = None, json: bool = JSON_OPTION
) -> None:
    """What can be made, and what each task may be told."""
    from shared.tasks import all_tasks, get_task

    chosen = [get_task(name)] if name else list(all_tasks().values())
    if json:
        show_json({"tasks": [
            {"name": t.name, "summary": t.summary, "queue": t.queue, "needs_model": t.needs_model,
             "params": t.params.model_json_schema(), "example": dict(t.example)} for t in chosen
        ]})  # fmt: skip
        return
    for task in chosen:
        show(f"{task.name}: {task.summary}")
        if name:
            schemas = task.params.model_json_schema()["properties"]
            for field, about in task.params.model_fields.items():
                told = [may_be(schemas[field])]
                if about.is_required():
                    told.append("required")
                elif (default := about.get_default(call_default_factory=True)) is not None:
                    told.append(f"default {json_module.dumps(default, default=str, ensure_ascii=False)}")
                told = [each for each in told if each]
                show(f"  {field}: {about.description or ''}" + (f" ({'; '.join(told)})" if told else ""))
        show(f"  example: {json_module.dumps(dict(task.example), ensure_ascii=False)}")
