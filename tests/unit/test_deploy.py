"""The files in `deploy/` fit the code: variables, commands, files, secrets, grace periods. Nothing is started."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer
import yaml

from producer.cli import looking, running, steering, submitting
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z0-9_]+)(?:(:-|:\?)((?:[^${}]|\$\{[^}]*\})*))?\}")
#: `NAME=value`, also where it is commented out
ASSIGNMENT = re.compile(r"^(?:# )?([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)
#: what an operator sets about one process by hand, or `aigc worker` by itself; a compose file has no say in it
SET_ELSEWHERE = {"AIGC_QUEUES", "AIGC_PARENT_PID", "AIGC_PULSE_FILE"}
SECRETS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "AIGC_S3_ACCESS_KEY_ID", "AIGC_S3_SECRET_ACCESS_KEY"}

SETTINGS = {f"AIGC_{name.upper()}" for name in Settings.model_fields}
TEXT = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
EXAMPLE = (DEPLOY / "example.env").read_text(encoding="utf-8")


def filled(value: Any) -> Any:
    """With the defaults in place of the variables, as Compose fills them in; secrets become `secret`."""
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item) for item in value]
    while isinstance(value, str) and VARIABLE.search(value):
        value = VARIABLE.sub(lambda found: found[3] if found[2] == ":-" else "secret", value)
    return value


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = filled(yaml.safe_load(TEXT)["services"])
    return made


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    """The command line's own commands, each able to parse its arguments."""
    app = typer.Typer()
    for module in (running, submitting, looking, steering):
        module.add_to(app)
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def ours(services: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, service) for name, service in services.items() if service["image"].startswith("aigc-"))


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, what follows), continued lines joined and comments left out."""
    text = "\n".join(line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def in_exec_form(arguments: str) -> list[str]:
    words = yaml.safe_load(arguments)
    assert isinstance(words, list), f"not in exec form: {arguments}"
    return words


# --- variables ---


def test_every_variable_of_ours_is_a_setting() -> None:
    named = set(re.findall(r"\bAIGC_[A-Z0-9_]+", TEXT + EXAMPLE + "".join(path.read_text() for path in DOCKERFILES)))

    assert named <= SETTINGS


def test_the_services_of_ours_agree_with_the_settings(services: dict[str, dict[str, Any]]) -> None:
    for name, service in ours(services):
        given = {key.removeprefix("AIGC_").lower(): value for key, value in service["environment"].items()
                 if key.startswith("AIGC_")}  # fmt: skip
        settings = Settings(_env_file=None, **given)
        assert settings.sql_url.startswith("postgresql+psycopg://aigc:secret@postgres:5432/"), name
        assert settings.broker_url == "redis://:secret@redis:6379/0", name
        assert settings.storage_url.startswith("s3://"), name


def test_every_variable_of_the_compose_file_stands_in_the_example() -> None:
    there = {found[1] for found in ASSIGNMENT.finditer(EXAMPLE)}

    assert {found[0] for found in re.findall(r"\$\{([A-Z0-9_]+)(:-|:\?|\})", TEXT)} == there


def test_no_variable_of_the_example_is_a_setting_of_one_process_alone() -> None:
    assert not SET_ELSEWHERE & {found[1] for found in ASSIGNMENT.finditer(EXAMPLE)}


def test_secrets_are_required_and_the_example_holds_none() -> None:
    required = {found[1] for found in VARIABLE.finditer(TEXT) if found[2] == ":?"}
    required |= set(re.findall(r"\$\{([A-Z0-9_]+):\?", TEXT))
    example = {found[1]: found[2] for found in ASSIGNMENT.finditer(EXAMPLE)}

    assert required == SECRETS
    assert {name for name in SECRETS if not name.endswith("KEY_ID") and example[name]} == set()


def test_the_example_says_what_holds_without_it() -> None:
    example = {found[1]: found[2] for found in ASSIGNMENT.finditer(EXAMPLE)}
    defaults = {name: default for name, kind, default in VARIABLE.findall(TEXT) if kind == ":-" and "${" not in default}

    addresses = {"AIGC_DATABASE_URL", "AIGC_REDIS_URL", "AIGC_S3_ENDPOINT_URL"}  # those of another host
    assert {n: example[n] for n in defaults if n not in addresses} == {
        n: default for n, default in defaults.items() if n not in addresses
    }


# --- commands ---


def test_every_command_exists_with_its_options(services: dict[str, dict[str, Any]], commands: dict[str, Any]) -> None:
    seen = set()
    for name, service in ours(services):
        if "entrypoint" in service:
            continue
        command, *arguments = service["command"]
        assert command in commands, name
        commands[command].make_context(command, list(arguments)).close()
        seen.add(command)

    assert {"keeper", "migrate", "worker"} <= seen


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_runs_exists(dockerfile: Path, commands: dict[str, Any]) -> None:
    of = dict(instructions(dockerfile))

    assert in_exec_form(of["ENTRYPOINT"]) == ["aigc"]
    command, *arguments = in_exec_form(of["CMD"])
    commands[command].make_context(command, arguments).close()
    check = in_exec_form(of["HEALTHCHECK"].partition("CMD ")[2])
    if check[0] == "aigc":
        commands[check[1]].make_context(check[1], check[2:]).close()
    else:
        assert check[0] == "python"
        assert f"COPY deploy/{Path(check[1]).name} {check[1]}" in dockerfile.read_text()


# --- images ---


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_every_copied_file_is_there(dockerfile: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for instruction, arguments in instructions(dockerfile):
        if instruction != "COPY" or arguments.startswith("--from="):
            continue
        *sources, _ = arguments.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] not in ignored, source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_holds_all_that_the_wheel_is_made_of(dockerfile: Path) -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {word for step, words in instructions(dockerfile) if step == "COPY" for word in words.split()}

    assert {*build["packages"], *build["force-include"], "pyproject.toml", "README.md", "LICENSE"} <= copied


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_and_runs_as_nobody_special(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    installs = [words for step, words in steps if "pip install" in words and "TORCH_SPEC" not in words]

    assert [words for step, words in steps if step == "USER"] == ["aigc"]
    assert installs
    assert all("--constraint constraints.txt" in words for words in installs)
    assert all(words.startswith("python:${PYTHON_VERSION}-slim") for step, words in steps if step == "FROM")


def test_the_producer_has_no_torch_and_the_worker_the_pinned_one() -> None:
    producer, worker = ((DEPLOY / f"{name}.Dockerfile").read_text() for name in ("producer", "worker"))
    torch = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)

    assert "[worker]" not in producer
    assert "torch" not in "".join(line for line in producer.splitlines() if not line.startswith("#"))
    assert ".[worker]" in worker
    assert torch is not None
    assert f'ARG TORCH_SPEC="{torch[0]}"' in worker


# --- the services together ---


def test_a_worker_has_time_to_put_its_house_in_order(services: dict[str, dict[str, Any]]) -> None:
    for name in ("worker-gpu", "worker-cpu"):
        grace = float(services[name]["environment"]["AIGC_GRACE_S"])
        assert seconds(services[name]["stop_grace_period"]) >= grace + 15


def test_what_is_named_is_there(services: dict[str, dict[str, Any]]) -> None:
    volumes = yaml.safe_load(TEXT)["volumes"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            if how["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"], f"{name} waits for the health of {other}"
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in volumes, name
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file(), name


def test_nothing_listens_in_public_unless_asked_to(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_redis_neither_evicts_nor_shows_its_password(services: dict[str, dict[str, Any]]) -> None:
    command = services["redis"]["command"][-1]

    assert "maxmemory-policy noeviction" in command
    assert "requirepass $$REDIS_PASSWORD" in command


def test_gpus_are_asked_for_with_what_nvidia_smi_needs(services: dict[str, dict[str, Any]]) -> None:
    [device] = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]

    assert device["driver"] == "nvidia"
    assert {"gpu", "compute", "utility"} <= set(device["capabilities"])


def test_the_bucket_is_made_once_and_may_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import moto

    make = runpy.run_path(str(DEPLOY / "make_bucket.py"))["make_bucket"]
    settings = Settings(
        _env_file=None, data_dir=tmp_path, store_url="s3://pictures/of/mine", s3_region="us-east-1",
        s3_access_key_id="key", s3_secret_access_key="secret",
    )  # fmt: skip
    with moto.mock_aws():
        assert make(settings) == "pictures"
        assert make(settings) == "pictures"


def test_a_worker_is_well_if_one_of_this_host_renews_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    found = runpy.run_path(str(DEPLOY / "worker_alive.py"))
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    client = Mock()
    found["alive"].__globals__["Client"] = lambda: client

    client.workers.return_value = [Mock(worker="hereabouts:cpu")]
    assert not found["alive"]()
    client.workers.return_value = [Mock(worker="there:cpu"), Mock(worker="here:cpu")]
    assert found["alive"]()
