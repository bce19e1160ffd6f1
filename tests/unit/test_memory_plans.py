"""How a model is held: what the operator has set, and what is chosen by what fits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from model_folders import safetensors

from shared.errors import JobFailed, ModelRejected
from shared.models_file import MemoryWishes, ModelsFile, NamedModel
from shared.settings import Settings
from workers import catalogue, needs, residency
from workers.generators import Device, Generator, ModelFiles, Outcome, Run, Work
from workers.generators.memory import MemoryPlan
from workers.needs import expected, weights_of
from workers.residency import Residency, SetAside

GB = 2**30
CUDA, CPU = Device("cuda:0", "bfloat16"), Device("cpu", "float32")


@pytest.mark.parametrize(
    ("plan", "weights", "free", "offload", "slicing"),
    [
        (MemoryPlan(), 4 * GB, 24 * GB, "none", False),
        (MemoryPlan(), 15 * GB, 24 * GB, "none", True),
        (MemoryPlan(), 24 * GB, 24 * GB, "model", True),
        (MemoryPlan(quantization="4bit"), 24 * GB, 24 * GB, "none", False),
        (MemoryPlan(offload="none", vae_slicing=False), 24 * GB, 24 * GB, "none", False),
        (MemoryPlan(offload="sequential"), 1 * GB, 24 * GB, "sequential", True),
        (MemoryPlan(offload="model"), 24 * GB, None, "none", False),
    ],
)
def test_what_was_left_open_is_chosen_by_what_fits(
    plan: MemoryPlan, weights: int, free: int | None, offload: str, slicing: bool
) -> None:
    chosen = plan.fitting(weights, free)
    assert (chosen.offload, chosen.vae_slicing) == (offload, slicing)
    assert replace(chosen, offload=plan.offload, vae_slicing=plan.vae_slicing) == plan


def test_the_record_says_what_is_computed_with() -> None:
    assert MemoryPlan().numbers("cuda:0", "bfloat16") == "bfloat16"
    assert MemoryPlan(dtype="float16").numbers("cuda:0", "bfloat16") == "float16"
    assert MemoryPlan(dtype="float16").numbers("cpu", "bfloat16") == "float32"
    assert MemoryPlan(quantization="8bit").numbers("cuda:0", "bfloat16") == "bfloat16 8bit"


def files(folder: Path, rows: int) -> ModelFiles:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors({"w": ("F16", (rows, 1024))}))
    return ModelFiles("m", folder, "1", "transformers", {})


def test_a_model_in_one_file_takes_what_that_file_has(tmp_path: Path) -> None:
    plain = files(tmp_path / "a", 1024)
    sizes = [expected(weights_of(plain), device, plain.memory) for device in (CUDA, CPU)]
    assert sizes == [int(n * 2**20 * 1.05) for n in (2, 4)]
    one = tmp_path / "one.safetensors"
    one.write_bytes(safetensors({"unet.w": ("F16", (256, 1024)), "vae.w": ("F16", (128, 1024))}))
    parts = weights_of(replace(plain, kind="diffusers", weights=one))
    assert parts.keys() == {"unet", "vae"}
    assert expected(parts, CUDA, plain.memory) == int(0.5 * 2**20 * 1.05) + int(0.25 * 2**20 * 1.05)


class Heeding(Generator):
    """Remembers what it was told."""

    heeds: ClassVar[frozenset[str]] = frozenset({"offload"})
    told: ClassVar[list[tuple[MemoryPlan, str]]] = []

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        assert files is not None
        cls.told.append((files.memory, device.dtype))
        return cls()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        yield from ()


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Residency, dict[str, NamedModel]]:
    """Models that are held as the operator says there, by alias."""
    said: dict[str, NamedModel] = {}
    made = files(tmp_path / "m", 16)
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Heeding)
    monkeypatch.setattr(catalogue, "resolve", lambda ref, **_: replace(made, ref=ref))
    monkeypatch.setattr(residency, "room", lambda *_: 10 * GB)
    monkeypatch.setattr(needs, "capacity", lambda *_: 10 * GB)

    class Nothing:
        def __init__(self, device: Device) -> None: ...

        def grown(self) -> int:
            return 1

    monkeypatch.setattr(residency, "Footprint", Nothing)
    Heeding.told.clear()
    settings = Settings(_env_file=None, data_dir=tmp_path)
    return Residency(settings, lambda: CUDA, lambda: ModelsFile(said)), said


def test_a_generator_is_told_what_it_heeds_and_refuses_the_rest(held: tuple[Residency, dict[str, NamedModel]]) -> None:
    models, said = held
    models.get("t", "plain")
    said["set"] = NamedModel("set", "m", dtype="float16", memory=MemoryWishes(offload="model"))
    models.get("t", "set")
    assert Heeding.told == [(MemoryPlan(), "bfloat16"), (MemoryPlan(dtype="float16", offload="model"), "float16")]
    said["wrong"] = NamedModel("wrong", "m", memory=MemoryWishes(quantization="8bit", vae_tiling=True))
    with pytest.raises(
        ModelRejected, match="set to quantization, vae_tiling, which has no effect on what does t"
    ) as error:
        models.get("t", "wrong")
    assert error.value.code == "memory_unsupported"


# --- models beside a model ---


def test_what_stands_beside_stays_what_it_was_until_its_file_changes(
    held: tuple[Residency, dict[str, NamedModel]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, _ = held
    models.get("t", "m")
    path = tmp_path / "x.safetensors"
    path.write_text("one")
    lane = json.dumps([["lora", str(path)]])
    asked: list[str] = []
    found = catalogue.resolve_adapter

    def counted(role: str, ref: str, **how: Any) -> ModelFiles:
        asked.append(ref)
        return found(role, ref, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(catalogue, "resolve_adapter", counted)
    first = models.beside("t", "m", lane)
    assert models.beside("t", "m", lane) == first
    assert (list(first), asked) == ([str(path)], [str(path)])
    path.write_text("another")
    assert models.beside("t", "m", lane)[str(path)].revision != first[str(path)].revision
    assert models.beside("t", "m", "") == {}
    assert len(asked) == 2


def test_an_alias_of_what_stands_beside_is_found_anew_when_it_means_something_else(
    held: tuple[Residency, dict[str, NamedModel]], tmp_path: Path
) -> None:
    models, named = held
    models.get("t", "m")
    for name in ("x", "y"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    lane = '[["lora","house"]]'
    with pytest.raises(ModelRejected, match=r"there is no alias house in models\.toml"):
        models.beside("t", "m", lane)
    named["house"] = NamedModel("house", str(tmp_path / "x.safetensors"), role="lora")
    first = models.beside("t", "m", lane)["house"]
    assert (first.ref, first.stands_for, first.weights) == ("house", named["house"].model, tmp_path / "x.safetensors")
    named["house"] = NamedModel("house", str(tmp_path / "y.safetensors"), first.revision, role="lora")
    with pytest.raises(ModelRejected, match="pins"):
        models.beside("t", "m", lane)
    named["house"] = NamedModel("house", str(tmp_path / "y.safetensors"), role="lora")
    assert models.beside("t", "m", lane)["house"].weights == tmp_path / "y.safetensors"
    with pytest.raises(ModelRejected, match="'house' is a lora, which is named beside a model"):
        models.beside("t", "m", '[["ip-adapter","house"]]')


def test_what_cannot_be_had_now_may_be_had_later(
    held: tuple[Residency, dict[str, NamedModel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, _ = held
    models.get("t", "m")

    def away(role: str, ref: str, **how: Any) -> ModelFiles:
        raise JobFailed("model_unreachable", "the hub does not answer", retryable=True)

    monkeypatch.setattr(catalogue, "resolve_adapter", away)
    with pytest.raises(SetAside) as error:
        models.beside("t", "m", '[["lora","org/name"]]')
    assert error.value.code == "model_unreachable"
    monkeypatch.undo()
    with pytest.raises(ModelRejected):
        models.beside("t", "m", '[["lora","/nowhere/at/all"]]')
