"""The operator's word on models, where jobs are submitted: an early error, and the queue that a model's jobs wait in.

Workers decide. This side goes by the `models.toml` on its own host, and where there is none by what the workers that
are alive say of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from producer.requests import Invalid, ValidJob
from shared.errors import Problem
from shared.jobs import Lane
from shared.models_file import ModelsFile, read_models_file
from shared.settings import Settings
from shared.tasks.adapters import Role, is_plain, of_lane


@dataclass(frozen=True, slots=True)
class ToldAlias:
    """An alias as workers tell of it."""

    #: where its jobs wait unless they say otherwise; None where nobody says, or workers disagree
    queue: str | None
    #: who may use it; None = everyone
    tenants: frozenset[str] | None


def told_aliases(conditions: Iterable[Mapping[str, Any]]) -> dict[str, ToldAlias]:
    """What workers say together in their conditions: a tenant may use what one of them lets it use."""
    said: dict[str, list[Mapping[str, Any]]] = {}
    for condition in conditions:
        for alias, about in (condition.get("aliases") or {}).items():
            said.setdefault(alias, []).append(about)
    found: dict[str, ToldAlias] = {}
    for alias, all_said in said.items():
        queues, lists = {about.get("queue") for about in all_said}, [about.get("tenants") for about in all_said]
        tenants = None if None in lists else frozenset(name for names in lists if names for name in names)
        found[alias] = ToldAlias(queues.pop() if len(queues) == 1 else None, tenants)
    return found


class Aliases:
    """Settles the models of the jobs of one submission."""

    def __init__(self, settings: Settings, told: Callable[[], Mapping[str, ToldAlias]]) -> None:
        """`told` is asked by the first job with a model, where this host has no `models.toml`.

        Raises `RequestError` if the file is wrong.
        """
        self._tenant = settings.tenant
        self._file: ModelsFile | None = read_models_file(settings)
        if not self._file.models:
            self._file = None
        self._ask = told
        self._told: Mapping[str, ToldAlias] | None = None
        #: what was settled before, by lane and whether the job chose its queue
        self._settled: dict[tuple[Lane, bool], Lane] = {}

    def __call__(self, job: ValidJob, said: Mapping[str, Any]) -> ValidJob:
        """The job of this line, in the queue of its model. Raises `Invalid` if its tenant may not use it."""
        if not job.lane.model:
            return job
        key = job.lane, said.get("queue") is not None
        lane = self._settled.get(key)
        if lane is None:
            lane = self._settled[key] = self._lane(job, chosen=key[1])
        return job if lane == job.lane else job._replace(lane=lane)

    def _lane(self, job: ValidJob, *, chosen: bool) -> Lane:
        model = job.lane.model
        problems = [("model", self._refusal(model, None))]
        problems += [("params", self._refusal(name, role)) for role, name in of_lane(job.lane.adapters)]
        if refused := [Problem(job.line, where, why) for where, why in problems if why is not None]:
            raise Invalid(refused)
        named = (self._all_told() if self._file is None else self._file.models).get(model)
        return job.lane._replace(queue=named.queue) if named and named.queue and not chosen else job.lane

    def _refusal(self, name: str, role: Role | None) -> str | None:
        """Why jobs may not use what they name so, as a model (no role) or beside one."""
        if self._file is not None:
            named = self._file.get(name)
            if named is None and role is not None and is_plain(name):
                return f"there is no alias {name!r} in models.toml; a hub id has an owner: org/name"
            return self._file.refusal(name, self._tenant, role) or (named.unfit(role) if named else None)
        alias = self._all_told().get(name)
        if alias is None or alias.tenants is None or self._tenant in alias.tenants:
            return None
        return f"tenant {self._tenant!r} may not use {name!r} (models.toml of the workers)"

    def _all_told(self) -> Mapping[str, ToldAlias]:
        if self._told is None:
            self._told = self._ask()
        return self._told
