"""The owner of the jobs, as a process that may itself be killed: submits a plan and acts on it, and keeps a ledger.

    python submitter.py PLAN LEDGER STARTED_AT

A line of the ledger is written once a batch is known to be accepted. A submission whose answer was lost is sent again
under its idempotency key until the answer is known, and so is one that an earlier life of this process began.
`STARTED_AT` is the start of the run on the clock of `time.monotonic`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import plan
from plan import PlannedBatch

from aigc import Client
from shared.errors import AigcError, NotAllowed, Unavailable

T = TypeVar("T")

log = logging.getLogger("chaos.submitter")

#: seconds between two tries
AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Step:
    """Something that the owner does."""

    at_s: float
    what: str
    batch: PlannedBatch


class Owner:
    """Acts on a plan until every step of it is done."""

    def __init__(self, planned: plan.Plan, ledger: Path, started_at: float) -> None:
        self._planned = planned
        self._ledger = ledger
        self._started_at = started_at
        self._client: Client | None = None
        self._done: dict[tuple[str, str], Any] = {}
        if ledger.exists():
            for line in ledger.read_text().splitlines():
                entry = json.loads(line)
                self._done[entry["key"], entry["what"]] = entry["answer"]

    def act(self) -> None:
        """Every step in the order of time, each until it is answered."""
        for step in sorted(self._steps(), key=lambda step: step.at_s):
            time.sleep(max(0.0, self._started_at + step.at_s - time.monotonic()))
            if (step.batch.key, step.what) not in self._done:
                answer = self._insist(lambda step=step: getattr(self, f"_{step.what}")(step.batch))  # type: ignore[misc]
                self._write_down(step, answer)

    def _steps(self) -> list[Step]:
        steps = []
        for batch in self._planned.batches:
            steps.append(Step(batch.at_s, "submit", batch))
            if batch.again:
                steps.append(Step(batch.at_s + 1.0, "submit_again", batch))
            if batch.cancel_after_s is not None:
                steps.append(Step(batch.at_s + batch.cancel_after_s, "cancel", batch))
            if batch.cancel_some_after_s is not None:
                steps.append(Step(batch.at_s + batch.cancel_some_after_s, "cancel_some", batch))
            if batch.retry:
                steps.append(Step(batch.at_s + 8.0, "retry", batch))
        return steps

    def _submit(self, batch: PlannedBatch) -> str:
        submitted = self._api().submit(
            batch.lines, name=batch.key, idempotency_key=batch.key, expires_s=batch.expires_s
        )
        return submitted.id

    def _submit_again(self, batch: PlannedBatch) -> str:
        second, first = self._submit(batch), self._done[batch.key, "submit"]
        if second != first:
            raise AssertionError(f"the same request under key {batch.key} gave batch {first} and batch {second}")
        return second

    def _cancel(self, batch: PlannedBatch) -> int:
        return self._api().batch(self._done[batch.key, "submit"]).cancel()

    def _cancel_some(self, batch: PlannedBatch) -> int:
        lines = [n for n, line in enumerate(batch.lines, 1) if batch.kinds[line["custom_id"]] == "cancelled"]
        return self._api().cancel(f"{self._done[batch.key, 'submit']}-{line}" for line in lines)

    def _retry(self, batch: PlannedBatch) -> int:
        return self._api().batch(self._done[batch.key, "submit"]).retry()

    def _api(self) -> Client:
        if self._client is None:
            self._client = Client()
        return self._client

    def _insist(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except (Unavailable, NotAllowed) as error:
                # Not allowed: an earlier life of ours may be submitting the same, or began to.
                log.warning("%s: %s", type(error).__name__, error)
            except AigcError:
                log.exception("a request of ours was refused")
                raise
            time.sleep(AGAIN_S)

    def _write_down(self, step: Step, answer: Any) -> None:
        entry = {"key": step.batch.key, "what": step.what, "answer": answer}
        with self._ledger.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._done[step.batch.key, step.what] = answer


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    Owner(plan.load(Path(sys.argv[1])), Path(sys.argv[2]), float(sys.argv[3])).act()


if __name__ == "__main__":
    main()
