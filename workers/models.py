"""`python -m workers.models`, called by `aigc models`: which models are on this host, fetched ahead, checked."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import AigcError, JobFailed, RequestError
from shared.models_file import ModelsFile, read_models_file
from shared.settings import Settings, load_settings
from shared.sizes import gigabytes
from workers.catalogue import device_for, find, find_beside
from workers.generators import Device, ModelFiles
from workers.hub_offer import Offer
from workers.needs import expected, weights_of
from workers.residency import served_by
from workers.weights import read_header

#: exit status where a model is not as it should be, and where the hub does not answer
WRONG, UNREACHABLE = 1, 3

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def main() -> int:
    """Entry point. Exit status: 0 all is well, 1 a model is not, 2 the request is wrong, 3 the hub does not answer."""
    parser = argparse.ArgumentParser(prog="aigc models", description="the models of this host")
    parser.add_argument("action", choices=("list", "pull", "verify"))
    parser.add_argument("names", nargs="*", help="aliases and references; default: every alias of models.toml")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    arguments = parser.parse_args()
    try:
        return _run(arguments.action, arguments.names, as_json=arguments.json)
    except AigcError as error:
        _note(f"aigc: {error}")
        return error.exit_status


def _run(action: str, names: Sequence[str], *, as_json: bool) -> int:
    settings = load_settings()
    models = read_models_file(settings)
    chosen = list(names) or sorted(models.models)
    if not chosen and action != "list":
        raise RequestError(f"{settings.models_path} names no models: name some, such as aigc models {action} org/name")
    if not sys.stderr.isatty():
        from huggingface_hub import utils

        utils.disable_progress_bars()  # type: ignore[attr-defined] # it is documented, and not marked as exported
    host = Host(settings, models)
    reports = [{"list": host.look, "pull": host.pull, "verify": host.verify}[action](name) for name in chosen]
    if as_json:
        print(json.dumps({"models": reports}, ensure_ascii=False))  # noqa: T201 - the face of a command
    else:
        for report in reports:
            print(_in_words(report))  # noqa: T201 - the same
    if action == "list" or all(report["ok"] for report in reports):
        return 0
    return UNREACHABLE if any(report["retryable"] for report in reports) else WRONG


class Host:
    """The models of this host, one at a time; every answer is a report for machines."""

    def __init__(self, settings: Settings, models: ModelsFile) -> None:
        self._settings = settings
        self._models = models

    def look(self, name: str) -> dict[str, Any]:
        """What is here of a model; the hub is not asked."""
        try:
            files = self._find(name, offline=True)
        except JobFailed as error:
            return self._failed(name, error)
        return {**self._about(name, files), "tasks": served_by(files)}

    def pull(self, name: str) -> dict[str, Any]:
        """Fetch what loading needs of a model, and nothing else; what is here already is not fetched again."""
        try:
            files = self._find(name, offline=False)
        except JobFailed as error:
            return self._failed(name, error)
        return self._about(name, files)

    def verify(self, name: str) -> dict[str, Any]:
        """Compare every file of a model that is here with its digest, and its weights with what they say themselves."""
        try:
            files = self._find(name, offline=True)
        except JobFailed as error:
            return self._failed(name, error)
        about = self._about(name, files)
        _note(f"{name}: reading {about['files']} file(s), {gigabytes(about['bytes'])} …")
        wrong, unknown = _compared(files) if _is_of_the_hub(files) else ([], 0)
        wrong += _unreadable(files)
        if unknown:
            wrong.append(f"{unknown} file(s) have no digest in this cache: fetch them again")
        return {**about, "ok": not wrong, "problems": wrong, "pinned": self._is_pinned(name, files)}

    def _find(self, name: str, *, offline: bool) -> ModelFiles:
        def announce(offer: Offer) -> None:
            wanted = sum(offer.sizes[file] for file in offer.missing)
            _note(f"{name}: fetching {len(offer.missing)} file(s), {gigabytes(wanted)}, of {offer.repo} …")

        named = self._models.get(name)
        if named is not None and named.role is not None:
            return find_beside(named.role, name, settings=self._settings, models=self._models, offline=offline)
        return find(name, settings=self._settings, models=self._models, judge=announce, offline=offline)

    def _about(self, name: str, files: ModelFiles) -> dict[str, Any]:
        named = self._models.get(name)
        device = device_for(named, Device("cuda:0", self._settings.dtype))
        paths = [] if files.service is not None else [path for path in _paths(files) if path.is_file()]
        return {
            "name": name, "model": files.stands_for or name, "here": True, "ok": True, "problems": [],
            "retryable": False, "folder": str(_home(files)), "revision": files.revision, "files": len(paths),
            "bytes": sum(path.stat().st_size for path in paths), "dtype": device.dtype,
            "memory_bytes": expected(weights_of(files), device, files.memory),
            "alias": named.to_json() if named else None,
        }  # fmt: skip

    def _failed(self, name: str, error: JobFailed) -> dict[str, Any]:
        named = self._models.get(name)
        return {
            "name": name, "model": named.reference if named else name, "here": False, "ok": False,
            "problems": [error.message], "code": error.code, "retryable": error.retryable,
            "alias": named.to_json() if named else None,
        }  # fmt: skip

    def _is_pinned(self, name: str, files: ModelFiles) -> bool:
        """Whether what is here is what the operator wants here, and nothing that came later under the same name."""
        named = self._models.get(name)
        pinned = named.revision if named else name.partition("@")[2]
        return pinned == files.revision


def _home(files: ModelFiles) -> Path:
    return files.folder if files.weights is None else files.weights.parent


def _paths(files: ModelFiles) -> list[Path]:
    """Every file of a model; of one in a single file that, and what is its own beside it."""
    if files.weights is None:
        folders = [files.folder]
    else:
        folders = [files.weights.with_suffix(".config")]
        folders += [files.folder / "image_encoder"] if files.kind == "ip-adapter" else []
    inside = [path for folder in folders for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return sorted([*inside, *([files.weights] if files.weights is not None else [])])


def _is_of_the_hub(files: ModelFiles) -> bool:
    return any(folder.parent.name == "snapshots" for folder in (files.folder, *files.folder.parents))


def _compared(files: ModelFiles) -> tuple[list[str], int]:
    """What is wrong with the files of a model of the hub, and how many have no digest to compare them with.

    The hub's cache keeps contents under their digests, sha256 of large files and git's of small ones, and links there.
    """
    wrong, unknown = list[str](), 0
    for path in _paths(files):
        told = path.readlink().name if path.is_symlink() else ""
        name = path.relative_to(_home(files)).as_posix()
        if not path.exists():
            wrong.append(f"{name} is gone: pull it again")
        elif not (_SHA256.fullmatch(told) or _GIT.fullmatch(told)):
            unknown += 1
        elif _digest(path, git=len(told) == 40) != told:
            wrong.append(f"{name} is not what was fetched: delete {path.resolve()} and pull it again")
    return wrong, unknown


def _digest(path: Path, *, git: bool) -> str:
    with path.open("rb") as file:
        if not git:
            return hashlib.file_digest(file, "sha256").hexdigest()
        # Git's name for a content, no secret.
        sha1 = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        while piece := file.read(2**20):
            sha1.update(piece)
        return sha1.hexdigest()


def _unreadable(files: ModelFiles) -> list[str]:
    wrong, folder = [], _home(files)
    for path in _paths(files):
        if path.suffix != ".safetensors":
            continue
        try:
            read_header(path)
        except ValueError as error:
            where = path.parent.relative_to(folder).as_posix()
            wrong.append(str(error) if where == "." else f"{where}: {error}")
    return wrong


def _in_words(report: Mapping[str, Any]) -> str:
    """One model, in a line or a few."""
    stands_for = f"  {report['model']}" if report["model"] != report["name"] else ""
    if not report["here"]:
        return f"FAIL  {report['name']}{stands_for}\n      {report['problems'][0]}"
    size = f"{report['files']} files, {gigabytes(report['bytes'])}"
    loose = "" if report.get("pinned", True) else "  (its revision is not pinned)"
    first = f"{'ok  ' if report['ok'] else 'FAIL'}  {report['name']}{stands_for}  {report['revision']}  {size}{loose}"
    return "\n".join([first, *(f"      {problem}" for problem in report["problems"])])


def _note(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - the face of a command


if __name__ == "__main__":
    sys.exit(main())
