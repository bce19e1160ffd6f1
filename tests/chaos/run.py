"""A run: real processes over real servers, a load, a schedule of faults, healing, and what must hold after it.

    make chaos SEED=7 MINUTES=5 DATABASE=postgres

The seed decides what is submitted, which faults come and when; what they hit depends on the moment as well. Exit
status 1 if an invariant is broken; then the logs, the ledger and the plan stay in the folder that is named.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import faults
import invariants
import plan
from crew import BRISK, HERE, KEEPERS, WORKERS, Crew, DatabaseKind
from evidence import Evidence
from sqlalchemy import func, select

from shared import garbage
from shared import jobs as transitions
from shared.errors import Unavailable
from shared.storage import open_storage
from shared.tables import FINAL_STATES, batches, jobs, worker_sessions

log = logging.getLogger("chaos.run")

#: jobs that are submitted in a minute of a long run
JOBS_PER_MINUTE = 450
#: seconds until three workers have shown themselves
START_S = 60.0
#: seconds between two collections during the faults, unless they are left to the keepers: those collect once a minute
COLLECT_S = 0.5
STOP_S = 25.0


@dataclass(frozen=True, slots=True)
class Order:
    """What kind of run is wanted."""

    database: DatabaseKind
    seed: int
    jobs: int
    #: seconds over which jobs are submitted and faults come
    seconds: float
    #: kinds of faults; none named: all
    only: tuple[str, ...] = ()
    #: faults per time, 1 is normal
    density: float = 1.0
    keepers: int = 2
    #: how long a step of an ordinary job takes, 1 is normal
    pace: float = 1.0
    #: without poison jobs
    harmless: bool = False
    #: zombies wake when their jobs run elsewhere, and find what they uploaded: nobody collects but the keepers
    heirs: bool = False
    #: seconds that everything may take to come to its end once all faults are over
    healing_s: float = 150.0


@dataclass(slots=True)
class Report:
    """What came of it."""

    order: Order
    #: invariant → complaints, those that are broken
    broken: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    #: what was done last, to see what a run waits for
    last: list[str] = field(default_factory=list)

    def table(self) -> str:
        """For people."""
        order = self.order
        lines = [f"chaos: seed {order.seed}, {order.database}"]
        spent = ", ".join(f"{what} {seconds:.0f}" for what, seconds in self.seconds.items())
        rows = [
            ("jobs", f"{sum(self.jobs.values())}: " + _list(self.jobs)),
            ("faults", f"{sum(self.faults.values())}: " + _list(self.faults)),
            ("not hit", _list(self.missed) or "-"),
            ("seen", _list(self.counts)),
            ("seconds", spent),
            ("last", ", ".join(self.last)),
        ]
        lines += [f"  {name:<9}{value}" for name, value in rows]
        for name in (invariant.__name__ for invariant in invariants.INVARIANTS):
            complaints = self.broken.get(name, [])
            lines.append(f"  {'BROKEN' if complaints else 'holds':<9}{name.replace('_', ' ')}")
            lines += [f"             {complaint}" for complaint in complaints[:8]]
            if len(complaints) > 8:
                lines.append(f"             … {len(complaints)} in all")
        return "\n".join(lines)


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


class Run:
    """One run, in a folder of its own."""

    def __init__(self, order: Order, folder: Path) -> None:
        self.order = order
        self.folder = folder
        self.plan = plan.draw(
            order.seed, jobs=order.jobs, seconds=order.seconds, pace=order.pace, harmless=order.harmless
        )
        schedule = faults.draw(
            order.seed, order.database, seconds=order.seconds, density=order.density, only=order.only
        )
        self._schedule = schedule
        self._most: Counter[str] = Counter()
        self._report = Report(order)

    def conduct(self) -> Report:
        """Start, load, harm, heal, judge."""
        began = time.monotonic()
        self.plan.save(self.folder / "plan.json")
        with Crew(self.order.database, self.folder, keepers=KEEPERS[: self.order.keepers]) as crew:
            self._start(crew)
            self._note_time("start", began)
            began = time.monotonic()
            hand = self._harm(crew)
            self._note_time("faults", began)
            began = time.monotonic()
            revived = self._heal(crew, hand)
            self._note_time("healing", began)
            began = time.monotonic()
            self._stop(crew)
            self._note_time("stopping", began)
            began = time.monotonic()
            self._judge(crew, hand, revived)
            self._note_time("judging", began)
        return self._report

    def _note_time(self, what: str, began: float) -> None:
        self._report.seconds[what] = round(time.monotonic() - began, 1)

    def _start(self, crew: Crew) -> None:
        if crew.kind == "postgres":
            crew.set_clock_wrong("worker-c")
            self._report.faults["clock-wrong"] = 1
        for name in list(crew.kept):
            crew.start(name)
        everyone = len(WORKERS)
        _until(lambda: _open_sessions(crew) >= everyone, START_S, "three workers", crew)

    def _harm(self, crew: Crew) -> faults.Hand:
        hand = faults.Hand(crew, self.order.seed, self._schedule, heirs=self.order.heirs)
        started = time.monotonic()
        command = [str(HERE / "submitter.py"), str(self.folder / "plan.json"), str(self._ledger), str(started)]
        crew.start("submitter", [sys.executable, *command], ends=True)
        stop = threading.Event()
        collecting = threading.Thread(target=_collect_often, args=(crew, stop), daemon=True)
        if not self.order.heirs:
            collecting.start()
        while not (hand.over and time.monotonic() - started > self.order.seconds):
            hand.act(time.monotonic() - started)
            self._tick(crew)
        stop.set()
        if collecting.is_alive():
            collecting.join(timeout=30)
        return hand

    def _tick(self, crew: Crew) -> None:
        crew.look_after()
        self._look_at_queues(crew)
        time.sleep(0.1)

    def _look_at_queues(self, crew: Crew) -> None:
        import redis

        with redis.Redis.from_url(crew.redis.url, socket_timeout=0.2, retry=None) as client:
            try:
                for queue in ("gpu", "cpu", plan.NOBODYS_QUEUE):
                    self._most[queue] = max(self._most[queue], client.llen(f"chaos:{queue}"))
            except redis.RedisError:  # it is away, as ordered
                return

    @property
    def _ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    def _accepted(self) -> dict[str, str]:
        if not self._ledger.exists():
            return {}
        entries = [json.loads(line) for line in self._ledger.read_text().splitlines()]
        return {entry["key"]: entry["answer"] for entry in entries if entry["what"] == "submit"}

    def _heal(self, crew: Crew, hand: faults.Hand) -> frozenset[str]:
        """Take every fault back, wait for the end of every job; returns those that their owner retried."""
        hand.heal()
        done = _until(lambda: crew.kept["submitter"].done, self.order.healing_s, "the submitter", crew, self._tick)
        if not (done and _until(lambda: _unfinished(crew) == 0, self.order.healing_s, "every job", crew, self._tick)):
            return frozenset()
        revived = self._revive(crew)
        if revived:
            _until(lambda: _unfinished(crew) == 0, self.order.healing_s, "every job that was retried", crew, self._tick)
        return revived

    def _revive(self, crew: Crew) -> frozenset[str]:
        """Jobs that were alone with their worker each time it was killed have failed for it: their owner insists."""
        harmless = {"plain", "checkpointed", "cancelled"}
        accepted = self._accepted()
        revived: set[str] = set()
        with crew.db.read() as connection:
            failed = set(
                connection.scalars(
                    select(jobs.c.id).where(jobs.c.state == "failed", jobs.c.error_code.in_(plan.WORKER_CODES))
                )
            )
        for batch in self.plan.batches:
            ids = {f"{accepted.get(batch.key)}-{n}": line["custom_id"] for n, line in enumerate(batch.lines, 1)}
            these = [id_ for id_, custom_id in ids.items() if id_ in failed and batch.kinds[custom_id] in harmless]
            if these:
                transitions.retry(crew.db, crew.settings.tenant, accepted[batch.key], these)
                revived.update(these)
        return frozenset(revived)

    def _stop(self, crew: Crew) -> None:
        """Workers first; the keepers see to what is left of them."""
        crew.stop(WORKERS)

        # One that is still starting has no session yet, and the keepers have to be there when it has.
        def over() -> bool:
            return crew.gone(WORKERS) and _open_sessions(crew) == 0

        _until(over, STOP_S, "the end of every worker", crew)
        crew.end()

    def _judge(self, crew: Crew, hand: faults.Hand, revived: frozenset[str]) -> None:
        diary = self.folder / "diary.jsonl"
        seen = Evidence(
            plan=self.plan,
            accepted=self._accepted(),
            db=crew.db,
            storage=open_storage(crew.settings, create=False),
            logs=crew.logs,
            diary=[json.loads(line) for line in diary.read_text().splitlines()] if diary.exists() else [],
            most_messages=dict(self._most),
            # Each of those who ring looks first and then sends: at worst all of them at once.
            messages_allowed=int(BRISK["AIGC_QUEUE_MESSAGES"]) * (len(KEEPERS) + 1),
            revived=revived,
            every_kind=not self.order.only,
            only_outages=bool(self.order.only) and faults.OUTAGES.issuperset(self.order.only),
            wrong_clocks=frozenset(pid for pid, _ in crew.kept["worker-c"].seen) if crew.tcp else frozenset(),
        )
        report = self._report
        report.jobs = dict(Counter(row.state for row in seen.jobs.values()))
        report.faults = dict(Counter(report.faults) + hand.injected())
        report.missed = dict(hand.missed)
        kinds = {id_: f"{kind} {line['custom_id']}" for id_, kind, _, line in seen.planned()}
        ended = sorted((row.finished_at, id_) for id_, row in seen.jobs.items() if row.finished_at is not None)
        report.last = [f"{kinds.get(id_, id_)} {at - ended[-1][0]:.1f} s" for at, id_ in ended[-4:]]
        report.counts = invariants.counts(seen) | {"revived": len(revived)}
        for invariant in invariants.INVARIANTS:
            if complaints := invariant(seen):
                report.broken[invariant.__name__] = complaints


def _collect_often(crew: Crew, stop: threading.Event) -> None:
    """What the keepers do now and then, while everything goes on."""
    storage = open_storage(crew.settings, create=False)
    while not stop.wait(COLLECT_S):
        try:
            garbage.collect(crew.db, storage)
        except Unavailable as error:
            log.info("collecting: %s", error)


def _open_sessions(crew: Crew) -> int:
    with crew.db.read() as connection:
        statement = select(func.count()).select_from(worker_sessions).where(worker_sessions.c.ended_at.is_(None))
        return int(connection.execute(statement).scalar_one())


def _unfinished(crew: Crew) -> int:
    opened = select(batches.c.id).where(batches.c.state == "open")
    with crew.db.read() as connection:
        statement = select(func.count()).where(jobs.c.state.not_in(FINAL_STATES), jobs.c.batch_id.in_(opened))
        return int(connection.execute(statement).scalar_one())


def _until(
    true: Callable[[], bool], within_s: float, what: str, crew: Crew, tick: Callable[[Crew], None] | None = None
) -> bool:
    """Wait for something; returns whether it came. That it did not is for the invariants to say."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if true():
                return True
        except Unavailable as error:
            log.warning("%s", error)
        (tick or Crew.look_after_for_a_moment)(crew)
    log.error("%s did not come within %g s", what, within_s)
    return False


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="postgres")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, help=f"default: {JOBS_PER_MINUTE} a minute")
    parser.add_argument("--only", default="", help="kinds of faults, comma separated; default: all")
    parser.add_argument("--density", type=float, default=1.0, help="faults per time; 1 is normal")
    parser.add_argument("--keepers", type=int, choices=(0, 1, 2), default=2)
    parser.add_argument("--pace", type=float, default=1.0, help="how long a step takes; 1 is normal")
    parser.add_argument("--harmless", action="store_true", help="without jobs that kill or break their worker")
    parser.add_argument("--heirs", action="store_true", help="zombies wake when others run their jobs")
    parser.add_argument("--healing", type=float, default=150.0, help="seconds that the end may take")
    parser.add_argument("--report", type=Path, help="write the report as JSON here too")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("chaos").setLevel(logging.INFO)
    order = Order(
        database=arguments.database,
        seed=arguments.seed,
        jobs=arguments.jobs or round(JOBS_PER_MINUTE * arguments.minutes),
        seconds=60 * arguments.minutes,
        only=tuple(part for part in arguments.only.split(",") if part),
        density=arguments.density * arguments.minutes,
        keepers=arguments.keepers,
        pace=arguments.pace,
        harmless=arguments.harmless,
        heirs=arguments.heirs,
        healing_s=arguments.healing,
    )
    folder = Path(tempfile.mkdtemp(prefix=f"aigc-chaos-{order.database}-{order.seed}-"))
    report = Run(order, folder).conduct()
    print(report.table())
    if arguments.report:
        arguments.report.write_text(json.dumps(asdict(report)))
    if report.broken:
        print(f"  the logs are in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
