"""`echo`: the smallest generator there is, and the one to copy from. See docs/adding-a-generator.md."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from shared.errors import JobFailed
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work


class Echo(Generator):
    """Gives each job's message back: a text as text, anything else as JSON."""

    version: ClassVar[int] = 1
    resumes: ClassVar[bool] = True

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """There is no model."""
        return cls()

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
