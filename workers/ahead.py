"""Claims beside the model, so that the device does not wait for SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Generic, TypeVar

from shared import jobs
from shared.database import Database
from shared.errors import JobFailed, Unavailable
from shared.jobs import ClaimedJob, SessionLost
from shared.tasks.adapters import Role, of_lane
from workers.claims import Claims, Taken
from workers.inputs import Inputs
from workers.residency import Residency
from workers.session import Session

T = TypeVar("T")
#: how a job fails that its tenant may not ask for (model, tenant, role of what stands beside one); None if it may
Refused = Callable[[str, str, Role | None], JobFailed | None]


class Beside(Generic[T]):
    """One call at a time in another thread; its result or its error waits to be fetched."""

    def __init__(self, name: str) -> None:
        """The thread starts with the first call."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._call: Future[T] | None = None

    @property
    def going(self) -> bool:
        """Whether a call was begun whose result was not fetched."""
        return self._call is not None

    @property
    def done(self) -> bool:
        """Whether there is a result to fetch without waiting."""
        return self._call is not None and self._call.done()

    def begin(self, call: Callable[[], T]) -> None:
        """Begin a call; the one before has to be fetched."""
        self._call = self._pool.submit(call)

    def fetch(self) -> T:
        """Wait for the call and return what it gave; raises what it raised."""
        call, self._call = self._call, None
        if call is None:
            raise RuntimeError("nothing was begun")
        return call.result()

    def close(self) -> None:
        """Begin nothing more; a call that is going on is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Ahead:
    """The claims of one worker session; one thread at a time asks."""

    def __init__(
        self,
        db: Database,
        claims: Claims,
        residency: Residency,
        session: Session,
        inputs: Inputs,
        *,
        refused: Refused,
        ending: Callable[[], bool],
    ) -> None:
        """Once `ending` says so, nothing more is claimed. Whatever is `refused` fails with its claim."""
        self._db = db
        self._refused = refused
        self._inputs = inputs
        self._claims = claims
        self._residency = residency
        self._session = session
        self._ending = ending
        self._beside: Beside[Taken | None] = Beside("ahead")
        self._kept: Taken | None = None
        self._closed = False

    def claim(self, *, only: tuple[int, int] | None = None, full: bool = False) -> Taken | None:
        """Claim what `Claims.next` says, at once, and hold it. Raises `SessionLost`, `Unavailable`."""
        if self._session.stopping or self._ending():
            return None
        idle = not self._session.holds_any
        taken = self._claims.next(self._session.id, self._residency, only=only, full=full, idle=idle)
        if taken is not None:
            self._session.hold(taken.jobs)
            taken = self._permitted(taken)
            self._inputs.begin(taken.jobs)
        return taken

    def _permitted(self, taken: Taken) -> Taken:
        """Without the jobs of tenants who may not use the model, or what is named beside it.

        Nothing is fetched or loaded for them.
        """
        lane = taken.jobs[0] if taken.jobs else None
        if lane is None or not lane.model:
            return taken
        named: list[tuple[Role | None, str]] = [(None, lane.model), *of_lane(lane.adapters)]
        refused: dict[str, JobFailed] = {}
        for tenant in {job.tenant_id for job in taken.jobs}:
            errors = (self._refused(name, tenant, role) for role, name in named)
            if (error := next((error for error in errors if error is not None), None)) is not None:
                refused[tenant] = error
        if not refused:
            return taken
        failures = [
            jobs.Failure(job.id, job.epoch, error.code, error.message, error.retryable)
            for job in taken.jobs
            if (error := refused.get(job.tenant_id)) is not None
        ]
        jobs.fail(self._db, self._session.id, failures)
        self._session.release(failure.id for failure in failures)
        return replace(taken, jobs=[job for job in taken.jobs if job.tenant_id not in refused])

    @property
    def going(self) -> bool:
        """Whether a claim was begun ahead that nobody has asked for yet."""
        return self._beside.going

    def begin(self, *, only: tuple[int, int] | None = None) -> None:
        """Claim more, if a whole microbatch is ready, while the device works on the last one at hand."""
        if not self._beside.going and self._kept is None and not self._closed:
            self._beside.begin(lambda: self.claim(only=only, full=True))

    def next(self, *, only: tuple[int, int] | None = None, full: bool = False) -> Taken | None:
        """What was claimed ahead, if there is something; else it is claimed now. Raises as `claim`.

        Who asks for one lane while another one was claimed ahead gets nothing; that one is kept.
        """
        asked = self._beside.going
        if asked:
            self._kept = self._beside.fetch()
        if self._kept is None or not self._kept.jobs:
            self._kept = None
            return None if asked and only is not None else self.claim(only=only, full=full)
        if only not in (None, (self._kept.lane_id, self._kept.priority)):
            return None
        kept, self._kept = self._kept, None
        return kept

    def unused(self) -> Sequence[ClaimedJob]:
        """The jobs of a window that was claimed ahead and will not be run. Raises as `claim`."""
        kept, self._kept = self._kept, None
        fetched = self._beside.fetch() if self._beside.going else None
        return [job for taken in (kept, fetched) if taken is not None for job in taken.jobs]

    def close(self) -> None:
        """Claim nothing more; what a claim that is going on gives stays in the session's hands."""
        self._closed = True
        if self._beside.going:
            with suppress(Unavailable, SessionLost):
                self._beside.fetch()
        self._beside.close()
