"""`echo`: the smallest generator there is, and the one to copy from. See docs/adding-a-generator.md."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Self

from shared.errors import JobFailed
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work


class Echo(Generator):
    """Gives each job's message back: a text as text, anything else as JSON."""

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """There is no model."""
        return cls()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """One job after the other, sleeping `step_s` per step."""
        for job in jobs:
            for step in range(job.params.steps):
                if job.params.step_s:
                    time.sleep(job.params.step_s)
                run.step([job.job_id], step + 1, job.params.steps)
                if not run.wanted(job.job_id):
                    break
            if not run.wanted(job.job_id):
                continue
            if job.params.fail:
                yield Failed(job.job_id, JobFailed("echo_failed", "the job asked to fail (params.fail is true)"))
                continue
            message = job.params.message
            if isinstance(message, str):
                yield Done(job.job_id, [Output("text/plain", message.encode())])
            else:
                body = json.dumps(message, ensure_ascii=False).encode()
                yield Done(job.job_id, [Output("application/json", body)])
