"""`evaluate` with a recogniser of speech: WER and CER of recordings, by what the model hears in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from shared.errors import JobFailed, ModelRejected
from shared.tasks.automatic_speech_recognition import AutomaticSpeechRecognitionParams
from workers.generators import Device, Done, Failed, ModelFiles, Output, Work
from workers.generators.evaluator import Evaluator
from workers.generators.speech_recogniser import SpeechRecogniser
from workers.scores import Steps
from workers.scores.case import Case


class _Listening:
    """What the recogniser is offered instead of the engine: between the windows of a recording it may be ended."""

    session = ""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def step(self, job_ids: Sequence[str], done: int, total: int) -> None:
        """The last window of a recording ends with it."""
        if done < total:
            self._steps.again()

    def advance(self, progress: Mapping[str, tuple[int, int]]) -> None:
        """The same."""
        if any(done < total for done, total in progress.values()):
            self._steps.again()

    def wanted(self, job_id: str) -> bool:
        """Who asks is wanted."""
        return True

    def publish(self, job_id: str, output: Output, *, position: int = 0) -> None:
        """Nobody is to see it."""


class SpeechEvaluator(Evaluator):
    """Listens to recordings, and counts the errors of what it has heard."""

    what = "a recogniser of speech"
    hears = True

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether it could recognise speech."""
        return SpeechRecogniser.serves(files)

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "recordings need a recogniser of speech")
        return cls(files, SpeechRecogniser.load(files, device))

    def __init__(self, files: ModelFiles, recogniser: SpeechRecogniser) -> None:
        super().__init__(files)
        self._recogniser = recogniser

    def park(self) -> bool:
        """Move the model to the host."""
        return self._recogniser.park()

    def unpark(self) -> None:
        """Bring it back."""
        self._recogniser.unpark()

    def unload(self) -> None:
        """Drop the model."""
        self._recogniser.unload()

    def _steps(self, case: Case) -> int:
        return len(case.outputs.files)

    def _prepare(self, case: Case, steps: Steps) -> None:
        if not case.outputs.files:
            return
        told = case.params.told("recognition")
        heard = []
        for number, file in enumerate(case.outputs.files):
            params = AutomaticSpeechRecognitionParams(audio=case.outputs.labels[number], language=told.language)
            work = Work(f"{number}", "automatic-speech-recognition", params, case.seed, inputs={"audio": file})
            [outcome] = self._recogniser.generate([work], _Listening(steps))
            if isinstance(outcome, Failed):
                message = f"{case.outputs.call(number)}: {outcome.error.message}"
                raise JobFailed(outcome.error.code, message, retryable=outcome.error.retryable)
            heard.append([_text(outcome)])
            steps()
        case.made["texts"] = heard
        case.made["heard_by"] = self._network


def _text(done: Done) -> str:
    body = done.outputs[0].body
    return (body if isinstance(body, bytes) else body()).decode()
