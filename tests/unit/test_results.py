"""Downloads: whole files with the right content or none, inside the folder, cheap to repeat."""

from __future__ import annotations

import csv
import dataclasses
import errno
import hashlib
import io
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from producer import local_files, outputs, watch
from producer import results as results_module
from producer.contact_sheet import LIVE
from producer.outputs import DamagedOutput
from producer.records import ArtifactRecord, BatchRecord, JobRecord
from producer.results import Downloaded, download, follow, result_lines
from shared.errors import ObjectMissing, RequestError, Unavailable

PNG = b"\x89PNG not really, but as long as it needs to be" * 20


class FakeGateway:
    """A batch in memory: jobs by line, objects by key, and a list of what was opened."""

    def __init__(self) -> None:
        self.records: list[JobRecord] = []
        self.objects: dict[str, bytes] = {}
        self.opened: list[ArtifactRecord] = []
        self.failing: list[Exception] = []
        self.pages = 0
        self._lock = threading.Lock()

    def jobs(
        self, batch_id: str, *, after: int = 0, limit: int = 500, states: Sequence[str] | None = None
    ) -> list[JobRecord]:
        self.pages += 1
        return self.records[after : after + limit]

    def open(self, artifact: ArtifactRecord) -> BinaryIO:
        with self._lock:
            self.opened.append(artifact)
            if self.failing:
                raise self.failing.pop(0)
        if artifact.key not in self.objects:
            raise ObjectMissing(artifact.key)
        return io.BytesIO(self.objects[artifact.key][artifact.start : artifact.start + artifact.bytes])

    def add(self, *files: tuple[str, bytes], custom_id: str | None = None, **changes: Any) -> JobRecord:
        """Another job, each file (media type, content) in an object of its own."""
        line = len(self.records) + 1
        artifacts = []
        for position, (media_type, body) in enumerate(files):
            key = f"default/b1/b1-{line}/{position}"
            self.objects[key] = body
            artifacts.append(artifact(line * 100 + position, key, 0, body, media_type, position=position))
        fields: dict[str, Any] = {
            "id": f"b1-{line}", "batch_id": "b1", "line": line, "custom_id": custom_id or f"ad-{line}",
            "status": "succeeded", "task": "text-generation", "model": "gpt2", "queue": "gpu", "priority": 0,
            "params": {"prompt": "New shoes:"}, "seed": line, "metadata": None, "progress": None, "attempt": 1,
            "error": None, "artifacts": tuple(artifacts), "timings": {"device_s": 0.1}, "record": None,
        }  # fmt: skip
        self.records.append(JobRecord(**fields | changes))
        return self.records[-1]

    def add_packs(self, jobs: int, per_pack: int, body: Callable[[int], bytes]) -> None:
        """Jobs with a text each, neighbours in one object."""
        for line in range(1, jobs + 1):
            text = body(line)
            key = f"default/b1/packs/w-{(line - 1) // per_pack}"
            start = len(self.objects.setdefault(key, b""))
            self.objects[key] += text
            self.add(artifacts=(artifact(line, key, start, text, "text/plain"),))


def artifact(id_: int, key: str, start: int, body: bytes, media_type: str, *, position: int = 0) -> ArtifactRecord:
    return ArtifactRecord(
        id=id_, role="output", position=position, key=key, start=start, bytes=len(body), media_type=media_type,
        sha256=hashlib.sha256(body).hexdigest(), facts={"finish_reason": "stop", "path": "/etc/passwd"},
    )  # fmt: skip


def batch(total: int = 1, status: str = "done") -> BatchRecord:
    counts = dict.fromkeys(("waiting", "queued", "running", "succeeded", "failed", "cancelled"), 0)
    return BatchRecord("b1", "spring", status, total, counts, None, None, (), 0.0, cancelled=False)


def fetch(gateway: FakeGateway, out: Path, **options: Any) -> Downloaded:
    return download(gateway, batch(len(gateway.records)), out, **options)  # type: ignore[arg-type]


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "PAUSES_S", (0.0, 0.0))


def test_a_line_has_the_promised_shape(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("text/plain", "schön\u2028 ✓".encode()), metadata={"campaign": "spring"})
    gateway.add(("image/png", PNG))
    gateway.add(("application/json", b'{"a": [1, NaN]}'))
    gateway.add(("text/plain", b"one"), ("text/plain", b"two"))
    gateway.add(status="failed", error={"code": "prompt_too_long", "message": "shorten it"})

    done = fetch(gateway, tmp_path)

    text, picture, data, several, failed = lines_of(tmp_path)
    assert list(text) == [
        "index", "custom_id", "job_id", "status", "task", "model", "params", "seed", "metadata", "text", "artifacts",
        "error", "attempts", "timings", "record",
    ]  # fmt: skip
    assert (text["index"], text["text"], text["metadata"]) == (1, "schön\u2028 ✓", {"campaign": "spring"})
    assert picture["artifacts"] == [
        {"role": "output", "path": "000002-ad-2.png", "media_type": "image/png", "bytes": len(PNG),
         "sha256": hashlib.sha256(PNG).hexdigest(), "finish_reason": "stop"}
    ]  # fmt: skip
    assert (tmp_path / "000002-ad-2.png").read_bytes() == PNG
    assert data["data"] == {"a": [1, None]}
    assert "path" not in data["artifacts"][0]
    assert (several["text"], several["texts"]) == ("one", ["one", "two"])
    assert failed["error"] == {"code": "prompt_too_long", "message": "shorten it"}
    assert "text" not in failed
    assert (done.jobs, done.written, done.skipped, done.failed, done.unfinished) == (5, 1, 0, 1, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000002-ad-2.png", "index.html", "results.jsonl"]


def test_lines_without_a_folder_are_the_same_but_for_paths(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("text/plain", b"one"))
    gateway.add(("image/png", PNG))
    fetch(gateway, tmp_path)

    lines = list(result_lines(gateway, "b1"))  # type: ignore[arg-type]

    written = lines_of(tmp_path)
    del written[1]["artifacts"][0]["path"]
    assert lines == written


HOSTILE = ["../../etc/passwd", "a/b", "CON", "🙈🙉", "x" * 10_000, "..", "/", "C:\\x", "a\0b", "-rf", "Größe Ä", "a b"]


def test_hostile_ids_stay_inside_the_folder_one_to_one(gateway: FakeGateway, tmp_path: Path) -> None:
    for custom_id in [*HOSTILE, "a/b", "a-b"]:
        gateway.add(("image/png", PNG), ("image/jpeg", PNG + b"2"), custom_id=custom_id)
    out = tmp_path / "deep" / "out"

    done = fetch(gateway, out)

    media = [p for p in out.iterdir() if p.suffix in (".png", ".jpg")]
    assert done.written == len(media) == 2 * len(gateway.records)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file() and p.parent != out] == []
    for path in media:
        assert set(path.stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert len(path.name) <= 60
    for line, job in zip(lines_of(out), gateway.records, strict=True):
        assert line["custom_id"] == job.custom_id
        assert [(out / a["path"]).read_bytes() for a in line["artifacts"]] == [PNG, PNG + b"2"]


def test_a_second_run_fetches_only_what_is_missing_or_wrong(gateway: FakeGateway, tmp_path: Path) -> None:
    for _ in range(4):
        gateway.add(("image/png", PNG))
    fetch(gateway, tmp_path)
    (tmp_path / "000001-ad-1.png").unlink()
    (tmp_path / "000002-ad-2.png").write_bytes(PNG[:-1])
    (tmp_path / "000003-ad-3.png").write_bytes(PNG[:-1] + b"X")
    gateway.opened.clear()

    done = fetch(gateway, tmp_path)

    assert (done.written, done.skipped) == (3, 1)
    assert sorted(a.key for a in gateway.opened) == [f"default/b1/b1-{n}/0" for n in (1, 2, 3)]
    assert all((tmp_path / f"00000{n}-ad-{n}.png").read_bytes() == PNG for n in range(1, 5))


def test_a_running_batch_gives_what_is_there(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("image/png", PNG))
    gateway.add(status="running")
    gateway.add(status="cancelled")

    done = fetch(gateway, tmp_path)

    assert [line["status"] for line in lines_of(tmp_path)] == ["succeeded", "running", "cancelled"]
    assert (done.failed, done.unfinished) == (1, 1)


def test_a_wrong_checksum_names_job_and_output_and_leaves_no_file(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("image/png", PNG), custom_id="the-bad-one")
    gateway.add(("image/png", PNG))
    gateway.add(("text/plain", b"hello"))
    gateway.objects["default/b1/b1-1/0"] = PNG[:-1] + b"X"
    gateway.objects["default/b1/b1-3/0"] = b"hell"

    with pytest.raises(DamagedOutput, match=r"2 output\(s\)(.|\n)*job b1-1 \('the-bad-one'\), output 0") as caught:
        fetch(gateway, tmp_path)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["000002-ad-2.png", "index.html", "results.jsonl"]
    first, second, third = lines_of(tmp_path)
    assert "path" not in first["artifacts"][0]
    assert "something else" in first["artifacts"][0]["problem"]
    assert "path" in second["artifacts"][0]
    assert "text" not in third
    assert caught.value.downloaded is not None
    assert caught.value.downloaded.written == 1
    assert caught.value.exit_status == 3


def test_an_object_that_is_gone_harms_nothing_else(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("image/png", PNG))
    gateway.add(("image/png", PNG))
    del gateway.objects["default/b1/b1-1/0"]

    with pytest.raises(DamagedOutput, match="no such object"):
        fetch(gateway, tmp_path)

    assert (tmp_path / "000002-ad-2.png").exists()
    gone = artifact(1, "default/gone", 0, b"x", "text/plain")
    gateway.records[0] = dataclasses.replace(gateway.records[0], artifacts=(gone,))
    gateway.add(("text/plain", b"whole"))
    lines = result_lines(gateway, "b1")  # type: ignore[arg-type]
    first, _, third = (next(lines) for _ in range(3))
    assert "no such object" in first["artifacts"][0]["problem"]
    assert "text" not in first
    assert third["text"] == "whole"
    with pytest.raises(DamagedOutput, match=r"1 output\(s\) could not be had(.|\n)*no such object"):
        next(lines)


def test_a_broken_transfer_is_tried_again_and_a_dead_storage_ends_it(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("image/png", PNG))
    gateway.failing = [Unavailable("storage", "s3://x", "reset")] * 2
    assert fetch(gateway, tmp_path).written == 1

    before = (tmp_path / "results.jsonl").read_bytes()
    gateway.add(("image/png", PNG))
    gateway.failing = [Unavailable("storage", "s3://x", "reset")] * 3
    with pytest.raises(Unavailable, match="reset"):
        fetch(gateway, tmp_path)

    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert list(tmp_path.glob(".aigc-*")) == []


def test_a_pack_is_read_once_for_all_its_jobs(gateway: FakeGateway) -> None:
    gateway.add_packs(1200, 60, lambda line: f"text of line {line}".encode())

    lines = list(result_lines(gateway, "b1"))  # type: ignore[arg-type]

    assert [line["text"] for line in lines] == [f"text of line {n}" for n in range(1, 1201)]
    assert gateway.pages == 4
    # 20 packs; two of them lie across the end of a page and are read once on each side
    assert len(gateway.opened) == 22
    assert sum(a.bytes for a in gateway.opened) == sum(map(len, gateway.objects.values()))


def test_packs_that_do_not_fit_together_are_not_read_over_and_over(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "PACKS_MOST", 5000)
    gateway.add_packs(90, 30, lambda line: b"%03d" % line * 33)
    # neighbours in different packs, as when three workers share a batch
    order = [gateway.records[n % 3 * 30 + n // 3] for n in range(90)]
    gateway.records = [dataclasses.replace(job, line=n + 1) for n, job in enumerate(order)]

    lines = list(result_lines(gateway, "b1"))  # type: ignore[arg-type]

    assert len(lines) == 90
    assert all(len(line["text"]) == 99 for line in lines)
    assert sum(a.bytes for a in gateway.opened) < 3 * sum(map(len, gateway.objects.values()))


def test_memory_holds_one_page_of_jobs(gateway: FakeGateway) -> None:
    gateway.add_packs(1100, 64, lambda line: b"x")
    lines = result_lines(gateway, "b1")  # type: ignore[arg-type]

    for _ in range(500):
        next(lines)

    assert gateway.pages == 1


def test_texts_as_files(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("text/plain", b"one"), ("text/plain", b"two"))

    assert fetch(gateway, tmp_path, text_files=True).written == 2
    assert fetch(gateway, tmp_path, text_files=True).skipped == 2

    assert [a["path"] for a in lines_of(tmp_path)[0]["artifacts"]] == ["000001-ad-1-0.txt", "000001-ad-1-1.txt"]
    assert (tmp_path / "000001-ad-1-1.txt").read_bytes() == b"two"


@pytest.mark.parametrize(
    ("media_type", "name"),
    [
        ("text/vtt", "000001-ad-1.vtt"), ("application/x-subrip", "000001-ad-1.srt"),
        ("audio/opus", "000001-ad-1.opus"), ("text/plain; charset=utf-8", None),
    ],
)  # fmt: skip
def test_subtitles_and_sounds_are_files_that_players_know(
    media_type: str, name: str | None, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.add((media_type, b"WEBVTT\n\n"))

    fetch(gateway, tmp_path)

    [line] = lines_of(tmp_path)
    assert line["artifacts"][0].get("path") == name
    assert (line.get("text") is None) == (name is not None)


def test_a_text_too_large_for_a_line_becomes_a_file(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("text/plain", b"x" * (outputs.INLINE_MOST + 1)))

    fetch(gateway, tmp_path)

    assert lines_of(tmp_path)[0]["artifacts"][0]["path"] == "000001-ad-1.txt"
    assert "text" not in lines_of(tmp_path)[0]


def test_only_outputs_are_fetched(gateway: FakeGateway, tmp_path: Path) -> None:
    job = gateway.add(("image/png", PNG))
    preview, checkpoint = (
        dataclasses.replace(job.artifacts[0], id=n, role=role, key=f"default/b1/{role}")
        for n, role in ((7, "preview"), (8, "checkpoint"))
    )
    gateway.records[0] = dataclasses.replace(job, artifacts=(*job.artifacts, preview, checkpoint))

    fetch(gateway, tmp_path)

    assert [a.role for a in gateway.opened] == ["output"]
    assert [a["role"] for a in lines_of(tmp_path)[0]["artifacts"]] == ["output", "preview"]


def test_a_job_that_has_not_succeeded_has_no_output_in_its_line(gateway: FakeGateway, tmp_path: Path) -> None:
    job = gateway.add(("image/png", PNG))
    gateway.records[0] = dataclasses.replace(job, status="running")

    fetch(gateway, tmp_path)

    assert gateway.opened == []
    assert lines_of(tmp_path)[0]["artifacts"] == []


def test_csv_keeps_formulas_from_a_spreadsheet(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("text/plain", b"=HYPERLINK(1)"), custom_id="+1", params={"prompt": 'a, "b"\nc'})
    gateway.add(("image/png", PNG), ("image/png", PNG), custom_id="@x")
    gateway.add(status="failed", error={"code": "bad", "message": "-1 is too small"}, custom_id="＝1")

    done = fetch(gateway, tmp_path, format="csv")

    with done.results.open(newline="", encoding="utf-8") as stream:
        first, second, third = csv.DictReader(stream)
    assert done.results.name == "results.csv"
    assert (first["custom_id"], first["text"]) == ("'+1", "'=HYPERLINK(1)")
    assert json.loads(first["params"]) == {"prompt": 'a, "b"\nc'}
    assert second["paths"] == "000002-x-0.png;000002-x-1.png"
    assert (third["custom_id"], third["error_code"], third["error_message"]) == ("'＝1", "bad", "'-1 is too small")


def test_half_a_character_does_not_end_a_download(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("text/plain", b"\xff ok"), params={"prompt": "\ud800"})

    fetch(gateway, tmp_path)

    assert lines_of(tmp_path)[0]["params"] == {"prompt": "\ud800"}
    assert lines_of(tmp_path)[0]["text"] == "\ufffd ok"


def test_a_folder_that_cannot_be_written_is_the_callers_affair(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.add(("image/png", PNG))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="cannot be written"):
        fetch(gateway, tmp_path / "file")
    with pytest.raises(RequestError, match="cannot be written"):
        fetch(gateway, tmp_path / "file" / "below")

    (tmp_path / "out" / "000001-ad-1.png").mkdir(parents=True)
    with pytest.raises(RequestError, match=r"000001-ad-1\.png cannot be written"):
        fetch(gateway, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["000001-ad-1.png"]


def test_a_full_disk_leaves_nothing_half_written(
    gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.add(("image/png", PNG))
    fetch(gateway, tmp_path)
    before = (tmp_path / "results.jsonl").read_bytes()
    gateway.add(("image/png", PNG * 10_000))
    real_open = Path.open

    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            if self.tell() + len(content) > 100_000:
                raise OSError(errno.ENOSPC, "no space")
            return super().write(content)

    def open_(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return io.BufferedWriter(Full(path, "xb")) if mode == "xb" else real_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(Unavailable, match=r"No space left on device\. Make room"):
        fetch(gateway, tmp_path)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["000001-ad-1.png", "index.html", "results.jsonl"]
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_what_a_killed_run_left_goes_once_it_is_old(
    gateway: FakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".aigc-0123.part").write_bytes(b"half")
    gateway.add(("image/png", PNG))
    fetch(gateway, tmp_path)
    assert (tmp_path / ".aigc-0123.part").exists(), "another run may be writing it"

    monkeypatch.setattr(local_files, "ABANDONED_S", -1)
    fetch(gateway, tmp_path)
    assert not (tmp_path / ".aigc-0123.part").exists()


def test_an_interrupt_leaves_whole_files_and_can_be_resumed(gateway: FakeGateway, tmp_path: Path) -> None:
    for _ in range(20):
        gateway.add(("image/png", PNG))

    def interrupt(job: JobRecord) -> None:
        if job.line == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(gateway, tmp_path, on_job=interrupt)

    assert not (tmp_path / "results.jsonl").exists()
    assert list(tmp_path.glob(".aigc-*")) == []
    seen: list[int] = []
    done = fetch(gateway, tmp_path, on_job=lambda job: seen.append(job.line))
    assert done.skipped >= 5
    assert seen == list(range(1, 21))


# --- while the batch runs ---


class Running(FakeGateway):
    """A batch of which one more thing happens each time that it is looked at."""

    def __init__(self, *happens: Callable[[Running], None]) -> None:
        super().__init__()
        self.happens = list(happens)

    def batch(self, reference: str) -> BatchRecord:
        if self.happens:
            self.happens.pop(0)(self)
        counts = dict.fromkeys(("waiting", "queued", "running", "succeeded", "failed", "cancelled"), 0)
        for record in self.records:
            counts[record.status] += 1
        total = len(self.records)
        status = "running" if self.happens or counts["queued"] or counts["running"] else "done"
        return BatchRecord("b1", "spring", status, total, counts, None, None, (), 0.0, cancelled=False)

    def finish(self, line: int, body: bytes, media_type: str = "image/png") -> None:
        key = f"default/b1/b1-{line}/0"
        self.objects[key] = body
        made = (artifact(line * 100, key, 0, body, media_type),)
        self.records[line - 1] = dataclasses.replace(self.records[line - 1], status="succeeded", artifacts=made)


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "GROW_LEAST_S", 0.0)
    monkeypatch.setattr(results_module, "GROW_SHARE", 1e9)
    monkeypatch.setattr(watch, "SLOWEST_POLL_S", 0.001)


def follow_it(gateway: Running, out: Path, **options: Any) -> Downloaded:
    return follow(gateway, gateway.batch("b1"), out, quiet=True, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_at_once")
def test_files_and_page_come_while_the_batch_runs(tmp_path: Path) -> None:
    seen: list[tuple[int, bool, bool]] = []

    def look(gateway: Running) -> None:
        page = (tmp_path / "index.html").read_text()
        seen.append((page.count("<article"), (tmp_path / LIVE / "now.js").is_file(), "<body data-live" in page))
        assert not (tmp_path / "results.jsonl").exists()

    gateway = Running(
        lambda g: [g.add(status="queued") for _ in range(3)] and None,
        lambda g: g.finish(1, PNG),
        lambda g: None,
        look,
        lambda g: g.finish(2, b"hello", "text/plain"),
        lambda g: None,
        look,
        lambda g: g.finish(3, PNG + b"3"),
    )

    done = follow_it(gateway, tmp_path)

    assert seen == [(1, True, True), (2, True, True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000001-ad-1.png", "000003-ad-3.png", "index.html", "results.jsonl",
    ]  # fmt: skip
    assert (done.jobs, done.unfinished) == (3, 0)
    assert [line["status"] for line in lines_of(tmp_path)] == ["succeeded"] * 3
    assert sorted(a.key for a in gateway.opened if a.media_type == "image/png") == [
        "default/b1/b1-1/0", "default/b1/b1-3/0",
    ], "no file is fetched twice"  # fmt: skip
    assert "<body data-live" not in (tmp_path / "index.html").read_text()


@pytest.mark.usefixtures("_at_once")
def test_a_storage_that_is_silent_for_a_while_is_told_once(tmp_path: Path) -> None:
    silent = [Unavailable("storage", "s3://x", "refused") for _ in range(9)]
    gateway = Running(
        lambda g: g.add(status="queued") and None,
        lambda g: g.failing.extend(silent) or g.finish(1, PNG),
        *[lambda g: None] * 6,
    )
    told: list[str] = []

    done = follow_it(gateway, tmp_path, on_trouble=lambda error: told.append(str(error)))

    assert told == ["storage at s3://x: refused"]
    assert (done.jobs, (tmp_path / "000001-ad-1.png").read_bytes()) == (1, PNG)


@pytest.mark.usefixtures("_at_once")
def test_interrupted_it_leaves_the_page_as_it_is(tmp_path: Path) -> None:
    def interrupt(gateway: Running) -> None:
        raise KeyboardInterrupt

    gateway = Running(lambda g: g.add(status="running") and None, lambda g: None, interrupt)

    with pytest.raises(KeyboardInterrupt):
        follow_it(gateway, tmp_path)

    page = (tmp_path / "index.html").read_text()
    assert (page.count("<article"), "<body data-live" in page) == (1, False)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


@pytest.mark.usefixtures("_at_once")
def test_what_is_broken_is_said_at_the_end(tmp_path: Path) -> None:
    gateway = Running(lambda g: [g.add(status="queued") for _ in range(2)] and None)
    gateway.happens += [lambda g: g.finish(1, PNG), lambda g: g.finish(2, PNG) or g.objects.clear()]

    with pytest.raises(DamagedOutput, match=r"1 output\(s\) could not be had") as caught:
        follow_it(gateway, tmp_path)

    assert caught.value.downloaded is not None
    assert "damaged_output" in (tmp_path / "index.html").read_text()
