"""Models as jobs name them, as their own or beside it: by an alias of the operator's, or by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shared.errors import ModelRejected
from shared.models_file import ModelsFile, NamedModel
from shared.settings import Settings
from shared.tasks.adapters import Role, is_plain
from workers.generators import Device, ModelFiles
from workers.generators.memory import PLAIN, MemoryPlan
from workers.hub_offer import Offer
from workers.model_files import resolve, resolve_adapter


def find(
    ref: str,
    *,
    settings: Settings,
    models: ModelsFile,
    judge: Callable[[Offer], None] | None = None,
    offline: bool = False,
) -> ModelFiles:
    """The files of a model, which may be an alias. Raises as `resolve`, and `ModelRejected`: `model_changed` if the
    files are not those that are pinned, `model_wrong_role` if the alias is for what stands beside a model.

    What the operator has named may run, whatever AIGC_MODELS_ALLOWED says of the rest.
    """
    named = models.get(ref)
    if named is None:
        return resolve(ref, settings=settings, judge=judge, offline=offline)
    if unfit := named.unfit(None):
        raise ModelRejected("model_wrong_role", unfit)
    files = resolve(named.reference, settings=_anything(settings), judge=judge, offline=offline)
    return replace(_as_pinned(files, named), memory=plan_for(named))


def find_beside(role: Role, ref: str, *, settings: Settings, models: ModelsFile, offline: bool = False) -> ModelFiles:
    """The files of what a job names beside its model, which may be an alias. Raises as `find`."""
    named = models.get(ref)
    if named is None:
        if is_plain(ref):
            raise ModelRejected(
                "model_not_found", f"there is no alias {ref} in models.toml; a hub id has an owner: org/name"
            )
        return resolve_adapter(role, ref, settings=settings, offline=offline)
    if unfit := named.unfit(role):
        raise ModelRejected("model_wrong_role", unfit)
    files = resolve_adapter(role, named.reference, settings=_anything(settings), offline=offline)
    return _as_pinned(files, named)


def _anything(settings: Settings) -> Settings:
    """What the operator has named may run, whatever AIGC_MODELS_ALLOWED says of the rest."""
    return settings.model_copy(update={"models_allowed": ()})


def _as_pinned(files: ModelFiles, named: NamedModel) -> ModelFiles:
    """The files of an alias, under its name. Raises `ModelRejected` with `model_changed`."""
    if named.digest not in (None, files.revision):
        raise ModelRejected(
            "model_changed",
            f"{named.alias}: the files of {named.model} have the digest {files.revision}, and models.toml pins "
            f"{named.digest}",
        )
    return replace(files, ref=named.alias, stands_for=named.reference)


def device_for(named: NamedModel | None, device: Device) -> Device:
    """The device, with the number type that the operator wants for this model. A CPU always computes in float32."""
    if named is None or named.dtype is None or device.name == "cpu":
        return device
    return replace(device, dtype=named.dtype)


def plan_for(named: NamedModel | None) -> MemoryPlan:
    """How the operator wants this model to be held in memory."""
    return PLAIN if named is None else MemoryPlan(dtype=named.dtype, **named.memory.to_json())
