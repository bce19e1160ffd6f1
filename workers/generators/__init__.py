"""The contract between the engine and the code that runs a model: one self-contained file per kind of model.

The engine claims jobs of one lane, asks the generator to `cut` them into microbatches, and runs `generate` on each.
A generator yields one outcome per job, in any order, as soon as it has it; the engine encodes, stores and commits
while the generator goes on. Everything else (queues, leases, retries, storage) is the engine's affair.

What a generator promises:

* The output of a job depends on its model, params and seed only, never on its neighbours in the microbatch.
* It calls `run.step(...)` between two steps of the model and lets what that raises pass through: this is how a
  cancelled or stopped job ends.
* A job that cannot be done yields `Failed`; an exception fails the attempt of the whole microbatch. `NotNow` fails
  nobody: it says that this model is of no use for a while.
* A generator that can let jobs join and leave while it runs says so by `streams`, and has `stream` beside `generate`.
* A generator of long jobs may `run.publish` checkpoints. It says so by `resumes = True`, and then finds the newest one
  of an earlier attempt in `Work.checkpoint`.

A generator is found through the entry-point group `aigc.generators`, under the name `<task>.<kind of model>`, where the
kind is what the model's own files say: `diffusers` (a `model_index.json`), `transformers` (a `config.json`), `openai`
for a model of a remote service, or `none` for tasks without a model. Several may serve one pair
(`<task>.<kind>.<anything>`); `serves` decides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from shared.errors import JobFailed
from shared.services import Service
from workers.generators.memory import MemoryPlan
from workers.inputs.looks import InputFile


@dataclass(frozen=True, slots=True)
class Device:
    """Where a generator computes."""

    #: torch's name: `cpu` or `cuda:0` (the worker's own device is always the first one it sees); `remote` for a service
    name: str
    #: `float32`, `bfloat16` or `float16`; empty where nobody here knows
    dtype: str
    #: whether a model may be compiled, where its generator can do that: a slow start, then faster
    compile: bool = False


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model reference, resolved to files on this host."""

    #: as the job names it
    ref: str
    #: the folder that holds it
    folder: Path
    #: hub commit, or `sha256:…` over the files of a local folder: enough to tell two versions apart; of a remote model
    #: the address that is asked, which tells nothing of its version
    revision: str
    #: `diffusers`, `transformers` or `openai`; of an adapter what it is: `lora`, `ip-adapter`
    kind: str
    #: the parsed `model_index.json` or `config.json`; of a remote model its name there, as `model`
    config: Mapping[str, Any]
    #: who is asked for a remote model, of which there are no files here
    service: Service | None = None
    #: the one file that holds all weights, where there is one; then `folder` has the configs that go with it
    weights: Path | None = None
    #: how it is to be held in memory
    memory: MemoryPlan = field(default_factory=MemoryPlan)
    #: where the job names it by an alias of the operator's: what that stands for
    stands_for: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What an earlier attempt at a job published to go on from: whole, and made by this generator and model."""

    body: bytes
    #: as the generator gave them
    facts: Mapping[str, Any]

    def read(self) -> bytes:
        """The content."""
        return self.body


@dataclass(frozen=True, slots=True)
class Work:
    """One job as a generator sees it."""

    job_id: str
    task: str
    #: the task's own Params, validated
    params: Any
    #: of the job; output *i* of a job with several uses `seed + i`
    seed: int
    #: custom id, for messages only
    custom_id: str = ""
    #: where an earlier attempt got to; only for a generator that `resumes`
    checkpoint: Checkpoint | None = None
    #: the files that its params name, by their place there (`image`, `images.0`): here, and looked at
    inputs: Mapping[str, InputFile] = field(default_factory=dict)
    #: the models that its params name beside its own, by their names there
    adapters: Mapping[str, ModelFiles] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Output:
    """A file as made. `body` may be a function, called off the device's thread: encode there."""

    media_type: str
    body: bytes | Callable[[], bytes]
    #: what is worth knowing: width, height, finish_reason, completion_tokens, seed, …
    facts: Mapping[str, Any] = field(default_factory=dict)
    #: `output`, `preview`, `checkpoint` or `metric`
    role: str = "output"
    #: about how many bytes `body` keeps in memory, where it is a function; 0 = nobody knows
    size: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """A job's outputs, complete and in order."""

    job_id: str
    outputs: Sequence[Output]


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that cannot be done, and why."""

    job_id: str
    error: JobFailed


Outcome = Done | Failed


class NotNow(JobFailed):
    """Raised by a running generator that can serve nobody for a while: a remote service that is away, say.

    What has no outcome yet goes back, uncharged; nothing of this task and model is claimed here until then.
    """

    def __init__(self, code: str, message: str, *, for_s: float, since: float) -> None:
        #: seconds until it may be tried again
        self.for_s = for_s
        #: when the trouble began, in seconds since 1970
        self.since = since
        super().__init__(code, message, retryable=True)


class Run(Protocol):
    """What the engine offers to a running microbatch."""

    @property
    def session(self) -> str:
        """Id of the worker session that runs it."""

    def step(self, job_ids: Sequence[str], done: int, total: int) -> None:
        """Say that `done` of `total` steps are behind these jobs; call between two steps of the model.

        A generator that takes its jobs one after the other names the ones that it is on: their time counts from here.
        Cheap enough for every step. Raises when the whole microbatch has to end now (stop, lost lease, nothing of it
        wanted any more): let it pass through.
        """

    def advance(self, progress: Mapping[str, tuple[int, int]]) -> None:
        """The same for jobs that are at different points: (done, total) of each, by its id."""

    def wanted(self, job_id: str) -> bool:
        """Whether this job is still ours to do; work on an unwanted one may be dropped without an outcome."""

    def publish(self, job_id: str, output: Output, *, position: int = 0) -> None:
        """Store a `preview`, `metric` or `checkpoint` of a job that goes on, in place of the last one at `position`.

        Encoded and stored off the device's thread. One that cannot be stored is dropped: the job is no worse off than
        before. Raises `ValueError` for another role.
        """


class Feed(Protocol):
    """Where a running stream gets more jobs from."""

    def take(self, room: int) -> Sequence[Work]:
        """At most `room` more jobs, which are in the model from now on; empty if there are none for now.

        Cheap enough between any two steps: jobs are claimed beside the model. Waits only while the stream is empty and
        jobs may be on their way. Raises what `Run.step` raises.
        """

    @property
    def open(self) -> bool:
        """Whether more may come; once False it stays so, and the stream ends when its last job is done."""


class Generator(ABC):
    """A model in memory that turns jobs into outputs."""

    #: raise it when outputs change for the same params and seed, or checkpoints are read differently
    version: ClassVar[int] = 1
    #: whether it goes on from `Work.checkpoint`
    resumes: ClassVar[bool] = False
    #: most jobs in one microbatch, where the operator's AIGC_MICROBATCH says nothing about this kind of work
    microbatch: ClassVar[int | None] = None
    #: which settings of a `MemoryPlan` it heeds, beside `dtype`; a model that is set otherwise is refused
    heeds: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether this generator is made for such a model; looks at `files.config` only."""
        return True

    @classmethod
    @abstractmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Bring the model into memory. Raises `ModelRejected` if it cannot serve the task, with the reason."""

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Cut jobs of one lane into microbatches of at most `limit`; those that must not meet go apart."""
        return [list(jobs[i : i + limit]) for i in range(0, len(jobs), limit)]

    def most(self, jobs: Sequence[Work], limit: int) -> int:
        """How many jobs like these `cut` puts together: fewer than `limit` where one counts for several, say.

        The engine waits for no more than that before it runs a microbatch.
        """
        return limit

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """What decides, beside their number, how much memory a microbatch takes: a picture's size, say.

        The engine remembers for each shape how many jobs fit.
        """
        return ()

    @abstractmethod
    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run one microbatch, yielding an outcome per job as soon as it is known."""

    def streams(self, job: Work) -> bool:
        """Whether `stream` can take this job; the others of its lane go through `cut` and `generate`."""
        return False

    def room(self) -> int | None:
        """Most jobs in a stream at once; None = as many as a microbatch may have."""
        return None

    def stream(self, jobs: Sequence[Work], feed: Feed, run: Run) -> Iterator[Outcome]:
        """Run these jobs and those that `feed` gives on the way; each outcome comes as soon as its job is done.

        It ends when nothing is left and the feed is no longer open. Every job gets one outcome, or is dropped once
        `run.wanted` says no: `step` and `advance` raise only to stop, never because jobs are not wanted any more.
        Call one of them for every step of the model. An exception ends the stream, and what has no outcome is run by
        `generate`, which has to give the same outputs.
        """
        raise NotImplementedError

    def park(self) -> bool:
        """Move the model out of the GPU into the host's memory, to come back by `unpark`; whether that was done.

        Called between two microbatches or streams. A model that cannot says False and stays as it is.
        """
        return False

    def unpark(self) -> None:
        """Bring the model back to where it was before `park`; outputs are the same as before."""

    def unload(self) -> None:
        """Free what the model holds; called once, before the object is dropped."""
