"""Files that jobs name, settled before the jobs are stored: paths become uploads, and what is named has to be there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

from producer.requests import Invalid, ValidJob
from shared.errors import NotAllowed, Problem, RequestError
from shared.files import File
from shared.ids import is_job_id
from shared.jobs import fingerprint
from shared.tasks import get_task
from shared.tasks.inputs import Reference, references, replaced, takes_files

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


class Inputs:
    """Settles the files of the jobs of one submission."""

    def __init__(self, depot: Callable[[], Depot], *, send: bool = True) -> None:
        """`depot` is asked for by the first file. Without `send`, paths are looked at and nothing is uploaded."""
        self._depot = depot
        self._send = send
        self._sent: dict[Path, str] = {}
        self._known: set[str] = set()
        #: ids of the uploaded files that the jobs name
        self.files: set[str] = set()

    def __call__(self, job: ValidJob) -> ValidJob:
        """The job as it is stored. Raises `Invalid` with every file that cannot be had, `Unavailable`."""
        task = get_task(job.lane.task)
        if not takes_files(task.params):
            return job
        params = task.params.model_validate_json(job.params_json)
        new: dict[str, str] = {}
        problems: list[Problem] = []
        for reference in references(params):
            try:
                settled = self._settled(reference)
            except (RequestError, NotAllowed, ValueError) as error:
                problems.append(Problem(job.line, f"params.{reference.place}", str(error)))
            else:
                if settled != reference.text:
                    new[reference.place] = settled
        if problems:
            raise Invalid(problems)
        if not new:
            return job
        params_json = to_json(replaced(from_json(job.params_json), new.get)).decode()
        once = fingerprint(job.lane, params_json, job.seed) if job.fingerprint and job.seed is not None else None
        return job._replace(params_json=params_json, fingerprint=once)

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
        path = Path(text).expanduser().absolute()
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


def _require_address(text: str) -> None:
    parts = urlsplit(text)
    if not parts.hostname or parts.username is not None or parts.password is not None:
        raise ValueError("write https://host/path, without user and password")


def _require_object(text: str) -> None:
    parts = urlsplit(text)
    if not parts.netloc or not parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("write s3://bucket/key")
