"""What a job may say, and what is wrong with one that may not: in words that say what to change."""

from __future__ import annotations

import re
import secrets
import struct
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, from_json, to_json

from shared.errors import Problem, RequestError
from shared.jobs import Lane, fingerprint
from shared.services import GPU_QUEUE, REMOTE_QUEUE, is_remote
from shared.single_files import PREFIX, wrong_file
from shared.tasks import Task, did_you_mean, get_task
from shared.tasks.adapters import MAX_LANE, as_lane, models_beside

#: longest metadata of a job, in bytes of JSON
MAX_METADATA = 64 * 1024
#: longest reference to a model
MAX_MODEL = 500
#: longest id of a job by its owner, in characters
MAX_CUSTOM_ID = 256
#: largest seed; what a job has several of uses seed + 1, … too
MAX_SEED = 2**63 - 4097
#: brackets that may stand in params without anyone asking how deep they are nested; a worker reads 200 levels
SURELY_SHALLOW = 100

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
_NOT_PRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
#: what pydantic adds to the path of a field, and no user has written
_TAGS = re.compile(r"(function-|lax-|json-|literal\[).*|str|int|float|bool|list|dict|none")


class JobRequest(BaseModel):
    """The keys of a line of a job file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: Annotated[str, Field(min_length=1, max_length=64)]
    params: dict[str, Any]
    model: Annotated[str, Field(min_length=1, max_length=MAX_MODEL)] | None = None
    custom_id: Annotated[str, Field(min_length=1, max_length=MAX_CUSTOM_ID)] | None = None
    seed: Annotated[int, Field(ge=0, lt=MAX_SEED + 1)] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    queue: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=30 * 86400)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    metadata: dict[str, JsonValue] | None = None
    cache: bool = False


JOB_KEYS = tuple(JobRequest.model_fields)


class ValidJob(NamedTuple):
    """A job that may be stored."""

    line: int
    custom_id: str | None
    lane: Lane
    priority: int
    #: canonical JSON, with every default filled in
    params_json: str
    #: None = to be drawn
    seed: int | None
    metadata_json: str | None
    #: estimated seconds of work
    cost: float
    timeout_s: float | None
    max_attempts: int | None
    #: what it asks for, as a digest; only where identical work is to be done once
    fingerprint: str | None = None


class Invalid(Exception):
    """A job that may not; carries its problems."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


def draw_seeds(count: int) -> tuple[int, ...]:
    """Seeds for jobs that have none: 32 bits, so that every tool of the field can take them."""
    return struct.unpack(f"={count}I", secrets.token_bytes(4 * count))


def validate(line: int, raw: Mapping[str, Any]) -> ValidJob:
    """Check one job. Raises `Invalid` with everything that is wrong with it."""
    try:
        request = JobRequest.model_validate(dict(raw))
    except ValidationError as error:
        raise Invalid([_explained(line, "", item, JOB_KEYS) for item in error.errors()]) from None
    try:
        task = get_task(request.task)
    except RequestError as error:
        raise Invalid([Problem(line, "task", str(error))]) from None
    problems = _own_problems(line, request, task) + truth_as_number(line, "", raw, request)
    params: BaseModel | None = None
    try:
        params = task.params.model_validate(request.params)
    except ValidationError as error:
        problems += explained(line, task, error)
    else:
        problems += truth_as_number(line, "params.", request.params, params)
        problems += _model_problems(line, request, task, params)
    if params is None or problems:
        raise Invalid(problems)
    params_json = as_json(line, "params", params)
    metadata = as_json(line, "metadata", request.metadata) if request.metadata is not None else None
    if metadata and len(metadata.encode()) > MAX_METADATA:
        got = len(metadata.encode())
        raise Invalid([Problem(line, "metadata", f"must be at most {MAX_METADATA} bytes of JSON, got {got}")])
    model = request.model or ""
    queue = request.queue or _usual_queue(task, model)
    lane = Lane(queue, task.name, _absolute(model), _adapters(line, params))
    once = fingerprint(lane, params_json, request.seed) if request.cache and request.seed is not None else None
    return ValidJob(
        line=line,
        custom_id=request.custom_id,
        lane=lane,
        priority=request.priority,
        params_json=params_json,
        seed=request.seed,
        metadata_json=metadata,
        cost=float(task.cost(params)),
        timeout_s=request.timeout_s,
        max_attempts=request.max_attempts,
        fingerprint=once,
    )


def _own_problems(line: int, request: JobRequest, task: Task) -> list[Problem]:
    problems = []
    if task.needs_model and request.model is None:
        example = task.example.get("model", "a model")
        problems.append(Problem(line, "model", f"is required for {task.name}, for example {example!r}"))
    if not task.needs_model and task.model_for is None and request.model is not None:
        problems.append(Problem(line, "model", f"{task.name} takes no model: leave it out"))
    if request.model is not None and (wrong := _wrong_model(request.model)):
        problems.append(Problem(line, "model", wrong))
    if request.cache and request.seed is None:
        problems.append(Problem(line, "cache", "needs a seed: without one, no job is identical to another"))
    if request.model is not None and is_remote(request.model):
        problems += _remote_problems(line, request)
    if request.custom_id is not None and _NOT_PRINTABLE.search(request.custom_id):
        problems.append(Problem(line, "custom_id", "must not contain control characters"))
    return problems


def _model_problems(line: int, request: JobRequest, task: Task, params: BaseModel) -> list[Problem]:
    """Where it depends on the params whether a job has to name a model."""
    if task.model_for is None:
        return []
    wanted = task.model_for(params)
    if wanted is None and request.model is not None:
        return [Problem(line, "model", "nothing in these params takes a model: leave it out")]
    if wanted is not None and request.model is None:
        return [Problem(line, "model", f"is required: {wanted}")]
    return []


def _remote_problems(line: int, request: JobRequest) -> Iterator[Problem]:
    if request.queue == GPU_QUEUE:
        message = f"{request.model} computes nothing here and may hold no GPU: leave `queue` out ({REMOTE_QUEUE})"
        yield Problem(line, "queue", message)
    if request.cache:
        message = f"is not for {request.model}: a service may change its model, so nothing tells what is identical"
        yield Problem(line, "cache", message)


def _usual_queue(task: Task, model: str) -> str:
    """Where a job waits that does not say: by its task, and with a remote model where no GPU is held."""
    return REMOTE_QUEUE if is_remote(model) else task.queue


def truth_as_number(line: int, prefix: str, said: Mapping[str, Any], read: BaseModel) -> list[Problem]:
    """`true` where a number is wanted: pydantic would read it as 1."""
    return [
        Problem(line, f"{prefix}{name}", f"must be a number, got {str(value).lower()}")
        for name, value in said.items()
        if isinstance(value, bool) and isinstance(understood := getattr(read, name, value), (int, float))
        and not isinstance(understood, bool)
    ]  # fmt: skip


def as_json(line: int, field: str, value: BaseModel | Mapping[str, Any]) -> str:
    """Canonical JSON that a worker can read back. Raises `Invalid`."""
    try:
        made = _without_the_unsaid(value) if isinstance(value, BaseModel) else to_json(value).decode()
        if made.count("[") + made.count("{") > SURELY_SHALLOW:
            from_json(made)
    except PydanticSerializationError:
        message = "is not valid Unicode: it holds half of a surrogate pair, such as \\ud800"
        raise Invalid([Problem(line, field, message)]) from None
    except ValueError:
        raise Invalid([Problem(line, field, "is nested too deeply")]) from None
    return made


def _without_the_unsaid(params: BaseModel) -> str:
    """Fields that are None because nobody set them are left out; a None that is somebody's value stays."""
    values = params.__dict__
    unsaid = {name for name in _optional(type(params)) if values[name] is None}
    return params.model_dump_json(exclude=unsaid or None)


@cache
def _optional(params: type[BaseModel]) -> tuple[str, ...]:
    return tuple(name for name, about in params.model_fields.items() if about.default is None)


@cache
def _wrong_model(model: str) -> str | None:
    """What is wrong with the form of a model reference, or None. Whether it exists is seen by the worker."""
    if model.startswith(("/", "./", "../", "~")):
        if _NOT_PRINTABLE.search(model):
            return "must not contain control characters"
        try:
            return f"is longer than {MAX_MODEL} characters" if len(_absolute(model)) > MAX_MODEL else None
        except RuntimeError:
            return f"there is no such home folder: {model!r}"
    if is_remote(model):
        return None
    if model.startswith(PREFIX):
        return wrong_file(model)
    if re.match(r"[A-Za-z0-9+]+:", model):
        kind = model.partition(":")[0]
        return (
            f"references like {kind}:… are not supported yet; use a hub id, a folder, starter/…, "
            f"{PREFIX}name.safetensors or service:model"
        )
    if not _HUB_ID.fullmatch(model):
        return (
            "must be a hub id (name or org/name, with optional @revision), starter/…, or a folder that begins with "
            f"./, ~/ or /, got {model!r}"
        )
    return None


def _adapters(line: int, params: BaseModel) -> str:
    """The models that stand beside the job's own, as its lane holds them. Raises `Invalid`."""
    lane = as_lane(models_beside(params))
    if len(lane) > MAX_LANE:
        message = f"name models by {len(lane)} characters in all, and at most {MAX_LANE} are kept: use shorter names"
        raise Invalid([Problem(line, "params", message)])
    return lane


def _absolute(model: str) -> str:
    """A worker has another working folder: relative folders are settled here."""
    return str(Path(model).expanduser().absolute()) if model.startswith(("./", "../", "~")) else model


def explained(line: int | None, task: Task, error: ValidationError) -> list[Problem]:
    """What is wrong with the params of a job."""
    known = list(task.params.model_fields)
    return [_explained(line, "params", item, known) for item in error.errors()]


def _explained(line: int | None, prefix: str, item: ErrorDetails, known: Iterable[str]) -> Problem:
    parts = [prefix, *(str(part) for part in item["loc"] if not _TAGS.fullmatch(str(part)))]
    name = printable(".".join(part for part in parts if part))
    return Problem(line, name if len(name) <= 100 else f"{name[:97]}…", _in_words(item, list(known)))


def printable(text: str) -> str:
    """What other people wrote, fit to be shown: it can neither steer the terminal nor fail to be written down."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


#: pydantic's words for what is wrong, in ours
_PLAIN = {"missing": "is required", "string_unicode": "is not valid Unicode", "recursion_loop": "is nested too deeply"}
_MUST_BE = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a finite number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text",
    "dict_type": "an object",
    "list_type": "a list",
    "literal_error": "one of {expected}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "of the form {pattern}",
}


def _in_words(item: ErrorDetails, known: list[str]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    got = f", got {_short(item['input'])}"
    bounds = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le"),
              "greater_than": ("more than", "gt"), "less_than": ("less than", "lt")}  # fmt: skip
    if kind in bounds:
        word, key = bounds[kind]
        return f"must be {word} {context[key]}{got}"
    if kind == "extra_forbidden":
        return f"unknown name{did_you_mean(str(item['loc'][-1])[:100], known)}"
    if kind in ("string_too_short", "too_short"):
        return (
            "must not be empty" if context["min_length"] == 1 else f"must have at least {context['min_length']} items"
        )
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters, got {len(item['input'])}"
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _MUST_BE:
        return f"must be {_MUST_BE[kind].format(**context)}{got}"
    if kind == "value_error":
        return str(context["error"])
    if "depth exceeded" in item["msg"]:
        return "is nested too deeply"
    return f"{item['msg'][0].lower()}{item['msg'][1:]}{got}"


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}…"


# --- values that come as text: CSV cells, --set k=v -------------------------------------------------------------------


def from_text(task_name: str, name: str, value: str) -> Any:
    """The value of a param that was written as text: as it is where the param is a text, else as JSON if it is JSON.

    Of a param that is one text or a list of them, only what is a JSON list is read as JSON.
    """
    kinds = _kinds(task_name, name)
    if not kinds - {str}:
        return value
    try:
        read = from_json(value, allow_inf_nan=False)
    except ValueError:
        return value
    return value if str in kinds and not isinstance(read, list) else read


@cache
def _kinds(task_name: str, name: str) -> frozenset[object]:
    """What a param may be, a name out of several counting as a text; just a text where there is no such param."""
    try:
        field = get_task(task_name).params.model_fields.get(name)
    except RequestError:
        field = None
    if field is None:
        return frozenset({str})
    kinds = [field.annotation]
    if isinstance(field.annotation, types.UnionType) or typing.get_origin(field.annotation) is typing.Union:
        kinds = [kind for kind in typing.get_args(field.annotation) if kind is not types.NoneType]
    bare = [typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind for kind in kinds]
    return frozenset(str if typing.get_origin(kind) is typing.Literal else kind for kind in bare)


def main_param(task_name: str) -> str:
    """The param that a bare text stands for: the first one of the task, such as `prompt`."""
    return next(iter(get_task(task_name).params.model_fields))
