"""`chaos`: work that takes a while, and may be harmful on the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.tasks import Params, Task

Poison = Literal["none", "segfault", "exit", "hang", "raise", "oom"]


class ChaosParams(Params):
    """What a `chaos` job may set."""

    message: Annotated[str, Field(description="a part of what comes back")]
    steps: Annotated[int, Field(ge=1, le=10_000, description="how many steps the work has")] = 1
    step_s: Annotated[float, Field(ge=0, le=60, description="seconds that one step sleeps")] = 0.0
    outputs: Annotated[int, Field(ge=1, le=8, description="how many files come back")] = 1
    own_object: Annotated[bool, Field(description="let each file be an object of its own, not a part of a pack")] = (
        False
    )
    checkpoint_every: Annotated[int, Field(ge=0, description="steps between two checkpoints; 0: none")] = 0
    fail: Annotated[bool, Field(description="end in an error that no other attempt mends")] = False
    poison: Annotated[Poison, Field(description="what the job does to its worker after its first step")] = "none"


TASK = Task(
    name="chaos",
    summary="work that takes a while, and may be harmful on the way",
    params=ChaosParams,
    needs_model=False,
    queue="cpu",
    cost=lambda params: 0.01 + params.steps * params.step_s,
    example={"task": "chaos", "params": {"message": "hello"}},
)
