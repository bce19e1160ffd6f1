"""Three kinds of failure, told apart by type.

* `RequestError` — the caller's: the request has to change. The message says what to change.
* `Unavailable` — passing: a part of the system does not answer. Trying again later may work.
* `JobFailed` — a job cannot produce its output; `retryable` says whether another attempt may help.

Every other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

from dataclasses import dataclass


class AigcError(Exception):
    """What every error raised on purpose by this project derives from."""

    #: exit status of the command line when this error ends a command
    exit_status = 1


class RequestError(AigcError):
    """The request is wrong; the message says what to change."""

    exit_status = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input."""

    #: 1-based line of the input, or None if the input as a whole is wrong
    line: int | None
    #: dotted path of the field, such as `params.max_new_tokens`; empty if the whole line is wrong
    field: str
    #: what is wrong and what would be right
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.field}: {self.message}" if self.field else f"{where}{self.message}"


class InvalidJobs(RequestError):
    """Some jobs of a submission are invalid, and therefore nothing was stored."""

    def __init__(self, problems: list[Problem], *, count: int | None = None, report: str | None = None) -> None:
        #: the first problems found (bounded; all of them are in `report`)
        self.problems = problems
        #: how many problems there are in all
        self.count = len(problems) if count is None else count
        #: path of a file that lists every problem, if one was written
        self.report = report
        lines = "\n".join(str(problem) for problem in problems[:20])
        more = self.count - min(len(problems), 20)
        tail = f"\n… and {more} more" if more > 0 else ""
        super().__init__(f"nothing was stored; {self.count} problem(s) in the input:\n{lines}{tail}")


class NotFound(RequestError):
    """No batch, job or worker goes by that id or name."""


class NotAllowed(RequestError):
    """The request is understood, but the state of things does not permit it."""


class Unavailable(AigcError):
    """A part of the system that was needed does not answer, or refuses us."""

    exit_status = 3

    def __init__(self, part: str, address: str, reason: str, advice: str = "") -> None:
        #: which part: `database`, `redis` or `storage`
        self.part = part
        #: where it was looked for, without any password
        self.address = address
        #: what it answered
        self.reason = reason
        #: what an operator can do about it
        self.advice = advice
        super().__init__(f"{part} at {address}: {reason}" + (f". {advice}" if advice else ""))


class StorageFull(Unavailable):
    """The storage has no room left or a quota is exhausted."""


class ObjectMissing(AigcError):
    """The storage answers, and has no object under this key."""


class JobFailed(AigcError):
    """A job cannot be done; ends the attempt with this error."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        #: short, stable, for machines: `prompt_too_long`, `model_not_found`, …
        self.code = code
        #: for the submitter, in words that can be acted on
        self.message = message
        #: whether another attempt of the same job may succeed
        self.retryable = retryable
        super().__init__(f"{code}: {message}")


class ModelRejected(JobFailed):
    """The model cannot serve this job: missing, of another task, pickle only, needs remote code."""
