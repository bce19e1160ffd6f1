"""`python -m benchmarks.run`: measure every row of the table of goals, side by side with its baseline.

python -m benchmarks.run                  everything, from nothing; hours
python -m benchmarks.run --resume         go on where the last run stopped
python -m benchmarks.run --quick          everything in under ten minutes, with fewer and shorter rounds
python -m benchmarks.run --only tiny_b1   one row (and those that are measured with it)
python -m benchmarks.run --write-docs     put the newest results into docs/performance.md
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
import traceback

from benchmarks.goals import GOALS
from benchmarks.measure import Bench, NotMeasured, Plan
from benchmarks.models import CACHE
from benchmarks.rows import FAMILIES, Family
from benchmarks.table import Results, show, write_docs


def main() -> int:
    """1 if something broke, else 0; a goal that is not met is a result, no failure."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description="measure this project against its baselines")
    parser.add_argument("--quick", action="store_true", help="three rounds, 7 s an arm; 5 s in `modalities`")
    parser.add_argument("--trial", action="store_true", help="one short round each, to see that everything runs")
    parser.add_argument("--only", action="append", choices=sorted({*GOALS, *FAMILIES}), help="a row or a family")
    parser.add_argument("--resume", action="store_true", help="leave out what the last run has measured")
    parser.add_argument("--write-docs", action="store_true", help="only put the newest results into the documentation")
    arguments = parser.parse_args()
    if arguments.write_docs:
        write_docs()
        return 0
    only = set(arguments.only or ())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with us
    plan = Plan(arguments.quick or arguments.trial, arguments.trial)
    if plan.trial:
        results = Results(CACHE / "trial.json", quick=True)
    else:
        results = Results.new(quick=plan.quick, resume=arguments.resume or bool(only))
    broken, started = 0, time.monotonic()
    for name, family in FAMILIES.items():
        if only and not only & {name, *family.rows}:
            continue
        if arguments.resume and not only and all(results.has(row) for row in family.rows):
            continue
        broken += not _measure(name, family, results, plan)
    show(results)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; {results.path}", file=sys.stderr)
    return 1 if broken else 0


def _measure(name: str, family: Family, results: Results, plan: Plan) -> bool:
    """One family; whether it could be measured, or this machine cannot. The others go on either way."""
    print(f"{name}: {', '.join(GOALS[row].what for row in family.rows)}", file=sys.stderr, flush=True)
    folder = CACHE / "runs" / f"{name}-{time.strftime('%H%M%S')}"
    folder.mkdir(parents=True)
    started = time.monotonic()
    try:
        for measured in family.load()(Bench(plan, folder)):
            results.note(measured)
    except NotMeasured as reason:
        for row in family.rows:
            results.miss(row, f"not measured: {reason}")
    except Exception as defect:
        traceback.print_exc()
        for row in family.rows:
            results.miss(
                row, f"broke: {type(defect).__name__}: {str(defect).splitlines()[0][:200] if str(defect) else ''}"
            )
        return False
    finally:
        print(f"  {name} took {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
