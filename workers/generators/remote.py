"""What every generator does that asks a remote service: many requests at once, each job done when it has its answers.

A service that wants to be left alone for a moment is waited for. If it takes longer the whole model steps aside
(`NotNow`), so that the worker does something else meanwhile; nobody is charged for that.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Self

from shared.errors import JobFailed, ModelRejected
from workers.generators import Device, Done, Failed, Feed, Generator, ModelFiles, NotNow, Outcome, Output, Run, Work
from workers.remote import Answer, Later, RemoteClient, client_of

#: seconds between two looks at what has become of a job: a cancelled one is dropped that soon
TICK_S = 0.2
#: a service is waited for as long as that; beyond, the worker turns to something else
PATIENCE_S = 5.0
#: a request that is refused so often, while others are answered, is to blame itself
MOST_REFUSALS = 4


@dataclass(slots=True, eq=False)
class Question:
    """One request of a job."""

    number: int
    #: the body
    asked: Mapping[str, Any]
    sent: bool = False
    #: how often it was refused for now, and how many others had been answered when that began
    refusals: int = 0
    answered_before: int = 0


@dataclass(slots=True, eq=False)
class Asking:
    """A job whose requests are under way."""

    job: Work
    questions: Sequence[Question]
    #: what was made of the answers, by number
    parts: dict[int, Any] = field(default_factory=dict)

    @property
    def progress(self) -> tuple[int, int]:
        """A request is a step when it goes, and one more when it is answered."""
        return sum(question.sent for question in self.questions) + len(self.parts), 2 * len(self.questions)


#: a request of a job, and what has become of it
_Told = tuple[Asking, Question, Any]


class Remote(Generator):
    """A model of a remote service."""

    #: where it is asked, below the service's address
    path: ClassVar[str]

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether it is a remote model: which ones a service has, it says itself."""
        return files is not None and files.service is not None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Nothing is asked yet. Raises `ModelRejected` for a model that is here."""
        if files is None:
            raise ModelRejected("model_not_found", f"{cls.path} needs a model")
        if files.service is None:
            raise ModelRejected("model_wrong_task", f"{files.ref} is no model of a remote service")
        return cls(files, client_of(files.service))

    def __init__(self, files: ModelFiles, client: RemoteClient) -> None:
        self._files = files
        self.client = client
        self._service = client.service
        #: what the service calls it
        self._model: str = files.config["model"]

    @abstractmethod
    def questions(self, job: Work) -> Sequence[Mapping[str, Any]]:
        """The bodies of its requests, one at least. Raises `JobFailed` for what a service cannot do."""

    @abstractmethod
    def read(self, job: Work, number: int, answer: Answer) -> Any:
        """What the answer to request `number` holds; runs in a thread of its own. Raises `JobFailed`."""

    @abstractmethod
    def outputs(self, job: Work, parts: Sequence[Any]) -> Sequence[Output]:
        """The outputs of a job, from what `read` gave, in order. Raises `JobFailed`."""

    def streams(self, job: Work) -> bool:
        """Every job."""
        return True

    def room(self) -> int:
        """As many as the service may be asked at once."""
        return self._service.at_a_time

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """The same as a stream that nobody joins."""
        return Talk(self, run).outcomes(jobs, None)

    def stream(self, jobs: Sequence[Work], feed: Feed, run: Run) -> Iterator[Outcome]:
        """Jobs join as requests are answered."""
        return Talk(self, run).outcomes(jobs, feed)


class Talk:
    """The requests of one microbatch or stream."""

    def __init__(self, model: Remote, run: Run) -> None:
        self._model = model
        self._client = model.client
        self._run = run
        self._going: dict[str, Asking] = {}
        self._unsent: deque[tuple[Asking, Question]] = deque()
        #: requests that were sent and have no answer, also those of jobs that are not wanted any more
        self._under_way: set[Question] = set()
        self._told: SimpleQueue[_Told] = SimpleQueue()

    def outcomes(self, jobs: Sequence[Work], feed: Feed | None) -> Iterator[Outcome]:
        """An outcome for each of these jobs and of those that come, as soon as it is known. Raises `NotNow`."""
        while True:
            for job in jobs:
                yield from self._join(job)
            self._drop()
            self._send()
            if not self._going and not (feed is not None and feed.open):
                return
            for told in self._heard():
                yield from self._settle(*told)
            room = 0 if self._unsent else self._model.room() - len(self._under_way)
            jobs = feed.take(max(0, room)) if feed is not None and feed.open else ()

    def _join(self, job: Work) -> Iterator[Outcome]:
        if not self._run.wanted(job.job_id):
            return
        try:
            asked = self._model.questions(job)
        except JobFailed as error:
            yield Failed(job.job_id, error)
            return
        asking = self._going[job.job_id] = Asking(job, [Question(*each) for each in enumerate(asked)])
        self._unsent.extend((asking, question) for question in asking.questions)

    def _drop(self) -> None:
        """Nobody waits for the answers to jobs that are not wanted any more, and nothing more is asked for them."""
        for id_ in [id_ for id_ in self._going if not self._run.wanted(id_)]:
            del self._going[id_]
        self._unsent = deque(each for each in self._unsent if self._is_going(each[0]))

    def _is_going(self, asking: Asking) -> bool:
        return self._going.get(asking.job.job_id) is asking

    def _send(self) -> None:
        """Ask as much as may be asked now. Raises `NotNow` if that is nothing for a while, and nothing is awaited."""
        while self._unsent and self._client.free and not self._client.wait_s():
            asking, question = self._unsent.popleft()
            if not question.sent:
                question.sent = True
                self._step(asking)
            self._under_way.add(question)
            read = partial(self._model.read, asking.job, question.number)
            self._client.send(self._model.path, question.asked, read, partial(_tell, self._told, asking, question))
        wait_s = self._client.wait_s()
        if self._unsent and not self._under_way and wait_s > PATIENCE_S:
            raise self._not_now(wait_s)

    def _step(self, asking: Asking) -> None:
        self._run.step([asking.job.job_id], *asking.progress)

    def _not_now(self, wait_s: float) -> NotNow:
        trouble, service = self._client.trouble, self._client.service
        if trouble is not None:
            later, since = trouble
            return NotNow(later.code, later.message, for_s=wait_s, since=since)
        often = f"{service.requests_per_minute:g} requests a minute (requests_per_minute)"
        message = f"each worker may ask {service.name} no more than {often}"
        return NotNow("service_paced", message, for_s=wait_s, since=time.time())

    def _heard(self) -> Iterator[_Told]:
        """What has become of requests; waits for a moment if nothing has, and something is awaited."""
        tick_s = min(TICK_S, self._client.wait_s() or TICK_S) if self._unsent else TICK_S
        try:
            yield self._told.get(timeout=tick_s) if self._going or self._under_way else self._told.get_nowait()
        except Empty:
            begun = {id_: asking.progress for id_, asking in self._going.items() if asking.progress[0]}
            self._run.advance(begun)
            return
        for _ in range(self._told.qsize()):
            yield self._told.get_nowait()

    def _settle(self, asking: Asking, question: Question, result: Any) -> Iterator[Outcome]:
        """A request has an end, and its job may have one, too."""
        self._under_way.discard(question)
        if not self._is_going(asking):
            return
        if isinstance(result, Later):
            if not self._is_to_blame(question):
                self._unsent.appendleft((asking, question))
                return
            result = JobFailed(result.code, result.message, retryable=True)
        if isinstance(result, JobFailed):
            yield from self._left(asking, result)
        elif isinstance(result, Exception):
            raise result
        else:
            asking.parts[question.number] = result
            self._step(asking)
            if len(asking.parts) == len(asking.questions):
                yield from self._left(asking, None)

    def _left(self, asking: Asking, error: JobFailed | None) -> Iterator[Outcome]:
        job_id = asking.job.job_id
        del self._going[job_id]
        if not self._run.wanted(job_id):
            return
        try:
            if error is not None:
                raise error
            yield Done(job_id, self._model.outputs(asking.job, [part for _, part in sorted(asking.parts.items())]))
        except JobFailed as failed:
            yield Failed(job_id, failed)

    def _is_to_blame(self, question: Question) -> bool:
        """Whether the service refuses this request alone, again and again: its job has to be charged one day."""
        if not question.refusals:
            question.answered_before = self._client.answered
        question.refusals += 1
        return question.refusals >= MOST_REFUSALS and self._client.answered > question.answered_before


def _tell(told: SimpleQueue[_Told], asking: Asking, question: Question, result: Any) -> None:
    told.put((asking, question, result))


def refuse(job: Work, *, neutral: Mapping[str, Any], why: str) -> None:
    """Raise `JobFailed` if a param is set that a service does not know: nothing is left out in silence.

    `neutral` says which values ask for nothing.
    """
    for name, value in neutral.items():
        if getattr(job.params, name) not in (value if isinstance(value, tuple) else (value,)):
            raise JobFailed("param_unsupported", f"a remote service has no `{name}`: {why}")
