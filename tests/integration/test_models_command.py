"""`aigc models`: pulled ahead, listed and verified, by processes as operators run them, over a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
from hub_server import Hub
from model_folders import folder_of, safetensors

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]


class Done(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """What `--json` says, by name."""
        return {about["name"]: about for about in json.loads(self.stdout.splitlines()[-1])["models"]}


Aigc = Callable[..., Done]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a real tiny model, and what stands beside them in many repositories."""
    folder = Path(tiny_models.gpt2(tmp_path_factory.mktemp("models")))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    beside = ("pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "modeling.py", "x.onnx")
    return files | dict.fromkeys(beside, b"not for us")


@pytest.fixture
def hub(gpt2: dict[str, bytes]) -> Iterator[Hub]:
    with Hub() as made:
        made.repo("org/writer").commit(gpt2)
        yield made


@pytest.fixture
def aigc(hub: Hub, tmp_path: Path) -> Aigc:
    """Runs `aigc models …`; no traceback ever leaves it."""

    def run(*arguments: str, **env: str) -> Done:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("AIGC_", "HF_"))}
        ours = {
            "AIGC_DATA_DIR": str(tmp_path / "data"), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url,
            "PYTHONUTF8": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "producer.cli", "models", *arguments], env=clean | ours | env,
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


def say(tmp_path: Path, text: str) -> None:
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "models.toml").write_text(text)


def test_what_is_pulled_is_what_loading_needs_and_works_without_the_hub(
    aigc: Aigc, hub: Hub, gpt2: dict[str, bytes], tmp_path: Path
) -> None:
    first = hub.repo("org/writer").refs["main"]
    hub.repo("org/writer").commit({**gpt2, "README.md": b"newer"})
    say(tmp_path, f'[models.writer]\nmodel = "org/writer"\nrevision = "{first}"\ndtype = "float16"\nqueue = "big"\n')

    before = aigc("list", "--json")
    assert (before.status, before.models["writer"]["here"]) == (0, False)
    assert hub.asked == [], "listing asks nobody"

    pulled = aigc("pull", "--json")
    about = pulled.models["writer"]
    assert (pulled.status, about["revision"], about["model"]) == (0, first, f"org/writer@{first}")
    assert "writer: fetching" in pulled.stderr
    not_for_us = {
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/model.safetensors",
        "modeling.py",
        "x.onnx",
    }
    assert "model.safetensors" in hub.fetched
    assert not hub.fetched & not_for_us
    assert {p.name for p in Path(about["folder"]).rglob("*") if p.is_file()} == hub.fetched

    hub.close()
    again = aigc("pull")
    assert again.status == 0, "what is here is not asked for again"
    after = aigc("list", "--json").models["writer"]
    assert after["here"]
    assert after["tasks"]["text-generation"] == "CausalLM"
    assert "text-to-image" not in after["tasks"]
    assert (after["dtype"], after["alias"]["queue"]) == ("float16", "big")
    stored = sum(len(gpt2[name]) for name in gpt2 if name == "model.safetensors")
    assert 0.4 * stored < after["memory_bytes"] < 0.6 * stored, "half of what float32 takes"
    shown = aigc().stdout
    assert f"writer  org/writer@{first}  {first}  here (" in shown
    assert "text-generation (CausalLM)" in shown
    assert "starter/ads-gpt2" in shown
    assert aigc("verify").stdout.startswith(f"ok    writer  org/writer@{first}")


def test_a_branch_is_followed_and_said_to_be_loose(aigc: Aigc, hub: Hub, gpt2: dict[str, bytes]) -> None:
    first = hub.repo("org/writer").refs["main"]
    assert aigc("pull", "org/writer", "--json").models["org/writer"]["revision"] == first
    verified = aigc("verify", "org/writer")
    assert verified.status == 0
    assert "(its revision is not pinned)" in verified.stdout
    second = hub.repo("org/writer").commit({**gpt2, "config.json": gpt2["config.json"] + b"\n"})
    asked = len(hub.asked)
    assert aigc("pull", "org/writer", "--json").models["org/writer"]["revision"] == second
    assert not any(method == "GET" and path.endswith("model.safetensors") for method, path, _ in hub.asked[asked:])
    assert aigc("pull", f"org/writer@{first}", HF_HUB_OFFLINE="1").status == 0


def test_what_was_spoilt_on_the_disk_is_found_and_mended(aigc: Aigc, hub: Hub, tmp_path: Path) -> None:
    folder = Path(aigc("pull", "org/writer", "--json").models["org/writer"]["folder"])
    weights = (folder / "model.safetensors").resolve()
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = aigc("verify", "org/writer")
    assert found.status == 1
    assert f"model.safetensors is not what was fetched: delete {weights} and pull it again" in found.stdout
    weights.write_bytes(whole[: len(whole) // 2])
    problems = aigc("verify", "org/writer", "--json").models["org/writer"]["problems"]
    assert len(problems) == 2
    assert "by its own header: fetch it again" in problems[1]
    config = (folder / "config.json").resolve()
    config.write_bytes(config.read_bytes() + b" ")
    assert any(
        "config.json" in each for each in aigc("verify", "org/writer", "--json").models["org/writer"]["problems"]
    )
    weights.unlink()
    config.unlink()
    assert aigc("verify", "org/writer").status == 1
    assert aigc("pull", "org/writer").status == 0
    assert aigc("verify", "org/writer").status == 0
    assert weights.read_bytes() == whole


def test_what_may_not_be_loaded_is_not_fetched(aigc: Aigc, hub: Hub) -> None:
    hub.repo("org/pickle").commit({"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.repo("org/code").commit({
        "config.json": json.dumps({"model_type": "own", "auto_map": {"AutoModel": "m.M"}}).encode(),
        "m.py": b"raise SystemExit", "model.safetensors": safetensors({"w": ("F32", (2, 2))}),
    })  # fmt: skip
    done = aigc("pull", "org/pickle", "org/code", "org/nothing", "org/writer", "--json")
    assert done.status == 1
    assert {name: about.get("code") for name, about in done.models.items()} == {
        "org/pickle": "model_pickle_only", "org/code": "model_needs_remote_code", "org/nothing": "model_not_found",
        "org/writer": None,
    }  # fmt: skip
    assert not {"m.py", "pytorch_model.bin"} & hub.fetched
    forbidden = aigc("pull", "org/writer", AIGC_MODELS_ALLOWED="other/*")
    assert (forbidden.status, "may not run here" in forbidden.stdout) == (1, True)


def test_without_a_network_the_words_are_clear(aigc: Aigc, hub: Hub, tmp_path: Path) -> None:
    hub.close()
    say(tmp_path, '[models.writer]\nmodel = "org/writer"\nrevision = "v1"\n')
    pulled = aigc("pull")
    assert pulled.status == 3
    assert "the hub does not answer, and org/writer@v1 is not in this worker's cache" in pulled.stdout
    offline = aigc("pull", HF_HUB_OFFLINE="1")
    assert (offline.status, "it is not to ask the hub (HF_HUB_OFFLINE)" in offline.stdout) == (1, True)
    verified = aigc("verify")
    assert (verified.status, "org/writer@v1 is not in this host's cache" in verified.stdout) == (1, True)
    listed = aigc()
    assert listed.status == 0
    assert "writer  org/writer@v1  not here" in listed.stdout


def test_a_folder_is_held_to_the_digest_that_is_pinned(aigc: Aigc, gpt2: dict[str, bytes], tmp_path: Path) -> None:
    wanted = ("config.json", "model.safetensors", "tokenizer.json")
    folder = folder_of(tmp_path / "mine", {name: gpt2[name] for name in wanted})
    say(tmp_path, f'[models.mine]\nmodel = "{folder}"\n')
    loose = aigc("verify", "--json").models["mine"]
    assert (loose["ok"], loose["pinned"], loose["files"]) == (True, False, 3)
    say(tmp_path, f'[models.mine]\nmodel = "../mine"\nrevision = "{loose["revision"]}"\n')
    pinned = aigc("verify", "--json").models["mine"]
    assert (pinned["ok"], pinned["pinned"]) == (True, True)
    (folder / "config.json").write_bytes(gpt2["config.json"] + b"\n")
    changed = aigc("verify")
    assert changed.status == 1
    assert f"and models.toml pins {loose['revision']}" in changed.stdout


def test_models_in_one_file_and_what_stands_beside_are_looked_into(aigc: Aigc, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "checkpoints" / "own.config").mkdir(parents=True)
    (models / "checkpoints" / "own.config" / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline"})
    )
    (models / "loras").mkdir()
    whole = safetensors({"w": ("F32", (8, 8))})
    for place in ("checkpoints/own", "loras/style"):
        (models / f"{place}.safetensors").write_bytes(whole)
    (models / "loras" / "another.safetensors").write_bytes(b"of somebody else")
    say(
        tmp_path, '[models.own]\nmodel = "file:own.safetensors"\n'
        '[models.style]\nmodel = "file:style.safetensors"\nrole = "lora"\n',
    )  # fmt: skip
    here = {"AIGC_MODELS_DIR": str(models)}
    found = aigc("verify", "--json", **here).models
    assert {name: (one["ok"], one["files"]) for name, one in found.items()} == {"own": (True, 2), "style": (True, 1)}
    assert found["style"]["bytes"] == len(whole)
    for place in ("checkpoints/own", "loras/style"):
        (models / f"{place}.safetensors").write_bytes(whole[:-1])
    broken = aigc("verify", "--json", **here)
    assert broken.status == 1
    for name in ("own", "style"):
        [problem] = broken.models[name]["problems"]
        assert problem.startswith(f"{name}.safetensors")


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        (("pull",), "", "names no models: name some, such as aigc models pull org/name"),
        (("pull",), '[models.a]\nmodel = "x"\ndtype = "x"\n', "models.toml, line 3: a.dtype: must be one of"),
        (("list",), '[models.a]\nmodle = "x"\n', "models.toml, line 2: a.modle: unknown name; did you mean 'model'?"),
        (("push",), "", "Invalid value"),
    ],
)
def test_a_wrong_request_ends_with_status_2(
    aigc: Aigc, arguments: tuple[str, ...], text: str, said: str, tmp_path: Path
) -> None:
    say(tmp_path, text)
    done = aigc(*arguments)
    assert done.status == 2
    assert said in done.stderr
