"""What a job of pictures names beside its model: LoRA adapters, a ControlNet, an IP-Adapter.

All of it is in force for the calls of the jobs that name it, and leaves no trace in those of others.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from shared.errors import JobFailed
from shared.tasks.adapters import Control, Likeness, Lora
from workers.generators import Work
from workers.generators.controls import Controls
from workers.generators.input_pictures import fitted, open_picture
from workers.generators.likenesses import Likenesses
from workers.generators.loras import Loras
from workers.generators.memory import MemoryPlan


class Companions:
    """All of that, for one pipeline."""

    def __init__(
        self, pipe: Any, accepts: Mapping[str, Any], dtype: torch.dtype, device: str, plan: MemoryPlan
    ) -> None:
        """`accepts` is what the pipeline's call takes."""
        self._pipe = pipe
        self._plan = plan
        self._loras = Loras(pipe)
        self._controls = Controls(pipe, dtype, device)
        self._likenesses = Likenesses(pipe, accepts)

    def check(self, params: Any) -> None:
        """Raise `JobFailed` if the model cannot do with what the job names."""
        if loras(params):
            self._loras.check()
        if control(params) is not None:
            self._controls.check()
        if likeness(params) is not None:
            self._likenesses.check()
        if (control(params) is not None or likeness(params) is not None) and self._plan.held_on_host:
            raise JobFailed(
                "param_unsupported",
                "this model is held in the host's memory here, where a ControlNet or an IP-Adapter cannot join it: "
                "remove them, or use a smaller model",
            )

    def key(self, params: Any) -> tuple[Hashable, ...]:
        """What jobs have to share to run in one call; empty for one that names nothing."""
        beside: list[Hashable] = [(each.model, each.weight) for each in loras(params)]
        if (net := control(params)) is not None:
            beside.append((net.model, net.scale, net.start, net.end))
        if (like := likeness(params)) is not None:
            beside.append((like.model, like.scale, like.images))
        return tuple(beside)

    def names(self, params: Any) -> tuple[str, ...]:
        """The models that a job names beside its own: with each a call takes more memory."""
        named = [*loras(params), *(each for each in (control(params), likeness(params)) if each is not None)]
        return tuple(each.model for each in named)

    def use(self, job: Work) -> bool:
        """Have in force what this job names, and nothing else; whether prompts may be read differently from now on.

        Raises `JobFailed` if something of it does not fit the model.
        """
        like = likeness(job.params)
        self._likenesses.use(job.adapters[like.model] if like is not None else None)
        changed = self._loras.use(loras(job.params), job.adapters)
        if control(job.params) is not None:
            self.pipeline(job)
        return changed

    def pipeline(self, job: Work) -> Any:
        """The pipeline that the job is to run in."""
        net = control(job.params)
        return self._pipe if net is None else self._controls.pipeline(job.adapters[net.model])

    def given(self, jobs: Sequence[Work], size: tuple[int, int], guided: bool) -> dict[str, Any]:
        """What a call is told of it, for a picture of each of these jobs in turn."""
        params, given = jobs[0].params, dict[str, Any]()
        if (net := control(params)) is not None:
            name = "control_image" if "control_image" in self._controls.accepts() else "image"
            opened = {job.job_id: open_picture(job.inputs["controlnet.image"].path) for job in jobs}
            fit = {id_: fitted(picture, size, getattr(params, "fit", "crop")) for id_, picture in opened.items()}
            given |= {name: [fit[job.job_id] for job in jobs], "controlnet_conditioning_scale": net.scale}
            given |= {"control_guidance_start": net.start, "control_guidance_end": net.end}
        if (like := likeness(params)) is not None:
            pictures = [open_picture(jobs[0].inputs[f"ip_adapter.images.{n}"].path) for n in range(len(like.images))]
            given["ip_adapter_image_embeds"] = self._likenesses.embeddings(pictures, like.scale, guided)
        return given

    def clear(self) -> None:
        """Take everything out."""
        self._likenesses.clear()
        self._loras.clear()
        self._controls.clear()


def loras(params: Any) -> Sequence[Lora]:
    """The LoRA adapters of a job."""
    return getattr(params, "adapters", None) or ()


def control(params: Any) -> Control | None:
    """The ControlNet of a job."""
    return getattr(params, "controlnet", None)


def likeness(params: Any) -> Likeness | None:
    """The IP-Adapter of a job."""
    return getattr(params, "ip_adapter", None)
