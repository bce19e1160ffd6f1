"""From outcome to visible result: beside the device, in groups, within bounds, and in the right order."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from cluster import until
from sqlalchemy import select

from aigc import Batch, Client
from shared import jobs as transitions
from shared.database import Database
from shared.errors import JobFailed, Unavailable
from shared.jobs import ClaimedJob
from shared.settings import Settings
from shared.storage import open_storage
from shared.tables import artifacts, jobs, lanes, objects
from workers.depot import Depot
from workers.finisher import Finished, Finisher, FinisherBroken, Published
from workers.generators import Done, Failed, Output
from workers.pulse import Pulse
from workers.session import Session

#: larger than what shares an object with others
OWN_OBJECT = 100_000


class Rig:
    """A finisher over a real database and a real storage, whose uploads a test can hold up."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.db, self.settings, self.client = db, settings, Client(settings)
        self.pulse = Pulse.private()
        self.session = Session(settings, db, device="cpu", queues=["cpu"], pulse=self.pulse, on_drain=lambda: None)
        self.storage = open_storage(settings)
        self.put = self.storage.put
        #: keys of uploads that were begun, and bodies of those that have ended, in their order
        self.begun: list[str] = []
        self.stored: list[bytes] = []
        #: decides what becomes of an upload before it is made
        self.before: Callable[[str, bytes], None] = lambda key, body: None
        self.storage.put = self._put  # type: ignore[method-assign]
        self.troubles: list[Unavailable] = []
        self.finisher = self.finishing()

    def finishing(self, **more: Any) -> Finisher:
        options: dict[str, Any] = {"retry_after_s": 0.2, "patience_s": 30.0, "stall_s": 60.0, **more}
        return Finisher(
            self.session, self.db, Depot(lambda: self.storage, pause_s=0.1), self.pulse,
            on_trouble=self.troubles.append, on_stored=lambda: None, **options,
        )  # fmt: skip

    def _put(self, key: str, body: Any, *, media_type: str) -> Any:
        self.begun.append(key)
        self.before(key, body)
        done = self.put(key, body, media_type=media_type)
        self.stored.append(body)
        return done

    def claimed(self, n: int, **more: Any) -> tuple[Batch, list[ClaimedJob]]:
        """A batch of so many jobs, in the hands of the session."""
        batch = self.client.submit([{"params": {"message": k}} for k in range(n)], task="echo", **more)
        with self.db.read() as connection:
            lane = connection.scalars(select(lanes.c.id)).first()
        taken: list[ClaimedJob] = []
        while len(taken) < n:
            taken += transitions.claim(
                self.db, session=self.session.id, lane_id=lane, priority=0, limit=n, window_s=1e9
            )  # fmt: skip
        self.session.hold(taken)
        return batch, taken

    def states(self, batch: Batch) -> list[str]:
        with self.db.read() as connection:
            rows = connection.scalars(select(jobs.c.state).where(jobs.c.batch_id == batch.id).order_by(jobs.c.line))
            return list(rows)

    def close(self) -> None:
        self.finisher.close()
        self.session.close()


@pytest.fixture
def rig(settings: Settings, db: Database) -> Iterator[Rig]:
    made = Rig(settings, db)
    yield made
    made.close()


def done(job: ClaimedJob, *bodies: Any, media_type: str = "text/plain") -> Finished:
    return Finished(job, Done(job.id, [Output(media_type, body) for body in bodies]), 0.1, {"generator": "Test"})


def published(job: ClaimedJob, role: str, body: bytes, position: int = 0) -> Published:
    return Published(job, Output("application/octet-stream", body, role=role), position)


def test_an_upload_that_takes_long_holds_up_nobody_else(rig: Rig) -> None:
    batch, [slow, *others] = rig.claimed(6)
    go_on = threading.Event()
    rig.before = lambda key, body: None if slow.id not in key else _wait(go_on)

    rig.finisher.put(done(slow, b"s" * OWN_OBJECT))
    until(lambda: rig.begun, what="the slow upload being under way")
    for job in others:
        rig.finisher.put(done(job, b"o" * OWN_OBJECT))
    until(lambda: rig.states(batch) == ["running"] + ["succeeded"] * 5, what="the results of the others")

    assert rig.finisher.pending(job.id for job in [slow, *others]) == {slow.id}
    assert rig.finisher.pending([slow.id]) == {slow.id}
    assert rig.session.held([slow.id]), "it is in our hands until it is settled"
    go_on.set()
    rig.finisher.flush()
    assert rig.states(batch) == ["succeeded"] * 6
    assert not rig.finisher.pending([slow.id])
    assert rig.session.all_held() == []


def test_what_has_gathered_meanwhile_is_committed_together(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    succeed, go_on = transitions.succeed, threading.Event()

    def counted(db: Database, session: str, results: Sequence[Any]) -> set[str]:
        groups.append(len(results))
        _wait(go_on)
        return succeed(db, session, results)

    monkeypatch.setattr("workers.finisher.pipeline.jobs.succeed", counted)
    batch, claimed = rig.claimed(300)
    rig.finisher.put(done(claimed[0], b"first"))
    until(lambda: groups == [1], what="a single result being committed at once")
    for job in claimed[1:]:
        rig.finisher.put(done(job, b"text"))
    go_on.set()
    rig.finisher.flush()

    assert set(rig.states(batch)) == {"succeeded"}
    assert sum(groups) == 300
    assert len(groups) <= 3, "one transaction for many, not one for each"


def test_the_model_waits_while_more_is_under_way_than_may_be(rig: Rig) -> None:
    batch, claimed = rig.claimed(5)
    rig.finisher.close()
    rig.finisher = rig.finishing(buffer_mb=1)
    slots = threading.Semaphore(0)
    rig.before = lambda key, body: _wait(slots)
    handed: list[str] = []

    def model() -> None:
        for job in claimed:
            rig.finisher.put(done(job, b"x" * 400_000))
            handed.append(job.id)

    thread = threading.Thread(target=model)
    thread.start()
    for stored in range(4):
        until(lambda stored=stored: len(handed) >= min(5, 2 + stored), what="those for which there is room")
        time.sleep(0.1)  # in which nothing more may come in
        assert len(handed) == min(5, 2 + stored)
        slots.release()
    slots.release(5)
    thread.join(20)
    rig.finisher.flush()
    assert set(rig.states(batch)) == {"succeeded"}


def test_one_output_that_is_larger_than_the_bound_goes_alone(rig: Rig) -> None:
    batch, claimed = rig.claimed(2)
    rig.finisher.close()
    rig.finisher = rig.finishing(buffer_mb=1)
    for job in claimed:
        rig.finisher.put(done(job, b"x" * 2_000_000))
    rig.finisher.flush()
    assert set(rig.states(batch)) == {"succeeded"}


def test_outputs_are_encoded_several_at_a_time_off_the_model_s_thread(rig: Rig) -> None:
    batch, claimed = rig.claimed(4)
    together = threading.Barrier(min(2, os.cpu_count() or 1))
    threads: set[str] = set()

    def encoding() -> bytes:
        together.wait(20)
        threads.add(threading.current_thread().name)
        return b"p" * OWN_OBJECT

    for job in claimed:
        rig.finisher.put(done(job, encoding, media_type="image/png"))
    rig.finisher.flush()
    assert set(rig.states(batch)) == {"succeeded"}
    assert threading.current_thread().name not in threads
    assert len(threads) >= together.parties


def test_while_the_model_waits_for_an_output_to_be_encoded_its_parent_knows_since_when(rig: Rig) -> None:
    _, [job] = rig.claimed(1)
    go_on = threading.Event()
    rig.finisher.put(done(job, lambda: b"x" if _wait(go_on) else b"", media_type="image/png"))
    thread = threading.Thread(target=rig.finisher.flush)
    thread.start()
    until(lambda: rig.pulse.read().stepped_at > 0, what="the sign")
    assert rig.pulse.read().patience_s == 60.0
    go_on.set()
    thread.join(20)
    assert rig.pulse.read().stepped_at == 0


def test_small_texts_of_a_batch_share_objects_and_each_has_its_own_range(rig: Rig) -> None:
    batch, claimed = rig.claimed(1500)
    other, [stranger] = rig.claimed(1)
    rig.finisher.put_many([*(done(job, f"text of {job.id}".encode()) for job in claimed), done(stranger, b"mine")])
    rig.finisher.flush()

    with rig.db.read() as connection:
        rows = connection.execute(select(artifacts)).all()
        sizes = {row.key: row.bytes for row in connection.execute(select(objects.c.key, objects.c.bytes))}
    in_object = Counter(row.object_key for row in rows)
    assert len(rows) == 1501
    assert max(in_object.values()) <= 1024
    assert len(in_object) <= 4, "not one object each"
    assert {key.split("/")[1] for key in in_object} == {batch.id, other.id}
    for key in in_object:
        with rig.storage.open(key) as stream:
            body = stream.read()
        assert len(body) == sizes[key]
        for row in (row for row in rows if row.object_key == key):
            assert row.job_id.startswith(key.split("/")[1]), "no pack holds texts of two batches"
            expected = b"mine" if row.job_id == stranger.id else f"text of {row.job_id}".encode()
            assert body[row.start : row.start + row.bytes] == expected


def test_a_row_of_intent_stands_before_the_object_does(rig: Rig) -> None:
    _, claimed = rig.claimed(20)
    seen: dict[str, str | None] = {}

    def look(key: str, body: bytes) -> None:
        with rig.db.read() as connection:
            seen.setdefault(key, connection.scalar(select(objects.c.state).where(objects.c.key == key)))

    rig.before = look
    for n, job in enumerate(claimed):
        rig.finisher.put(done(job, b"x" * (OWN_OBJECT if n % 2 else 10)))
    rig.finisher.put(published(claimed[0], "metric", b"1"))
    rig.finisher.flush()
    assert len(seen) > 10
    assert set(seen.values()) == {"intended"}


def test_no_checkpoint_is_overtaken_by_an_older_one_nor_by_the_result(rig: Rig) -> None:
    batch, [job] = rig.claimed(1)
    go_on = threading.Event()
    rig.before = lambda key, body: None if body != b"1" else _wait(go_on)

    rig.finisher.put(published(job, "checkpoint", b"1"))
    until(lambda: rig.begun, what="the first one being under way")
    for number in (2, 3, 4):
        rig.finisher.put(published(job, "checkpoint", str(number).encode()))
        rig.finisher.put(published(job, "metric", f"m{number}".encode(), position=number))
    rig.finisher.put(done(job, b"result"))
    assert rig.states(batch) == ["running"]
    assert rig.stored == []
    go_on.set()
    rig.finisher.flush()

    assert [body for body in rig.stored if len(body) == 1] == [b"1", b"4"], "those between were replaced as they waited"
    assert rig.stored[-1] == b"result"
    with rig.db.read() as connection:
        roles = Counter(connection.scalars(select(artifacts.c.role)))
    assert roles == {"metric": 3, "output": 1}, "metrics stay; checkpoints go with success"


def test_the_newest_checkpoint_is_the_last_one_published_whatever_its_position(rig: Rig) -> None:
    """Given that the upload of one is slower than that of the next, at another position."""
    _, [job] = rig.claimed(1)
    go_on, last_begun = threading.Event(), threading.Event()

    def slower(key: str, body: bytes) -> None:
        if body == b"0":
            _wait(go_on)
        elif body == b"1":
            if last_begun.wait(1.0):  # which must not come to pass: the later one would be shown before this one
                time.sleep(0.5)
        else:
            last_begun.set()

    rig.before = slower
    rig.finisher.put(published(job, "checkpoint", b"0", position=0))
    until(lambda: rig.begun, what="the first one being under way")
    rig.finisher.put(published(job, "checkpoint", b"1", position=0))
    rig.finisher.put(published(job, "checkpoint", b"2", position=1))
    go_on.set()
    rig.finisher.flush()
    kept = transitions.checkpoints(rig.db, [job.id])[job.id]
    with rig.storage.open(kept.object_key) as stream:
        assert stream.read() == b"2"


def test_an_object_that_the_storage_never_takes_costs_its_own_job_a_try_and_nobody_else_anything(rig: Rig) -> None:
    batch, [refused, *others] = rig.claimed(4)
    rig.finisher.close()
    rig.finisher = rig.finishing(patience_s=0.5)

    def refuse(key: str, body: bytes) -> None:
        if refused.id in key:
            raise Unavailable("storage", "there", "it refuses a request of this size", "wait")

    rig.before = refuse
    rig.finisher.put(done(refused, b"r" * OWN_OBJECT))
    for job in others:
        rig.finisher.put(done(job, b"o" * OWN_OBJECT))
    rig.finisher.flush()

    assert rig.states(batch) == ["queued"] + ["succeeded"] * 3
    assert rig.troubles
    assert rig.client.job(refused.id).attempt == 0
    assert rig.session.all_held() == []


def test_a_failure_of_a_job_that_was_cancelled_meanwhile_is_no_failure(rig: Rig) -> None:
    batch, [cancelled, failed] = rig.claimed(2)
    rig.client.cancel([cancelled.id])
    rig.session._renew()
    assert not rig.session.wanted(cancelled.id)
    for job in (cancelled, failed):
        rig.finisher.put(Finished(job, Failed(job.id, JobFailed("stumbled", "no")), 0.1, {}))
    rig.finisher.flush()
    assert rig.states(batch) == ["cancelled", "failed"]


def test_an_output_of_a_role_that_nobody_knows_fails_its_own_job(rig: Rig) -> None:
    batch, [odd, plain] = rig.claimed(2)
    rig.finisher.put(Finished(odd, Done(odd.id, [Output("text/plain", b"x", role="souvenir")]), 0.1, {}))
    rig.finisher.put(done(plain, b"y"))
    rig.finisher.flush()
    assert rig.states(batch) == ["queued", "succeeded"]
    error = rig.client.job(odd.id).error
    assert error is not None
    assert "souvenir" in error["message"]


def test_a_defect_of_ours_is_told_to_whoever_hands_something_over_and_to_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    batch, claimed = rig.claimed(2)

    def defect(key: str, body: bytes) -> None:
        raise KeyError("a defect")

    rig.before = defect
    rig.finisher.put(done(claimed[0], b"x"))
    with pytest.raises(FinisherBroken):
        rig.finisher.flush()
    assert rig.finisher.broken
    with pytest.raises(FinisherBroken):
        rig.finisher.put(done(claimed[1], b"y"))
    rig.close()
    assert rig.states(batch) == ["queued", "queued"], "what was in hand went back"
    [told] = [record for record in caplog.records if "a defect of ours" in record.message]
    assert told.exc_info is not None
    assert told.exc_info[0] is KeyError


def _wait(event: threading.Event | threading.Semaphore) -> bool:
    given = event.wait(30) if isinstance(event, threading.Event) else event.acquire(timeout=30)
    assert given
    return True
