"""The common job, checked quickly: what `producer.requests.validate` finds, for jobs that leave nothing to explain.

The lines of a submission are mostly alike: the same task, model and queue, other params. What was found right about one
of them is not looked at again in the next. Whatever is unusual about a job, or wrong, is left to `validate`, which has
the words for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from producer.requests import (
    JOB_KEYS,
    MAX_CUSTOM_ID,
    MAX_METADATA,
    MAX_SEED,
    Invalid,
    ValidJob,
    as_json,
    truth_as_number,
    validate,
)
from shared.jobs import Lane, fingerprint
from shared.tasks import Task, get_task
from shared.tasks.adapters import MAX_LANE, as_lane, models_beside

#: kinds of jobs that are remembered
_KINDS = 1000
#: keys by which jobs are of the same kind
_ALIKE = ("task", "model", "queue", "priority", "timeout_s", "max_attempts")
#: keys that are looked at in every job
_OWN = ("params", "custom_id", "seed", "metadata", "cache")
_KEYS = frozenset((*_ALIKE, *_OWN)).intersection(JOB_KEYS)

_METADATA = TypeAdapter(dict[str, JsonValue], config=ConfigDict(allow_inf_nan=False))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What was found about all jobs that say the same about the keys in `_ALIKE`."""

    task: Task
    lane: Lane
    priority: int
    timeout_s: float | None
    max_attempts: int | None


class Validator:
    """Checks the jobs of one submission, one after the other, as `validate` does; remembers what kinds there were."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Any, ...], _Kind] = {}

    def __call__(self, line: int, raw: Mapping[str, Any]) -> ValidJob:
        """Check one job. Raises `Invalid` with everything that is wrong with it."""
        get = raw.get
        alike = (get("task"), get("model"), get("queue"), get("priority", 0), get("timeout_s"), get("max_attempts"))
        # True is no number here, and equal to one.
        if bool in map(type, alike):
            return validate(line, raw)
        try:
            kind = self._kinds.get(alike)
        except TypeError:  # a list, say
            return validate(line, raw)
        if kind is None:
            job = validate(line, raw)
            self._remember(alike, job)
            return job
        return _own(line, raw, kind) or validate(line, raw)

    def _remember(self, alike: tuple[Any, ...], job: ValidJob) -> None:
        # What a relative folder means is not said by its name.
        if (alike[1] or "") == job.lane.model and len(self._kinds) < _KINDS:
            task = get_task(job.lane.task)
            self._kinds[alike] = _Kind(task, job.lane, job.priority, job.timeout_s, job.max_attempts)


def _own(line: int, raw: Mapping[str, Any], kind: _Kind) -> ValidJob | None:
    """A job of this kind as `validate` gives it, or None where that has to look."""
    if kind.task.model_for is not None:
        return None
    get = raw.get
    said, custom_id, seed, once = get("params"), get("custom_id"), get("seed"), get("cache", False)
    if (
        type(said) is not dict
        or type(once) is not bool
        or not _KEYS.issuperset(raw)
        or (custom_id is not None and not _is_plain(custom_id))
        or (seed is not None and (type(seed) is not int or not 0 <= seed <= MAX_SEED))
        or (once and seed is None)
    ):
        return None
    try:
        params = kind.task.params.model_validate(said)
        if bool in map(type, said.values()) and truth_as_number(line, "params.", said, params):
            return None
        params_json = as_json(line, "params", params)
        metadata = _metadata(line, raw["metadata"]) if get("metadata") is not None else None
    except (ValidationError, Invalid):
        return None
    beside = as_lane(models_beside(params))
    if len(beside) > MAX_LANE:
        return None
    lane = kind.lane if beside == kind.lane.adapters else kind.lane._replace(adapters=beside)
    asked = fingerprint(lane, params_json, seed) if once and seed is not None else None
    return ValidJob(
        line, custom_id, lane, kind.priority, params_json, seed, metadata, float(kind.task.cost(params)),
        kind.timeout_s, kind.max_attempts, asked,
    )  # fmt: skip


def _is_plain(custom_id: object) -> bool:
    """Whether this is an id at first sight: what can be printed holds no control character and is valid Unicode."""
    return type(custom_id) is str and 0 < len(custom_id) <= MAX_CUSTOM_ID and custom_id.isprintable()


def _metadata(line: int, said: object) -> str:
    """Raises `Invalid` or `ValidationError` where `validate` has to look."""
    if type(said) is not dict:
        raise Invalid([])
    made = as_json(line, "metadata", _METADATA.validate_python(said))
    if len(made) > MAX_METADATA // 4:  # characters, of up to four bytes each
        raise Invalid([])
    return made
