"""LoRA adapters on a pipeline of diffusers: brought in for the jobs that name them, and gone for those that do not."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from safetensors import SafetensorError

from shared.errors import JobFailed
from shared.tasks.adapters import Lora
from workers.generators import ModelFiles
from workers.pinned import out_of_memory

#: adapters that stay in memory beside a model while its jobs name others
KEPT = 8


class Loras:
    """The adapters of one pipeline.

    Those in use stay loaded while the next call names some of them too. A call without any runs on the model as it was
    loaded: the layers are taken out, not only switched off.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        # It would say which parts an adapter leaves alone; whether it fits at all we look ourselves.
        logging.getLogger("diffusers.loaders").setLevel(logging.ERROR)
        #: what is loaded, by the names that peft knows it under, the one that was used last at the end
        self._loaded: dict[str, str] = {}
        self._in_force: tuple[tuple[str, float], ...] = ()

    def check(self) -> None:
        """Raise `JobFailed` if this pipeline, or this host, takes none."""
        if not hasattr(self._pipe, "load_lora_weights"):
            raise JobFailed("param_unsupported", "this model's pipeline takes no LoRA adapters: remove `adapters`")
        if find_spec("peft") is None:
            raise JobFailed("param_unsupported", "this worker has no peft, which LoRA adapters need: pip install peft")

    def use(self, wanted: Sequence[Lora], files: Mapping[str, ModelFiles]) -> bool:
        """Have these in force, and no others; whether that changes anything.

        Raises `JobFailed` with `adapter_unfit` if one is not for this model: then none is in force.
        """
        force = tuple((_name(files[each.model]), each.weight) for each in wanted)
        if force == self._in_force:
            return False
        if not wanted:
            self.clear()
            return True
        try:
            for each in wanted:
                self._load(files[each.model])
            names = [name for name, _ in force]
            self._drop([name for name in self._loaded if name not in names][: max(0, len(self._loaded) - KEPT)])
            self._pipe.set_adapters(names, [weight for _, weight in force])
        except BaseException:
            self.clear()
            raise
        self._in_force = force
        return True

    def clear(self) -> None:
        """Take all of them out."""
        if self._loaded:
            self._pipe.unload_lora_weights()
        self._loaded, self._in_force = {}, ()

    def _load(self, files: ModelFiles) -> None:
        name = _name(files)
        if name in self._loaded:
            self._loaded[name] = self._loaded.pop(name)
            return
        if files.weights is None:
            raise JobFailed("adapter_unfit", f"{files.ref} is no LoRA adapter: it is a whole model")
        self._loaded[name] = files.ref
        try:
            self._pipe.load_lora_weights(
                str(files.weights.parent), weight_name=files.weights.name, adapter_name=name, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, NotImplementedError) as error:
            if out_of_memory(error):
                raise
            raise _unfit(files, str(error).strip().partition("\n")[0]) from error
        if not any(name in names for names in self._pipe.get_list_adapters().values()):
            raise _unfit(files, "none of its layers is in this model")

    def _drop(self, names: Sequence[str]) -> None:
        if names:
            self._pipe.delete_adapters(list(names))
        for name in names:
            del self._loaded[name]


def _name(files: ModelFiles) -> str:
    """What peft knows an adapter as: no dots, and another one once the file has changed."""
    return "lora_" + hashlib.sha256(f"{files.ref} {files.revision}".encode()).hexdigest()[:16]


def _unfit(files: ModelFiles, why: str) -> JobFailed:
    return JobFailed(
        "adapter_unfit", f"{files.ref} does not fit this model ({why}): use an adapter that was made for its kind"
    )
