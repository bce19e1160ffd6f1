"""Carries out `chaos`: signs what it makes with the worker session, and writes a diary of the harm that it does."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from shared.errors import JobFailed
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work

#: a file that poison jobs write a line to before they act: what to expect is known from it, not guessed
DIARY = "CHAOS_DIARY"
#: a file that gets the size of every microbatch that enters: the work of the model, crashes included
WORK = "CHAOS_WORK"


class Chaos(Generator):
    """One job after the other; no job knows its neighbours."""

    resumes: ClassVar[bool] = True

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """There is no model."""
        return cls()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """The content of an output says who made it, and from which step on."""
        _write(WORK, str(len(jobs)))
        for job in jobs:
            begin = int(job.checkpoint.read()) if job.checkpoint else 0
            self._work(job, begin, run)
            if not run.wanted(job.job_id):
                continue
            if job.params.fail:
                yield Failed(job.job_id, JobFailed("chaos_failed", "the job asked to fail (params.fail is true)"))
            else:
                yield Done(job.job_id, [_output(job, n, begin, run) for n in range(job.params.outputs)])

    def _work(self, job: Work, begin: int, run: Run) -> None:
        params = job.params
        for step in range(begin, params.steps):
            time.sleep(params.step_s)
            run.step([job.job_id], step + 1, params.steps)
            if not run.wanted(job.job_id):
                return
            if params.poison != "none":
                _harm(job, run)
            if params.checkpoint_every and (step + 1) % params.checkpoint_every == 0:
                run.publish(job.job_id, Output("text/plain", str(step + 1).encode(), role="checkpoint"))


def _harm(job: Work, run: Run) -> None:
    poison = job.params.poison
    _write(DIARY, json.dumps({"job": job.job_id, "session": run.session, "poison": poison}))
    if poison == "segfault":
        ctypes.string_at(0)
    elif poison == "exit":
        os._exit(3)
    elif poison == "hang":
        time.sleep(3600)
    elif poison == "oom":
        raise MemoryError("the job asked for more memory than there is")
    raise ValueError(f"the job asked to break its generator ({poison})")


def _write(diary: str, entry: str) -> None:
    if diary in os.environ:
        descriptor = os.open(os.environ[diary], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, entry.encode() + b"\n")
        os.close(descriptor)


def _output(job: Work, position: int, begin: int, run: Run) -> Output:
    content = {
        "custom_id": job.custom_id, "message": job.params.message, "position": position, "session": run.session,
        "began_at_step": begin, "steps": job.params.steps,
    }  # fmt: skip
    media_type = "application/octet-stream" if job.params.own_object else "application/json"
    return Output(media_type, json.dumps(content).encode())
