"""Files that jobs name, settled before the jobs are stored: paths become uploads, and what is named has to be there.

A batch or a folder that stands in a list of files is replaced by what fits in it: a job never waits for what is made
later, and asks for the same whatever becomes of the batch.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from producer.records import BatchRecord
from producer.requests import Invalid, ValidJob, explained
from shared.errors import NotAllowed, Problem, RequestError
from shared.files import File
from shared.ids import is_job_id
from shared.jobs import fingerprint
from shared.tasks import get_task
from shared.tasks.inputs import MEDIA, InputKind, Reference, references, replaced, takes_files

#: most files that a batch or a folder stands for
MOST_TOGETHER = 10_000

_ARTIFACT = re.compile(r"artifact:(?P<job>[^/]+)(?:/(?P<position>\d{1,9}))?")


class Depot(Protocol):
    """Where files are uploaded to and looked up."""

    def upload(self, path: Path) -> File:
        """Store a file; returns it, also where it was stored before. Raises `RequestError`."""
        ...

    def file(self, id_: str) -> File:
        """An uploaded file. Raises `NotFound`."""
        ...

    def has_output(self, job_id: str, position: int) -> bool:
        """Whether this job has succeeded and has such an output."""
        ...

    def batch(self, reference: str) -> BatchRecord:
        """A batch by id or name. Raises `NotFound`."""
        ...

    def outputs(self, batch_id: str, media: str, *, limit: int) -> Sequence[tuple[str, int]]:
        """Job and position of its outputs whose media type begins so, by line."""
        ...


class Inputs:
    """Settles the files of the jobs of one submission."""

    def __init__(self, depot: Callable[[], Depot], *, send: bool = True) -> None:
        """`depot` is asked for by the first file. Without `send`, paths are looked at and nothing is uploaded."""
        self._depot = depot
        self._send = send
        self._sent: dict[Path, str] = {}
        self._known: set[str] = set()
        self._spread: dict[tuple[str, InputKind], list[str]] = {}
        #: ids of the uploaded files that the jobs name
        self.files: set[str] = set()

    def __call__(self, job: ValidJob) -> ValidJob:
        """The job as it is stored. Raises `Invalid` with every file that cannot be had, `Unavailable`."""
        task = get_task(job.lane.task)
        if not takes_files(task.params):
            return job
        params = task.params.model_validate_json(job.params_json)
        new: dict[str, str | list[str]] = {}
        problems: list[Problem] = []
        for reference in references(params):
            try:
                settled = self._several(reference) or self._settled(reference)
            except (RequestError, NotAllowed, ValueError, OSError) as error:
                problems.append(Problem(job.line, f"params.{reference.place}", str(error)))
            else:
                if settled != reference.text:
                    new[reference.place] = settled
        if problems:
            raise Invalid(problems)
        if not new:
            return job
        said = replaced(from_json(job.params_json), new.get)
        try:  # now that it is known how many there are
            params = task.params.model_validate(said)
        except ValidationError as error:
            raise Invalid(explained(job.line, task, error)) from None
        params_json = to_json(said).decode()
        once = fingerprint(job.lane, params_json, job.seed) if job.fingerprint and job.seed is not None else None
        return job._replace(params_json=params_json, fingerprint=once, cost=float(task.cost(params)))

    def _several(self, reference: Reference) -> list[str] | None:
        """What a batch or a folder stands for; None if it is neither. Raises `ValueError`, `RequestError`."""
        text, kind = reference.text, reference.kind
        folder = None if reference.scheme else Path(text).expanduser()
        if reference.scheme != "batch" and (folder is None or not folder.is_dir()):
            return None
        if not reference.among_others:
            raise ValueError(f"{text} stands for several files, and one is wanted here")
        if (text, kind) not in self._spread:
            spread = self._of_batch(text, kind) if folder is None else self._of_folder(folder, text, kind)
            self._spread[text, kind] = spread
        return self._spread[text, kind]

    def _of_batch(self, text: str, kind: InputKind) -> list[str]:
        name = text.removeprefix("batch:").removesuffix("/succeeded")
        batch = self._depot().batch(name)
        missing = batch.total - batch.counts["succeeded"]
        if batch.status != "done":
            raise ValueError(f"{text} is not done: {batch.finished} of {batch.total} jobs; wait for it")
        if missing and not text.endswith("/succeeded"):
            raise ValueError(
                f"{missing} of the {batch.total} jobs of {text} did not succeed: `aigc retry` them, or write "
                f"{text}/succeeded to leave them out"
            )
        made = self._depot().outputs(batch.id, MEDIA[kind], limit=MOST_TOGETHER + 1)
        _require_some(made, text, kind)
        return [f"artifact:{job_id}/{position}" for job_id, position in made]

    def _of_folder(self, folder: Path, text: str, kind: InputKind) -> list[str]:
        fitting = [
            path for path in sorted(folder.iterdir())
            if path.is_file() and (mimetypes.guess_type(path.name)[0] or "").startswith(MEDIA[kind])
        ]  # fmt: skip
        _require_some(fitting, text, kind)
        return [self._sent_as(path.absolute(), str(path)) for path in fitting]

    def _settled(self, reference: Reference) -> str:
        """The reference as a worker understands it. Raises `ValueError`, `RequestError`."""
        text = reference.text
        check: dict[str, Callable[[str], None]] = {
            "https": _require_address, "s3": _require_object, "artifact": self._require_output,
            "file": self._require_file,
        }  # fmt: skip
        scheme = reference.scheme
        if scheme:
            if text not in self._known:
                check[scheme](text)
                self._known.add(text)
            return text
        return self._sent_as(Path(text).expanduser().absolute(), text)

    def _sent_as(self, path: Path, text: str) -> str:
        """The `file:` id of a path."""
        if path not in self._sent:
            if not path.is_file():
                raise ValueError(f"there is no file {text!r} here")
            self._sent[path] = f"file:{self._depot().upload(path).id}" if self._send else text
        if self._send:
            self.files.add(self._sent[path].removeprefix("file:"))
        return self._sent[path]

    def _require_file(self, text: str) -> None:
        self.files.add(self._depot().file(text.removeprefix("file:")).id)

    def _require_output(self, text: str) -> None:
        match = _ARTIFACT.fullmatch(text)
        if match is None or not is_job_id(match["job"]):
            raise ValueError("write artifact:<job id>, or artifact:<job id>/<number of the output, from 0>")
        if not self._depot().has_output(match["job"], int(match["position"] or 0)):
            raise ValueError(f"there is no such output: {text} (has the job succeeded?)")


def _require_some(found: Sequence[object], text: str, kind: InputKind) -> None:
    if not found:
        raise ValueError(f"{text} holds nothing that fits: {MEDIA[kind] or 'a file'}… is wanted")
    if len(found) > MOST_TOGETHER:
        raise ValueError(f"{text} stands for more than {MOST_TOGETHER:,} files: name fewer")


def _require_address(text: str) -> None:
    parts = urlsplit(text)
    if not parts.hostname or parts.username is not None or parts.password is not None:
        raise ValueError("write https://host/path, without user and password")


def _require_object(text: str) -> None:
    parts = urlsplit(text)
    if not parts.netloc or not parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("write s3://bucket/key")
