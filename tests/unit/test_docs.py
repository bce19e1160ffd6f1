"""What the documentation says is so: links, commands, settings, params, states, and the code of the tutorial."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

import aigc
import shared.jobs
from producer.cli import looking, models, running, steering, submitting
from producer.requests import JOB_KEYS, Invalid, validate
from shared.counters import ranges
from shared.ids import batch_of, job_id, new_batch_id
from shared.settings import Settings
from shared.tables import JOB_STATES
from shared.tasks import all_tasks
from shared.tasks.pictures import Scheduler

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "deploy" / "README.md", *DOCS.rglob("*.md")])
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return [body for _, kind, body in FENCE.findall(read(page)) if kind == language]


def prose(page: Path) -> str:
    return FENCE.sub("", read(page))


# --- links ---


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(there), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        links = (target.partition("#")[0] for target in re.findall(r"\]\(([^)\s:]+)\)", prose(page)))
        todo += [there for link in links if link.endswith(".md") and (there := (page.parent / link).resolve()).exists()]

    assert set(PAGES) <= seen


@every_page
def test_tests_that_are_named_as_guards_exist(page: Path) -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for guard in re.findall(r"`(test_\w+)`", read(page)):
        assert f"def {guard}(" in everything, guard


# --- commands ---


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    app = typer.Typer()
    for module in (running, submitting, looking, models, steering):
        module.add_to(app)
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The arguments of each `aigc …` in the shell blocks of a page."""
    for block in blocks(page, "sh"):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = shlex.split(line.partition(" #")[0])
            for start, word in enumerate(words):
                before = words[start - 1] if start else ""
                typed = word in ("aigc", ".venv/bin/aigc") and (not before or before == "&&" or "=" in before)
                in_container = word == "cli" and "run" in words[:start]
                if not typed and not in_container:
                    continue
                arguments = words[start + 1 :]
                ends = [n for n, argument in enumerate(arguments) if argument in ("|", "&&", "<", ">", ";")]
                yield arguments[: ends[0] if ends else None]


@every_page
def test_commands_in_blocks_can_be_typed(page: Path, commands: dict[str, Any]) -> None:
    for command, *arguments in filter(None, command_lines(page)):
        assert command in commands, f"aigc {command}"
        commands[command].make_context(command, list(arguments)).close()


@every_page
def test_commands_in_sentences_exist_with_their_options(page: Path, commands: dict[str, Any]) -> None:
    for spoken in re.findall(r"`aigc ([a-z][^`]*)`", prose(page)):
        command, *words = spoken.split()
        assert command in commands, f"aigc {spoken}"
        known = {option for param in commands[command].params for option in param.opts}
        for word in words:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in known | {"--help", "-h"}, f"aigc {spoken}"


def test_the_command_lines_are_found() -> None:
    assert sum(1 for page in PAGES for _ in command_lines(page)) > 30


def test_the_changelog_names_every_command(commands: dict[str, Any]) -> None:
    assert set(commands) <= set(re.findall(r"`([a-z]+)`", read(ROOT / "CHANGELOG.md")))


# --- variables, settings, job keys, params ---


@every_page
def test_variables_are_settings(page: Path) -> None:
    known = {f"AIGC_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bAIGC_[A-Z0-9_]*[A-Z0-9]\b(?![…*_])", read(page))) - {"AIGC_S3"}

    assert named <= known


def rows(page: Path, title: str, *, linked: bool = False) -> dict[str, list[str]]:
    """The rows of the first table under a title, by what stands in backticks in their first cell."""
    after = f"\n{read(page)}".partition(f"\n{title}\n")[2]
    table = re.search(r"(^\|.*\|\n)+", after, re.MULTILINE)
    assert table, title
    cells = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table[0].splitlines()[2:]]
    names = [re.sub(r"^\[(.*)\]\(.*\)$", r"\1", row[0]) if linked else row[0] for row in cells]
    return {name.strip("` "): row[1:] for name, row in zip(names, cells, strict=True)}


def shown(value: object) -> str:
    """A default as the pages show it."""
    if value is None or value in ((), ""):
        return "–"
    if isinstance(value, float) and value.is_integer():
        return f"`{value:g}`"
    return f"`{value if isinstance(value, (str, Path)) else json.dumps(value)}`"


def test_every_setting_is_documented_with_its_default() -> None:
    table = rows(DOCS / "configuration.md", "## Every setting")

    assert {name: row[0] for name, row in table.items()} == {
        f"AIGC_{name.upper()}": shown(field.default) for name, field in Settings.model_fields.items()
    }


def test_every_key_of_a_job_is_documented() -> None:
    assert set(rows(DOCS / "job-files.md", "# Job files")) == set(JOB_KEYS)


@pytest.mark.parametrize("task", all_tasks().values(), ids=lambda task: task.name)
def test_every_param_is_documented_as_the_task_has_it(task: Any) -> None:
    fields = task.params.model_fields.items()
    wanted = {
        name: [
            "required" if field.is_required() else shown(field.get_default(call_default_factory=True)),
            field.description,
        ]
        for name, field in fields
    }

    page = DOCS / "tasks" / f"{task.name}.md"
    [example] = blocks(page, "json")

    assert rows(page, "## Params") == wanted
    assert json.loads(example) == dict(task.example)
    assert task.name in rows(DOCS / "job-files.md", "## Params", linked=True)


def test_every_scheduler_is_documented() -> None:
    listed = re.search(r"`scheduler` is one of (.*)\.\n", read(DOCS / "tasks" / "text-to-image.md"))

    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == list(get_args(Scheduler))


@every_page
def test_json_is_json_and_jobs_are_valid(page: Path) -> None:
    for block in blocks(page, "json"):
        try:
            lines = [json.loads(line) for line in block.splitlines()]
        except ValueError:
            lines = [json.loads(block)]
        for line in lines:
            if "job_id" not in line:
                validate(1, line)


def test_states_are_the_states() -> None:
    page = DOCS / "job-states.md"
    [diagram] = blocks(page, "mermaid")
    drawn = set(re.findall(r"\b[a-z]+\b(?= -->|:)|(?<=--> )[a-z]+", diagram))

    assert set(rows(page, "# The states of a job")) == set(JOB_STATES)
    assert drawn == set(JOB_STATES)
    assert re.findall(r"^\| (T\d+) \|", read(page), re.MULTILINE) == [f"T{n}" for n in range(1, 16)]


def test_transitions_stand_in_the_files_named() -> None:
    named = re.findall(
        r"\[`\w+\.py`\]\(\.\./(shared/jobs/\w+\.py)\): ((?:`\w+`(?:, )?)+)", read(DOCS / "job-states.md")
    )

    assert len(named) == 17
    for path, functions in named:
        code = (ROOT / path).read_text(encoding="utf-8")
        for function in re.findall(r"`(\w+)`", functions):
            assert f"\ndef {function}(" in code, f"{function} in {path}"
            assert hasattr(shared.jobs, function)


def test_what_the_decisions_say_of_ids_and_events() -> None:
    batch = new_batch_id()

    assert re.fullmatch(r"b[0-9a-hjkmnp-tv-z]{16}", batch)
    assert job_id(batch, 17) == f"{batch}-17"
    assert batch_of(job_id(batch, 17)) == batch
    assert ranges([3, 1, 2, 70]) == [[1, 3], [70, 70]]


# --- code ---


@every_page
def test_python_compiles_and_uses_names_that_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "aigc":
                assert {alias.name for alias in node.names} <= set(aigc.__all__)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = getattr(node.func.value, "id", "")
                faces = {"client": aigc.Client, "batch": aigc.Batch}
                if of in faces:
                    assert hasattr(faces[of], node.func.attr), f"{of}.{node.func.attr}"


@pytest.fixture
def tutorial(tmp_path: Path) -> Iterator[Path]:
    """The package of the tutorial, written down and installed beside this project, as far as Python can tell."""
    text = read(DOCS / "adding-a-generator.md")
    for path, body in re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(body, encoding="utf-8")
    (tmp_path / "aigc_acrostic" / "__init__.py").touch()
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    facts = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in members.items())
        for group, members in project["entry-points"].items()
    )
    (facts / "entry_points.txt").write_text(points)
    sys.path.insert(0, str(tmp_path))
    all_tasks.cache_clear()
    yield tmp_path
    sys.path.remove(str(tmp_path))
    all_tasks.cache_clear()
    for module in [name for name in sys.modules if name.partition(".")[0] == "aigc_acrostic"]:
        del sys.modules[module]


def test_the_tutorial_adds_a_task_that_can_be_submitted(tutorial: Path) -> None:
    task = all_tasks()["acrostic"]

    assert validate(1, task.example).lane.queue == "cpu"
    with pytest.raises(Invalid, match=re.escape("line 1: params.num_poems: must be at most 16, got 99")):
        validate(1, {"task": "acrostic", "params": {"word": "RIVER", "num_poems": 99}})
    assert "line 1: params.num_poems: must be at most 16, got 99" in read(DOCS / "adding-a-generator.md")
    assert "torch" not in (tutorial / "aigc_acrostic" / "task.py").read_text()


def test_the_tutorial_adds_a_generator_that_the_worker_finds(tutorial: Path, settings_for_folder: Settings) -> None:
    from workers.generators import Device, Done, Work
    from workers.residency import Residency

    class Steps:
        def step(self, job_ids: Any, done: int, total: int) -> None:
            assert 0 < done <= total

        def wanted(self, job_id: str) -> bool:
            return True

    generator = Residency(settings_for_folder, lambda: Device("cpu", "float32")).get("acrostic", "").generator
    params = all_tasks()["acrostic"].params(word="RIVER", num_poems=2)
    work = Work("b-1", "acrostic", params, seed=7)
    [microbatch] = generator.cut([work], 32)
    [outcome] = generator.generate(microbatch, Steps())

    assert type(generator).__name__ == "Acrostic"
    assert isinstance(outcome, Done)
    bodies = [output.body.decode() for output in outcome.outputs if isinstance(output.body, bytes)]
    assert [[line[0] for line in body.splitlines()] for body in bodies] == [list("RIVER")] * 2
    assert bodies[0] != bodies[1]
    assert f"{bodies[0]}\n" in blocks(DOCS / "adding-a-generator.md", "text")


def test_the_tutorials_own_tests_pass(tutorial: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acrostic.py"],
        cwd=tutorial, env={"PYTHONPATH": f"{tutorial}:{ROOT}", "PATH": ""},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_tests_named_by_the_guarantees_exist() -> None:
    page = read(DOCS / "guarantees.md")
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))

    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in written} == set()
