"""A reference becomes files, or an error that says which of the many possible things is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import broken_models
import pytest

from shared.errors import JobFailed, ModelRejected
from shared.settings import Settings
from workers import model_files
from workers.model_files import resolve

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path / "data")


def code(ref: str | Path, settings: Settings) -> str:
    with pytest.raises(JobFailed) as error:
        resolve(str(ref), settings=settings)
    assert str(ref) in error.value.message or "there is" in error.value.message
    assert isinstance(error.value, ModelRejected) is not error.value.retryable
    return error.value.code


def write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json").replace("_st", ".safetensors").replace(
            "_bin", ".bin"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_a_local_folder(tmp_path, settings, monkeypatch) -> None:
    folder = write(tmp_path / "m", config_json='{"model_type": "gpt2"}', model_st="weights")
    files = resolve(str(folder), settings=settings)
    assert (files.ref, files.folder, files.kind, files.config) == (
        str(folder),
        folder,
        "transformers",
        {"model_type": "gpt2"},
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for ref in ("./m", "../" + tmp_path.name + "/m", "~/m"):
        assert resolve(ref, settings=settings).revision == files.revision


def test_the_revision_of_a_folder_follows_names_and_contents(tmp_path, settings) -> None:
    def revision(folder: Path) -> str:
        return resolve(str(folder), settings=settings).revision

    one = revision(write(tmp_path / "a", config_json="{}", model_st="weights", sub__x_json="{}"))
    assert one.startswith("sha256:")
    assert len(one) == len("sha256:") + 16
    assert revision(write(tmp_path / "b", sub__x_json="{}", model_st="weights", config_json="{}")) == one
    assert revision(write(tmp_path / "c", config_json="{}", model_st="Weights", sub__x_json="{}")) != one
    assert revision(write(tmp_path / "d", config_json="{}", model_st="weights", sub__y_json="{}")) != one


def test_a_large_file_counts_by_size_and_both_ends(tmp_path, settings, monkeypatch) -> None:
    monkeypatch.setattr(model_files, "_WHOLE", 10)
    monkeypatch.setattr(model_files, "_PIECE", 4)
    revisions = {
        resolve(str(write(tmp_path / weights, config_json="{}", model_st=weights)), settings=settings).revision
        for weights in ("aaaa-middle-zzzz", "aaab-middle-zzzz", "aaaa-middle-zzzy", "aaaa-longer-middle-zzzz")
    }
    assert len(revisions) == 4
    same = write(tmp_path / "same", config_json="{}", model_st="aaaa-MIDDLE-zzzz")
    assert resolve(str(same), settings=settings).revision in revisions


def test_a_folder_that_is_no_model_says_why(tmp_path, settings) -> None:
    assert code(tmp_path / "nowhere", settings) == "model_not_found"
    assert code("~no-such-user/m", settings) == "model_not_found"
    assert code(write(tmp_path / "a", readme="x"), settings) == "model_not_a_model"
    assert code(write(tmp_path / "b", config_json="{broken", model_st="x"), settings) == "model_not_a_model"
    assert code(write(tmp_path / "c", config_json="[]", model_st="x"), settings) == "model_not_a_model"
    assert code(write(tmp_path / "d", config_json="{}"), settings) == "model_not_a_model"
    assert code(write(tmp_path / "e", single_st="x"), settings) == "model_not_a_model"
    assert code(write(tmp_path / "f", config_json="{}", pytorch_model_bin="x"), settings) == "model_pickle_only"
    mixed = write(tmp_path / "g", model_index_json="{}", unet__x_st="x", vae__x_bin="x")
    assert code(mixed, settings) == "model_pickle_only"


def test_pickles_beside_safetensors_do_no_harm(tmp_path, settings) -> None:
    folder = write(tmp_path / "m", config_json="{}", model_st="x", pytorch_model_bin="x")
    assert resolve(str(folder), settings=settings).kind == "transformers"


def test_names_never_lead_out_of_a_folder(tmp_path, settings) -> None:
    outside = write(tmp_path / "outside", secret_st="x")
    folder = write(tmp_path / "m", config_json="{}")
    (folder / "model.safetensors").symlink_to(outside / "secret.safetensors")
    assert code(folder, settings) == "model_not_a_model"
    folder = write(tmp_path / "n", config_json="{}", model_st="x")
    index = {"weight_map": {"w": "../outside/secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert code(folder, settings) == "model_not_a_model"
    folder = write(tmp_path / "o", config_json="{}", weights__one_st="x")
    (folder / "model.safetensors").symlink_to("weights/one.safetensors")
    assert resolve(str(folder), settings=settings).folder == folder


def test_a_starter(tmp_path, settings, monkeypatch) -> None:
    assert code("starter/nope", settings) == "model_not_found"
    assert code("starter/../../etc", settings) == "model_not_found"
    folder = write(tmp_path / "shapes", config_json="{}", model_st="x")
    monkeypatch.setattr(model_files, "starter_folders", lambda: {"shapes": folder})
    assert resolve("starter/shapes", settings=settings).folder == folder
    with pytest.raises(ModelRejected, match=r"there is no starter/shape; there is: starter/shapes"):
        resolve("starter/shape", settings=settings)


@pytest.mark.parametrize("ref", ["s3://bucket/model", "https://example.org/x"])
def test_references_of_later_times_are_refused_clearly(ref, settings) -> None:
    assert code(ref, settings) == "model_reference_unsupported"


@pytest.mark.parametrize("ref", ["a/b/c", "a b", "-x", "org/", "/../x", "gpt2@", "a..b/c", ""])
def test_what_is_no_reference_is_not_looked_up(ref, settings, monkeypatch) -> None:
    monkeypatch.setattr(model_files, "_download", lambda *_: pytest.fail("the hub was asked"))
    assert code(ref, settings) == "model_not_found"


def test_the_operators_list_of_hub_models_is_kept(tmp_path, monkeypatch) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, models_allowed=("gpt2", "good/*"))
    folder = write(tmp_path / SHA, config_json="{}", model_st="x")
    monkeypatch.setattr(model_files, "_download", lambda *_, **__: folder)
    assert code("evil/model", settings) == "model_not_allowed"
    assert code("gpt2-large", settings) == "model_not_allowed"
    assert resolve("gpt2", settings=settings).revision == SHA
    assert resolve("good/model@v1", settings=settings).ref == "good/model@v1"


def test_the_operators_list_holds_for_folders_too(tmp_path, monkeypatch) -> None:
    inside, outside = tmp_path / "models", tmp_path / "elsewhere"
    for folder in (inside / "mine", outside):
        folder.mkdir(parents=True)
    settings = Settings(_env_file=None, data_dir=tmp_path, models_allowed=("org/*", f"{inside}/*"))
    assert code(str(outside), settings) == "model_not_allowed"
    assert code(f"{inside}/../elsewhere", settings) == "model_not_allowed"
    assert code(str(inside / "mine"), settings) == "model_not_a_model"


def test_a_folder_that_is_no_model_is_not_walked(tmp_path, settings, monkeypatch) -> None:
    (tmp_path / "home" / "deep").mkdir(parents=True)
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("the whole tree was read"))
    assert code(str(tmp_path / "home"), settings) == "model_not_a_model"


def hub(monkeypatch: pytest.MonkeyPatch, cache: Path, listing: list[str] | Exception) -> None:
    """A hub that lists these files (or raises), over a real cache folder."""
    import huggingface_hub

    def model_info(self: object, repo: str, **_: object) -> SimpleNamespace:
        if isinstance(listing, Exception):
            raise listing
        return SimpleNamespace(sha=SHA, siblings=[SimpleNamespace(rfilename=name) for name in listing])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))


def http_error(kind: str, status: int) -> Exception:
    from huggingface_hub import errors

    answer = SimpleNamespace(status_code=status, headers={}, request=None)
    return getattr(errors, kind)("refused", response=answer)


@pytest.mark.parametrize(
    "answer",
    [
        (("GatedRepoError", 403), "model_not_found", "is gated"),
        (("RepositoryNotFoundError", 404), "model_not_found", "has no model"),
        (("RevisionNotFoundError", 404), "model_not_found", "no revision v9"),
        (("HfHubHTTPError", 403), "model_not_found", "refuses access"),
        (("HfHubHTTPError", 503), "model_unreachable", "does not answer"),
    ],
)
def test_what_the_hub_answers_is_told_apart(answer, tmp_path, settings, monkeypatch) -> None:
    error, expected, words = answer
    hub(monkeypatch, tmp_path, http_error(*error))
    with pytest.raises(JobFailed, match=words) as caught:
        resolve("org/name@v9", settings=settings)
    assert caught.value.code == expected
    assert caught.value.retryable is (expected == "model_unreachable")


def test_the_hubs_listing_is_judged_before_anything_is_fetched(tmp_path, settings, monkeypatch) -> None:
    for listing, expected in (
        (["config.json", "pytorch_model.bin"], "model_pickle_only"),
        (["v1-5-pruned.safetensors"], "model_not_a_model"),
        (["model_index.json", "v1.safetensors", "unet/model.bin"], "model_pickle_only"),
        (["model_index.json", "unet/model.fp16.safetensors"], "model_not_a_model"),
    ):
        hub(monkeypatch, tmp_path, listing)
        with pytest.raises(ModelRejected) as error:
            resolve("org/name", settings=settings)
        assert error.value.code == expected


@pytest.mark.parametrize(
    ("listing", "fetched"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "model.py"], {"config.json", "model.safetensors"}),
        (
            [
                "model_index.json",
                "v1.safetensors",
                "unet/m.safetensors",
                "unet/m.fp16.safetensors",
                "vae/m.safetensors",
            ],
            {"model_index.json", "unet/m.safetensors", "vae/m.safetensors"},
        ),
    ],
    ids=["transformers", "diffusers"],
)
def test_only_what_is_needed_and_safe_is_fetched(listing, fetched, tmp_path, settings, monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    def snapshot_download(repo: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert (repo, revision) == ("org/name", "v1")
        wanted = filter_repo_objects(listing, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for name in wanted:
            path = tmp_path / SHA / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"_class_name": "StableDiffusionPipeline"}')
        return str(tmp_path / SHA)

    hub(monkeypatch, tmp_path, listing)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    files = resolve("org/name@v1", settings=settings)
    assert files.revision == SHA
    assert {path.relative_to(files.folder).as_posix() for path in files.folder.rglob("*.*")} == fetched


def cached_snapshot(cache: Path, **files: str) -> Path:
    """What the hub's library leaves behind: contents in `blobs`, links to them in `snapshots/<commit>`."""
    repo = cache / "models--org--name"
    snapshot = repo / "snapshots" / SHA
    write(repo / "scratch", **files)
    for number, path in enumerate(sorted((repo / "scratch").rglob("*.*"))):
        link = snapshot / path.relative_to(repo / "scratch")
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = repo / "blobs" / str(number)
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(SHA)
    return snapshot


@pytest.mark.parametrize("kind", ["transformers", "diffusers"])
def test_without_a_network_the_cache_serves(kind, tmp_path, settings, monkeypatch) -> None:
    index = {"transformers": "config_json", "diffusers": "model_index_json"}[kind]
    config = {"transformers": "{}", "diffusers": '{"_class_name": "StableDiffusionPipeline"}'}[kind]
    snapshot = cached_snapshot(tmp_path, **{index: config, "model_st": "x", "unet__model_st": "x"})
    hub(monkeypatch, tmp_path, ConnectionError("no route"))
    files = resolve("org/name", settings=settings)
    assert (files.folder, files.revision, files.kind) == (snapshot, SHA, kind)


def test_without_network_and_cache_the_job_may_be_tried_again(tmp_path, settings, monkeypatch) -> None:
    hub(monkeypatch, tmp_path, ConnectionError("no route"))
    assert code("org/name", settings) == "model_unreachable"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (broken_models.pickle_only, "model_pickle_only"),
        (broken_models.remote_code, "model_needs_remote_code"),
        (broken_models.custom_pipeline, "model_needs_remote_code"),
        (broken_models.empty, "model_not_a_model"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_models_as_their_libraries_save_them(build, expected, tmp_path_factory, settings) -> None:
    assert code(build(tmp_path_factory.getbasetemp() / "tiny"), settings) == expected


@pytest.mark.torch
def test_a_component_of_unknown_origin_needs_remote_code(tmp_path, settings) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["my_unet", "MyUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    folder = write(tmp_path / "m", model_index_json=json.dumps(index), unet__x_st="x")
    assert code(folder, settings) == "model_needs_remote_code"
    index["unet"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    write(folder, model_index_json=json.dumps(index))
    assert resolve(str(folder), settings=settings).kind == "diffusers"
