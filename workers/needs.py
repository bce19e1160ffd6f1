"""What models take in memory: told from their files before they are loaded, then as it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shared.errors import JobFailed
from shared.models_file import Quantization
from shared.scheduling import ModelKey
from shared.settings import Settings
from shared.sizes import gigabytes
from workers.footprint import capacity, host_total
from workers.generators import Device, ModelFiles
from workers.generators.memory import MemoryPlan
from workers.hub_offer import Offer
from workers.weights import Weights, read_header, weights_in

#: most models of which it is told what they take
MOST_TOLD = 64
#: by how much weights can grow when they are loaded: from two bytes to four
GROWTH = 2


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes, and what a worker has for it; in bytes."""

    bytes: int
    #: of the device; of its host, too, where parts of the model may wait there
    has: int
    #: number type that it was told for
    dtype: str
    #: whether parts of it may wait in the host's memory
    on_host: bool = False

    @property
    def too_big(self) -> bool:
        """Whether it does not fit, whatever else leaves the memory."""
        return self.bytes > self.has

    def to_json(self) -> dict[str, object]:
        """For the word that is left of it."""
        return {"bytes": self.bytes, "has": self.has, "dtype": self.dtype, "on_host": self.on_host}


class TooBig(JobFailed):
    """A model that this worker has no room for, whatever leaves its memory: others may have."""

    def __init__(self, ref: str, need: Need) -> None:
        self.need = need
        super().__init__(
            "model_too_big",
            f"{ref} needs about {gigabytes(need.bytes)} of memory, and this worker has {gigabytes(need.has)}",
            retryable=True,
        )


def weights_of(files: ModelFiles) -> Mapping[str, Weights]:
    """What a model's files hold, by part; nothing of one that has no files here."""
    if files.kind not in ("diffusers", "transformers"):
        return {}
    if files.weights is not None:
        return _parts_of(files.weights)
    parts = weights_in(files.folder)
    if files.kind == "diffusers":  # a pipeline's folder may hold the same weights once more as single files at its top
        parts.pop(".", None)
    return parts


def _parts_of(file: Path) -> Mapping[str, Weights]:
    """Of a checkpoint in one file, by what its tensors' names begin with; as it is stored if it cannot be read."""
    try:
        tensors = read_header(file)
    except ValueError:
        return {".": Weights(rest=file.stat().st_size)}
    names = {tensor.name.partition(".")[0] for tensor in tensors}
    return {name: Weights.of(each for each in tensors if each.name.partition(".")[0] == name) for name in names}


def expected(parts: Mapping[str, Weights], device: Device, plan: MemoryPlan) -> int:
    """Bytes that a model is expected to take, in the number type in which it is loaded."""
    return sum(weights.loaded(device.dtype, _bits(device, plan)) for weights in parts.values())


def need(parts: Mapping[str, Weights], kind: str, device: Device, plan: MemoryPlan, settings: Settings) -> Need:
    """What a model takes at least, and what there is for it when nothing else is in memory.

    Of a pipeline on a GPU one part at a time has to fit there, unless its operator wants all of it there.
    """
    total, has = expected(parts, device, plan), capacity(settings, device)
    offloaded = plan.offload in ("model", "sequential") or (kind == "diffusers" and plan.offload is None)
    if device.name == "cpu" or not offloaded:
        return Need(total, has, device.dtype)
    each = [expected({name: weights}, device, plan) for name, weights in parts.items()]
    largest = max(each, default=0)
    if kind == "diffusers" and plan.offload != "sequential" and largest > has:
        return Need(largest, has, device.dtype)
    return Need(total, has + host_total(), device.dtype, on_host=True)


def _bits(device: Device, plan: MemoryPlan) -> Quantization | None:
    """Weights are quantized on a GPU alone."""
    return None if device.name == "cpu" else plan.quantization


class Needs:
    """What the models of one worker take, as far as it is known."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is known yet."""
        self._settings = settings
        self._known: dict[ModelKey, Need] = {}
        #: bytes that models took when they were loaded here, by all that decides on it
        self._measured: dict[tuple[str, str, MemoryPlan], int] = {}

    @property
    def told(self) -> dict[str, dict[str, object]]:
        """As `model for task`, for the word that is left of it; the latest `MOST_TOLD`."""
        latest = list(self._known.items())[-MOST_TOLD:]
        return {f"{model} for {task}": known.to_json() for (task, model), known in latest}

    def judge(self, key: ModelKey, offer: Offer, device: Device, plan: MemoryPlan) -> None:
        """Nothing is fetched that has no place here. Raises `TooBig`."""
        if offer.weights_bytes * GROWTH > capacity(self._settings, device):
            self._require_place(key, offer.weights, offer.kind, device, plan)

    def estimate(self, key: ModelKey, files: ModelFiles, device: Device) -> int:
        """Bytes to make room for: as measured when it was loaded before, else by its files. Raises `TooBig`."""
        measured = self._measured.get((files.revision, device.dtype, files.memory))
        if measured:
            return measured
        parts = weights_of(files)
        self._require_place(key, parts, files.kind, device, files.memory)
        return expected(parts, device, files.memory)

    def measured(self, key: ModelKey, files: ModelFiles, device: Device, size: int) -> None:
        """It was loaded, and took so many bytes of its device."""
        if device.name != "cpu":  # nobody can tell what a process on a CPU takes for its model alone
            self._measured[files.revision, device.dtype, files.memory] = size
            if key in self._known:
                self._known[key] = replace(self._known[key], bytes=size)

    def forget(self, key: ModelKey) -> None:
        """Its name has come to mean another model."""
        self._known.pop(key, None)

    def _require_place(
        self, key: ModelKey, parts: Mapping[str, Weights], kind: str, device: Device, plan: MemoryPlan
    ) -> None:
        self._known.pop(key, None)
        self._known[key] = need(parts, kind, device, plan, self._settings)
        if self._known[key].too_big:
            raise TooBig(key[1], self._known[key])
