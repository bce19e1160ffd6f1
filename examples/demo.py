"""`make demo`: start everything on this machine, make a dozen things, put them into `out/`, stop everything.

Each step is a command that you can type yourself; the data stays in `.demo/`, so that a second run finds it there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUT = ROOT / "out"
AIGC = Path(sys.executable).with_name("aigc")


def aigc(*arguments: str, **more: bool) -> subprocess.CompletedProcess[str]:
    """Say the command, then run it."""
    print(f"\n$ aigc {' '.join(arguments)}", flush=True)
    environment = {**os.environ, "AIGC_DATA_DIR": str(ROOT / ".demo"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([AIGC, *arguments], cwd=ROOT, env=environment, text=True, check=False, **more)


def main() -> int:
    """The exit status of the first step that failed, or 0."""
    if (status := aigc("up", "--detach").returncode) != 0:
        return status
    try:
        status = aigc(
            "submit", "examples/quickstart.jsonl", "--name", "quickstart", "--wait", "--out", "out"
        ).returncode
        if status == 0:
            aigc("status", "quickstart")
    finally:
        aigc("down")
    return status or tell()


def tell() -> int:
    """What was made, and what to try next. Fails if it is not what was asked for."""
    lines = [json.loads(line) for line in (OUT / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = len((HERE / "quickstart.jsonl").read_text(encoding="utf-8").splitlines())
    made = [line for line in lines if line["status"] == "succeeded"]
    pictures = [a["path"] for line in made for a in line["artifacts"] if a["media_type"].startswith("image/")]
    if len(made) != asked or not all((OUT / path).is_file() for path in pictures):
        print(f"only {len(made)} of {asked} jobs came out right: see {OUT / 'results.jsonl'}", file=sys.stderr)
        return 1
    texts = [line for line in made if line.get("text")]
    print(f"\n{len(made)} jobs done: {len(pictures)} pictures and {len(texts)} texts. One of them:")
    print(f"\n    {texts[0]['params']['prompt']} {' '.join(texts[0]['text'].split())}\n")
    print(f"Look at them:    {(OUT / 'index.html').as_uri()}")
    print("Start it again:  AIGC_DATA_DIR=.demo .venv/bin/aigc up")
    print("and then, in another terminal (with AIGC_DATA_DIR=.demo as well):")
    print('    .venv/bin/aigc run text-to-image --model starter/shapes prompt="a green heart on white"')
    print("    .venv/bin/aigc submit examples/quickstart.jsonl --wait --out out")
    print("    .venv/bin/aigc tasks        what else can be made")
    print("    .venv/bin/aigc doctor       what is configured, and whether it is well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
