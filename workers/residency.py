"""Models in memory: found by what their files say, kept until the least recently used one has to go."""

from __future__ import annotations

import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from shared.errors import AigcError, JobFailed, ModelRejected
from shared.settings import Settings
from workers.generators import Device, Generator, ModelFiles
from workers.model_files import resolve
from workers.pinned import free_cached, out_of_memory

log = logging.getLogger("aigc.worker")

#: a model that failed to load is not tried again on this worker for so many seconds; doubled each time, up to the last
SET_ASIDE_S = 30.0
MAX_SET_ASIDE_S = 600.0


class SetAside(JobFailed):
    """The model could not be had for a reason that may pass: its jobs wait, uncharged, until it is tried again."""

    def __init__(self, error: JobFailed, for_s: float) -> None:
        #: seconds until this worker tries again
        self.for_s = for_s
        super().__init__(error.code, error.message, retryable=True)


@dataclass(slots=True)
class _Failure:
    """A model that failed to load."""

    error: JobFailed
    until: float
    pause_s: float
    #: first of the failures without a success between them, in seconds since 1970
    since: float


@dataclass(frozen=True, slots=True)
class Resident:
    """A generator in memory, and the files it came from."""

    generator: Generator
    files: ModelFiles | None


class Residency:
    """Loads generators on demand and keeps the most recently used ones."""

    def __init__(self, settings: Settings, device: Callable[[], Device]) -> None:
        """`device` is asked on the first load of a model: it may import torch."""
        self._settings = settings
        self._device = device
        self._resident: OrderedDict[tuple[str, str], Resident] = OrderedDict()
        self._failures: dict[tuple[str, str], _Failure] = {}

    @property
    def models(self) -> set[str]:
        """References of the models in memory."""
        return {model for _, model in self._resident if model}

    @property
    def set_aside(self) -> dict[str, dict[str, object]]:
        """Models that failed to load lately, as `model for task`: why, since when, and when they are tried again."""
        clock, wall = time.monotonic(), time.time()
        return {
            f"{model} for {task}": {
                "reason": str(failure.error),
                "since": round(failure.since),
                "again_at": round(wall + failure.until - clock),
            }
            for task, model in self._recent(passing_only=False)
            if (failure := self._failures[task, model])
        }

    @property
    def set_aside_for_now(self) -> set[tuple[str, str]]:
        """(task, model) that may be had later, so that their jobs need not be claimed before."""
        return set(self._recent(passing_only=True))

    def _recent(self, *, passing_only: bool) -> list[tuple[str, str]]:
        clock = time.monotonic()
        return [
            key for key, failure in self._failures.items()
            if failure.until > clock and (isinstance(failure.error, SetAside) or not passing_only)
        ]  # fmt: skip

    def get(self, task: str, model: str) -> Resident:
        """The generator for this task and model.

        Raises `SetAside` if it may be had later, another `JobFailed` if the job cannot be done with it, and
        `RequestError` if this worker is set up wrongly.
        """
        key = (task, model)
        if key in self._resident:
            self._resident.move_to_end(key)
            return self._resident[key]
        known = self._failures.get(key)
        if known is not None and known.until > time.monotonic():
            raise known.error
        try:
            resident = self._load_with_room(task, model)
        except AigcError as error:
            if not isinstance(error, JobFailed):
                raise
            raise self._noted(key, error) from error
        except Exception as defect:
            log.exception("%s failed to load", model or task)
            broken = JobFailed("model_load_failed", f"{type(defect).__name__}: {defect}", retryable=True)
            raise self._noted(key, broken, charged=True) from defect
        self._failures.pop(key, None)
        self._resident[key] = resident
        return resident

    def _noted(self, key: tuple[str, str], error: JobFailed, *, charged: bool = False) -> JobFailed:
        """Remember a failure; what may pass and is nobody's fault becomes `SetAside`."""
        known = self._failures.get(key)
        pause_s = min(known.pause_s * 2, MAX_SET_ASIDE_S) if known else SET_ASIDE_S
        until = time.monotonic() + pause_s
        later = SetAside(error, pause_s) if error.retryable else error
        self._failures[key] = _Failure(later, until, pause_s, known.since if known else time.time())
        return error if charged else later

    def _load_with_room(self, task: str, model: str) -> Resident:
        """Load; if memory does not suffice, once more without all the others. Then it may be had later."""
        for alone in (False, True):
            try:
                return self._load(task, model)
            except AigcError:
                raise
            except Exception as error:
                if not out_of_memory(error):
                    raise
                log.warning("%s does not fit into memory: %s", model or task, error)
                if alone or not self._resident:
                    message = f"it does not fit into the memory of this worker's device: {error}"
                    raise JobFailed("model_too_big", message, retryable=True) from error
            self.clear()
            free_cached(self._device().name)
        raise AssertionError("unreachable")

    def _load(self, task: str, model: str) -> Resident:
        files = resolve(model, settings=self._settings) if model else None
        generator_class = _generator_for(task, files)
        while len(self._resident) >= self._settings.resident_models:
            self.drop_one()
        started = time.monotonic()
        generator = generator_class.load(files, self._device() if files else Device("cpu", "float32"))
        if files:
            log.info("loaded %s (%s) in %.1f s", model, files.revision[:19], time.monotonic() - started)
        return Resident(generator, files)

    def drop_one(self) -> bool:
        """Free the least recently used model; False if there is none."""
        if not self._resident:
            return False
        (_, model), resident = self._resident.popitem(last=False)
        resident.generator.unload()
        del resident
        gc.collect()
        log.info("dropped %s from memory", model or "a generator")
        return True

    def clear(self) -> None:
        """Free everything."""
        while self.drop_one():
            pass


def _generator_for(task: str, files: ModelFiles | None) -> type[Generator]:
    kind = files.kind if files else "none"
    found = [point for point in entry_points(group="aigc.generators") if _matches(point, task, kind)]
    for point in sorted(found, key=lambda point: point.name):
        candidate: type[Generator] = point.load()
        if candidate.serves(files):
            return candidate
    if files is None:
        raise JobFailed("no_generator", f"this worker has no generator for task {task!r}", retryable=True)
    if found:
        raise ModelRejected("model_wrong_task", f"{files.ref} cannot do {task}: it is {_described(files)}")
    raise ModelRejected("model_wrong_task", f"{files.ref} cannot do {task}: it is a {kind} model, {_described(files)}")


def _matches(point: EntryPoint, task: str, kind: str) -> bool:
    return point.name == f"{task}.{kind}" or point.name.startswith(f"{task}.{kind}.")


def _described(files: ModelFiles) -> str:
    made_of = files.config.get("_class_name") or ", ".join(files.config.get("architectures") or ())
    return f"made for {made_of}" if made_of else f"of type {files.config.get('model_type', 'unknown')!r}"
