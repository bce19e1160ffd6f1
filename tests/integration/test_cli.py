"""The command line as its users meet it: in a process, with its exit status, its JSON, and sentences for errors."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from servers import PostgresServer, RedisServer, free_port

from migrations import HEAD
from producer.cli import app, main
from shared import jobs
from shared.database import Database
from shared.ids import new_batch_id, new_session_id
from shared.jobs import Failure, StoredArtifact, Success
from shared.settings import Settings
from shared.tables import JOB_STATES
from shared.tasks import all_tasks


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Aigc = Callable[..., Done]
SECRET = "a-secret-nobody-may-see"
GOOD = {"task": "echo", "params": {"message": "hi"}}


@pytest.fixture
def aigc(sqlite_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Aigc:
    """Runs a command in this process, which takes a fiftieth of the time; no password ever leaves it."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | bytes, stdin: str | bytes = b"", env: dict[str, str] | None = None) -> Done:
        sent = stdin.encode() if isinstance(stdin, str) else stdin
        with monkeypatch.context() as patch:
            for name, value in environment(sqlite_settings, env).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["aigc", *map(os.fsdecode, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sent)))
            app.registered_commands.clear()
            with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
                try:
                    main()
                    status = 0
                except SystemExit as left:
                    status = left.code if isinstance(left.code, int) else int(left.code is not None)
        assert SECRET not in output.getvalue() + errors.getvalue()
        return Done(status, output.getvalue(), errors.getvalue())

    return run


@pytest.fixture
def process(sqlite_settings: Settings, tmp_path: Path) -> Aigc:
    """Runs a command as its users do; no traceback ever leaves it."""

    def run(*arguments: str | bytes, stdin: str | bytes = b"", env: dict[str, str] | None = None) -> Done:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AIGC_")}
        done = subprocess.run(
            [sys.executable, "-m", "producer.cli", *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            env=clean | environment(sqlite_settings, env),
            cwd=tmp_path, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


def environment(settings: Settings, more: dict[str, str] | None) -> dict[str, str]:
    return {"AIGC_DATA_DIR": str(settings.data_dir), "PYTHONUTF8": "1", **(more or {})}


def lines(*items: dict[str, Any]) -> str:
    return "".join(json.dumps(job) + "\n" for job in items)


def batches(aigc: Aigc) -> list[dict[str, Any]]:
    return json.loads(aigc("list", "--json").stdout)["batches"]


# --- as processes ---


def test_a_process_submits_and_says_so_by_its_status(process: Aigc, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(lines(GOOD, GOOD))
    submitted = process("submit", "jobs.jsonl", "--json")
    assert submitted.returncode == 0
    [warning] = submitted.stderr.splitlines()
    assert warning.startswith("aigc: warning: the jobs are stored; they start when Redis answers: ")
    told = json.loads(submitted.stdout)
    assert told["total"] == 2
    assert json.loads(process("status", told["batch_id"], "--json").stdout)["counts"]["queued"] == 2


@pytest.mark.parametrize(
    ("arguments", "stdin", "env", "status", "said"),
    [
        (("submit", "-"), b"\xff\xfe{\x00", {}, 2, "aigc: nothing was stored; 1 problem(s) in the input:\nline 1: "),
        (("submit", "-"), b'{"\\ud800": 1}', {}, 2, "line 1: is not valid Unicode"),
        (("status", b"\xff\xfe"), b"", {}, 2, "aigc: there is no batch '\\udcff\\udcfe'"),
        (("list",), b"", {"AIGC_DATABASE_URL": "postgresql+psycopg://u@127.0.0.1:1/d"}, 3, "aigc: database at "),
        (("list",), b"", {"AIGC_DATA_DIR": "/dev/null/x"}, 3, "aigc: database at "),
        (("list",), b"", {"AIGC_LEASE_S": "soon"}, 2, "aigc: the settings are wrong:\nAIGC_LEASE_S: "),
    ],
    ids=["wrong input", "half a surrogate pair", "no Unicode", "no database", "no folder", "wrong settings"],
)
def test_a_process_ends_with_a_sentence_and_the_status_that_belongs_to_it(
    process: Aigc, arguments: tuple[str, ...], stdin: bytes, env: dict[str, str], status: int, said: str
) -> None:
    done = process(*arguments, stdin=stdin, env=env)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


# --- submit ---


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("jobs.jsonl", lines(GOOD, GOOD), ()),
        ("-", lines(GOOD, GOOD), ()),
        ("-", "task,message\necho,1\necho,2\n", ("--format", "csv")),
        ("jobs.csv", "message,steps\nhi,2\nho,3\n", ("--task", "echo")),
        ("texts.txt", "hi\n\nho\n", ("--task", "echo", "--set", "steps=3")),
        ("jobs.jsonl", lines({"params": {"message": 1}}, GOOD), ("--task", "echo", "--set", "step_s=0.5")),
    ],
    ids=["file", "standard input", "csv on standard input", "csv", "texts", "what lines leave out"],
)
def test_a_batch_is_submitted_and_its_id_is_all_that_is_printed(
    aigc: Aigc, tmp_path: Path, name: str, content: str, options: tuple[str, ...]
) -> None:
    if name != "-":
        (tmp_path / name).write_text(content)
    done = aigc("submit", name, *options, "--name", "spring", stdin=content if name == "-" else "")
    assert done.returncode == 0
    [batch] = batches(aigc)
    assert done.stdout == batch["id"] + "\n"
    assert (batch["name"], batch["total"]) == ("spring", 2)
    [warning] = done.stderr.splitlines()
    assert warning.startswith("aigc: warning: the jobs are stored; they start when Redis answers: ")


def test_set_gives_what_the_lines_leave_out(aigc: Aigc) -> None:
    content = lines({"params": {"message": 1}}, {"params": {"message": 2, "steps": 9}, "priority": 3})
    options = ("--task", "echo", "--set", "steps=4", "--queue", "night", "--priority", "1")
    batch = json.loads(aigc("submit", "-", *options, "--json", stdin=content).stdout)["batch_id"]
    first, second = (json.loads(aigc("status", f"{batch}-{n}", "--json").stdout) for n in (1, 2))
    assert (first["params"]["steps"], first["priority"], first["queue"]) == (4, 1, "night")
    assert (second["params"]["steps"], second["priority"]) == (9, 3)


def test_a_dry_run_checks_counts_estimates_and_stores_nothing(aigc: Aigc, tmp_path: Path) -> None:
    done = aigc("submit", "-", "--dry-run", "--json", stdin=lines(GOOD, GOOD))
    plan = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert plan["total"] == 2
    assert plan["lanes"] == [{"queue": "cpu", "task": "echo", "model": None, "jobs": 2}]
    assert "nothing was stored" in aigc("submit", "-", "--dry-run", stdin=lines(GOOD)).stdout
    assert aigc("submit", "-", "--dry-run", stdin=lines({"task": "ecko", "params": {}})).returncode == 2
    assert batches(aigc) == []


def test_a_dry_run_says_which_folders_of_models_are_not_here(aigc: Aigc, tmp_path: Path) -> None:
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    jobs = [{"task": "text-generation", "model": str(model), "params": {"prompt": "hi"}} for model in (here, gone)]
    done = aigc("submit", "-", "--dry-run", stdin=lines(*jobs))
    assert (done.returncode, done.stderr.count("warning")) == (0, 1)
    assert f"there is no {gone} on this machine" in done.stderr


def test_bad_lines_are_listed_twenty_on_screen_and_all_in_a_file(aigc: Aigc) -> None:
    bad = [{"task": "echo", "params": {"message": 1, "steps": -line}} for line in range(2, 32)]
    done = aigc("submit", "-", stdin=lines(GOOD, *bad))
    assert (done.returncode, done.stdout) == (2, "")
    said = done.stderr.splitlines()
    assert said[2] == "line 2: params.steps: must be at least 1, got -2"
    assert len([line for line in said if line.startswith("line ")]) == 20
    assert said[-1] == "… and 10 more"
    report = Path(said[0].rpartition(" ")[2])
    assert report.read_text().splitlines()[-1] == "line 31: params.steps: must be at least 1, got -31"
    assert batches(aigc) == []


def test_the_good_lines_are_taken_where_that_is_wished_and_the_others_named(aigc: Aigc) -> None:
    done = aigc("submit", "-", "--skip-invalid", "--json", stdin=lines(GOOD, {"task": "ecko", "params": {}}, GOOD))
    assert done.returncode == 0
    assert {"total": 2, "skipped": 1}.items() <= json.loads(done.stdout).items()
    assert "  line 2: task: unknown task 'ecko'; did you mean 'echo'?" in done.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("submit", "-"), "", "the input holds no jobs"),
        (("submit", "-"), "not json", "line 1: is not JSON"),
        (("submit", "-"), b"\xff\xfe{\x00", "UTF-16"),
        (("submit", "-"), b'{"\x1b[2J": 1}', "is not JSON"),
        (("submit", "-"), '{"task": "echo", "params": {"message": 1}, "\\ud800": 1}', "is not valid Unicode"),
        (("submit", "no-such-file"), "", "no-such-file cannot be read: No such file or directory"),
        (("submit", "."), "", "cannot be read: Is a directory"),
        (("submit", "-", "--format", "text"), "hi", "give a task"),
        (("submit", "-", "--format", "xml"), "hi", "--format must be jsonl, csv or text"),
        (("submit", "-", "--set", "steps"), "hi", "must be written k=v"),
        (("submit", "-", "--out", "x"), "hi", "--out goes with --wait"),
        (("submit", "-", "--name", b"\xff"), json.dumps(GOOD), "valid Unicode"),
        (("submit", "-", "--expires", "nan"), json.dumps(GOOD), "expires must be more than 0"),
        (("run", "ecko", "message=1"), "", "did you mean 'echo'"),
        (("run", "echo", "steps=0", "message=1"), "", "params.steps: must be at least 1, got 0"),
        (("run",), "", "say what to make first, such as text-to-image"),
        (("run", "message=1"), "", "say what to make first"),
        (("run", "echo", "message=1", "--vary", "stepz=1,2"), "", "did you mean 'steps'"),
        (("run", "echo", "message=1", "--vary", "steps=1,,2"), "", "--vary steps: a value is empty"),
        (("run", "echo", "message=1", "steps=1", "--vary", "steps=1,2"), "", "steps is set and varied: leave one out"),
        (("run", "echo", "--from", "no-such-file"), "", "there is no such file, and it is not the id of a job"),
        (("run", "echo", "--from", "."), "", "there is no such file"),
        (("run", "echo", "--from", "b0000000000000000-7"), "", "there is no job 'b0000000000000000-7'"),
        (("status", "nobody"), "", "there is no batch 'nobody'"),
        (("status", b"\xff\xfe"), "", "there is no batch"),
        (("status", "b000-7"), "", "there is no job 'b000-7'"),
        (("cancel", "nobody"), "", "there is no batch 'nobody'"),
        (("retry", "b000-7"), "", "there is no job 'b000-7'"),
        (("events", "nobody"), "", "there is no batch 'nobody'"),
        (("results", "nobody"), "", "there is no batch 'nobody'"),
        (("results", "nobody", "--follow"), "", "--follow goes with --out DIR"),
        (("watch", "nobody"), "", "there is no batch 'nobody'"),
        (("why", "b000-7"), "", "there is no job 'b000-7'"),
        (("tasks", "ecko"), "", "did you mean 'echo'"),
        (("pause", "a queue"), "", "'a queue' can be no queue's name"),
        (("pause", "cpu", "--reason", b"\xff"), "", "valid Unicode"),
        (("drain", "nobody"), "", "there is no worker 'nobody': none is alive"),
        (("drain", b"\xff"), "", "there is no worker"),
        (("drain", "host", "--timeout", "3"), "", "--timeout goes with --wait"),
    ],
    ids=lambda value: (
        None if isinstance(value, bytes) else " ".join(map(str, value)) if isinstance(value, tuple) else ""
    ),
)
def test_a_wrong_request_gets_one_sentence_and_status_2(
    aigc: Aigc, arguments: tuple[str, ...], stdin: str | bytes, said: str
) -> None:
    done = aigc(*arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("aigc: ")
    assert said in done.stderr
    assert batches(aigc) == []


# --- shapes ---


def finish_some(settings: Settings, batch_id: str) -> None:
    """Line 1 succeeds, line 2 fails."""
    db, who = Database(settings), new_session_id()
    about = {"id": who, "worker": "w", "host": "h", "pid": 1, "device": "cpu", "queues": "cpu"}
    jobs.open_session(db, {**about, "versions": {"aigc": "0"}, "condition": {}}, 60)
    lane = jobs.lane_ids(db, [jobs.Lane("cpu", "echo", "")]).popitem()[1]
    jobs.claim(db, session=who, lane_id=lane, priority=0, limit=2, window_s=60)
    jobs.intend(db, who, "default", ["default/key"])
    file = StoredArtifact("default/key", 2, "output", 0, 0, 2, "text/plain", "0" * 64, {"tokens": 3})
    jobs.succeed(db, who, [Success(f"{batch_id}-1", 1, [file], 0.1, {"dtype": "float32"})])
    jobs.fail(db, who, [Failure(f"{batch_id}-2", 1, "broken", "it broke", retryable=False)])


def test_the_json_that_scripts_rely_on(aigc: Aigc, sqlite_settings: Settings) -> None:
    submitted = json.loads(aigc("submit", "-", "--json", stdin=lines({**GOOD, "custom_id": "a"}, GOOD, GOOD)).stdout)
    assert submitted["total"] == 3
    batch_id = submitted["batch_id"]
    finish_some(sqlite_settings, batch_id)

    batch = json.loads(aigc("status", batch_id, "--json").stdout)
    assert {"id", "name", "status", "total", "counts", "rate_per_s", "eta_s", "errors"} <= batch.keys()
    assert (batch["id"], batch["name"], batch["status"], batch["total"]) == (batch_id, None, "running", 3)
    assert batch["counts"] == dict.fromkeys(JOB_STATES, 0) | {"queued": 1, "succeeded": 1, "failed": 1}
    assert batch["errors"] == [{"code": "broken", "count": 1, "example": "it broke"}]
    assert batch["rate_per_s"] is None or batch["rate_per_s"] > 0
    assert json.loads(aigc("list", "--json").stdout).keys() == {"batches"}
    assert batches(aigc)[0]["counts"] == batch["counts"]

    done, failed, queued = (json.loads(aigc("status", f"{batch_id}-{n}", "--json").stdout) for n in (1, 2, 3))
    for job in (done, failed, queued):
        assert {"id", "custom_id", "status", "progress", "attempt", "error", "artifacts"} <= job.keys()
    assert (done["id"], done["custom_id"], done["status"], done["progress"], done["attempt"]) == (
        f"{batch_id}-1", "a", "succeeded", 1.0, 1,
    )  # fmt: skip
    assert done["error"] is None
    assert {"role": "output", "media_type": "text/plain", "bytes": 2, "tokens": 3}.items() <= done["artifacts"][
        0
    ].items()
    assert (failed["status"], failed["error"]) == ("failed", {"code": "broken", "message": "it broke"})
    assert (queued["custom_id"], queued["status"], queued["attempt"], queued["artifacts"]) == ("3", "queued", 0, [])

    tasks = json.loads(aigc("tasks", "--json").stdout)["tasks"]
    assert [task["name"] for task in tasks] == sorted(all_tasks())
    assert all({"name", "summary", "params", "example"} <= task.keys() for task in tasks)
    for command in (("cancel", batch_id), ("retry", f"{batch_id}-3")):
        assert json.loads(aigc(*command, "--json").stdout) == {"jobs": 1}
    kinds = [json.loads(line)["kind"] for line in aigc("events", batch_id, "--json").stdout.splitlines()]
    assert kinds == ["submitted", "claimed", "succeeded", "failed", "cancelled", "retry_requested"]


def test_people_are_told_the_same_in_words(aigc: Aigc) -> None:
    batch_id = aigc("submit", "-", "--name", "spring", stdin=lines(GOOD)).stdout.strip()
    assert "no worker is alive" in aigc("status").stdout
    assert "1 queued" in aigc("status", "spring").stdout
    assert f"{batch_id}-1  queued  echo" in aigc("status", f"{batch_id}-1").stdout
    assert "No worker serves queue 'cpu'" in aigc("why", f"{batch_id}-1").stdout
    assert "spring" in aigc("list").stdout
    assert "No worker serves queue 'cpu'" in aigc("why", f"{batch_id}-1").stdout
    assert aigc("cancel", batch_id[:8]).stdout == "1 job(s) cancelled\n"
    assert aigc("why", f"{batch_id}-1").stdout == "It was cancelled.\n"
    assert aigc("retry", "spring").stdout == "1 job(s) put back\n"


def test_a_queue_is_paused_and_resumed_and_one_that_nobody_knows_is_remarked_on(aigc: Aigc) -> None:
    batch_id = aigc("submit", "-", stdin=lines(GOOD)).stdout.strip()
    paused = aigc("pause", "cpu", "--reason", "new\x1b[2J driver")
    assert (paused.returncode, paused.stderr) == (0, "")
    assert paused.stdout.startswith("queue 'cpu' is paused since ")
    assert ": new\ufffd[2J driver; what runs goes on, and `aigc resume cpu` " in paused.stdout
    assert "is paused since" in aigc("why", f"{batch_id}-1").stdout
    unknown = aigc("pause", "cpuu", "--json")
    assert "no job and no worker has named queue 'cpuu' so far; known are: cpu" in unknown.stderr
    assert {"queue": "cpuu", "reason": None, "known": False}.items() <= json.loads(unknown.stdout).items()
    overview = aigc("status")
    assert "queue 'cpu': 1 ready" in overview.stdout
    assert "queue 'cpuu' is paused since" in overview.stdout
    assert "no keeper has ever been seen: retries and the jobs of dead workers wait for one" in overview.stdout
    assert [one["queue"] for one in json.loads(aigc("status", "--json").stdout)["paused"]] == ["cpu", "cpuu"]
    resumed = aigc("resume", "cpu")
    assert (resumed.returncode, resumed.stdout) == (0, "queue 'cpu' goes on\n")
    assert "workers hear of it when they look by themselves" in resumed.stderr
    assert json.loads(aigc("resume", "cpu", "--json").stdout) == {"queue": "cpu", "was_paused": False}


def test_a_worker_is_drained_and_a_wait_for_it_has_an_end(aigc: Aigc, sqlite_settings: Settings) -> None:
    batch_id = aigc("submit", "-", stdin=lines(GOOD, GOOD, GOOD)).stdout.strip()
    finish_some(sqlite_settings, batch_id)
    asked = aigc("drain", "w")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.startswith("worker w (w")
    assert " is draining since " in asked.stdout
    waited = aigc("drain", "w", "--wait", "--timeout", "0.1", "--json")
    assert waited.returncode == 1, "it is not gone"
    [session] = json.loads(waited.stdout)["sessions"]
    assert (session["worker"], session["ended_at"], session["end"]) == ("w", None, None)
    assert "is draining since" in aigc("status").stdout
    jobs.close_session(Database(sqlite_settings), session["session"])
    assert aigc("drain", "w").returncode == 2


@pytest.mark.parametrize(
    "command",
    [("list",), ("list", "--json"), ("status",), ("status", "big"), ("results", "big"), ("events", "big"), ("--help",)],
    ids=" ".join,
)
def test_a_reader_that_goes_away_ends_a_command_without_a_noise(
    aigc: Aigc, sqlite_settings: Settings, tmp_path: Path, command: tuple[str, ...]
) -> None:
    aigc("submit", "-", "--name", "big", stdin=lines(*[GOOD] * 1000))
    reader, writer = os.pipe()
    os.close(reader)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AIGC_")}
    with os.fdopen(writer, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "producer.cli", *command],
            env=clean | environment(sqlite_settings, None), cwd=tmp_path,
            stdout=output, stderr=subprocess.PIPE, check=False, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


# --- what does not answer ---


def test_a_redis_that_does_not_answer_is_a_warning_and_status_0(aigc: Aigc) -> None:
    url = f"redis://:{SECRET}@127.0.0.1:{free_port()}/0"
    done = aigc("submit", "-", stdin=lines(GOOD), env={"AIGC_REDIS_URL": url})
    assert done.returncode == 0
    assert f"redis at {url.replace(SECRET, '***')}: " in done.stderr
    assert len(batches(aigc)) == 1


@pytest.fixture
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, str], str]:
    """Variables that lead to something broken, and what is to be said of it."""
    which = request.param
    if which == "nobody listens":
        port = free_port()
        return {"AIGC_DATABASE_URL": f"postgresql+psycopg://u:{SECRET}@127.0.0.1:{port}/d"}, f"127.0.0.1:{port}/d: "
    if which == "folder":
        (tmp_path / "file").touch()
        return {"AIGC_DATA_DIR": str(tmp_path / "file" / "x")}, "Not a directory. set AIGC_DATA_DIR elsewhere"
    if which == "not a database":
        (tmp_path / "file").write_text("something else, and long enough to be looked at as a whole page " * 100)
        return {"AIGC_DATABASE_URL": f"sqlite:///{tmp_path / 'file'}"}, "file is not a database"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    if which == "wrong password":
        url = server.url.replace(server.password, SECRET + "#/?x")
        return {"AIGC_DATABASE_URL": url}, "check user and password in AIGC_DATABASE_URL"
    assert which == "no such database"
    url = server.url.rpartition("/")[0] + "/nothing"
    return {"AIGC_DATABASE_URL": url}, 'database "nothing" does not exist. create it'


BROKEN = ["nobody listens", "folder", "not a database", "wrong password", "no such database"]
NEEDS_SQL = [("submit", "-"), ("status",), ("list",), ("migrate",)]


@pytest.mark.parametrize("broken", BROKEN, indirect=True)
def test_a_database_that_does_not_answer_is_said_with_address_and_advice_and_status_3(
    aigc: Aigc, broken: tuple[dict[str, str], str], request: pytest.FixtureRequest
) -> None:
    env, said = broken
    for command in NEEDS_SQL:
        done = aigc(*command, stdin=lines(GOOD), env=env)
        assert (done.returncode, done.stdout) == (3, ""), command
        assert done.stderr.startswith(("aigc: database at ", "aigc: data folder at "))
        assert len(done.stderr.splitlines()) == 1
        assert said in done.stderr or "data folder" in done.stderr
        if "postgres_server" in request.fixturenames:
            assert request.getfixturevalue("postgres_server").password not in done.stderr


@pytest.mark.parametrize(
    ("env", "status", "said"),
    [
        ({"AIGC_LEASE_S": "soon"}, 2, "AIGC_LEASE_S: Input should be a valid number"),
        ({"AIGC_MICROBATCH": "0"}, 2, "AIGC_MICROBATCH: "),
        ({"AIGC_AGE_BOUND_S": "300"}, 2, "AIGC_AGE_BOUND_S is 300, and has to be less than AIGC_STUCK_S (300)"),
        ({"AIGC_DTYPE": "int4"}, 2, "AIGC_DTYPE: Input should be 'bfloat16', 'float16' or 'float32', got 'int4'"),
        ({"AIGC_TENANT": "../x"}, 2, "AIGC_TENANT: "),
        (
            {"AIGC_DATABASE_URL": f"mysql://u:{SECRET}@h/d"},
            2,
            "AIGC_DATABASE_URL cannot be used: mysql is not supported",
        ),
        ({"AIGC_DATABASE_URL": f"postgresql+asyncpg://u:{SECRET}@h/d"}, 2, "postgresql+asyncpg is not supported"),
        ({"AIGC_DATABASE_URL": SECRET}, 2, "AIGC_DATABASE_URL cannot be used"),
        ({"AIGC_DATABASE_URL": "sqlite://"}, 2, "in memory"),
        ({"AIGC_DATABASE_URL": f"postgresql+psycopg://u:{SECRET}@[::1/d"}, 2, "AIGC_DATABASE_URL cannot be used"),
        ({"AIGC_DATABASE_URL": "postgresql://[::1/d"}, 2, "AIGC_DATABASE_URL cannot be used"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_sense_are_named(aigc: Aigc, env: dict[str, str], status: int, said: str) -> None:
    done = aigc("list", env=env)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_a_schema_that_is_missing_names_the_command_that_makes_it(aigc: Aigc, postgres_url: str) -> None:
    env = {"AIGC_DATABASE_URL": postgres_url}
    done = aigc("list", env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert "run `aigc migrate`" in done.stderr
    assert aigc("migrate", env=env).stderr == f"schema {HEAD} (was empty)\n"
    assert aigc("migrate", env=env).stderr == f"schema {HEAD} (as it was)\n"
    assert aigc("list", "--json", env=env).stdout == '{"batches": []}\n'


def test_a_schema_of_a_newer_aigc_is_said_by_every_command(aigc: Aigc, sqlite_settings: Settings) -> None:
    Database(sqlite_settings).write(lambda c: c.exec_driver_sql("UPDATE aigc_version SET version_num = '9999'"))
    for command in ("list", "migrate"):
        done = aigc(command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith(f"newer than this version of aigc ({HEAD}): update aigc\n")


def test_a_file_of_settings_that_is_no_text_is_named(aigc: Aigc, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("AIGC_TENANT=Jürgen\n".encode("latin-1"))
    done = aigc("list")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "aigc: .env is not UTF-8 (byte 13): save it as UTF-8\n"


@pytest.mark.parametrize(
    "env",
    [
        {"AIGC_REDIS_URL": f"redis://:{SECRET}@[::1"},
        {"AIGC_STORE_URL": "s3://[::1"},
        {"AIGC_STORE_URL": f"s3://key:{SECRET}@bucket/prefix"},
        {"AIGC_STORE_URL": f"s3://{SECRET}@bucket/prefix"},
        {"AIGC_STORE_URL": f"s3://key:/{SECRET}/@bucket/prefix"},
        {"AIGC_STORE_URL": f"s3://abc/{SECRET}@bucket?x"},
    ],
    ids=lambda env: next(iter(env.values())),
)
def test_an_address_that_makes_no_sense_is_named_by_the_doctor(aigc: Aigc, env: dict[str, str]) -> None:
    [name] = env
    done = aigc("doctor", env=env)
    assert done.returncode == 3
    assert f": {name}" in done.stdout
    assert "key:" not in done.stdout


def test_a_cursor_that_no_database_takes_is_refused(aigc: Aigc) -> None:
    batch_id = aigc("submit", "-", stdin=lines(GOOD)).stdout.strip()
    assert aigc("events", batch_id, "--after", str(2**63 - 1)).returncode == 0
    done = aigc("events", batch_id, "--after", str(2**63))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--after" in done.stderr


def test_a_batch_that_is_still_being_submitted_is_not_denied(aigc: Aigc, sqlite_settings: Settings) -> None:
    batch = jobs.NewBatch(new_batch_id(), "default", "spring", 1, None, "digest")
    jobs.begin_batch(Database(sqlite_settings), batch)
    done = aigc("cancel", "spring")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"batch {batch.id} is still being submitted" in done.stderr


def test_a_storage_that_does_not_answer_is_said_by_what_needs_it(
    aigc: Aigc, sqlite_settings: Settings, tmp_path: Path
) -> None:
    batch_id = aigc("submit", "-", stdin=lines(GOOD, GOOD)).stdout.strip()
    finish_some(sqlite_settings, batch_id)
    port = free_port()
    env = {
        "AIGC_STORE_URL": "s3://bucket/prefix", "AIGC_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AIGC_S3_ACCESS_KEY_ID": "key", "AIGC_S3_SECRET_ACCESS_KEY": SECRET, "AIGC_CONNECT_TIMEOUT_S": "1",
    }  # fmt: skip
    assert aigc("status", batch_id, "--json", env=env).returncode == 0, "it needs no storage"
    done = aigc("results", batch_id, "--out", str(tmp_path / "out"), env=env)
    assert done.returncode == 3
    assert "storage at s3://bucket/prefix" in done.stderr


def test_a_submission_with_redis_says_nothing_and_prints_its_id(aigc: Aigc, redis_server: RedisServer) -> None:
    done = aigc("submit", "-", stdin=lines(GOOD), env={"AIGC_REDIS_URL": redis_server.url, "AIGC_REDIS_PREFIX": "cli-"})
    assert (done.returncode, done.stderr) == (0, "")
