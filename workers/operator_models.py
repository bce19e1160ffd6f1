"""The operator's `models.toml` as it is now: read again when it changes, so that no worker has to be started anew."""

from __future__ import annotations

import logging
import time
from typing import Any

from shared.errors import JobFailed, ModelRejected, RequestError
from shared.models_file import ModelsFile, NamedModel, read_models_file
from shared.settings import Settings
from shared.tasks.adapters import Role
from workers.residency import Residency
from workers.session import Session

log = logging.getLogger("aigc.worker")

#: seconds between two looks at the file
LOOK_S = 1.0
#: most aliases of which submitters are told through the database
MOST_TOLD = 256

_Stamp = tuple[int, int, int] | None


class OperatorModels:
    """What the file says; several threads may ask."""

    def __init__(self, settings: Settings) -> None:
        """Reads the file. Raises `RequestError` if it is wrong."""
        self._settings = settings
        self._seen = self._stamp()
        self._looked_at = time.monotonic()
        self._said = read_models_file(settings)
        #: what is wrong with the file as it is now, while what it said before holds
        self.trouble: str | None = None

    def __call__(self) -> ModelsFile:
        """The file, looked at if that was a while ago. One that has become wrong changes nothing but `trouble`."""
        clock = time.monotonic()
        if clock - self._looked_at < LOOK_S:
            return self._said
        self._looked_at, stamp = clock, self._stamp()
        if stamp == self._seen:
            return self._said
        self._seen = stamp
        try:
            self._said, self.trouble = read_models_file(self._settings), None
        except RequestError as error:
            self.trouble = str(error)
            log.error("%s; what it said before goes on to hold", error)
        else:
            log.info("%s was read again: %d model(s)", self._settings.models_path, len(self._said.models))
        return self._said

    def get(self, ref: str) -> NamedModel | None:
        """What stands under an alias; None if this is none."""
        return self().get(ref)

    def refused(self, ref: str, tenant: str, role: Role | None = None) -> JobFailed | None:
        """How jobs of this tenant fail that name this model, or this beside one, if they may not use it."""
        refusal = self().refusal(ref, tenant, role)
        return ModelRejected("model_not_allowed", refusal) if refusal else None

    def told(self) -> dict[str, Any] | None:
        """What submitters on other hosts have to know of the aliases: their queues, and who may use them."""
        models = sorted(self().models.values(), key=lambda named: named.alias)
        if len(models) > MOST_TOLD:
            log.warning("submitters are told of the first %d aliases of %d alone", MOST_TOLD, len(models))
        return {
            named.alias: {"queue": named.queue, "tenants": named.tenants and list(named.tenants)}
            for named in models[:MOST_TOLD]
        } or None

    def _stamp(self) -> _Stamp:
        try:
            now = self._settings.models_path.stat()
        except OSError:
            return None
        return now.st_mtime_ns, now.st_size, now.st_ino


def leave_word(session: Session, residency: Residency, models: OperatorModels) -> None:
    """For whoever submits or asks why: what is in memory, what is set aside or too big, what the operator says."""
    session.say("models", sorted(residency.models) or None)
    session.say("set_aside", residency.set_aside or None)
    session.say("needs", residency.needs.told or None)
    session.say("aliases", models.told())
    session.say("models_file", models.trouble)
