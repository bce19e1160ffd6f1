"""Where jobs name files, and what becomes of the references when jobs are submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from producer.inputs import MOST_TOGETHER, Inputs
from producer.records import BatchRecord
from producer.requests import Invalid, ValidJob
from shared.errors import NotFound
from shared.files import File
from shared.jobs import Lane
from shared.tables import JOB_STATES
from shared.tasks import Params, Task, all_tasks
from shared.tasks.inputs import AudioInput, ImageInput, Reference, references, replaced, takes_files


class Control(Params):
    image: ImageInput
    weight: float = 1.0


class Pictures(Params):
    prompt: str
    image: Annotated[ImageInput, Field(description="to begin with")]
    mask: ImageInput | None = None
    others: tuple[ImageInput, ...] = ()
    sounds: Annotated[tuple[AudioInput, ...], Field(max_length=3)] = ()
    controls: tuple[Control, ...] = ()
    pair: Annotated[tuple[ImageInput, ...], Field(max_length=2)] = ()


TASK = Task("pictures", "for a test", Pictures, False, "cpu", lambda params: 1.0, {})


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(all_tasks(), "pictures", TASK)


def job(**params: object) -> ValidJob:
    said = Pictures.model_validate({"prompt": "a hat", **params})
    return ValidJob(3, None, Lane("cpu", "pictures", ""), 0, said.model_dump_json(), 5, None, 1.0, None, None, "f")


class FakeDepot:
    def __init__(self) -> None:
        self.sent: list[Path] = []

    def upload(self, path: Path) -> File:
        self.sent.append(path)
        return self.file(f"f{len(self.sent)}")

    def file(self, id_: str) -> File:
        if id_ == "fgone":
            raise NotFound("there is no file:fgone")
        return File(id_, f"default/files/{id_}", "hat.png", "image/png", 3, "0" * 64)

    def has_output(self, job_id: str, position: int) -> bool:
        return position == 0

    def batch(self, reference: str) -> BatchRecord:
        """`running`, `torn` with a job that failed, `huge`, or done."""
        if reference == "gone":
            raise NotFound("there is no batch 'gone'")
        status = "running" if reference == "running" else "done"
        counts = dict.fromkeys(JOB_STATES, 0) | {"succeeded": 2, "failed": 1 if reference == "torn" else 0}
        total = 9 if reference == "running" else sum(counts.values())
        return BatchRecord(f"b-{reference}", None, status, total, counts, None, None, (), 0.0, False)

    def outputs(self, batch_id: str, media: str, *, limit: int) -> list[tuple[str, int]]:
        if media != "image/":
            return []
        return [
            (f"{batch_id}-{line}", n) for line in range(1, limit + 1 if batch_id == "b-huge" else 3) for n in (0, 1)
        ]


def test_files_are_found_wherever_params_may_name_them() -> None:
    params = Pictures(
        prompt="file:no", image="a.png", mask="https://x.org/m.png", others=("b.png", "file:f1"), sounds=("c.wav",),
        controls=(Control(image="d.png"),),
    )  # fmt: skip

    assert takes_files(Pictures)
    assert [(each.place, each.text, each.kind) for each in references(params)] == [
        ("image", "a.png", "image"), ("mask", "https://x.org/m.png", "image"), ("others.0", "b.png", "image"),
        ("others.1", "file:f1", "image"), ("sounds.0", "c.wav", "audio"), ("controls.0.image", "d.png", "image"),
    ]  # fmt: skip
    assert not takes_files(all_tasks()["text-generation"].params)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [("https://x.org/a", "https"), ("s3://b/k", "s3"), ("artifact:b1-1", "artifact"), ("file:f1", "file"),
     ("a.png", ""), ("/tmp/a.png", ""), ("~/a.png", ""), ("a:b.png", "")],
)  # fmt: skip
def test_a_reference_says_by_its_beginning_what_it_is(text: str, scheme: str) -> None:
    assert Reference("image", text, "image").scheme == scheme


@pytest.mark.parametrize("text", ["http://x.org/a", "ftp://x.org/a", "data:image/png;base64,AAAA", "HTTPS://x.org"])
def test_what_cannot_be_fetched_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give https://…"):
        assert Reference("image", text, "image").scheme


def test_only_the_places_that_are_named_are_replaced() -> None:
    said = {"prompt": "a.png", "image": "a.png", "others": ["a.png", "b.png"], "controls": [{"image": "a.png"}]}

    assert replaced(said, {"image": "file:1", "others.1": "file:2", "controls.0.image": "file:3"}.get) == {
        "prompt": "a.png", "image": "file:1", "others": ["a.png", "file:2"], "controls": [{"image": "file:3"}],
    }  # fmt: skip


def test_several_take_the_place_of_one_in_its_list() -> None:
    said = {"others": ["a.png", "batch:b1", "c.png"], "sounds": ["x"]}

    assert replaced(said, {"others.1": ["artifact:1", "artifact:2"], "others.2": "file:3"}.get) == {
        "others": ["a.png", "artifact:1", "artifact:2", "file:3"], "sounds": ["x"],
    }  # fmt: skip


def test_a_batch_is_replaced_by_its_outputs_that_fit_in_their_order() -> None:
    made = Inputs(FakeDepot)(job(image="file:f9", others=["batch:spring", "batch:torn/succeeded"]))

    assert [each.text for each in references(Pictures.model_validate_json(made.params_json))][1:] == [
        f"artifact:b-{name}-{line}/{position}" for name in ("spring", "torn") for line in (1, 2) for position in (0, 1)
    ]
    assert made.fingerprint not in (None, "f")


@pytest.mark.parametrize(
    ("params", "place", "problem"),
    [
        ({"others": ["batch:gone"]}, "others.0", "there is no batch 'gone'"),
        ({"others": ["batch:running"]}, "others.0", "is not done: 2 of 9 jobs; wait for it"),
        ({"others": ["batch:torn"]}, "others.0", "1 of the 3 jobs of batch:torn did not succeed"),
        ({"others": ["batch:huge"]}, "others.0", f"stands for more than {MOST_TOGETHER:,} files"),
        ({"sounds": ["batch:spring"]}, "sounds.0", "holds nothing that fits: audio/… is wanted"),
        ({"image": "batch:spring"}, "image", "stands for several files, and one is wanted here"),
    ],
)
def test_a_batch_that_cannot_be_read_is_a_problem_of_its_line(params: dict, place: str, problem: str) -> None:
    with pytest.raises(Invalid) as error:
        Inputs(FakeDepot)(job(**{"image": "file:f9"} | params))
    [found] = error.value.problems
    assert (found.line, found.field) == (3, f"params.{place}")
    assert problem in str(found)


def test_a_folder_is_replaced_by_its_files_that_fit_by_name(tmp_path: Path) -> None:
    depot = FakeDepot()
    for name in ("b.png", "a.jpg", "notes.txt", "c.wav"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "more").mkdir()
    made = Inputs(lambda: depot)(job(image="file:f9", others=[str(tmp_path)], sounds=[str(tmp_path)]))

    assert [path.name for path in depot.sent] == ["a.jpg", "b.png", "c.wav"]
    assert [(each.place, each.text) for each in references(Pictures.model_validate_json(made.params_json))][1:] == [
        ("others.0", "file:f1"), ("others.1", "file:f2"), ("sounds.0", "file:f3"),
    ]  # fmt: skip
    with pytest.raises(Invalid, match="holds nothing that fits"):
        Inputs(lambda: depot)(job(image="file:f9", others=[str(tmp_path / "more")]))
    with pytest.raises(Invalid, match="one is wanted here"):
        Inputs(lambda: depot)(job(image=str(tmp_path)))


def test_what_a_batch_stands_for_is_checked_like_what_is_written_out() -> None:
    with pytest.raises(Invalid) as error:
        Inputs(FakeDepot)(job(image="file:f9", pair=["batch:spring"]))
    assert "line 3: params.pair: tuple should have at most 2 items after validation, not 4" in str(error.value)


def test_a_path_is_uploaded_once_and_the_job_names_the_file(tmp_path: Path) -> None:
    path, depot = tmp_path / "hat.png", FakeDepot()
    path.write_bytes(b"hat")
    inputs = Inputs(lambda: depot)

    first, second = inputs(job(image=str(path))), inputs(job(image=str(path), mask=str(path)))

    assert depot.sent == [path]
    assert [each.text for each in references(Pictures.model_validate_json(second.params_json))] == ["file:f1"] * 2
    assert inputs.files == {"f1"}
    assert first.fingerprint not in (None, "f")


def test_a_dry_run_looks_and_sends_nothing(tmp_path: Path) -> None:
    path, depot = tmp_path / "hat.png", FakeDepot()
    path.write_bytes(b"hat")
    inputs = Inputs(lambda: depot, send=False)

    assert inputs(job(image=str(path))) == job(image=str(path))
    assert not depot.sent
    with pytest.raises(Invalid, match=r"line 3: params.image: there is no file"):
        inputs(job(image=str(tmp_path / "none.png")))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("none.png", "there is no file 'none.png' here"),
        ("file:fgone", "there is no file:fgone"),
        ("artifact:b1", "write artifact:<job id>"),
        ("artifact:b0123456789abcdef-1/1", "there is no such output"),
        ("https:///a", "write https://host/path"),
        ("https://me:secret@x.org/a", "without user and password"),
        ("s3://bucket", "write s3://bucket/key"),
        ("http://x.org/a.png", "cannot be fetched"),
    ],
)
def test_a_file_that_cannot_be_had_is_a_problem_of_its_line(text: str, problem: str) -> None:
    with pytest.raises(Invalid) as error:
        Inputs(FakeDepot)(job(image=text))
    [found] = error.value.problems
    assert (found.line, found.field) == (3, "params.image")
    assert problem in str(found)


def test_jobs_of_tasks_without_files_pass_untouched() -> None:
    plain = ValidJob(1, None, Lane("cpu", "echo", ""), 0, '{"message":"https://x"}', 5, None, 1.0, None, None)

    assert Inputs(lambda: pytest.fail("nobody is to be asked"))(plain) is plain
