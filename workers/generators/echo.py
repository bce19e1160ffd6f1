"""`echo`: the smallest generator there is, and the one to copy from. See docs/adding-a-generator.md."""

from __future__ import annotations

import json
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, Self

from shared.errors import JobFailed
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work

#: most jobs that sleep one after the other in one microbatch
MOST_SLEEPERS = 32


class Echo(Generator):
    """Gives each job's message back: a text as text, anything else as JSON."""

    version: ClassVar[int] = 1
    resumes: ClassVar[bool] = True
    microbatch: ClassVar[int | None] = 1024

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """There is no model."""
        return cls()

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Those that take no time in any number, and apart from those that sleep."""
        quick = [job for job in jobs if not job.params.step_s]
        slow = [job for job in jobs if job.params.step_s]
        few = min(limit, MOST_SLEEPERS)
        return [
            *(quick[start : start + limit] for start in range(0, len(quick), limit)),
            *(slow[start : start + few] for start in range(0, len(slow), few)),
        ]

    def most(self, jobs: Sequence[Work], limit: int) -> int:
        """As `cut` does it."""
        return min(limit, MOST_SLEEPERS) if jobs[0].params.step_s else limit

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """Sleepers take their time, the others none."""
        return bool(jobs[0].params.step_s)

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """One job after the other, sleeping `step_s` per step."""
        for job in jobs:
            begin = int(job.checkpoint.read()) if job.checkpoint else 0
            self._count(job, begin, run)
            if not run.wanted(job.job_id):
                continue
            if job.params.fail:
                yield Failed(job.job_id, JobFailed("echo_failed", "the job asked to fail (params.fail is true)"))
            else:
                yield Done(job.job_id, [_output(job, begin, run)])

    def _count(self, job: Work, begin: int, run: Run) -> None:
        """Take the steps that an earlier attempt has not taken, and remember how far it is."""
        params = job.params
        for step in range(begin, params.steps):
            if params.step_s:
                time.sleep(params.step_s)
            run.step([job.job_id], step + 1, params.steps)
            if not run.wanted(job.job_id):
                return
            if params.checkpoint_every and (step + 1) % params.checkpoint_every == 0:
                run.publish(job.job_id, Output("text/plain", str(step + 1).encode(), role="checkpoint"))


def _output(job: Work, begin: int, run: Run) -> Output:
    message = job.params.message
    if job.params.signed:
        message = {"message": message, "session": run.session, "began_at_step": begin, "steps": job.params.steps}
    if isinstance(message, str):
        return Output("text/plain", message.encode())
    return Output("application/json", json.dumps(message, ensure_ascii=False).encode())
