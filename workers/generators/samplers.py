"""The ways from noise to picture: what a job may name, and a fresh scheduler for each call."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers.schedulers import KarrasDiffusionSchedulers

from shared.errors import JobFailed

#: scheduler → class in diffusers, what it is set to, and its name in AUTOMATIC1111's web UI
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "ddim": ("DDIMScheduler", {}, "DDIM"),
    "ddpm": ("DDPMScheduler", {}, "DDPM"),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, "PLMS"),
    "euler": ("EulerDiscreteScheduler", {}, "Euler"),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, "Euler a"),
    "heun": ("HeunDiscreteScheduler", {}, "Heun"),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, "DPM++ 2M"),
    "dpmpp_2m_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
        "DPM++ 2M Karras",
    ),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "DPM++ 2M SDE"),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        "DPM++ 2M SDE Karras",
    ),
    "unipc": ("UniPCMultistepScheduler", {}, "UniPC"),
    "lcm": ("LCMScheduler", {}, "LCM"),
}


#: schedulers that are kept ready to be copied; jobs may ask for any number of shifts
MOST_KEPT = 64


class Samplers:
    """The schedulers that a model may run with."""

    def __init__(self, own: Any) -> None:
        """`own` is the one that came with the model; None if a pipeline's schedulers are to stay as they are."""
        self._own = own
        self._fresh: dict[tuple[str | None, float | None], Any] = {}

    def make(self, name: str | None, flow_shift: float | None = None) -> Any:
        """A fresh scheduler (they keep state), from the model's own settings; None = the pipeline's stays.

        Raises `JobFailed`: `scheduler_unsupported`, `param_unsupported`.
        """
        self.check(name, flow_shift)
        return copy.deepcopy(self._fresh[name, flow_shift])

    def check(self, name: str | None, flow_shift: float | None = None) -> None:
        """Raise what `make` would."""
        if (name, flow_shift) in self._fresh:
            return
        made = self._made(name)
        if len(self._fresh) >= MOST_KEPT:
            self._fresh.clear()
        self._fresh[name, flow_shift] = made if flow_shift is None else _shifted(made, flow_shift)

    def words(self, name: str | None) -> str:
        """The scheduler's name in the web UI's words."""
        if name is not None:
            return SCHEDULERS[name][2]
        own = type(self._own).__name__
        return next((words for kind, _, words in SCHEDULERS.values() if kind == own), own)

    def _made(self, name: str | None) -> Any:
        own = self._own
        if name is None:
            return None if own is None else type(own).from_config(own.config)
        if not _replaceable(own):
            raise JobFailed(
                "scheduler_unsupported",
                f"scheduler={name} does not fit this model, which only runs with its own: leave `scheduler` out",
            )
        kind, settings, _ = SCHEDULERS[name]
        return getattr(diffusers, kind).from_config(own.config, **settings)


def _replaceable(scheduler: Any) -> bool:
    """Whether any of `SCHEDULERS` can stand for it: all of one family.

    A model of rectified flow is not of it, nor one that is told the noise itself in place of a step's number.
    """
    family = {*(each.name for each in KarrasDiffusionSchedulers), "LCMScheduler"}
    own = getattr(scheduler, "config", {})
    return (
        type(scheduler).__name__ in family
        and own.get("prediction_type") != "flow_prediction"
        and own.get("timestep_type") != "continuous"
    )


def _shifted(scheduler: Any, shift: float) -> Any:
    """The same, with another shift of its noise. Raises `JobFailed` if it has none that could be set."""
    own = getattr(scheduler, "config", {})
    name = "flow_shift" if own.get("use_flow_sigmas") else "shift"
    flows = own.get("use_flow_sigmas") or type(scheduler).__name__.startswith("FlowMatch")
    if not flows or name not in own:
        raise JobFailed("param_unsupported", "this model's way from noise to video has no `flow_shift`: remove it")
    if own.get("use_dynamic_shifting"):
        raise JobFailed("param_unsupported", "this model sets its shift by the size of the video: remove `flow_shift`")
    return type(scheduler).from_config(own, **{name: shift})
