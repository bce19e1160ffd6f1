"""Models as jobs name them: by an alias of the operator's, or by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shared.errors import ModelRejected
from shared.models_file import ModelsFile, NamedModel
from shared.settings import Settings
from workers.generators import Device, ModelFiles
from workers.generators.memory import PLAIN, MemoryPlan
from workers.hub_offer import Offer
from workers.model_files import resolve


def find(
    ref: str,
    *,
    settings: Settings,
    models: ModelsFile,
    judge: Callable[[Offer], None] | None = None,
    offline: bool = False,
) -> ModelFiles:
    """The files of a model, which may be an alias. Raises as `resolve`, and `ModelRejected` with `model_changed`.

    What the operator has named may run, whatever AIGC_MODELS_ALLOWED says of the rest.
    """
    named = models.get(ref)
    if named is None:
        return resolve(ref, settings=settings, judge=judge, offline=offline)
    anything = settings.model_copy(update={"models_allowed": ()})
    files = resolve(named.reference, settings=anything, judge=judge, offline=offline)
    if named.digest not in (None, files.revision):
        raise ModelRejected(
            "model_changed",
            f"{ref}: the files of {named.model} have the digest {files.revision}, and models.toml pins {named.digest}",
        )
    return replace(files, ref=ref, stands_for=named.reference, memory=plan_for(named))


def device_for(named: NamedModel | None, device: Device) -> Device:
    """The device, with the number type that the operator wants for this model. A CPU always computes in float32."""
    if named is None or named.dtype is None or device.name == "cpu":
        return device
    return replace(device, dtype=named.dtype)


def plan_for(named: NamedModel | None) -> MemoryPlan:
    """How the operator wants this model to be held in memory."""
    return PLAIN if named is None else MemoryPlan(dtype=named.dtype, **named.memory.to_json())
