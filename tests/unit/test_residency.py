"""Models in memory: within the room there is, by worth, and parked in the host's memory where that pays.

The models are real files that hold nothing; a GPU is imagined by what its memory would say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from shared.errors import JobFailed
from shared.models_file import MemoryWishes, ModelsFile, NamedModel
from shared.settings import Settings
from workers import footprint, needs, residency
from workers.generators import Device, Generator, ModelFiles, Outcome, Run, Work
from workers.generators.memory import MemoryPlan
from workers.residency import Residency, SetAside

MB = 2**20


class Imagined(Generator):
    """Takes as many megabytes as its folder says; counts what is done to it."""

    taken: dict[str, int] = {}  # noqa: RUF012
    devices: list[Device] = []  # noqa: RUF012
    parks = True
    loads: list[str] = []  # noqa: RUF012

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        assert files is not None
        cls.loads.append(files.folder.name)
        cls.devices.append(device)
        made = cls(files.folder.name, int(files.config["megabytes"]))
        cls.taken[made.name] = made.size
        return made

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        yield from ()

    def park(self) -> bool:
        if self.parks:
            del self.taken[self.name]
        return self.parks

    def unpark(self) -> None:
        self.taken[self.name] = self.size

    def unload(self) -> None:
        self.taken.pop(self.name, None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Imagined]:
    """A GPU of 1,000 MB for models."""

    class Measured:
        def __init__(self, device: Device) -> None:
            self.before = sum(Imagined.taken.values())

        def grown(self) -> int:
            return (sum(Imagined.taken.values()) - self.before) * MB

    Imagined.taken, Imagined.loads, Imagined.parks, Imagined.devices = {}, [], True, []
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Imagined)
    monkeypatch.setattr(residency, "Footprint", Measured)
    monkeypatch.setattr(residency, "room", lambda *_: (1000 - sum(Imagined.taken.values())) * MB)
    monkeypatch.setattr(residency, "free_cached", lambda device: None)
    monkeypatch.setattr(needs, "capacity", lambda *_: 1000 * MB)
    return Imagined


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, megabytes in (("a", 400), ("b", 400), ("c", 400), ("big", 900)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": ["X"], "megabytes": megabytes}))
        with (tmp_path / name / "model.safetensors").open("wb") as weights:
            weights.truncate(megabytes * MB)  # sparse: takes no room
    return tmp_path


def held(settings: dict[str, Any], device: str = "cuda:0", models: dict[str, NamedModel] | None = None) -> Residency:
    made = {"resident_models": 8, "parked_mb": 900, **settings}
    said = {} if models is None else models
    return Residency(Settings(_env_file=None, **made), lambda: Device(device, "float32"), lambda: ModelsFile(said))


def names(models: set[str]) -> list[str]:
    return sorted(Path(model).name for model in models)


def test_room_is_made_before_the_next_load_and_no_more_than_it_needs(gpu: type[Imagined], folder: Path) -> None:
    ours = held({})
    for name in ("a", "b", "c"):
        ours.get("task", str(folder / name))
        assert sum(gpu.taken.values()) <= 1000
    assert len(ours.models) == 2
    ours.get("task", str(folder / "big"))
    assert names(ours.models) == ["big"]


def test_what_jobs_wait_for_is_dropped_last(gpu: type[Imagined], folder: Path) -> None:
    ours = held({})
    ours.get("task", str(folder / "a"))
    ours.get("task", str(folder / "b"))
    for wanted, left in (("a", ["a", "c"]), ("c", ["b", "c"])):
        ours.expect({("task", str(folder / wanted))})
        ours.get("task", str(folder / ("c" if wanted == "a" else "b")))
        assert names(ours.models) == left


def test_a_model_that_had_to_go_comes_back_from_the_hosts_memory(gpu: type[Imagined], folder: Path) -> None:
    ours = held({"resident_models": 1})
    first = ours.get("task", str(folder / "a")).generator
    ours.get("task", str(folder / "b"))
    assert "a" not in gpu.taken
    assert ours.get("task", str(folder / "a")).generator is first
    assert gpu.loads == ["a", "b"]
    assert sum(gpu.taken.values()) == 400


def test_the_host_holds_no_more_than_it_may_and_the_oldest_goes_first(gpu: type[Imagined], folder: Path) -> None:
    ours = held({"resident_models": 1, "parked_mb": 500})
    for name in ("a", "b", "c", "a", "b"):
        ours.get("task", str(folder / name))
    assert gpu.loads == ["a", "b", "c", "a", "b"], "there is room for one: it is gone before it is wanted again"
    ours.get("task", str(folder / "a"))
    assert gpu.loads == ["a", "b", "c", "a", "b"]


def test_a_model_that_cannot_be_parked_is_loaded_again(gpu: type[Imagined], folder: Path) -> None:
    gpu.parks = False
    ours = held({"resident_models": 1})
    for name in ("a", "b", "a"):
        ours.get("task", str(folder / name))
    assert gpu.loads == ["a", "b", "a"]
    assert list(gpu.taken) == ["a"]


def test_on_a_cpu_nothing_is_parked(gpu: type[Imagined], folder: Path) -> None:
    ours = held({"resident_models": 1}, device="cpu")
    for name in ("a", "b", "a"):
        ours.get("task", str(folder / name))
    assert gpu.loads == ["a", "b", "a"]


def test_a_budget_of_megabytes_holds_on_a_cpu_too(
    gpu: type[Imagined], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "room", footprint.room)
    ours = held({"resident_mb": 850}, device="cpu")
    for name in ("a", "b", "c"):
        ours.get("task", str(folder / name))
    assert len(ours.models) == 2
    assert sum(gpu.taken.values()) == 800


def test_out_of_memory_in_spite_of_all_makes_room_and_tries_once_more(
    gpu: type[Imagined], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = held({})
    ours.get("task", str(folder / "a"))
    load = Imagined.load.__func__  # type: ignore[attr-defined]

    def tight(cls: type[Imagined], files: ModelFiles, device: Device) -> Imagined:
        if cls.taken:
            raise RuntimeError("CUDA out of memory")
        made: Imagined = load(cls, files, device)
        return made

    monkeypatch.setattr(Imagined, "load", classmethod(tight))
    ours.get("task", str(folder / "b"))
    assert names(ours.models) == ["b"]
    monkeypatch.setattr(Imagined, "taken", {"somebody else's": 1})
    with pytest.raises(SetAside, match="does not fit"):
        ours.get("task", str(folder / "c"))
    with pytest.raises(JobFailed):
        ours.get("task", str(folder / "c"))


def test_the_scheduler_is_told_what_is_in_memory_since_when_and_what_loads_take(
    gpu: type[Imagined], folder: Path
) -> None:
    ours = held({"resident_models": 1})
    key, other = ("task", str(folder / "a")), ("task", str(folder / "b"))
    ours.get(*key)
    memory = ours.memory(7)
    assert set(memory.resident) == {key}
    assert 0.0 <= memory.resident[key] < 60.0
    assert memory.load_s[key] < 60.0
    assert (memory.current, memory.tight) == (7, False)
    ours.get(*other)
    assert set(ours.memory(None).resident) == {other}


def test_clearing_frees_what_is_parked_too(gpu: type[Imagined], folder: Path) -> None:
    ours = held({"resident_models": 1})
    ours.get("task", str(folder / "a"))
    ours.get("task", str(folder / "b"))
    ours.clear()
    assert ours.models == set()
    assert gpu.taken == {}
    ours.get("task", str(folder / "a"))
    assert gpu.loads == ["a", "b", "a"]


# --- what the operator says ---


def test_an_alias_is_loaded_in_its_number_type_and_kept_under_its_name(
    gpu: type[Imagined], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "heeds", frozenset({"vae_tiling"}))
    named = NamedModel("ours", str(folder / "a"), dtype="float16", memory=MemoryWishes(vae_tiling=True))
    ours = held({"models_allowed": "nothing/*"}, models={"ours": named})
    found = ours.get("task", "ours")
    assert found.files is not None
    assert (found.files.ref, found.files.stands_for) == ("ours", str(folder / "a"))
    assert found.files.memory == MemoryPlan(dtype="float16", vae_tiling=True)
    assert found.device == gpu.devices[0] == Device("cuda:0", "float16")
    assert ours.models == {"ours"}
    with pytest.raises(JobFailed, match="model_not_allowed"):
        ours.get("task", str(folder / "a"))


def test_on_a_cpu_every_model_is_float32(gpu: type[Imagined], folder: Path) -> None:
    named = NamedModel("ours", str(folder / "a"), dtype="float16")
    assert held({}, device="cpu", models={"ours": named}).get("task", "ours").device.dtype == "float32"


def test_an_alias_that_comes_to_mean_another_model_is_loaded_anew(gpu: type[Imagined], folder: Path) -> None:
    said = {"ours": NamedModel("ours", str(folder / "a")), "other": NamedModel("other", str(folder / "c"))}
    ours = held({}, models=said)
    ours.get("task", "ours")
    ours.get("task", "other")
    said["ours"] = NamedModel("ours", str(folder / "b"))
    assert ours.models == {"other"}
    ours.get("task", "ours")
    ours.get("task", "other")
    assert gpu.loads == ["a", "c", "b"]
    assert sorted(gpu.taken) == ["b", "c"]


def test_a_model_that_failed_is_tried_again_once_its_alias_has_changed(gpu: type[Imagined], folder: Path) -> None:
    said = {"ours": NamedModel("ours", str(folder / "nowhere"))}
    ours = held({}, models=said)
    with pytest.raises(JobFailed, match="model_not_found"):
        ours.get("task", "ours")
    assert list(ours.set_aside) == ["ours for task"]
    said["ours"] = NamedModel("ours", str(folder / "a"))
    assert ours.set_aside == {}
    assert ours.get("task", "ours").files is not None


def test_the_digest_that_is_pinned_has_to_be_that_of_the_files(gpu: type[Imagined], folder: Path) -> None:
    said = {"ours": NamedModel("ours", str(folder / "a"))}
    ours = held({}, models=said)
    found = ours.get("task", "ours").files
    assert found is not None
    said["ours"] = NamedModel("ours", str(folder / "a"), revision=found.revision)
    ours.get("task", "ours")
    said["ours"] = NamedModel("ours", str(folder / "a"), revision="sha256:0123456789abcdef")
    with pytest.raises(JobFailed, match=f"model_changed: .* have the digest {found.revision}, and models.toml pins"):
        ours.get("task", "ours")


# --- too big ---


def test_what_is_too_big_is_not_tried_and_drops_nothing(gpu: type[Imagined], folder: Path) -> None:
    (folder / "huge").mkdir()
    (folder / "huge" / "config.json").write_text(json.dumps({"architectures": ["X"], "megabytes": 2000}))
    with (folder / "huge" / "model.safetensors").open("wb") as weights:
        weights.truncate(2000 * MB)
    ours, huge = held({}), str(folder / "huge")
    ours.get("task", str(folder / "a"))
    with pytest.raises(SetAside, match=r"needs about 2\.1 GB of memory, and this worker has 1\.0 GB") as error:
        ours.get("task", huge)
    assert error.value.code == "model_too_big"
    assert error.value.need is not None
    assert error.value.for_s == residency.MAX_SET_ASIDE_S
    assert names(ours.models) == ["a"]
    assert gpu.loads == ["a"]
    assert ours.set_aside_for_now == {("task", huge)}
    assert ours.needs.told[f"{huge} for task"]["has"] == 1000 * MB


def test_room_is_made_for_what_was_measured(gpu: type[Imagined], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.parks = False
    (folder / "a" / "config.json").write_text(json.dumps({"architectures": ["X"], "megabytes": 700}))
    ours = held({})
    ours.get("task", str(folder / "a"))  # its files say 400: it takes 700
    ours.get("task", str(folder / "big"))
    ours.get("task", str(folder / "b"))
    asked: list[int] = []
    make_room = Residency._make_room
    monkeypatch.setattr(Residency, "_make_room", lambda self, size: (asked.append(size), make_room(self, size)))
    ours.get("task", str(folder / "a"))
    assert asked == [700 * MB]
