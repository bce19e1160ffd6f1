"""Would anybody notice? Each promise is broken in a copy of the tree, and both a directed test and a run must see it.

    make chaos-mutants            all of them
    … mutants.py guard keeper     those whose name contains one of these

For each mutant: the tree is copied, exact pieces of its text are replaced, a directed test runs against the copy and
has to fail, and a short run with a schedule of its own has to break an invariant that is named here. Tests and runs are
first tried on an unchanged copy, where they have to pass. Exit status 1 if a mutant survives.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_COPIED = ("aigc", "migrations", "models", "producer", "shared", "tests", "workers", "pyproject.toml", "README.md")
_DIRECTED_S, _RUN_S = 240.0, 280.0
_TRANSITIONS, _KEEPER = "tests/integration/test_transitions.py", "tests/integration/test_keeper.py"
_GARBAGE, _DIRECTED = "tests/integration/test_garbage.py", "tests/chaos/test_directed.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One promise, broken."""

    name: str
    file: str
    #: (what stands there exactly once, what takes its place)
    replaced: tuple[tuple[str, str], ...]
    #: the test that has to fail
    test: str
    #: the invariants of which at least one has to be broken
    invariants: tuple[str, ...]
    #: how the run is to be
    run: tuple[str, ...]


#: Few jobs that take long: others run them when the zombie wakes. And what it uploaded is not collected by then, or its
#: COMMIT would come to nothing for that alone.
_ZOMBIES = (
    "--database", "sqlite", "--jobs", "170", "--minutes", "0.8", "--pace", "15", "--density", "2.5",
    "--only", "zombie", "--harmless", "--heirs",
)  # fmt: skip
_COMMITS = (
    "--database", "postgres", "--jobs", "300", "--minutes", "0.4", "--density", "10",
    "--only", "db-commit-before,db-commit-after,db-result-lost,db-books-undone",
    "--harmless",
)  # fmt: skip
_KILLS = (
    "--database", "sqlite", "--jobs", "200", "--minutes", "0.4", "--density", "4",
    "--only", "kill-group,s3-full", "--healing", "60",
)  # fmt: skip
_OUTAGES = (
    "--database", "postgres", "--jobs", "200", "--minutes", "0.6", "--density", "4", "--only", "db-black-hole",
)  # fmt: skip
_COUNTED_LATER = """\
    booked: list[Any] = []
    stands = db.write(work, replayable=True)
    db.write(lambda c: moved(c, booked, "running", "succeeded", "succeeded", session=session))
    fenced("T5\""""

_CALM = ("--database", "sqlite", "--jobs", "300", "--minutes", "0.3", "--density", "1", "--only", "redis-flush")

MUTANTS = (
    Mutant(
        "guard without epoch and session",
        "shared/jobs/pieces.py",
        (
            ("tuple_(jobs.c.id, jobs.c.epoch).in_(pairs(held)),", "jobs.c.id.in_([id_ for id_, _ in held]),"),
            ("        jobs.c.worker_session == session,\n", ""),
        ),
        f"{_TRANSITIONS}::test_whoever_lost_a_job_can_do_nothing_to_it",
        ("every_success_has_one_result", "every_claim_has_its_end", "no_defect_was_logged"),
        _ZOMBIES,
    ),
    Mutant(
        "guard without state",
        "shared/jobs/pieces.py",
        (
            (
                'jobs.c.worker_session == session,\n        jobs.c.state == "running",\n',
                "jobs.c.worker_session == session,\n",
            ),
        ),
        f"{_TRANSITIONS}::test_a_success_may_be_repeated_when_the_answer_to_its_commit_was_lost",
        ("no_defect_was_logged", "counters_equal_rows", "every_success_was_told_once"),
        _COMMITS,
    ),
    Mutant(
        "take-back keeps the epoch",
        "shared/jobs/reap.py",
        (('else_="queued"), epoch=c.epoch + 1,', 'else_="queued"),'),),
        f"{_TRANSITIONS}::test_jobs_of_a_dead_worker_are_taken_back_at_once_and_fenced",
        ("every_claim_has_its_end", "every_job_is_terminal"),
        _KILLS,
    ),
    Mutant(
        "sessions share their objects",
        "workers/finisher/place.py",
        (
            ('/{job.epoch}-{self._session}"', '"'),
            ("/packs/{self._session}-{next(self._packs)}", "/packs/{next(self._packs)}"),
        ),
        f"{_DIRECTED}::test_what_a_zombie_uploads_never_lands_on_the_object_of_a_winner",
        ("every_artifact_is_whole", "every_success_has_one_result"),
        _CALM,
    ),
    Mutant(
        "no keeper reaps",
        "shared/keeper.py",
        (("for session in jobs.reap(self._db):", "for session in list[str]():"),),
        f"{_KEEPER}::test_the_jobs_of_a_killed_worker_are_queued_within_a_lease_and_two_keeper_intervals",
        ("every_job_is_terminal",),
        _KILLS,
    ),
    Mutant(
        "a COMMIT is repeated without reading back",
        "shared/jobs/outcome.py",
        (("        if len(standing) < len(keys):\n", "        if False:\n"),),
        f"{_TRANSITIONS}::test_a_success_may_be_repeated_when_the_answer_to_its_commit_was_lost",
        ("whoever_was_fenced_had_lost_its_jobs",),
        _COMMITS,
    ),
    Mutant(
        "counters move in a transaction of their own",
        "shared/jobs/outcome.py",
        (
            (
                '        moved(connection, rows, "running", "succeeded", "succeeded", session=session)\n',
                "        booked[:] = rows\n",
            ),
            (
                '    stands = db.write(work, replayable=True)\n    fenced("T5"',
                _COUNTED_LATER,
            ),
        ),
        f"{_DIRECTED}::test_a_result_and_its_books_stand_or_fall_together",
        ("counters_equal_rows",),
        _COMMITS,
    ),
    Mutant(
        "collection of what is being uploaded",
        "shared/garbage.py",
        (('and_(_loose("intended"), ~at_work)', '_loose("intended")'),),
        f"{_GARBAGE}::test_uploads_that_came_to_nothing_go_once_their_session_is_over_and_never_before",
        ("no_defect_was_logged", "every_artifact_is_whole"),
        _CALM,
    ),
    Mutant(
        "leases are not extended after an outage",
        "shared/jobs/reap.py",
        (("        if gap > usual_s:\n", "        if gap > 1e9:\n"),),
        f"{_KEEPER}::test_an_outage_extends_the_leases_that_were_good_when_it_began_and_no_others",
        ("an_outage_of_all_reaps_nobody",),
        _OUTAGES,
    ),
)


class Copy:
    """A copy of the tree, whose code is what all processes of a test or a run import."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)  # PostgreSQL runs as somebody else
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
            else:
                shutil.copy(source, folder / name)

    def change(self, mutant: Mutant) -> None:
        """Break the promise. Raises `ValueError` where the text is not there exactly once."""
        path = self.folder / mutant.file
        text = path.read_text()
        for old, new in mutant.replaced:
            if text.count(old) != 1:
                raise ValueError(f"{mutant.name}: {mutant.file} has {text.count(old)} times\n{old}")
            text = text.replace(old, new)
        path.write_text(text)

    def passes(self, test: str) -> bool:
        """Run a directed test against the copy."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
        done = self._call(command, [self.folder], _DIRECTED_S)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{test} cannot be run:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        return done.returncode == 0

    def run(self, arguments: tuple[str, ...]) -> dict[str, list[str]]:
        """Conduct a run against the copy; returns what it broke."""
        tests = self.folder / "tests"
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        command = [sys.executable, str(tests / "chaos" / "run.py"), *arguments, "--report", str(report)]
        done = self._call(command, [self.folder, tests, tests / "chaos"], _RUN_S)
        if not report.exists():
            raise RuntimeError(f"the run ended without a report:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        broken: dict[str, list[str]] = json.loads(report.read_text())["broken"]
        return broken

    def _call(self, command: list[str], path: list[Path], timeout_s: float) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AIGC_")}
        environment |= {
            "PYTHONPATH": os.pathsep.join(str(folder) for folder in path),
            "AIGC_TEST_SWIFT_VENV": os.environ.get("AIGC_TEST_SWIFT_VENV") or str(ROOT / ".venv-swift"),
            "TMPDIR": str(self.folder),
        }
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )


Broken = dict[str, list[str]]


def _try(mutant: Mutant | None, tests: list[str], runs: list[tuple[str, ...]]) -> tuple[list[str], list[Broken]]:
    """The tests that failed and what each run broke, on a copy with this mutant, or an unchanged one."""
    with tempfile.TemporaryDirectory(prefix="aigc-mutant-") as folder:
        copy = Copy(Path(folder))
        if mutant is not None:
            copy.change(mutant)
        return [test for test in tests if not copy.passes(test)], [copy.run(run) for run in runs]


def _control(mutants: list[Mutant]) -> list[str]:
    """What fails although nothing was changed: it could tell nothing about a mutant."""
    tests, runs = sorted({mutant.test for mutant in mutants}), sorted({mutant.run for mutant in mutants})
    failed, broken = _try(None, tests, runs)
    return [f"{test} fails" for test in failed] + [
        f"a run with {' '.join(run)} breaks {name}: {complaints[0]}"
        for run, found in zip(runs, broken, strict=True)
        for name, complaints in found.items()
    ]


def main(chosen: list[str]) -> int:
    """Entry point."""
    mutants = [mutant for mutant in MUTANTS if not chosen or any(part in mutant.name for part in chosen)]
    began = time.monotonic()
    wrong = _control(mutants)
    print(f"unchanged: {'; '.join(wrong) or 'every test passes, every invariant holds'}", flush=True)
    survivors = 0
    for mutant in mutants:
        failed, (broken,) = _try(mutant, [mutant.test], [mutant.run])
        seen = sorted(set(mutant.invariants) & broken.keys())
        survivors += not (failed and seen)
        verdict = "killed  " if failed and seen else "SURVIVES"
        by_test = "test fails" if failed else "TEST PASSES"
        by_run = ", ".join(f"{name} ({len(broken[name])})" for name in seen) or f"NOT SEEN (but: {sorted(broken)})"
        print(f"{verdict}  {mutant.name}: {by_test}; {by_run}", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants were killed, in {minutes:.0f} minutes")
    return 1 if survivors or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
