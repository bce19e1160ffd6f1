"""What is done to a running system: a schedule drawn from a seed, and the hand that carries it out."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil
import redis
from crew import KEEPERS, WORKERS, Crew, DatabaseKind
from fault_proxies import CutAt, HttpFault, Request, Stall
from sqlalchemy import func, select

from shared.tables import artifacts, jobs, worker_sessions

log = logging.getLogger("chaos.faults")

#: longer than the lease of a run, and than the keeper takes to act on it
LONGER_THAN_LEASE_S = 4.5
#: a zombie stays frozen until it has lost its work, or so long at most: its parent would end it as stalled
ZOMBIE_S = 7.0
#: after so long a zombie that woke has met the guard, or does not
NOTICED_S = 1.5
#: a fault that finds nobody to hit is tried again for so long
PATIENCE_S = 30.0

#: how often each comes in a schedule of normal density
EVERYWHERE: Mapping[str, int] = {
    "kill-supervisor": 1, "kill-parent": 2, "kill-child": 3, "kill-on-the-way": 3, "kill-group": 2, "freeze-child": 3,
    "freeze-group": 1, "zombie": 3, "kill-keeper": 2, "freeze-keeper": 1, "kill-submitter": 1, "redis-flush": 3,
    "redis-kill": 1, "redis-freeze": 1, "s3-error": 4, "s3-unavailable": 4, "s3-full": 1, "s3-error-after": 4,
    "s3-lost-answer": 5, "s3-stall": 1, "s3-slow": 4, "s3-corrupt": 2, "s3-reset": 4, "s3-outage": 1,
}  # fmt: skip
ONLY: Mapping[DatabaseKind, Mapping[str, int]] = {
    # Whoever is frozen there in a write stops all others too: with more of it nothing else would happen.
    "sqlite": {"sqlite-locked": 2, "kill-child": 3},
    "postgres": {
        "freeze-child": 2, "postgres-restart": 1, "db-cut": 3, "db-statement": 5, "db-commit-before": 5,
        "db-commit-after": 6,
        "db-result-lost": 4, "db-books-undone": 3, "db-black-hole": 1, "db-partition": 3, "db-slow": 1,
    },
}  # fmt: skip

_SESSION = re.compile(r"w[0-9a-z]{16}(?=[-/])")
_CUSTOM_ID = re.compile(r'"custom_id": "([^"]+)"')

#: kinds that take the database from everybody at once
OUTAGES = frozenset({"db-black-hole", "sqlite-locked"})


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault, so many seconds after the start."""

    at_s: float
    kind: str


def draw(seed: int, database: DatabaseKind, *, seconds: float, density: float = 1.0, only: Iterable[str] = ()) -> list[
    Planned
]:  # fmt: skip
    """A schedule over `seconds`; with `only`, of these kinds alone."""
    rng = random.Random(f"faults {seed} {database}")
    quota: Counter[str] = Counter(EVERYWHERE) + Counter(ONLY[database])
    chosen = set(only)
    kinds = [
        kind
        for kind, times in sorted(quota.items())
        if not chosen or kind in chosen
        for _ in range(max(1, round(times * density)))
    ]
    rng.shuffle(kinds)
    # Early, as the jobs with checkpoints.
    for n in [n for n, kind in enumerate(kinds) if kind == "kill-on-the-way"]:
        other = rng.randrange(max(1, len(kinds) // 2))
        kinds[n], kinds[other] = kinds[other], kinds[n]
    gap = seconds / max(1, len(kinds))
    return [Planned(round((n + rng.uniform(0.1, 0.9)) * gap, 2), kind) for n, kind in enumerate(kinds)]


@dataclass(frozen=True, slots=True)
class _Zombie:
    """A child that is frozen between an upload of results and their COMMIT."""

    process: psutil.Process
    session: str
    #: the jobs whose results it has uploaded, by the names that their owner gave them
    custom_ids: frozenset[str]
    #: when it is thawed at the latest
    until: float

    @property
    def frozen(self) -> bool:
        """Whether it still is: its parent, or another fault, may have ended it."""
        with suppress(psutil.NoSuchProcess):
            return bool(self.process.status() == psutil.STATUS_STOPPED)
        return False


class Hand:
    """Carries a schedule out, and takes every fault back in the end."""

    def __init__(self, crew: Crew, seed: int, schedule: Iterable[Planned], *, heirs: bool = False) -> None:
        """With `heirs`, a zombie wakes when its jobs run elsewhere, rather than as soon as its session has ended."""
        self._crew = crew
        self._heirs = heirs
        self._rng = random.Random(f"hand {seed}")
        self._left = sorted(schedule, key=lambda planned: planned.at_s)
        #: until then zombies come again, if none has met the guard, and wait for uploads
        self._last_s = max((planned.at_s for planned in self._left), default=0.0) + PATIENCE_S
        self._at_s = 0.0
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        #: uploads that stall, or are to, and whose senders are to be frozen
        self._stalls: list[Stall] = []
        self._senders = 0
        #: those that are
        self._zombies: list[_Zombie] = []
        #: what was done, by kind; what the proxies did is counted by them
        self.done: Counter[str] = Counter()
        #: what found nobody to hit
        self.missed: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        """Whether nothing is left to do or to take back."""
        if self._left or self._undo or self._zombies:
            return False
        return not self._stalls or self._at_s > self._last_s or self._met_the_guard("")

    def injected(self) -> Counter[str]:
        """All that was done so far, by kind."""
        total = Counter(self.done)
        total.update({f"s3-{kind}": n for kind, n in self._crew.http.injected.items()})
        total["s3-stall"] -= self._senders  # a part of `zombie`
        for proxy in self._crew.tcp.values():
            total.update({f"db-{kind}": n for kind, n in proxy.injected.items() if kind not in ("black-hole", "slow")})
        return total

    def act(self, at_s: float) -> None:
        """Do what is due `at_s` seconds after the start."""
        self._at_s = at_s
        while self._undo and self._undo[0][0] <= time.monotonic():
            heapq.heappop(self._undo)[2]()
        for stall in [stall for stall in self._stalls if stall.hit.is_set()]:
            self._stalls.remove(stall)
            self._senders += 1
            self._freeze_sender(stall)
        for zombie in [zombie for zombie in self._zombies if self._is_due(zombie)]:
            self._zombies.remove(zombie)
            self._crew.thaw([zombie.process])
            self._later(NOTICED_S, partial(self._judge, zombie.session))
        for planned in [planned for planned in self._left if planned.at_s <= at_s]:
            if self._do(planned.kind):
                log.info("%.1f s: %s", at_s, planned.kind)
                self._left.remove(planned)
            elif at_s > planned.at_s + PATIENCE_S:
                self.missed[planned.kind] += 1
                self._left.remove(planned)

    def _judge(self, session: str) -> None:
        """A zombie that did not meet the guard comes once more: until the faults are over, or one has met it.

        It was ended in its sleep, say, or heard that it was presumed dead before its COMMIT was due.
        """
        others = any(planned.kind != "zombie" for planned in self._left)
        if not self._met_the_guard(session if others else "") and self._at_s < self._last_s:
            self._left.append(Planned(self._at_s, "zombie"))

    def _met_the_guard(self, session: str) -> bool:
        """Whether a session that begins so has."""
        said = f"of session {session}"
        return any(
            said in line and "had another owner" in line
            for log in self._crew.logs.glob("worker-*.log")
            for line in log.read_text(errors="replace").splitlines()
        )

    def heal(self) -> None:
        """Take everything back now; what was not done yet is not done any more."""
        self._left.clear()
        self._last_s = 0.0
        for _, _, undo in sorted(self._undo):
            undo()
        self._undo.clear()
        self._stalls.clear()
        self._zombies.clear()
        self._crew.thaw()
        for proxy in (self._crew.http, *self._crew.tcp.values()):
            proxy.heal()

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        heapq.heappush(self._undo, (time.monotonic() + seconds, next(self._order), undo))

    def _do(self, kind: str) -> bool:
        area, _, what = kind.partition("-")
        if area in ("s3", "db"):
            return self._s3(what) if area == "s3" else self._db(what)
        done: bool = getattr(self, f"_{kind.replace('-', '_')}")()
        if done:
            self.done[kind] += 1
        return done

    # --- processes ---

    def _kill(self, processes: Iterable[psutil.Process | None]) -> bool:
        hit = False
        for process in processes:
            if process is not None:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    hit = True
        return hit

    def _worker(self) -> str:
        return self._rng.choice(WORKERS)

    def _kill_supervisor(self) -> bool:
        return self._kill([self._crew.member(self._worker(), "supervisor")])

    def _kill_parent(self) -> bool:
        return self._kill([self._crew.member(self._worker(), "parent")])

    def _kill_child(self) -> bool:
        return self._kill([self._busy()])

    def _kill_on_the_way(self) -> bool:
        """A child whose job has left a checkpoint: another attempt has to go on from there."""
        return self._kill([self._busy(on_the_way=True)])

    def _kill_group(self) -> bool:
        return self._kill(self._crew.family(self._worker()))

    def _kill_keeper(self) -> bool:
        return self._kill([self._crew.member(self._rng.choice(KEEPERS), "supervisor")])

    def _kill_submitter(self) -> bool:
        return "submitter" in self._crew.kept and self._kill([self._crew.member("submitter", "supervisor")])

    def _freeze(self, processes: list[psutil.Process]) -> bool:
        if not processes:
            return False
        self._crew.freeze(processes)
        self._later(LONGER_THAN_LEASE_S + self._rng.uniform(0.0, 1.0), lambda: self._crew.thaw(processes))
        return True

    def _freeze_child(self) -> bool:
        busy = self._busy()
        return busy is not None and self._freeze([busy])

    def _freeze_group(self) -> bool:
        name = self._busy_worker()
        return name is not None and self._freeze(self._crew.family(name))

    def _freeze_keeper(self) -> bool:
        return self._freeze(self._crew.family(self._rng.choice(KEEPERS)))

    def _busy(self, *, on_the_way: bool = False) -> psutil.Process | None:
        """The child, not frozen, that has most jobs in hand; None if nobody has any.

        With `on_the_way`, of those alone that have left a checkpoint.
        """
        statement = (
            select(worker_sessions.c.pid, func.count())
            .join(jobs, jobs.c.worker_session == worker_sessions.c.id)
            .where(jobs.c.state == "running", worker_sessions.c.ended_at.is_(None))
            .group_by(worker_sessions.c.pid)
            .order_by(func.count().desc())
        )
        if on_the_way:
            published = select(artifacts.c.job_id).where(artifacts.c.role == "checkpoint")
            statement = statement.where(jobs.c.id.in_(published))
        for row in self._crew.glance(statement):
            process = _running(row.pid)
            if process is not None:
                return process
        return None

    def _busy_worker(self) -> str | None:
        """The worker that this child belongs to."""
        busy = self._busy()
        return next((name for name in WORKERS if busy is not None and busy in self._crew.family(name)), None)

    def _zombie(self) -> bool:
        """Freeze a worker between an upload of results and their COMMIT until it has lost the jobs; then it goes on.

        Its COMMIT is sent unless the session hears of it before: the one fault that is aimed at the guard.
        """
        self._stalls.append(self._crew.http.script("stall", method="PUT", target="/packs/"))
        return True

    def _freeze_sender(self, stall: Stall) -> None:
        assert stall.request
        session = found[0] if (found := _SESSION.search(stall.request.target)) else ""
        found_pids = self._crew.glance(select(worker_sessions.c.pid).where(worker_sessions.c.id == session))
        process = _running(found_pids[0].pid) if found_pids else None
        if process is None:
            self._judge(session)
        else:
            self._crew.freeze([process])
            names = _CUSTOM_ID.findall(stall.request.body.decode())
            self._zombies.append(_Zombie(process, session, frozenset(names), time.monotonic() + ZOMBIE_S))
        # The answer then lies in the zombie's socket: it has not to wait for it, nor to try again, once it is thawed.
        stall.release()

    def _is_due(self, zombie: _Zombie) -> bool:
        """Whether this zombie has lost its jobs, or is gone, or was frozen too long."""
        if not zombie.frozen or time.monotonic() > zombie.until:
            return True
        return self._has_heirs(zombie) if self._heirs else self._has_ended(zombie)

    def _has_ended(self, zombie: _Zombie) -> bool:
        """Whether its session has: what it held is waiting again."""
        w = worker_sessions.c
        return bool(self._crew.glance(select(w.id).where(w.id == zombie.session, w.ended_at.is_not(None))))

    def _has_heirs(self, zombie: _Zombie) -> bool:
        """Whether one of its jobs runs elsewhere just now, or all have ended there."""
        j = jobs.c
        rows = self._crew.glance(select(j.state, j.worker_session).where(j.custom_id.in_(zombie.custom_ids)))
        elsewhere = [row.state for row in rows if row.worker_session != zombie.session and row.state != "queued"]
        return "running" in elsewhere or (bool(rows) and len(elsewhere) == len(rows))

    # --- Redis ---

    def _redis_flush(self) -> bool:
        with redis.Redis.from_url(self._crew.redis.url, socket_timeout=1, retry=None) as client:
            try:
                client.flushall()
            except redis.RedisError:  # it is frozen or away
                return False
        return True

    def _redis_kill(self) -> bool:
        if not self._crew.redis.pids:
            return False
        self._crew.redis.kill()
        self._later(self._rng.uniform(0.5, 2.0), self._crew.redis.start)
        return True

    def _redis_freeze(self) -> bool:
        if not self._crew.redis.pids:
            return False
        self._crew.redis.freeze()
        process = psutil.Process(self._crew.redis.pids[0])
        self._later(self._rng.uniform(1.0, 3.0), lambda: self._crew.thaw([process]))
        return True

    # --- the database ---

    def _sqlite_locked(self) -> bool:
        """Somebody holds a write longer than the lease: nobody else can write."""
        # No long wait: the one who holds the lock may be frozen, and we are the one to thaw it.
        path = self._crew.settings.data_dir / "aigc.db"
        connection = sqlite3.connect(path, timeout=0.2, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            connection.close()
            return False
        self._later(LONGER_THAN_LEASE_S, connection.close)
        return True

    def _postgres_restart(self) -> bool:
        assert self._crew.postgres is not None
        self._crew.postgres.restart("immediate")
        return True

    def _db(self, what: str) -> bool:
        crew, rng = self._crew, self._rng
        everyone = list(crew.tcp.values())
        if what == "black-hole":
            # Of all at once, so one fault: an outage must not reap anybody.
            for proxy in everyone:
                proxy.black_hole()
                # Keepers hear of the database first, and must not take those for dead who have yet to.
                late_s = 0.0 if proxy is crew.tcp["others"] else rng.uniform(0.4, 1.0)
                self._later(LONGER_THAN_LEASE_S + late_s, proxy.heal)
            self.done["db-black-hole"] += 1
            return True
        if what == "partition":
            # Of one worker alone: what it holds goes to others, and what it brings later is fenced.
            name = self._busy_worker()
            if name is None:
                return False
            proxy = crew.tcp[name]
            proxy.black_hole()
            self._later(LONGER_THAN_LEASE_S + rng.uniform(0.0, 1.0), proxy.heal)
            self.done["db-partition"] += 1
            return True
        if what == "slow":
            proxy = crew.tcp[self._worker()]
            proxy.slow(0.05)
            self._later(3.0, proxy.heal)
            self.done["db-slow"] += 1
            return True
        if what in ("result-lost", "books-undone"):
            # Not any COMMIT: the one that makes results visible, and one that moves counters.
            proxy = crew.tcp[self._busy_worker() or self._worker()]
            if what == "result-lost":
                proxy.arm("commit-after", writing="artifacts")
            else:
                proxy.arm("commit-before", writing="batch_counters")
            return True
        proxy = rng.choice(everyone)
        if what == "cut":
            return proxy.cut_all() > 0
        cuts: dict[str, CutAt] = {
            "statement": "statement", "commit-before": "commit-before", "commit-after": "commit-after",
        }  # fmt: skip
        proxy.arm(cuts[what])
        return True

    # --- the storage ---

    def _s3(self, what: str) -> bool:
        proxy, rng = self._crew.http, self._rng
        if what == "outage":
            kinds: tuple[HttpFault, ...] = ("unavailable", "error", "error-after", "full", "lost-answer", "reset")

            def rule(request: Request) -> HttpFault | None:
                return rng.choice(kinds) if rng.random() < 0.7 else None

            proxy.rule = rule
            self._later(rng.uniform(2.0, 4.0), lambda: setattr(proxy, "rule", None))
            return True
        faults: dict[str, HttpFault] = {
            "error": "error", "unavailable": "unavailable", "full": "full", "error-after": "error-after",
            "lost-answer": "lost-answer", "stall": "stall", "slow": "slow", "corrupt": "corrupt", "reset": "reset",
        }  # fmt: skip
        stall = proxy.script(faults[what], method=None if what == "slow" else "PUT")
        if what == "stall":
            self._later(4.0, stall.release)
        return True


def _running(pid: int) -> psutil.Process | None:
    """A process that is neither gone nor frozen."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if pid and process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            return process
    return None
