"""From a model reference to files on this host.

    starter/<name>            a small model that ships with the project
    file:name.safetensors     a checkpoint in one file, below `AIGC_MODELS_DIR`
    /…  ./…  ../…  ~…         a folder on this host
    name, org/name[@revision] a model of the Hugging Face hub, downloaded once and then taken from the cache
    service:model             a model of a remote service: there are no files of it here

Only weights in safetensors are ever fetched or accepted: a pickle can run code when it is opened, and so can a model
that brings its own Python files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from shared.errors import JobFailed, ModelRejected
from shared.services import Service, remote_model
from shared.settings import Settings
from shared.single_files import PREFIX
from shared.starters import starter_folders
from shared.tasks.adapters import Role
from workers.generators import ModelFiles
from workers.hub_offer import Offer
from workers.single_files import adapter_among, adapter_in, configs_for, control_configs_for, located

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_UNSUPPORTED = re.compile(r"[A-Za-z][\w+.-]*:")
_COMMON = ["*.json", "*.txt", "*.model", "*.jinja", "*.vocab"]
# A diffusers repository often carries the same weights once more as single files at its top: only folders count.
_PATTERNS = {"diffusers": [*_COMMON, "*/*.safetensors"], "transformers": [*_COMMON, "*.safetensors", "*.npy"]}
_IGNORED = [
    "*.fp16.*",
    "*.fp16-*",
    "*.bf16.*",
    "*non_ema*",
    "consolidated*",  # the same weights once more, in their makers' own format
    "original/*",
    "*.py",
    "onnx/*",
    "openvino/*",
    *(f"*{p}" for p in _PICKLES),
]
_INDEXES = {"model_index.json": "diffusers", "config.json": "transformers"}
#: the API that every remote service speaks
REMOTE_KIND = "openai"
_WHOLE = 64 * 2**20
_PIECE = 2**20


def resolve(
    ref: str, *, settings: Settings, judge: Callable[[Offer], None] | None = None, offline: bool = False
) -> ModelFiles:
    """The files of the model that a job names.

    `judge` may raise before anything is fetched; where it is to be `offline`, nothing is. Raises `ModelRejected`
    (trying again does not help): `model_not_found`, `model_not_a_model`, `model_pickle_only`,
    `model_needs_remote_code`, `model_not_allowed`, `model_reference_unsupported`, and of a remote one `service_unknown`
    or `service_key_missing`. Raises `JobFailed`, retryable: `model_unreachable` when the hub does not answer and the
    cache does not have the model, `model_disk_full` when there is no room for it.
    """
    if ref.startswith("starter/"):
        return _local(ref, _starter(ref.removeprefix("starter/")))
    if ref.startswith(("/", "./", "../", "~")) or ref in (".", ".."):
        try:
            folder = Path(ref).expanduser()
        except RuntimeError:
            raise ModelRejected("model_not_found", f"{ref}: there is no such user on this host") from None
        _require_allowed(ref, str(folder.resolve()), settings.models_allowed)
        return _local(ref, folder)
    if (remote := remote_model(ref)) is not None:
        _require_allowed(ref, ref, settings.models_allowed)
        return _remote(ref, *remote, settings.remote_services)
    if ref.startswith(PREFIX):
        return _single(ref, settings)
    if match := _UNSUPPORTED.match(ref):
        raise ModelRejected(
            "model_reference_unsupported",
            f"{ref}: references that begin with {match[0]} are not supported yet; "
            "give a hub id, a folder (such as ./my-model), file:name.safetensors, starter/<name> or <service>:<model>",
        )
    return _hub(ref, settings.models_allowed, judge, offline)


def _require_allowed(ref: str, name: str, allowed: Sequence[str]) -> None:
    """Where the operator has set a list, a hub id, a path or a remote reference has to match one of its patterns."""
    if allowed and not any(fnmatchcase(name, pattern) for pattern in allowed):
        raise ModelRejected(
            "model_not_allowed", f"{ref} may not run here; allowed: {', '.join(allowed)} (AIGC_MODELS_ALLOWED)"
        )


def _remote(ref: str, name: str, model: str, services: Mapping[str, Service]) -> ModelFiles:
    service = services.get(name)
    if service is None:
        known = ", ".join(f"{each}:…" for each in sorted(services))
        raise ModelRejected(
            "service_unknown", f"{ref}: this worker knows no service {name!r}; it knows {known} (AIGC_SERVICES)"
        )
    if service.key is None and service.is_openai_itself:
        raise ModelRejected(
            "service_key_missing", f"{ref}: {service.url} wants a key: set AIGC_OPENAI_API_KEY where workers run"
        )
    return ModelFiles(ref, Path(), service.url, REMOTE_KIND, {"model": model}, service=service)


def _starter(name: str) -> Path:
    known = starter_folders()
    if name in known:
        return known[name]
    names = ", ".join(f"starter/{each}" for each in sorted(known)) or "none is installed"
    raise ModelRejected("model_not_found", f"there is no starter/{name}; there is: {names}")


def _local(ref: str, folder: Path) -> ModelFiles:
    if not folder.is_dir():
        raise ModelRejected("model_not_found", f"{ref}: no such folder on this worker's host")
    folder = folder.resolve()
    if not any((folder / index).is_file() for index in _INDEXES):
        _check_names(ref, [path.name for path in folder.iterdir()])  # says why; the tree below may be anything
    names = _names(ref, folder)
    kind, config = _read(ref, folder, names)
    return ModelFiles(ref, folder, f"sha256:{_digest(folder, names)}", kind, config)


def _names(ref: str, folder: Path) -> list[str]:
    """Every file below the folder, sorted; raises `ModelRejected` if a name leads out of it."""
    names: list[str] = []
    for path in folder.rglob("*"):
        if not path.resolve().is_relative_to(folder):
            raise ModelRejected(
                "model_not_a_model",
                f"{ref}: {path.relative_to(folder)} links out of the folder; put the file itself there, "
                "or name the model by its hub id",
            )
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
    return sorted(names)


def _digest(folder: Path, names: Sequence[str]) -> str:
    """16 hex digits over names, sizes and contents; of a file above 64 MB its size, first and last MiB stand for it."""
    total = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size <= _WHOLE:
                digest = hashlib.file_digest(file, "sha256")
            else:
                digest = hashlib.sha256(file.read(_PIECE))
                file.seek(-_PIECE, 2)
                digest.update(file.read())
        total.update(f"{name}\0{size}\0{digest.hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _read(ref: str, folder: Path, names: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """Kind and config of a model folder, after the checks that need no weights."""
    kind = _check_names(ref, names)
    index = next(name for name, each in _INDEXES.items() if each == kind)
    config = _json(ref, folder / index)
    _check_code(ref, kind, config)
    for name in names:
        if name.endswith(".safetensors.index.json"):
            weights = _json(ref, folder / name).get("weight_map")
            for part in set(weights.values()) if isinstance(weights, dict) else ():
                if not isinstance(part, str) or PurePosixPath(part).name != part:
                    raise ModelRejected("model_not_a_model", f"{ref}: {name} names weights outside of its folder")
    return kind, config


def _json(ref: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelRejected("model_not_a_model", f"{ref}: {path.name} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelRejected("model_not_a_model", f"{ref}: {path.name} is not a JSON object")
    return config


def _check_names(ref: str, names: Iterable[str]) -> str:
    """The kind of model that these files make; raises `ModelRejected` if they make none, or pickles only."""
    names = set(names)
    kind = next((kind for index, kind in _INDEXES.items() if index in names), None)
    if kind is None:
        what = "neither model_index.json nor config.json is there"
        if any(name.endswith((".safetensors", *_PICKLES)) for name in names):
            what += "; give a single file of weights as file:name.safetensors, or save it as a folder (save_pretrained)"
        raise ModelRejected("model_not_a_model", f"{ref} is not a model: {what}")
    safe = {str(PurePosixPath(name).parent) for name in names if name.endswith(".safetensors") and not _ignored(name)}
    pickled = {
        str(PurePosixPath(name).parent) for name in names if name.endswith(_PICKLES) and "training_args" not in name
    }
    if kind == "transformers":
        safe, pickled = safe & {"."}, pickled & {"."}
    else:
        safe, pickled = safe - {"."}, pickled - {"."}
    if bad := sorted(pickled - safe):
        where = "" if bad == ["."] else f" in {', '.join(bad)}"
        raise ModelRejected(
            "model_pickle_only",
            f"{ref} has weights{where} only as pickle files ({', '.join(_PICKLES)}), which can run code when opened; "
            "convert them: save_pretrained(folder, safe_serialization=True)",
        )
    if not safe:
        raise ModelRejected("model_not_a_model", f"{ref} has no weights in safetensors")
    return kind


def _is_wanted(kind: str, name: str) -> bool:
    """Whether loading needs this file, as `snapshot_download` takes the same patterns."""
    return any(fnmatchcase(name, pattern) for pattern in _PATTERNS[kind]) and not _ignored(name)


def _ignored(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _IGNORED)


def _check_code(ref: str, kind: str, config: Mapping[str, Any]) -> None:
    """Raise `ModelRejected` if the model runs only with Python code of its own."""
    own: str | None = None
    if kind == "diffusers":
        from diffusers import pipelines

        if not isinstance(config.get("_class_name"), str):
            own = f"its pipeline class is {config.get('_class_name')}"
        for name, component in config.items():
            library = component[0] if isinstance(component, list) and component else None
            if (
                isinstance(library, str)
                and not name.startswith("_")
                and library not in ("diffusers", "transformers")
                and not library.startswith(("diffusers.", "transformers."))
                and not hasattr(pipelines, library)
            ):
                own = f"{name} comes from {library}"
    elif config.get("auto_map"):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if config.get("model_type") not in CONFIG_MAPPING_NAMES:
            own = f"model type {config.get('model_type')!r} is not part of transformers"
    if own:
        raise ModelRejected("model_needs_remote_code", f"{ref} needs code of its own, which is never run here: {own}")


def _single(ref: str, settings: Settings) -> ModelFiles:
    """A checkpoint in one file, and the configs that go with it."""
    _require_allowed(ref, ref, settings.models_allowed)
    path = located(ref, settings.models_dir)
    folder = configs_for(ref, path)
    names = _names(ref, folder) if folder.parent == path.parent else []
    if any(name.endswith(_PICKLES) for name in names):
        raise ModelRejected(
            "model_pickle_only", f"{ref}: {folder.name} has pickle files, which can run code when opened"
        )
    config = _json(ref, folder / "model_index.json")
    _check_code(ref, "diffusers", config)
    own = [f"{folder.name}/{name}" for name in names]
    return ModelFiles(
        ref, folder, f"sha256:{_digest(path.parent, [path.name, *own])}", "diffusers", config, weights=path
    )


# --- models beside a model ---


def resolve_adapter(role: Role, ref: str, *, settings: Settings, offline: bool = False) -> ModelFiles:
    """The file of an adapter that a job names beside its model, or the folder of a model that controls it.

    Where it is to be `offline`, nothing is fetched. Raises what `resolve` does.
    """
    if role == "controlnet" and not ref.startswith(PREFIX):
        return resolve(ref, settings=settings, offline=offline)
    if ref.startswith(PREFIX):
        _require_allowed(ref, ref, settings.models_allowed)
        path = located(ref, settings.models_dir, role)
        if role == "controlnet":
            return _single_control(ref, path)
    elif ref.startswith("/"):
        _require_allowed(ref, str(Path(ref).resolve()), settings.models_allowed)
        path = adapter_in(ref, Path(ref))
    else:
        return _hub_adapter(role, ref, settings.models_allowed, offline)
    eyes = (path.parent / "image_encoder").glob("*.*") if role == "ip-adapter" else ()
    names = [path.name, *sorted(f"image_encoder/{each.name}" for each in eyes)]
    return ModelFiles(ref, path.parent, f"sha256:{_digest(path.parent, names)}", role, {}, weights=path)


def _single_control(ref: str, path: Path) -> ModelFiles:
    folder = control_configs_for(ref, path)
    own = [f"{folder.name}/config.json"] if folder.parent == path.parent else []
    revision = f"sha256:{_digest(path.parent, [path.name, *own])}"
    return ModelFiles(ref, folder, revision, "controlnet", _json(ref, folder / "config.json"), weights=path)


def _hub_adapter(role: Role, ref: str, allowed: Sequence[str], offline: bool) -> ModelFiles:
    name, _, revision = ref.partition("@")
    repo, wanted = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if not _HUB_ID.fullmatch(repo) or "--" in repo or ".." in ref:
        raise ModelRejected("model_not_found", f"{ref} is no model reference: give a hub id, a folder or {PREFIX}…")
    _require_allowed(ref, repo, allowed)

    def patterns(names: Sequence[str]) -> list[str]:
        chosen = adapter_among(ref, names, wanted)
        eyes = PurePosixPath(chosen).parent / "image_encoder"
        return [chosen] + ([f"{eyes}/config.json", f"{eyes}/*.safetensors"] if role == "ip-adapter" else [])

    if not offline:
        folder = _download(ref, repo, revision or None, patterns=patterns)
    elif (kept := _cached_weights(repo, revision or None)) is not None:
        folder = kept
    else:
        raise ModelRejected("model_not_found", f"{ref} is not in this host's cache")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors") if path.is_file()]
    path = folder / adapter_among(ref, names, wanted)
    return ModelFiles(ref, path.parent, folder.name, role, {}, weights=path)


# --- the hub ---


def _hub(ref: str, allowed: Sequence[str], judge: Callable[[Offer], None] | None, offline: bool) -> ModelFiles:
    repo, _, revision = ref.partition("@")
    if not _HUB_ID.fullmatch(repo) or "--" in repo or ".." in repo or (not revision and "@" in ref):
        raise ModelRejected(
            "model_not_found",
            f"{ref} is no model reference: give a hub id (org/name, org/name@revision), a folder (./my-model) "
            "or starter/<name>",
        )
    _require_allowed(ref, repo, allowed)
    if offline:
        kept = _cached(repo, revision or None)
        if kept is None:
            raise ModelRejected("model_not_found", f"{ref} is not in this host's cache")
        folder = kept
    else:
        folder = _download(ref, repo, revision or None, judge=judge)
    # The cache links its files to where it keeps their contents: those links are its own, not the model's.
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    kind, config = _read(ref, folder, names)
    return ModelFiles(ref, folder, folder.name, kind, config)


def _download(
    ref: str,
    repo: str,
    revision: str | None,
    *,
    judge: Callable[[Offer], None] | None = None,
    patterns: Callable[[Sequence[str]], list[str]] | None = None,
) -> Path:
    """The snapshot folder of the revision (its name is the commit), fetched if it is not in the cache.

    `judge` may raise before anything is fetched. `patterns` says which of the files in it are wanted, and raises
    `ModelRejected` if it is not what it should be; by default what a model of its kind needs.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # Whichever HTTP client the hub's library uses, its errors derive from that client's HTTPError.
    transport: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        if patterns is not None:  # what was chosen by name is wanted, whatever it is called
            listing = HfApi().model_info(repo, revision=revision, timeout=20)
            chosen = patterns([file.rfilename for file in listing.siblings or ()])
            return Path(snapshot_download(repo, revision=revision, allow_patterns=chosen))
        offer = _offer(ref, repo, revision)
        if offer.missing:
            offer.require_disk()
            if judge is not None:
                judge(offer)
        wanted = _PATTERNS[offer.kind]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=_IGNORED))
    except GatedRepoError:
        raise ModelRejected(
            "model_not_found", f"{repo} is gated: accept its terms on the hub and give the worker a token (HF_TOKEN)"
        ) from None
    except RepositoryNotFoundError:
        raise ModelRejected(
            "model_not_found", f"the hub has no model {repo}, or it is private and the worker has no token (HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise ModelRejected("model_not_found", f"{repo} has no revision {revision}") from None
    except (transport, LocalEntryNotFoundError, OSError) as error:
        response = getattr(error, "response", None)
        if getattr(response, "status_code", None) in (401, 403):
            raise ModelRejected("model_not_found", f"the hub refuses access to {repo}: {error}") from None
        cached = _cached(repo, revision) if patterns is None else _cached_weights(repo, revision)
        if cached is not None:
            return cached
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise JobFailed("model_disk_full", f"{ref}: the disk is full: {error}", retryable=True) from None
        if isinstance(error, OfflineModeIsEnabled):
            raise ModelRejected(
                "model_not_found", f"{ref} is not in this worker's cache, and it is not to ask the hub (HF_HUB_OFFLINE)"
            ) from None
        raise JobFailed(
            "model_unreachable",
            f"the hub does not answer, and {ref} is not in this worker's cache: {type(error).__name__}: {error}",
            retryable=True,
        ) from error


def _offer(ref: str, repo: str, revision: str | None) -> Offer:
    """What the hub has of a model. Raises what the hub's client does, and `ModelRejected` if it is no model."""
    from huggingface_hub import HfApi

    listing = HfApi().model_info(repo, revision=revision, timeout=20, files_metadata=True)
    sizes = {file.rfilename: getattr(file, "size", None) or 0 for file in listing.siblings or ()}
    kind = _check_names(ref, sizes)
    wanted = {name: size for name, size in sizes.items() if _is_wanted(kind, name)}
    return Offer(ref, repo, str(listing.sha), kind, wanted)


def _cached(repo: str, revision: str | None) -> Path | None:
    """The snapshot folder if the cache has every file of it that we would fetch."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for index, kind in _INDEXES.items():
        try:
            folder = Path(
                snapshot_download(
                    repo,
                    revision=revision,
                    allow_patterns=_PATTERNS[kind],
                    ignore_patterns=_IGNORED,
                    local_files_only=True,
                )
            )
        except LocalEntryNotFoundError:
            continue
        if (folder / index).is_file():
            return folder
    return None


def _cached_weights(repo: str, revision: str | None) -> Path | None:
    """The snapshot folder if the cache has weights of it: those that were fetched before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(repo, revision=revision, allow_patterns=["*.safetensors"], local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    return folder if any(folder.rglob("*.safetensors")) else None
