"""`evaluate` without a model: texts, pictures and recordings against references, and texts among themselves.

Evaluators with a model stand beside it: each computes what its model is for, and everything that this one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

from shared.errors import JobFailed
from shared.tasks.evaluate import METRICS, EvaluateParams
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.scores import Score, Steps, Tick, Unwanted, pictures, sounds, texts, words
from workers.scores.case import Case, case_of
from workers.scores.report import outputs_of

Measure = Callable[[Case, Tick], Iterator[Score]]

_PLAIN: Mapping[str, Measure] = {
    "bleu": texts.bleu, "chrf": texts.chrf, "rouge": texts.rouge, "distinct": texts.distinct,
    "self_bleu": texts.self_bleu, "wer": words.wer, "cer": words.cer, "psnr": pictures.psnr, "ssim": pictures.ssim,
    "snr": sounds.snr, "si_sdr": sounds.si_sdr,
}  # fmt: skip
#: metrics that look at all outputs together: one step each
_AT_ONCE = ("fid", "kid")


class Evaluator(Generator):
    """Computes scores, one job after the other; the outputs of a job are its steps."""

    #: what the model is, in words
    what: ClassVar[str] = ""
    #: metrics that only such a model can give
    own: ClassVar[Mapping[str, Measure]] = {}
    #: whether it makes texts of recordings
    hears: ClassVar[bool] = False

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """There is no model."""
        return cls(files)

    def __init__(self, files: ModelFiles | None) -> None:
        self._files = files

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Each job by itself: it may hold thousands of outputs."""
        for job in jobs:
            if not run.wanted(job.job_id):
                continue
            try:
                yield Done(job.job_id, self._evaluated(job, run))
            except Unwanted:
                continue
            except JobFailed as error:
                yield Failed(job.job_id, error)

    # --- what a model adds ---

    def _steps(self, case: Case) -> int:
        """How many steps `_prepare` takes."""
        return 0

    def _prepare(self, case: Case, steps: Steps) -> None:
        """What the model sees, hears or reads, put into `case.made`. Raises `JobFailed`."""

    # --- the rest ---

    def _evaluated(self, job: Work, run: Run) -> list[Output]:
        measures = {name: self._measure(name, job.params) for name in job.params.metrics}
        case = case_of(job)
        steps = Steps(run, job.job_id, self._steps(case) + sum(_steps_of(name, case) for name in measures))
        self._prepare(case, steps)
        scores = [score for measure in measures.values() for score in measure(case, steps)]
        about = None if self._files is None else {"ref": self._files.ref, "revision": self._files.revision}
        return outputs_of(case, scores, about)

    def _measure(self, name: str, params: EvaluateParams) -> Measure:
        known, needs = {**_PLAIN, **self.own}, METRICS[name]
        unheard = needs.model_to_hear if params.outputs.what == "recordings" and not self.hears else None
        if name in known and unheard is None:
            return known[name]
        here = "this job names no model" if self._files is None else f"{self._files.ref} is {self.what}"
        raise JobFailed("metric_needs_other_model", f"{unheard or needs.model}; {here}")

    @property
    def _network(self) -> str:
        """The model in a signature."""
        return "" if self._files is None else f"{self._files.ref}@{self._files.revision}"


def _steps_of(name: str, case: Case) -> int:
    if name == "self_bleu":
        return texts.self_bleu_steps(case)
    return 1 if name in _AT_ONCE else len(case.outputs)
