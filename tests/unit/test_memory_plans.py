"""How a model is held: what the operator has set, and what is chosen by what fits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import pytest

from shared.errors import JobFailed, ModelRejected
from shared.settings import Settings
from workers import residency
from workers.footprint import expected
from workers.generators import Device, Generator, ModelFiles, Outcome, Run, Work
from workers.generators.memory import MemoryPlan
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


def files(folder: Path, megabytes: float, plan: MemoryPlan, **config: str) -> ModelFiles:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * int(megabytes * 2**20))
    return ModelFiles("m", folder, "1", "transformers", config, memory=plan)


def test_a_model_in_one_file_takes_what_that_file_has(tmp_path: Path) -> None:
    plain = files(tmp_path / "a", 4, MemoryPlan(), dtype="float16")
    assert (expected(plain, CUDA), expected(plain, CPU)) == (4 * 2**20, 8 * 2**20)
    (tmp_path / "one.safetensors").write_bytes(b"x" * 100)
    assert expected(replace(plain, weights=tmp_path / "one.safetensors"), CUDA) == 100


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
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Residency, list[MemoryPlan]]:
    """Models that are held by the plan that stands last in the list."""
    plans = [MemoryPlan()]
    made = files(tmp_path / "m", 0.1, MemoryPlan())
    monkeypatch.setattr(residency, "_generator_for", lambda task, files: Heeding)
    monkeypatch.setattr(residency, "resolve", lambda ref, settings: replace(made, ref=ref, memory=plans[-1]))
    monkeypatch.setattr(residency, "room", lambda *_: 10 * GB)

    class Nothing:
        def __init__(self, device: Device) -> None: ...

        def grown(self) -> int:
            return 1

    monkeypatch.setattr(residency, "Footprint", Nothing)
    Heeding.told.clear()
    return Residency(Settings(_env_file=None, data_dir=tmp_path), lambda: CUDA), plans


def test_a_generator_is_told_what_it_heeds_and_refuses_the_rest(held: tuple[Residency, list[MemoryPlan]]) -> None:
    models, plans = held
    models.get("t", "plain")
    plans.append(MemoryPlan(dtype="float16", offload="model"))
    models.get("t", "set")
    assert Heeding.told == [(MemoryPlan(), "bfloat16"), (plans[-1], "float16")]
    plans.append(MemoryPlan(quantization="8bit", vae_tiling=True))
    with pytest.raises(
        ModelRejected, match="set to quantization, vae_tiling, which has no effect on what does t"
    ) as error:
        models.get("t", "wrong")
    assert error.value.code == "memory_unsupported"


# --- models beside a model ---


def test_what_stands_beside_stays_what_it_was_until_its_file_changes(
    held: tuple[Residency, list[MemoryPlan]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, _ = held
    models.get("t", "m")
    path = tmp_path / "x.safetensors"
    path.write_text("one")
    lane = json.dumps([["lora", str(path)]])
    asked: list[str] = []
    found = residency.resolve_adapter

    def counted(role: str, ref: str, settings: Settings) -> ModelFiles:
        asked.append(ref)
        return found(role, ref, settings=settings)  # type: ignore[arg-type]

    monkeypatch.setattr(residency, "resolve_adapter", counted)
    first = models.beside("t", "m", lane)
    assert models.beside("t", "m", lane) == first
    assert (list(first), asked) == ([str(path)], [str(path)])
    path.write_text("another")
    assert models.beside("t", "m", lane)[str(path)].revision != first[str(path)].revision
    assert models.beside("t", "m", "") == {}
    assert len(asked) == 2


def test_what_cannot_be_had_now_may_be_had_later(
    held: tuple[Residency, list[MemoryPlan]], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, _ = held
    models.get("t", "m")

    def away(role: str, ref: str, settings: Settings) -> ModelFiles:
        raise JobFailed("model_unreachable", "the hub does not answer", retryable=True)

    monkeypatch.setattr(residency, "resolve_adapter", away)
    with pytest.raises(SetAside) as error:
        models.beside("t", "m", '[["lora","org/name"]]')
    assert error.value.code == "model_unreachable"
    monkeypatch.undo()
    with pytest.raises(ModelRejected):
        models.beside("t", "m", '[["lora","/nowhere/at/all"]]')
