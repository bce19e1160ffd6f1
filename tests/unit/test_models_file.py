"""The operator's `models.toml`: what it may say, and what is wrong with one that says something else, line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.errors import RequestError
from shared.models_file import MemoryWishes, ModelsFile, NamedModel, read_models_file
from shared.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path)


def read(settings: Settings, text: str | bytes) -> ModelsFile:
    settings.models_path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_models_file(settings)


def wrong(settings: Settings, text: str | bytes) -> list[str]:
    """What is wrong with it, each without the path."""
    with pytest.raises(RequestError) as error:
        read(settings, text)
    path = str(settings.models_path)
    lines = str(error.value).splitlines()
    assert all(line.startswith(path) for line in lines)
    return [line.removeprefix(path).removeprefix(", ") for line in lines]


FULL = """
# what the studio uses
[models.house-style]
model = "org/name"
revision = "0123abc"
dtype = "float16"
queue = "big"
tenants = ["studio", "press"]
quantization = "4bit"
offload = true
vae_slicing = true
vae_tiling = false
attention_slicing = true

[models."team/writer"]
model = "./writer"
revision = "sha256:0123456789abcdef"
"""


def test_everything_that_can_be_said_is_understood(settings: Settings) -> None:
    said = read(settings, FULL)
    assert said.get("house-style") == NamedModel(
        "house-style", "org/name", "0123abc", "float16", "big", ("studio", "press"),
        MemoryWishes("4bit", "model", vae_slicing=True, vae_tiling=False, attention_slicing=True),
    )  # fmt: skip
    assert said.models["house-style"].reference == "org/name@0123abc"
    assert said.models["house-style"].digest is None
    writer = said.models["team/writer"]
    assert (writer.model, writer.reference) == (str(settings.data_dir / "writer"),) * 2
    assert writer.digest == "sha256:0123456789abcdef"
    assert (writer.dtype, writer.queue, writer.tenants, writer.memory) == (None, None, None, MemoryWishes())
    assert said.get("org/name") is None


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "[models]\n"])
def test_a_file_may_say_nothing(settings: Settings, text: str) -> None:
    assert read(settings, text).models == {}


def test_a_file_that_is_not_there_says_nothing_unless_it_was_named(settings: Settings, tmp_path: Path) -> None:
    assert read_models_file(settings).models == {}
    named = settings.model_copy(update={"models_file": tmp_path / "elsewhere.toml"})
    with pytest.raises(RequestError, match=r"there is no .*elsewhere\.toml: write it, or leave AIGC_MODELS_FILE unset"):
        read_models_file(named)
    (tmp_path / "elsewhere.toml").write_text('[models.a]\nmodel = "org/a"\n')
    assert list(read_models_file(named).models) == ["a"]


def test_the_file_is_named_by_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIGC_MODELS_FILE", "~/m.toml")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(_env_file=None).models_path == tmp_path / "m.toml"
    monkeypatch.setenv("AIGC_MODELS_FILE", "")
    assert load_settings(_env_file=None, data_dir=tmp_path).models_path == tmp_path / "models.toml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[models.a]\nmodel = "x"\nmodel = "y"\n', ": is not TOML: "),
        ("[models.a\n", ": is not TOML: "),
        (b'[models.a]\nmodel = "\xff"\n', "line 2: is not UTF-8"),
        ('[model.a]\nmodel = "x"\n', "line 1: unknown name 'model': models stand in tables such as [models.my-name]"),
        ("\nmodels = 3\n", "line 2: models must be tables such as [models.my-name]"),
        ('[models]\n\na = "org/a"\n', "line 3: 'a' must be a table: [models.a], and model = … below it"),
        ('[models.a]\nrevision = "v1"\n', "line 1: a.model: is missing: write model ="),
        ("[models.a]\nmodel = 3\n", "line 2: a.model: must be a text in quotes, got 3"),
        ('[models.a]\nmodel = ""\n', "line 2: a.model: must not be empty"),
        ('[models.a]\nmodle = "x"\nmodel = "x"\n', "line 2: a.modle: unknown name; did you mean 'model'?"),
        ('[models.a]\nmodel = "a b"\n', "line 2: a.model: must be a hub id (org/name), starter/…, file:… or a folder"),
        ('[models.a]\nmodel = "o/n@v1"\n', 'line 2: a.model: write model = "o/n", and revision = "v1" on a line of'),
        ('[models.a]\nmodel = "~nobody-is-called-so/m"\n', "line 2: a.model: there is no such home folder"),
        ('[models.a]\nmodel = "x"\nrevision = "../x"\n', "line 3: a.revision: must be a commit, a tag or a branch"),
        ('[models.a]\nmodel = "/m"\nrevision = "main"\n', "line 3: a.revision: of a model on this host it is the"),
        ('[models.a]\nmodel = "starter/x"\nrevision = "v1"\n', "line 3: a.revision: of a model on this host it is"),
        ('[models.a]\nmodel = "openai:x"\nrevision = "v1"\n', "line 3: a.revision: openai:x lies with a remote"),
        ('[models.a]\nmodel = "openai:x"\nqueue = "gpu"\n', "line 3: a.queue: openai:x computes nothing here and may"),
        ('[models.a]\nmodel = "x"\ndtype = "int8"\n', "line 3: a.dtype: must be one of 'bfloat16', 'float16' or"),
        ('[models.a]\nmodel = "x"\nqueue = "a b"\n', "line 3: a.queue: must be letters, digits, dots, dashes and"),
        ('[models.a]\nmodel = "x"\ntenants = "a"\n', 'line 3: a.tenants: must be a list such as ["studio", "press"]'),
        ('[models.a]\nmodel = "x"\ntenants = []\n', "line 3: a.tenants: an empty list lets nobody use it: name a"),
        ('[models.a]\nmodel = "x"\ntenants = ["a b"]\n', "line 3: a.tenants: must be letters, digits, dots"),
        ('[models.a]\nmodel = "x"\nquantization = 8\n', "line 3: a.quantization: must be one of '8bit' or '4bit'"),
        ('[models.a]\nmodel = "x"\noffload = "much"\n', 'line 3: a.offload: must be true, false, "model" or'),
        ('[models.a]\nmodel = "x"\nvae_tiling = 1\n', "line 3: a.vae_tiling: must be true or false, got 1"),
        ('[models."a b"]\nmodel = "x"\n', "line 1: 'a b' can be no alias"),
        ('[models."starter/x"]\nmodel = "x"\n', "line 1: 'starter/x' can be no alias"),
        ('[models."a@v1"]\nmodel = "x"\n', "line 1: 'a@v1' can be no alias"),
        ('[models.a]\nmodel = "b"\n[models.b]\nmodel = "x"\n', "line 2: a.model: 'b' is an alias, too: write what"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_what_to_change(
    settings: Settings, text: str | bytes, said: str
) -> None:
    [problem] = wrong(settings, text)
    assert problem.startswith(said)


def test_everything_that_is_wrong_is_said_at_once_in_the_order_of_the_file(settings: Settings) -> None:
    text = '[models.b]\nmodel = "x"\nqueue = ""\n\n[models.a]\nmodel = "y"\ndtype = "x"\nvae_slicing = "yes"\n'
    assert [problem.partition(":")[0] for problem in wrong(settings, text)] == ["line 3", "line 7", "line 8"]


@pytest.mark.parametrize(
    "text", ['models.a = {model = "x", dtype = "x"}\n', '[models]\na.model = "x"\na.dtype = "x"\n']
)
def test_a_line_is_said_however_the_table_is_written(settings: Settings, text: str) -> None:
    [problem] = wrong(settings, text)
    assert problem.startswith(("line 1: a.dtype", "line 2: a.dtype", "line 3: a.dtype"))


def file(**models: dict[str, Any]) -> ModelsFile:
    made = {alias.replace("_", "-"): values for alias, values in models.items()}
    return ModelsFile({alias: NamedModel(alias, **values) for alias, values in made.items()})


def test_tenants_are_an_allow_list_where_they_are_named() -> None:
    said = file(ours={"model": "org/name", "tenants": ("studio",)}, free={"model": "org/other"})
    assert said.refusal("ours", "studio") is None
    assert said.refusal("ours", "press") == "tenant 'press' may not use 'ours' (models.toml)"
    assert said.refusal("free", "press") is None
    assert said.refusal("org/third", "press") is None


@pytest.mark.parametrize("ref", ["org/name", "org/name@main", "Org/NAME"])
def test_who_may_not_use_an_alias_may_not_name_its_model_either(ref: str) -> None:
    said = file(ours={"model": "org/name", "revision": "abc", "tenants": ("studio",)})
    assert said.refusal(ref, "press") == f"tenant 'press' may not use {ref!r} (models.toml)"
    assert said.refusal(ref, "studio") is None
    open_too = file(ours={"model": "org/name", "tenants": ("studio",)}, all={"model": "org/name"})
    assert open_too.refusal(ref, "press") is None


def test_a_folder_is_the_same_folder_by_whatever_path(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "m")
    said = file(ours={"model": str(tmp_path / "m"), "tenants": ("studio",)})
    for ref in (f"{tmp_path}/m", f"{tmp_path}/link", f"{tmp_path}/x/../m"):
        assert said.refusal(ref, "press"), ref
    assert said.refusal(str(tmp_path), "press") is None


@pytest.mark.parametrize(
    ("named", "ref"),
    [
        ("org/loras", "org/loras/sub/x.safetensors@main"), ("org/loras/x.safetensors", "Org/Loras/X.safetensors"),
        ("org/loras/x.safetensors", "org/loras"), ("file:x.safetensors", "file:x.safetensors"),
        ("file:x.safetensors", "file:loras/x.safetensors"), ("file:loras/x.safetensors", "file:x.safetensors"),
        ("file:x.safetensors", "{models}/loras/x.safetensors"), ("file:x.safetensors", "{models}/loras"),
        ("{models}/loras", "file:x.safetensors"), ("{models}/loras", "{models}/link.safetensors"),
        ("org/loras", "/hf/hub/models--org--loras/snapshots/0/x.safetensors"),
    ],
)  # fmt: skip
def test_a_file_is_the_same_file_by_whatever_name(settings: Settings, tmp_path: Path, named: str, ref: str) -> None:
    """The operator keeps a LoRA for one tenant: no other one gets at it in another way."""
    models = tmp_path / "models"
    (models / "loras").mkdir(parents=True)
    (models / "loras" / "x.safetensors").touch()
    (models / "link.safetensors").symlink_to(models / "loras" / "x.safetensors")
    text = f'[models.l]\nmodel = "{named.format(models=models)}"\nrole = "lora"\ntenants = ["studio"]\n'
    said = read(settings.model_copy(update={"models_dir": models}), text)
    assert said.refusal(ref.format(models=models), "press", "lora")
    assert said.refusal(ref.format(models=models), "studio", "lora") is None


def test_a_file_of_its_own_is_not_kept_with_another(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    for name in ("x", "y"):
        (tmp_path / "loras" / f"{name}.safetensors").touch()
    text = "".join(
        f'[models.{name}]\nmodel = "{model}"\nrole = "lora"\ntenants = ["{name}"]\n'
        for name, model in (("one", "org/loras/x.safetensors"), ("two", "org/loras/y.safetensors"),
                            ("three", "file:x.safetensors"))
    )  # fmt: skip
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "x.safetensors").touch()
    said = read(settings.model_copy(update={"models_dir": tmp_path}), text)
    assert said.refusal("file:x.safetensors", "anybody", "lora")
    assert said.refusal("file:x.safetensors", "anybody") is None
    assert said.refusal("org/loras/x.safetensors", "one") is None
    assert said.refusal("org/loras/y.safetensors", "one")
    assert said.refusal("org/loras/z.safetensors", "anybody") is None
    assert said.refusal("file:y.safetensors", "anybody") is None
    assert said.refusal("org", "anybody") is None


def test_what_stands_beside_a_model_is_no_model(settings: Settings) -> None:
    said = read(settings, '[models.l]\nmodel = "org/x/y.safetensors"\nrole = "lora"\n[models.m]\nmodel = "org/m"\n')
    lora, model = said.models["l"], said.models["m"]
    assert (lora.reference, lora.unfit("lora"), model.unfit(None)) == ("org/x/y.safetensors", None, None)
    assert lora.unfit(None) == "'l' is a lora, which is named beside a model (models.toml)"
    assert 'add role = "lora" if it is one' in (model.unfit("lora") or "")
    assert wrong(settings, '[models.l]\nmodel = "org/x"\nrole = "lora"\nqueue = "big"\nvae_tiling = true\n') == [
        f"line {line}: l.{key}: has no effect on what stands beside a model: leave it out"
        for line, key in ((4, "queue"), (5, "vae_tiling"))
    ]
    assert "must be one of" in wrong(settings, '[models.l]\nmodel = "org/x"\nrole = "style"\n')[0]


def test_the_revision_of_an_alias_is_the_operators() -> None:
    said = file(gpt2={"model": "gpt2", "revision": "abc"})
    assert said.refusal("gpt2", "anybody") is None
    assert "leave @main out" in (said.refusal("gpt2@main", "anybody") or "")


def test_models_of_a_service_wait_where_no_gpu_is_held(settings: Settings) -> None:
    said = read(
        settings, '[models.chat]\nmodel = "openai:gpt-4o-mini"\n[models.b]\nmodel = "openai:x"\nqueue = "slow"\n'
    )
    assert (said.models["chat"].queue, said.models["b"].queue) == ("cpu", "slow")
    assert said.models["chat"].reference == "openai:gpt-4o-mini"
