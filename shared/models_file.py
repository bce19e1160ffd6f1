"""The operator's `models.toml`: names for models, and what holds for them.

    [models.house-style]
    model = "org/name"                    # a hub id, one of its files, a folder, starter/… or file:…
    revision = "0123456789abcdef…"        # a commit, tag or branch; of a folder its sha256:…
    dtype = "float16"
    queue = "big"
    tenants = ["studio", "press"]
    quantization = "4bit"

    [models.house-lora]
    model = "file:house.safetensors"
    role = "lora"                         # jobs name it beside a model

Workers go by the file on their own host. Where jobs are submitted it is read, too, if it is there: for an early error
and for the queue.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from shared.errors import RequestError
from shared.services import GPU_QUEUE, REMOTE_QUEUE, is_remote
from shared.settings import Settings
from shared.single_files import PLACES, PREFIX
from shared.tasks import did_you_mean
from shared.tasks.adapters import Role

#: longest alias
MAX_ALIAS = 200

_FOLDER = ("/", "./", "../", "~")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)?")
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*|[A-Za-z0-9][\w.-]*/[\w.-]+/[\w./-]+\.safetensors")
_CACHED = re.compile(r"models--(.+)")
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*:")
_DIGEST = re.compile(r"sha256:[0-9a-f]{16}")
_REVISION = r"^[A-Za-z0-9][\w./-]*$"
_QUEUE = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

NumberType = Literal["bfloat16", "float16", "float32"]
Quantization = Literal["8bit", "4bit"]
Offload = Literal["model", "sequential", "none"]


@dataclass(frozen=True, slots=True)
class MemoryWishes:
    """How a model is to be fitted into memory. None: the operator has said nothing."""

    #: bits of a weight while it lies in the memory of a GPU
    quantization: Quantization | None = None
    #: what waits in the host's memory until its turn comes: parts of the `model`, or its layers (`sequential`)
    offload: Offload | None = None
    #: pictures of a microbatch are decoded one after the other
    vae_slicing: bool | None = None
    #: pictures are decoded in tiles
    vae_tiling: bool | None = None
    #: attention is computed head by head
    attention_slicing: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """What the operator has said."""
        said = asdict(self)
        return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True, slots=True)
class NamedModel:
    """What stands under an alias."""

    alias: str
    #: a reference without revision; folders are absolute
    model: str
    #: commit, tag or branch of the hub; of what lies on this host `sha256:…`, as workers tell it
    revision: str | None = None
    #: number type on a GPU, in place of AIGC_DTYPE
    dtype: NumberType | None = None
    #: where its jobs wait unless they say otherwise
    queue: str | None = None
    #: who may use it; None = everyone
    tenants: tuple[str, ...] | None = None
    memory: MemoryWishes = MemoryWishes()
    #: what it is for beside a model; None = it is one itself
    role: Role | None = None

    @property
    def reference(self) -> str:
        """As a worker looks it up."""
        return f"{self.model}@{self.revision}" if self.revision and _is_hub_id(self.model) else self.model

    @property
    def digest(self) -> str | None:
        """What the files of a model on this host have to be, where that is pinned."""
        return None if _is_hub_id(self.model) else self.revision

    def unfit(self, role: Role | None) -> str | None:
        """Why it cannot be named where this role is wanted (None: as a job's model); None if it can."""
        if self.role == role:
            return None
        own = f"a {self.role}, which is named beside a model" if self.role else "a model, and none beside another"
        return f"{self.alias!r} is {own} (models.toml" + (f': add role = "{role}" if it is one)' if role else ")")

    def permits(self, tenant: str) -> bool:
        """Whether jobs of this tenant may use it."""
        return self.tenants is None or tenant in self.tenants

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "alias": self.alias, "model": self.model, "revision": self.revision, "dtype": self.dtype,
            "queue": self.queue, "tenants": None if self.tenants is None else list(self.tenants),
            "memory": self.memory.to_json(), "role": self.role,
        }  # fmt: skip


class ModelsFile:
    """What the file says; of one that is not there, nothing."""

    def __init__(self, models: Mapping[str, NamedModel] | None = None, models_dir: Path | None = None) -> None:
        """`models_dir` is where `file:…` is, if that is known here."""
        #: by alias
        self.models: Mapping[str, NamedModel] = dict(models or {})
        self._models_dir = models_dir
        #: what is named, by where it is, and the files among that by their folder, which may be named in their place
        self._at: dict[PurePosixPath, list[NamedModel]] = {}
        self._in: dict[PurePosixPath, set[PurePosixPath]] = {}
        for named in self.models.values():
            for place in _places(named.model, named.role, models_dir):
                self._at.setdefault(place, []).append(named)
                if place.suffix == ".safetensors":
                    self._in.setdefault(place.parent, set()).add(place)

    def get(self, ref: str) -> NamedModel | None:
        """What a job that names this model means, if that is an alias."""
        return self.models.get(ref)

    def refusal(self, ref: str, tenant: str, role: Role | None = None) -> str | None:
        """Why jobs of this tenant may not use what they name so; None if they may.

        `role` is what it is named for beside a model, if that is where it is named. Who may not use a model by any of
        its aliases may not use it by its own name either, nor a file of it.
        """
        named = self.models.get(ref)
        if named is not None:
            return None if named.permits(tenant) else f"tenant {tenant!r} may not use {ref!r} (models.toml)"
        if not self.models:
            return None
        name, at, revision = ref.partition("@")
        if at and name in self.models:
            return f"{name!r} is an alias of the operator's, who pins its revision: leave @{revision} out"
        meant = _places(ref, role, self._models_dir, there=True)
        reached = {each for place in meant for each in (place, *place.parents, *self._in.get(place, ()))}
        same = (self._at[place] for place in reached if place in self._at)
        if any(not any(one.permits(tenant) for one in aliases) for aliases in same):
            return f"tenant {tenant!r} may not use {ref!r} (models.toml)"
        return None


def read_models_file(settings: Settings) -> ModelsFile:
    """What `models.toml` says. One that is not there says nothing, unless AIGC_MODELS_FILE names it.

    Raises `RequestError` that names the file and the line of everything that is wrong, and what to change.
    """
    path = settings.models_path
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if settings.models_file is None:
            return ModelsFile()
        raise RequestError(f"there is no {path}: write it, or leave AIGC_MODELS_FILE unset") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = raw.decode()
        said = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{path}, line {line}: is not UTF-8: save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{path}: is not TOML: {error}") from None
    models, wrong = _Reader(path, text).read(said)
    if wrong:
        raise RequestError("\n".join(wrong))
    return ModelsFile(models, settings.models_dir)


class _Entry(BaseModel):
    """A table of the file, by the names that may stand in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Annotated[str, Field(min_length=1, max_length=500)]
    revision: Annotated[str, Field(max_length=200)] | None = None
    dtype: NumberType | None = None
    role: Role | None = None
    queue: Annotated[str, Field(max_length=64, pattern=_QUEUE)] | None = None
    tenants: Annotated[list[Annotated[str, Field(max_length=64, pattern=_QUEUE)]], Field(min_length=1)] | None = None
    quantization: Quantization | None = None
    offload: bool | Offload | None = None
    vae_slicing: bool | None = None
    vae_tiling: bool | None = None
    attention_slicing: bool | None = None


class _Reader:
    """Turns what TOML says into models, and what is wrong with it into sentences with their lines."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.split("\n")
        self._wrong: list[tuple[int, str]] = []

    def read(self, said: Mapping[str, Any]) -> tuple[dict[str, NamedModel], list[str]]:
        """The models by alias, and what is wrong."""
        for name in said:
            if name != "models":
                self._say(self._table(name), f"unknown name {name!r}: models stand in tables such as [models.my-name]")
        tables = said.get("models", {})
        if not isinstance(tables, dict):
            self._say(self._key(0, "models"), "models must be tables such as [models.my-name]")
            tables = {}
        named = {alias: self._named(alias, table, tables) for alias, table in tables.items()}
        models = {alias: one for alias, one in named.items() if one is not None}
        return models, [f"{self._path}, line {line}: {what}" for line, what in sorted(self._wrong)]

    def _named(self, alias: str, table: object, tables: Mapping[str, Any]) -> NamedModel | None:
        at, before = self._table("models", alias), len(self._wrong)
        if not isinstance(table, dict):
            self._say(at, f"{alias!r} must be a table: [models.{alias}], and model = … below it")
            return None
        if not _ALIAS.fullmatch(alias) or len(alias) > MAX_ALIAS or alias.startswith("starter/"):
            self._say(
                at, f"{alias!r} can be no alias: letters, digits, dots, dashes and underscores, with one / if you "
                "like (in quotes then); not starter/…, which ships with aigc",
            )  # fmt: skip
        try:
            entry = _Entry.model_validate(table)
        except ValidationError as error:
            said = {str(item["loc"][0]): item for item in reversed(error.errors())}  # of a union's branches the first
            for key, item in said.items():
                self._say(self._key(at, key), f"{alias}.{key}: {_in_words(item)}")
            return None
        model = self._model(alias, entry.model, at, tables)
        if entry.revision is not None:
            self._require_revision(alias, model, entry.revision, at)
        if is_remote(model) and entry.queue == GPU_QUEUE:
            self._say(self._key(at, "queue"), f"{alias}.queue: {model} computes nothing here and may hold no GPU")
        if entry.role is not None:
            self._require_only_files(alias, model, entry, at)
        if len(self._wrong) > before:
            return None
        offload: Offload | None = entry.offload if isinstance(entry.offload, str) else None
        if isinstance(entry.offload, bool):
            offload = "model" if entry.offload else "none"
        return NamedModel(
            alias, model, entry.revision, entry.dtype, entry.queue or (REMOTE_QUEUE if is_remote(model) else None),
            None if entry.tenants is None else tuple(entry.tenants),
            MemoryWishes(entry.quantization, offload, entry.vae_slicing, entry.vae_tiling, entry.attention_slicing),
            entry.role,
        )  # fmt: skip

    def _require_only_files(self, alias: str, model: str, entry: _Entry, at: int) -> None:
        """What stands beside a model waits and is held as that one does."""
        if is_remote(model):
            self._say(self._key(at, "role"), f"{alias}.role: {model} lies with a remote service: leave it out")
        said = entry.model_dump(exclude_none=True, exclude={"model", "revision", "role", "tenants"})
        for key in said:
            self._say(self._key(at, key), f"{alias}.{key}: has no effect on what stands beside a model: leave it out")

    def _model(self, alias: str, model: str, at: int, tables: Mapping[str, Any]) -> str:
        """The reference with an absolute folder; what is wrong with it is noted."""
        line = self._key(at, "model")
        if model.startswith(_FOLDER) or model in (".", ".."):
            try:
                return os.path.normpath(self._path.parent.absolute() / Path(model).expanduser())
            except RuntimeError:
                self._say(line, f"{alias}.model: there is no such home folder: {model!r}")
        elif "@" in model and not _SCHEME.match(model):
            name, _, revision = model.partition("@")
            self._say(line, f'{alias}.model: write model = "{name}", and revision = "{revision}" on a line of its own')
        elif model in tables and model != alias:
            self._say(line, f"{alias}.model: {model!r} is an alias, too: write what that one stands for")
        elif not (model.startswith("starter/") or _SCHEME.match(model) or _HUB_ID.fullmatch(model)):
            self._say(line, f"{alias}.model: must be a hub id (org/name), starter/…, file:… or a folder, got {model!r}")
        return model

    def _require_revision(self, alias: str, model: str, revision: str, at: int) -> None:
        line = self._key(at, "revision")
        if _is_hub_id(model):
            if not re.match(_REVISION, revision) or ".." in revision:
                self._say(line, f"{alias}.revision: must be a commit, a tag or a branch of {model}, got {revision!r}")
        elif is_remote(model):
            self._say(
                line, f"{alias}.revision: {model} lies with a remote service, which has no revisions: leave it out"
            )
        elif not _DIGEST.fullmatch(revision):
            self._say(
                line, f"{alias}.revision: of a model on this host it is the digest of its files, sha256:… with 16 hex "
                f"digits; `aigc models list` shows it; got {revision!r}",
            )  # fmt: skip

    def _say(self, line: int, what: str) -> None:
        self._wrong.append((line, what))

    def _table(self, *names: str) -> int:
        """The line on which a table begins, or on which its name is seen first; 1 where it is written otherwise."""
        dotted = r"\s*\.\s*".join(rf"[\"']?{re.escape(name)}[\"']?" for name in names)
        header = re.compile(rf"\s*\[\s*{dotted}\s*[\].]")
        mention = re.compile(rf"\s*(\[\s*)?({dotted}|[\"']?{re.escape(names[-1])}[\"']?)\s*[=.\]]")
        for pattern in (header, mention):
            for number, line in enumerate(self._lines, 1):
                if pattern.match(line):
                    return number
        return 1

    def _key(self, table: int, key: str) -> int:
        """The line of a key of the table that begins on this line; the table's own line where there is none."""
        wanted = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]")
        for number, line in enumerate(self._lines[table:], table + 1):
            if wanted.match(line):
                return number
            if line.lstrip().startswith("["):
                break
        return max(1, table)


def _in_words(item: ErrorDetails) -> str:
    """What pydantic finds, as a sentence that says what to change."""
    kind, context, got = item["type"], item.get("ctx", {}), f", got {item['input']!r}"
    if kind == "missing":
        return 'is missing: write model = "org/name", a folder, starter/… or file:…'
    if kind == "extra_forbidden":
        return f"unknown name{did_you_mean(str(item['loc'][0]), list(_Entry.model_fields))}"
    if kind == "too_short":
        return "an empty list lets nobody use it: name a tenant, or leave the line out for everyone"
    if item["loc"][0] == "offload":
        return f'must be true, false, "model" or "sequential"{got}'
    words = {
        "literal_error": f"must be one of {context.get('expected')}",
        "bool_type": "must be true or false",
        "string_type": "must be a text in quotes",
        "list_type": 'must be a list such as ["studio", "press"]',
        "string_too_short": "must not be empty",
        "string_too_long": f"must have at most {context.get('max_length')} characters",
        "string_pattern_mismatch": "must be letters, digits, dots, dashes and underscores",
    }
    return words.get(kind, item["msg"]) + got


def _is_hub_id(model: str) -> bool:
    return not (model.startswith((*_FOLDER, "starter/")) or _SCHEME.match(model))


def _places(ref: str, role: Role | None, models_dir: Path | None, *, there: bool = False) -> set[PurePosixPath]:
    """Where what a reference means is, whichever way it is written: on the hub, on this host, with a service.

    The hub takes any case and any revision. A `file:…` may be in several folders; where it has to be `there`, the one
    counts where a worker finds it.
    """
    if ref.startswith(_FOLDER):
        try:
            path = Path(ref).expanduser().resolve()
        except (OSError, RuntimeError):
            return {PurePosixPath(ref)}
        cached = (each[1] for part in path.parts if (each := _CACHED.fullmatch(part)) is not None)
        return {PurePosixPath(path), *(_of_hub(name.replace("--", "/")) for name in cached)}
    if ref.startswith(PREFIX):
        name = ref.removeprefix(PREFIX)
        paths = [] if models_dir is None else [models_dir.expanduser() / place / name for place in PLACES[role]]
        paths = [path for path in paths if path.is_file()][:1] if there else paths
        return {PurePosixPath(PREFIX, role or "-", name), *(PurePosixPath(path.resolve()) for path in paths)}
    return {_of_hub(ref.partition("@")[0]) if _is_hub_id(ref) else PurePosixPath(ref)}


def _of_hub(name: str) -> PurePosixPath:
    """A model of the hub, or one of its files; those without an owner stand beside the owners."""
    return PurePosixPath("hub:", name.casefold() if "/" in name else f"-/{name.casefold()}")
