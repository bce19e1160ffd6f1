"""Models in memory: found by what their files say, kept by their worth within the memory that there is.

A model that has to leave a GPU goes into the memory of its host, where it can, and comes back from there: that takes a
fraction of the time in which it is loaded from its files.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points

from shared.errors import AigcError, JobFailed, ModelRejected
from shared.models_file import ModelsFile, NamedModel
from shared.scheduling import Memory, ModelKey
from shared.services import is_remote
from shared.settings import Settings
from shared.tasks.adapters import Role, of_lane
from workers.catalogue import device_for, find, find_beside, plan_for
from workers.footprint import MB, Footprint, host_room, room
from workers.generators import Device, Generator, ModelFiles, NotNow
from workers.needs import Needs, TooBig
from workers.pinned import free_cached, out_of_memory
from workers.worth import Worth

log = logging.getLogger("aigc.worker")

#: a model that failed to load is not tried again on this worker for so many seconds; doubled each time, up to the last
SET_ASIDE_S = 30.0
MAX_SET_ASIDE_S = 600.0
#: most remote models that are kept ready to be asked: they take next to no room
MOST_REMOTE = 64
#: a model counts as in steady use if it is used again within so many times what its loading takes
STEADY = 6.0

#: size and time of the one file that an adapter is
_Stamp = tuple[int, int] | None


class SetAside(JobFailed):
    """The model could not be had for a reason that may pass: its jobs wait, uncharged, until it is tried again."""

    def __init__(self, error: JobFailed, for_s: float) -> None:
        #: seconds until this worker tries again
        self.for_s = for_s
        #: what the model takes, where it is too big for this worker; one with more memory may have it at once
        self.need = error.need if isinstance(error, TooBig) else None
        super().__init__(error.code, error.message, retryable=True)


@dataclass(slots=True)
class _Failure:
    """A model that failed to load."""

    error: JobFailed
    until: float
    pause_s: float
    #: first of the failures without a success between them, in seconds since 1970
    since: float
    #: what stood under its name then, if that is an alias
    named: NamedModel | None


@dataclass(frozen=True, slots=True)
class Resident:
    """A generator in memory, and the files it came from."""

    generator: Generator
    files: ModelFiles | None
    #: of the device, as measured; where it is parked, as many of the host
    bytes: int = 0
    #: when it came into memory, by the monotonic clock
    loaded_at: float = 0.0
    #: where it computes
    device: Device = field(default_factory=lambda: Device("cpu", "float32"))
    #: what stood under its name when it was loaded, if that is an alias
    named: NamedModel | None = None
    #: what jobs have named beside it, by role and name, each as it was found, and what stood under its name then
    beside: dict[tuple[Role, str], tuple[ModelFiles, _Stamp, NamedModel | None]] = field(default_factory=dict)


class Residency:
    """Loads generators on demand and keeps those that are worth most.

    One thread at a time loads and drops; `models`, `memory` and `expect` may be called from another one meanwhile.
    """

    def __init__(
        self, settings: Settings, device: Callable[[], Device], models: Callable[[], ModelsFile] = ModelsFile
    ) -> None:
        """`device` is asked on the first load of a model: it may import torch. `models` is what the operator says.

        A model whose alias comes to stand for something else is loaded anew when it is wanted next.
        """
        self._settings = settings
        self._device = device
        self._models = models
        #: what models take
        self.needs = Needs(settings)
        self._resident: dict[ModelKey, Resident] = {}
        self._parked: dict[ModelKey, Resident] = {}
        self._remote: dict[ModelKey, Resident] = {}
        self._failures: dict[ModelKey, _Failure] = {}
        self._load_s: dict[ModelKey, float] = {}
        self._worth = Worth()
        self._wanted: frozenset[ModelKey] = frozenset()

    @property
    def models(self) -> set[str]:
        """References of the models in memory."""
        said = self._models()
        return {key[1] for key, one in list(self._resident.items()) if key[1] and one.named == said.get(key[1])}

    def memory(self, current: int | None) -> Memory:
        """What the scheduler has to know; `current` is the lane that was served last."""
        clock, resident = time.monotonic(), dict(self._resident)
        since = {key: clock - one.loaded_at for key, one in resident.items()}
        return Memory(since, dict(self._load_s), current, tight=self._tight(resident, clock))

    def _tight(self, resident: Collection[ModelKey], clock: float) -> bool:
        """Whether another model takes the place of one that is in steady use."""
        if sum(1 for _, model in resident if model) < self._settings.resident_models and not self._settings.resident_mb:
            return False
        return all(
            self._worth.in_steady_use(key, clock, STEADY * self._load_s.get(key, 0.0)) for key in resident if key[1]
        )

    def expect(self, wanted: Collection[ModelKey]) -> None:
        """Jobs wait for these models: they are dropped after all others."""
        self._wanted = frozenset(wanted)

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
        clock, said = time.monotonic(), self._models()
        return [
            key for key, failure in list(self._failures.items())
            if failure.until > clock and (isinstance(failure.error, SetAside) or not passing_only)
            and failure.named == said.get(key[1])
        ]  # fmt: skip

    def get(self, task: str, model: str) -> Resident:
        """The generator for this task and model.

        Raises `SetAside` if it may be had later, another `JobFailed` if the job cannot be done with it, and
        `RequestError` if this worker is set up wrongly.
        """
        key = (task, model)
        self._forget_what_changed(key)
        if self._is_remote(model):
            return self._asked(key)
        if key not in self._resident:
            self._resident[key] = self._had(key)
        found = self._resident[key]
        load_s, size_mb = self._load_s.get(key, 0.0), found.bytes / MB
        self._worth.used(key, time.monotonic(), load_s=load_s, size_mb=size_mb)
        return found

    def beside(self, task: str, model: str, adapters: str) -> Mapping[str, ModelFiles]:
        """The files of what jobs name beside a model that is in memory, as their lane says it; by name.

        They stay what they were found to be while the model is in memory, as it does itself; a file of this host that
        has changed is found anew, and so is an alias that has come to mean something else. Raises what `get` does.
        """
        if not adapters:
            return {}
        known, said = self._resident[task, model].beside, self._models()
        for role, name in of_lane(adapters):
            found = known.get((role, name))
            if found is None or found[1:] != (_stamp(found[0]), said.get(name)):
                try:
                    files = find_beside(role, name, settings=self._settings, models=said)
                except JobFailed as error:
                    raise (SetAside(error, SET_ASIDE_S) if error.retryable else error) from error
                known[role, name] = (files, _stamp(files), said.get(name))
        return {name: known[role, name][0] for role, name in of_lane(adapters)}

    def put_aside(self, task: str, model: str, error: NotNow) -> SetAside:
        """A model that is of no use for a while, as its generator says: its jobs wait, like one that cannot be had."""
        later = SetAside(error, error.for_s)
        until = time.monotonic() + error.for_s
        self._failures[task, model] = _Failure(later, until, SET_ASIDE_S / 2, error.since, self._models().get(model))
        return later

    def _is_remote(self, model: str) -> bool:
        named = self._models().get(model)
        return is_remote(model if named is None else named.reference)

    def _asked(self, key: ModelKey) -> Resident:
        """A remote model is in nobody's memory, and takes the place of none."""
        self._require_had(key)
        if key not in self._remote:
            made = self._had(key)
            while len(self._remote) >= MOST_REMOTE:
                self._remote.pop(next(iter(self._remote))).generator.unload()
            self._remote[key] = made
        return self._remote[key]

    def _require_had(self, key: ModelKey) -> None:
        known = self._failures.get(key)
        if known is not None and known.until > time.monotonic():
            raise known.error

    def _had(self, key: ModelKey) -> Resident:
        task, model = key
        self._require_had(key)
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
        return resident

    def _forget_what_changed(self, key: ModelKey) -> None:
        """The operator has given this alias another meaning: what is known of it concerns another model."""
        named = self._models().get(key[1])
        for held in (self._resident, self._parked, self._remote):
            if key in held and held[key].named != named:
                _unload(key, held.pop(key))
                if held is not self._remote:
                    gc.collect()
                    free_cached(self._device().name)
                self.needs.forget(key)
        if key in self._failures and self._failures[key].named != named:
            del self._failures[key]
            self.needs.forget(key)

    def _noted(self, key: ModelKey, error: JobFailed, *, charged: bool = False) -> JobFailed:
        """Remember a failure; what may pass and is nobody's fault becomes `SetAside`."""
        known = self._failures.get(key)
        pause_s = min(known.pause_s * 2, MAX_SET_ASIDE_S) if known else SET_ASIDE_S
        if isinstance(error, TooBig):  # it does not shrink
            pause_s = MAX_SET_ASIDE_S
        until, since = time.monotonic() + pause_s, known.since if known else time.time()
        later = SetAside(error, pause_s) if error.retryable else error
        self._failures[key] = _Failure(later, until, pause_s, since, self._models().get(key[1]))
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
            self._drop_all()
        raise AssertionError("unreachable")

    def _load(self, task: str, model: str) -> Resident:
        key = (task, model)
        if key in self._parked:
            return self._brought_back(key)
        if not model:
            return Resident(_generator_for(task, None).load(None, Device("cpu", "float32")), None, 0, time.monotonic())
        said = self._models()
        named = said.get(model)
        if self._is_remote(model):
            asked, nowhere = find(model, settings=self._settings, models=said), Device("remote", "")
            made = _generator_for(task, asked).load(asked, nowhere)
            return Resident(made, asked, 0, time.monotonic(), nowhere, named)
        device, plan = device_for(named, self._device()), plan_for(named)
        files = find(
            model, settings=self._settings, models=said,
            judge=lambda offer: self.needs.judge(key, offer, device, plan),
        )  # fmt: skip
        generator_class = _generator_for(task, files)
        if unheeded := sorted(files.memory.asked - generator_class.heeds):
            message = f"{model} is set to {', '.join(unheeded)}, which has no effect on what does {task}: leave it out"
            raise ModelRejected("memory_unsupported", message)
        estimate = self.needs.estimate(key, files, device)
        self._make_room(estimate)
        footprint, started = Footprint(device), time.monotonic()
        generator = generator_class.load(files, device)
        took, clock = time.monotonic() - started, time.monotonic()
        # On a CPU weights may be mapped: they count before they are read.
        size = footprint.grown() if device.name != "cpu" else max(estimate, footprint.grown())
        self._load_s[key] = took
        self.needs.measured(key, files, device, size)
        log.info("loaded %s (%s, %.0f MB) in %.1f s", model, files.revision[:19], size / MB, took)
        return Resident(generator, files, size, clock, device, named)

    def _brought_back(self, key: ModelKey) -> Resident:
        # Out of the way first: what has to leave the device may take its place. Should it fail half-way, it is nowhere,
        # and loaded from its files the next time.
        parked = self._parked.pop(key)
        self._make_room(parked.bytes)
        started = time.monotonic()
        parked.generator.unpark()
        clock = time.monotonic()
        self._load_s[key] = clock - started
        log.info("brought %s back from the host's memory in %.2f s", key[1], clock - started)
        return replace(parked, loaded_at=clock)

    # --- room ---

    def _make_room(self, needed: int) -> None:
        """Drop what is worth least until the next model fits, or nothing is left that could go."""
        while self._held and (
            len(self._held) >= self._settings.resident_models
            or room(self._settings, self._device(), sum(self._resident[key].bytes for key in self._held)) < needed
        ):
            self._drop(self._worth.least(self._held, self._wanted))

    @property
    def _held(self) -> list[ModelKey]:
        """What takes room: generators without a model take none."""
        return [key for key in self._resident if key[1]]

    def _drop_all(self) -> None:
        """Out of memory: of a GPU's, or of the host's, where nothing may be parked then."""
        for key in self._held:
            self._drop(key)
        if self._device().name == "cpu":
            self.clear()

    def _drop(self, key: ModelKey) -> None:
        """Out of the device's memory: into the host's if it can be, else away."""
        resident = self._resident.pop(key)
        self._worth.dropped(key)
        if resident.files is not None and self._device().name != "cpu" and self._park(resident):
            self._parked[key] = resident
            log.info("parked %s in the host's memory", key[1])
        else:
            _unload(key, resident)
        del resident
        gc.collect()
        if key[1]:
            free_cached(self._device().name)

    def _park(self, resident: Resident) -> bool:
        """Whether the host took it; what has been there for longest makes room."""
        while self._parked and resident.bytes > self._host_room():
            oldest = next(iter(self._parked))
            _unload(oldest, self._parked.pop(oldest))
            gc.collect()
        if resident.bytes > self._host_room():
            return False
        try:
            return resident.generator.park()
        except Exception as error:
            if not out_of_memory(error):
                log.exception("a model could not be parked; it is dropped")
            return False

    def _host_room(self) -> int:
        return host_room(self._settings, sum(one.bytes for one in self._parked.values()))

    def clear(self) -> None:
        """Free everything, of the host's memory too."""
        for key in list(self._resident):
            _unload(key, self._resident.pop(key))
        for key in list(self._parked):
            _unload(key, self._parked.pop(key))
        for key in list(self._remote):
            _unload(key, self._remote.pop(key))
        gc.collect()


def _stamp(files: ModelFiles) -> _Stamp:
    if files.weights is None:
        return None
    try:
        about = files.weights.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def _unload(key: ModelKey, resident: Resident) -> None:
    resident.generator.unload()
    log.info("dropped %s from memory", key[1] or "a generator")


def served_by(files: ModelFiles) -> dict[str, str]:
    """The tasks that a model can do, by what its files say, and the generator of each."""
    tasks = {point.name.partition(".")[0] for point in entry_points(group="aigc.generators")}
    found: dict[str, str] = {}
    for task in sorted(tasks):
        try:
            found[task] = _generator_for(task, files).__name__
        except (JobFailed, ImportError):
            continue
    return found


def _generator_for(task: str, files: ModelFiles | None) -> type[Generator]:
    kind = files.kind if files else "none"
    found = [point for point in entry_points(group="aigc.generators") if _matches(point, task, kind)]
    for point in sorted(found, key=lambda point: (-point.name.count("."), point.name)):  # the special ones first
        candidate: type[Generator] = point.load()
        if candidate.serves(files):
            return candidate
    if files is None:
        raise JobFailed("no_generator", f"this worker has no generator for task {task!r}", retryable=True)
    if files.service is not None:
        raise ModelRejected("model_wrong_task", f"{files.ref} cannot do {task}: no remote service is asked for that")
    if found:
        raise ModelRejected("model_wrong_task", f"{files.ref} cannot do {task}: it is {_described(files)}")
    raise ModelRejected("model_wrong_task", f"{files.ref} cannot do {task}: it is a {kind} model, {_described(files)}")


def _matches(point: EntryPoint, task: str, kind: str) -> bool:
    return point.name == f"{task}.{kind}" or point.name.startswith(f"{task}.{kind}.")


def _described(files: ModelFiles) -> str:
    made_of = files.config.get("_class_name") or ", ".join(files.config.get("architectures") or ())
    return f"made for {made_of}" if made_of else f"of type {files.config.get('model_type', 'unknown')!r}"
