"""Single files of weights, and models beside a model: which names are taken, and where they lead."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from producer.requests import Invalid, validate
from shared.errors import JobFailed, ModelRejected
from shared.jobs import maker_of
from shared.settings import Settings
from shared.tasks.adapters import as_lane, models_beside, of_lane
from shared.tasks.text_to_image import TextToImageParams
from workers import single_files
from workers.model_files import resolve, resolve_adapter

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "models").mkdir()
    return Settings(_env_file=None, data_dir=tmp_path / "data", models_dir=tmp_path / "models")


def write(path: Path, body: str = "weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body)
    return path


def rejected(role: Any, ref: str, settings: Settings) -> JobFailed:
    with pytest.raises(ModelRejected) as error:
        resolve_adapter(role, ref, settings=settings) if role else resolve(ref, settings=settings)
    return error.value


# --- names, where jobs are submitted ---


def lane_of(**params: Any) -> tuple[str, str]:
    job = validate(1, {"task": "text-to-image", "model": "gpt2", "params": {"prompt": "x"} | params})
    return job.lane.adapters, job.params_json


@pytest.mark.parametrize(
    "name",
    [
        "org/name",
        "org/name@v1",
        "org/name/file.safetensors",
        "org/name/sub/file.safetensors@main",
        "/m/x",
        "house.lora",
    ],
)
def test_a_lane_has_what_its_jobs_name(name: str) -> None:
    lane, params = lane_of(adapters=[{"model": name, "weight": 0.5}])
    assert json.loads(lane) == [["lora", name]]
    assert json.loads(params)["adapters"] == [{"model": name, "weight": 0.5}]
    assert of_lane(lane) == [("lora", name)]


def test_weights_and_pictures_are_no_part_of_a_lane() -> None:
    one, _ = lane_of(adapters=[{"model": "a/b"}, {"model": "c/d"}])
    other, _ = lane_of(adapters=[{"model": "c/d", "weight": 0.1}, {"model": "a/b"}])
    assert one == other
    steered = [lane_of(controlnet={"model": "a/b", "image": f"https://x.org/{n}.png", "scale": n})[0] for n in (1, 2)]
    assert steered == ['[["controlnet","a/b"]]'] * 2
    assert lane_of() == ("", lane_of()[1])
    assert "adapters" not in lane_of()[1]


def test_folders_are_settled_where_jobs_are_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    lane, params = lane_of(adapters=[{"model": "./loras/x.safetensors"}, {"model": "~/y"}])
    assert of_lane(lane) == [("lora", f"{tmp_path}/loras/x.safetensors"), ("lora", f"{tmp_path}/y")]
    assert str(tmp_path) in params


@pytest.mark.parametrize(
    ("said", "where", "words"),
    [
        ({"adapters": [{"model": "file:../x.safetensors"}]}, "params.adapters.0.model", "must not lead out"),
        ({"adapters": [{"model": "file:/etc/x.safetensors"}]}, "params.adapters.0.model", "must not lead out"),
        ({"adapters": [{"model": "file:x.ckpt"}]}, "params.adapters.0.model", "is a pickle"),
        ({"adapters": [{"model": "file:x"}]}, "params.adapters.0.model", "file:name.safetensors"),
        ({"adapters": [{"model": "s3://bucket/x"}]}, "params.adapters.0.model", "must be a hub id"),
        ({"adapters": [{"model": "na me"}]}, "params.adapters.0.model", "must be a hub id"),
        ({"adapters": [{"model": "org/../x"}]}, "params.adapters.0.model", "must be a hub id"),
        ({"adapters": [{"model": "~nobody-here/x"}]}, "params.adapters.0.model", "no such home folder"),
        ({"adapters": [{"model": "a/b", "weight": 9}]}, "params.adapters.0.weight", "must be at most 4"),
        ({"adapters": [{"weight": 1}]}, "params.adapters.0.model", "is required"),
        ({"adapters": [{"model": "a/b", "scale": 1}]}, "params.adapters.0.scale", "unknown name"),
        ({"adapters": []}, "params", "leave it out"),
        ({"adapters": [{"model": "a/b"}] * 2}, "params", "twice"),
        ({"adapters": [{"model": f"a/{n}"} for n in range(9)]}, "params.adapters", "8"),
        ({"controlnet": {"model": "a/b"}}, "params.controlnet.image", "is required"),
        (
            {"controlnet": {"model": "a/b", "image": "x.png", "start": 0.6, "end": 0.4}},
            "params.controlnet",
            "less than",
        ),
        ({"ip_adapter": {"model": "a/b", "images": []}}, "params.ip_adapter.images", "must not be empty"),
        ({"adapters": [{"model": f"org/{'x' * 90}{n}"} for n in range(6)]}, "params", "use shorter names"),
    ],
)
def test_what_is_wrong_with_a_model_beside_is_said_at_submit(said: Any, where: str, words: str) -> None:
    with pytest.raises(Invalid) as error:
        lane_of(**said)
    [problem] = error.value.problems
    assert problem.field == where
    assert words in problem.message


@pytest.mark.parametrize("name", ["x.safetensors", "checkpoints/x y.safetensors"])
def test_a_single_file_is_a_model(name: str) -> None:
    job = validate(1, {"task": "text-to-image", "model": f"file:{name}", "params": {"prompt": "x"}})
    assert job.lane.model == f"file:{name}"
    for wrong in ("file:x.ckpt", "file:../x.safetensors", "file:a/../../x.safetensors", "file:a\\x.safetensors"):
        with pytest.raises(Invalid):
            validate(1, {"task": "text-to-image", "model": wrong, "params": {"prompt": "x"}})


def test_other_tasks_name_nothing() -> None:
    job = validate(1, {"task": "echo", "params": {"message": "x"}})
    assert job.lane.adapters == ""
    assert as_lane(models_beside(TextToImageParams(prompt="x"))) == ""


# --- who made it ---


def test_who_made_a_picture_is_another_one_with_another_adapter() -> None:
    plain = {"generator": "G", "generator_version": 1, "revision": "r", "dtype": "float32", "device": "cpu"}
    makers = [
        plain,
        plain | {"adapters": {"a": "1"}},
        plain | {"adapters": {"a": "2"}},
        plain | {"adapters": {"b": "1"}},
    ]
    assert len({maker_of(record) for record in makers}) == 4
    assert maker_of(plain | {"adapters": {"a": "1", "b": "2"}}) == maker_of(plain | {"adapters": {"b": "2", "a": "1"}})


# --- files, where jobs run ---


@pytest.mark.parametrize("place", ["", "loras", "Lora"])
def test_an_adapter_is_found_where_tools_keep_it(place: str, settings: Settings, tmp_path: Path) -> None:
    path = write(tmp_path / "models" / place / "styles" / "x.safetensors")
    files = resolve_adapter("lora", "file:styles/x.safetensors", settings=settings)
    assert (files.weights, files.kind) == (path, "lora")
    before = files.revision
    write(path, "other")
    assert resolve_adapter("lora", "file:styles/x.safetensors", settings=settings).revision != before


def test_a_name_never_leads_out_of_the_folder(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path / "secret.safetensors")
    (tmp_path / "models" / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (tmp_path / "models" / "loras").symlink_to(tmp_path)
    for role in (None, "lora"):
        for name in ("../secret", "/etc/secret", "a/../../secret", "~/secret", "./secret"):
            error = rejected(role, f"file:{name}.safetensors", settings)
            assert (error.code, "must not lead out" in error.message) == ("model_not_found", True)
        assert "links out" in rejected(role, "file:link.safetensors", settings).message
    assert "links out" in rejected("lora", "file:secret.safetensors", settings).message


def test_what_is_not_there_says_so(settings: Settings, tmp_path: Path) -> None:
    assert "no such file in AIGC_MODELS_DIR" in rejected(None, "file:x.safetensors", settings).message
    nowhere = Settings(_env_file=None, data_dir=tmp_path)
    assert "no folder of such files (AIGC_MODELS_DIR)" in rejected("lora", "file:x.safetensors", nowhere).message
    assert rejected("lora", "/nowhere/x", settings).code == "model_not_found"


@pytest.mark.parametrize("body", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x05" + b"\0" * 7 + b"broke"])
def test_what_is_no_safetensors_is_refused_before_anything_is_read(
    body: bytes, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "models" / "x.safetensors").write_bytes(body)
    assert rejected(None, "file:x.safetensors", settings).code == "model_not_a_model"


def test_an_adapter_of_a_folder_is_the_usual_file_or_the_only_one(settings: Settings, tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "mine.safetensors")
    assert resolve_adapter("lora", str(tmp_path / "a"), settings=settings).weights == one
    assert resolve_adapter("lora", str(one), settings=settings).weights == one
    write(tmp_path / "a" / "other.safetensors")
    several = rejected("lora", str(tmp_path / "a"), settings)
    assert "several files of weights; add the one that is meant, like /mine.safetensors" in several.message
    usual = write(tmp_path / "a" / "pytorch_lora_weights.safetensors")
    assert resolve_adapter("lora", str(tmp_path / "a"), settings=settings).weights == usual
    write(tmp_path / "b" / "pytorch_lora_weights.bin")
    assert rejected("lora", str(tmp_path / "b"), settings).code == "model_pickle_only"
    write(tmp_path / "c" / "readme.md")
    assert rejected("lora", str(tmp_path / "c"), settings).code == "model_not_a_model"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.safetensors").symlink_to(one)
    assert "links out of the folder" in rejected("lora", str(tmp_path / "d"), settings).message


def test_the_operators_list_holds_for_what_stands_beside(tmp_path: Path) -> None:
    write(tmp_path / "models" / "x.safetensors")
    settings = Settings(
        _env_file=None, data_dir=tmp_path, models_dir=tmp_path / "models", models_allowed=("org/*", "file:y*")
    )
    for role, ref in (("lora", "file:x.safetensors"), (None, "file:x.safetensors"), ("lora", "evil/x"), ("lora", "/m")):
        assert rejected(role, ref, settings).code == "model_not_allowed"
    assert rejected("lora", "file:y.safetensors", settings).code == "model_not_found"


def hub(monkeypatch: pytest.MonkeyPatch, cache: Path, listing: list[str] | Exception) -> None:
    """A hub that lists these files (or raises), and gives what is asked for."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    def model_info(self: object, repo: str, **_: object) -> SimpleNamespace:
        if isinstance(listing, Exception):
            raise listing
        return SimpleNamespace(sha=SHA, siblings=[SimpleNamespace(rfilename=name) for name in listing])

    def snapshot_download(repo: str, *, allow_patterns: list[str], local_files_only: bool = False, **_: object) -> str:
        if local_files_only:
            if not (cache / SHA).is_dir():
                raise LocalEntryNotFoundError("not here")
            return str(cache / SHA)
        assert isinstance(listing, list)
        for name in filter_repo_objects(listing, allow_patterns=allow_patterns):
            write(cache / SHA / name)
        return str(cache / SHA)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def test_of_the_hub_only_the_adapter_is_fetched(settings: Settings, tmp_path: Path, monkeypatch) -> None:
    hub(monkeypatch, tmp_path, ["README.md", "a.safetensors", "sub/b.safetensors", "big.safetensors", "x.bin"])
    files = resolve_adapter("lora", "org/name/sub/b.safetensors@v1", settings=settings)
    assert (files.weights, files.revision) == (tmp_path / SHA / "sub" / "b.safetensors", SHA)
    assert [path.name for path in (tmp_path / SHA).rglob("*.*")] == ["b.safetensors"]
    assert "several files" in rejected("lora", "org/name", settings).message
    assert "there is no c.safetensors in it" in rejected("lora", "org/name/c.safetensors", settings).message

    hub(monkeypatch, tmp_path, ConnectionError("no route"))
    assert resolve_adapter("lora", "org/name/sub/b.safetensors", settings=settings).weights == files.weights


def test_without_network_and_cache_a_job_waits(settings: Settings, tmp_path: Path, monkeypatch) -> None:
    hub(monkeypatch, tmp_path, ConnectionError("no route"))
    with pytest.raises(JobFailed) as error:
        resolve_adapter("lora", "org/name", settings=settings)
    assert (error.value.code, error.value.retryable) == ("model_unreachable", True)


def test_what_brings_eyes_along_is_fetched_with_them(settings: Settings, tmp_path: Path, monkeypatch) -> None:
    hub(
        monkeypatch,
        tmp_path,
        ["models/ip.safetensors", "models/image_encoder/config.json", "models/image_encoder/model.safetensors",
         "models/other.safetensors", "models/image_encoder/pytorch_model.bin"],
    )  # fmt: skip
    files = resolve_adapter("ip-adapter", "org/name/models/ip.safetensors", settings=settings)
    fetched = {path.relative_to(tmp_path / SHA / "models").as_posix() for path in (tmp_path / SHA).rglob("*.*")}
    assert fetched == {"ip.safetensors", "image_encoder/config.json", "image_encoder/model.safetensors"}
    assert files.weights == tmp_path / SHA / "models" / "ip.safetensors"


def test_a_header_may_not_be_endless(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_files, "_MAX_HEADER", 8)
    (tmp_path / "models" / "x.safetensors").write_bytes((64).to_bytes(8, "little") + b"{" * 64)
    assert "list of tensors" in rejected(None, "file:x.safetensors", settings).message


def test_jobs_of_one_file_that_differ_in_what_stands_beside_are_told_apart() -> None:
    from producer.quick import Validator

    check, line = Validator(), {"task": "text-to-image", "model": "org/name"}
    said: list[dict[str, Any]] = [{}, {"adapters": [{"model": "a/b"}]}, {"adapters": [{"model": "c/d"}]}, {}]
    said.append({"adapters": [{"model": f"org/{'x' * 90}{n}"} for n in range(6)]})
    jobs = [line | {"params": {"prompt": "x"} | each} for each in said]
    assert [check(n, job) for n, job in enumerate(jobs[:4])] == [validate(n, job) for n, job in enumerate(jobs[:4])]
    with pytest.raises(Invalid):
        check(4, jobs[4])
