"""`echo`: gives its input back after optional work. No model; for trying and measuring the queue itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue

from shared.tasks import Params, Task


class EchoParams(Params):
    """What an `echo` job may set."""

    message: Annotated[JsonValue, Field(description="what comes back: a text, or any JSON value")]
    steps: Annotated[int, Field(ge=1, le=1_000_000, description="how many steps the work has")] = 1
    step_s: Annotated[float, Field(ge=0, le=3600, description="seconds that one step sleeps")] = 0.0
    checkpoint_every: Annotated[
        int,
        Field(ge=0, description="publish a checkpoint after every so many steps, and go on from it; 0: never"),
    ] = 0
    signed: Annotated[
        bool,
        Field(description="give back a JSON object with the message, the worker session and the steps it took"),
    ] = False
    fail: Annotated[
        bool,
        Field(description="fail at the last step instead of giving the message back; for trying what happens then"),
    ] = False


def _cost(params: EchoParams) -> float:
    return 1e-4 + params.steps * params.step_s


TASK = Task(
    name="echo",
    summary="give the input back after optional work (no model; for trying the queue)",
    params=EchoParams,
    needs_model=False,
    queue="cpu",
    cost=_cost,
    example={"task": "echo", "params": {"message": "hello"}},
)
