"""From a model reference to files on this host.

    starter/<name>            a small model that ships with the project
    /…  ./…  ../…  ~…         a folder on this host
    name, org/name[@revision] a model of the Hugging Face hub, downloaded once and then taken from the cache

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
from shared.settings import Settings
from shared.starters import starter_folders
from workers.generators import ModelFiles
from workers.hub_offer import Offer

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_UNSUPPORTED = re.compile(r"(file|s3|[A-Za-z][\w+.-]*):")
_COMMON = ["*.json", "*.txt", "*.model", "*.jinja", "*.vocab"]
# A diffusers repository often carries the same weights once more as single files at its top: only folders count.
_PATTERNS = {"diffusers": [*_COMMON, "*/*.safetensors"], "transformers": [*_COMMON, "*.safetensors"]}
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
_WHOLE = 64 * 2**20
_PIECE = 2**20


def resolve(
    ref: str, *, settings: Settings, judge: Callable[[Offer], None] | None = None, offline: bool = False
) -> ModelFiles:
    """The files of the model that a job names.

    `judge` may raise before anything is fetched; where it is to be `offline`, nothing is. Raises `ModelRejected`
    (trying again does not help): `model_not_found`, `model_not_a_model`, `model_pickle_only`,
    `model_needs_remote_code`, `model_not_allowed`, `model_reference_unsupported`. Raises `JobFailed`, retryable:
    `model_unreachable` when the hub does not answer and the cache does not have the model, `model_disk_full` when there
    is no room for it.
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
    if match := _UNSUPPORTED.match(ref):
        raise ModelRejected(
            "model_reference_unsupported",
            f"{ref}: references that begin with {match[0]} are not supported yet; "
            "give a hub id, a folder (such as ./my-model) or starter/<name>",
        )
    return _hub(ref, settings.models_allowed, judge, offline)


def _require_allowed(ref: str, name: str, allowed: Sequence[str]) -> None:
    """Where the operator has set a list, a hub id or the path of a folder has to match one of its patterns."""
    if allowed and not any(fnmatchcase(name, pattern) for pattern in allowed):
        raise ModelRejected(
            "model_not_allowed", f"{ref} may not run here; allowed: {', '.join(allowed)} (AIGC_MODELS_ALLOWED)"
        )


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
            what += "; single weight files are not supported, save the model as a folder (save_pretrained)"
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
        folder = _download(ref, repo, revision or None, judge)
    # The cache links its files to where it keeps their contents: those links are its own, not the model's.
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    kind, config = _read(ref, folder, names)
    return ModelFiles(ref, folder, folder.name, kind, config)


def _download(ref: str, repo: str, revision: str | None, judge: Callable[[Offer], None] | None) -> Path:
    """The snapshot folder of the revision (its name is the commit), fetched if it is not in the cache."""
    from huggingface_hub import snapshot_download
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
        offer = _offer(ref, repo, revision)
        if offer.missing:
            offer.require_disk()
            if judge is not None:
                judge(offer)
        patterns = _PATTERNS[offer.kind]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=_IGNORED))
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
        if (cached := _cached(repo, revision)) is not None:
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
