"""What a model takes in memory is told from the headers of its files, and held against what the worker has."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import folder_of, safetensors

from shared.settings import Settings
from workers import needs
from workers.generators import Device, ModelFiles
from workers.generators.memory import MemoryPlan
from workers.hub_offer import Offer
from workers.needs import Needs, TooBig, expected, need, weights_of
from workers.weights import MARGIN, Weights, loaded_names, read_header, weights_in

CPU, GPU = Device("cpu", "float32"), Device("cuda:0", "bfloat16")
NOTHING = MemoryPlan()
GB = 2**30


def weights(path: Path, **tensors: tuple[str, tuple[int, ...]]) -> Path:
    path.write_bytes(safetensors(tensors))
    return path


def with_margin(size: float) -> int:
    return int(size * (1 + MARGIN))


def test_the_header_says_types_shapes_and_sizes(tmp_path: Path) -> None:
    tensors = read_header(weights(tmp_path / "a.safetensors", w=("F32", (3, 5)), b=("BF16", (7,)), n=("I64", ())))
    assert {(t.name, t.dtype, t.shape, t.bytes) for t in tensors} == {
        ("w", "F32", (3, 5), 60), ("b", "BF16", (7,), 14), ("n", "I64", (), 8),
    }  # fmt: skip


@pytest.mark.torch
def test_the_library_of_the_format_writes_what_is_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(4, 6), "b": torch.zeros(3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    assert Weights.of(read_header(tmp_path / "a.safetensors")) == Weights(matrices=24, others=3)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda whole: whole[:-1], "has 1,134 bytes, and 1,135 by its own header: fetch it again"),
        (lambda whole: whole + b"x", "by its own header"),
        (lambda whole: whole[:40], "is no safetensors file, or not all of it is there"),
        (lambda whole: b"", "is no safetensors file"),
        (lambda whole: bytes(2000), "is no safetensors file"),
        (lambda whole: b"\xff" * 2000, "is no safetensors file"),
        (lambda whole: whole[:8] + b"[" + whole[9:], "a header that cannot be understood"),
        (lambda whole: whole.replace(b"data_offsets", b"data_0ffsets"), "a header that cannot be understood"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(spoil, said: str, tmp_path: Path) -> None:
    path = weights(tmp_path / "a.safetensors", w=("F32", (16, 16)))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"a\.safetensors (.* )?{said}"):
        read_header(path)


def test_weights_are_as_large_as_the_type_they_are_loaded_in() -> None:
    held = Weights(matrices=1000, others=100, rest=8)
    assert held.loaded("float32") == with_margin(4408)
    assert held.loaded("bfloat16") == held.loaded("float16") == with_margin(2208)
    assert with_margin(1208) < held.loaded("float16", "8bit") < with_margin(1308)
    assert with_margin(708) < held.loaded("float16", "4bit") < with_margin(808)


def test_what_is_looked_up_and_what_is_no_matrix_is_not_quantized(tmp_path: Path) -> None:
    path = weights(
        tmp_path / "a.safetensors", **{
            "model.layers.0.mlp.weight": ("BF16", (4, 4)), "model.embed_tokens.weight": ("BF16", (10, 4)),
            "lm_head.weight": ("BF16", (10, 4)), "conv.weight": ("F16", (2, 2, 3, 3)), "norm.weight": ("F32", (4,)),
            "packed": ("U8", (5,)), "scaled": ("F8_E4M3", (6, 6)),
        },
    )  # fmt: skip
    assert Weights.of(read_header(path)) == Weights(matrices=16, others=40 + 40 + 36 + 4, rest=5 + 36)


@pytest.mark.parametrize(
    ("names", "loaded"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["model.safetensors", "model-00001-of-00001.safetensors"], ["model.safetensors"]),
        (
            ["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model-00001-of-00001.safetensors"],
            ["unet/diffusion_pytorch_model-00001-of-00001.safetensors"],
        ),
        (["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"], None),
        (["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors"], [
            "unet/diffusion_pytorch_model.safetensors"
        ]),
        (["adapter.safetensors", "other.safetensors"], None),
        ([], None),
    ],
)  # fmt: skip
def test_weights_that_are_there_twice_count_once(names: list[str], loaded: list[str] | None) -> None:
    assert loaded_names(names) == sorted(names if loaded is None else loaded)


def test_a_file_that_cannot_be_understood_counts_as_it_is_stored(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"model.safetensors": bytes(1234)})
    assert weights_in(folder) == {".": Weights(rest=1234)}


def pipeline(root: Path) -> ModelFiles:
    folder = folder_of(root, {
        "model_index.json": "{}", "all-in-one.safetensors": bytes(10**6),
        "unet/diffusion_pytorch_model.safetensors": safetensors({"conv": ("F16", (10, 10, 3, 3))}),
        "text_encoder/model.safetensors": safetensors({"w": ("F32", (10, 10))}),
    })  # fmt: skip
    return ModelFiles("m", folder, "r", "diffusers", {})


def test_a_pipeline_is_its_parts(tmp_path: Path) -> None:
    files = pipeline(tmp_path)
    assert weights_of(files) == {"unet": Weights(others=900), "text_encoder": Weights(matrices=100)}
    assert expected(weights_of(files), CPU, NOTHING) == with_margin(3600) + with_margin(400)
    assert expected(weights_of(files), GPU, NOTHING) == with_margin(1800) + with_margin(200)
    assert weights_of(ModelFiles("m", Path("/"), "r", "something-else", {})) == {}, "nothing is looked for"


# --- what a worker has ---


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with 24 GB in a host with 64."""
    monkeypatch.setattr(needs, "capacity", lambda settings, device: (64 if device.name == "cpu" else 24) * GB)
    monkeypatch.setattr(needs, "host_total", lambda: 64 * GB)


SETTINGS = Settings(_env_file=None)


def of(gigabytes: float) -> Weights:
    """So many GB in two bytes a number, before the margin."""
    return Weights(others=int(gigabytes * GB / 2))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("kind", "parts", "wishes", "too_big"),
    [
        ("transformers", [22], NOTHING, False),
        ("transformers", [30], NOTHING, True),
        ("transformers", [30], MemoryPlan(offload="model"), False),
        ("transformers", [30], MemoryPlan(offload="none"), True),
        ("transformers", [90], MemoryPlan(offload="model"), True),
        ("diffusers", [20, 10], NOTHING, False),
        ("diffusers", [20, 10], MemoryPlan(offload="none"), True),
        ("diffusers", [30, 1], NOTHING, True),
        ("diffusers", [30, 1], MemoryPlan(offload="sequential"), False),
        ("diffusers", [20, 20, 20, 20, 20], NOTHING, True),
    ],
)
def test_what_fits_on_a_gpu(kind: str, parts: list[float], wishes: MemoryPlan, too_big: bool) -> None:
    found = need({str(n): of(size) for n, size in enumerate(parts)}, kind, GPU, wishes, SETTINGS)
    assert found.too_big is too_big
    assert found.dtype == "bfloat16"


@pytest.mark.usefixtures("gpu")
def test_a_cpu_computes_in_float32_and_quantizes_nothing() -> None:
    parts = {".": Weights(matrices=10 * GB)}
    assert need(parts, "transformers", CPU, MemoryPlan(quantization="4bit"), SETTINGS).bytes == with_margin(40 * GB)
    assert need(parts, "transformers", GPU, NOTHING, SETTINGS).bytes == with_margin(20 * GB)
    assert need(parts, "transformers", GPU, MemoryPlan(quantization="4bit"), SETTINGS).bytes < 6 * GB
    assert not need(parts, "transformers", CPU, NOTHING, SETTINGS).too_big
    assert need({".": Weights(matrices=20 * GB)}, "transformers", CPU, NOTHING, SETTINGS).too_big


def test_a_budget_of_megabytes_bounds_what_there_is() -> None:
    made = Settings(_env_file=None, resident_mb=3)
    assert need({".": Weights(rest=4 * 2**20)}, "transformers", CPU, NOTHING, made).has == 3 * 2**20


@pytest.mark.usefixtures("gpu")
def test_what_was_measured_takes_the_place_of_the_estimate(tmp_path: Path) -> None:
    files = ModelFiles("m", folder_of(tmp_path, {"model.safetensors": safetensors({"w": ("F32", (8, 8))})}), "r",
                       "transformers", {})  # fmt: skip
    known, key = Needs(SETTINGS), ("task", "m")
    assert known.estimate(key, files, GPU) == with_margin(128)
    known.measured(key, files, GPU, 5000)
    assert known.estimate(key, files, GPU) == 5000
    assert known.told["m for task"]["bytes"] == 5000
    other = ModelFiles("m", files.folder, "another revision", "transformers", {})
    assert known.estimate(key, other, GPU) == with_margin(128)
    known.measured(key, files, CPU, 9000)
    assert known.estimate(key, files, CPU) == with_margin(256), "a process says nothing about one model"


@pytest.mark.usefixtures("gpu")
def test_what_is_too_big_is_said_in_words_before_it_is_fetched() -> None:
    class Imagined(Offer):
        asked = 0

        @property
        def weights(self) -> dict[str, Weights]:  # type: ignore[override]
            Imagined.asked += 1
            return {".": of(38)}

    known, key = Needs(SETTINGS), ("task", "org/big")
    sizes = {"model.safetensors": 38 * GB, "config.json": 100}
    with pytest.raises(TooBig, match=r"org/big needs about 40 GB of memory, and this worker has 24 GB$"):
        known.judge(key, Imagined("org/big", "org/big", "c", "transformers", sizes), GPU, NOTHING)
    assert known.told == {
        "org/big for task": {"bytes": with_margin(38 * GB), "has": 24 * GB, "dtype": "bfloat16", "on_host": False}
    }
    small = Imagined("org/small", "org/small", "c", "transformers", {"model.safetensors": GB})
    known.judge(key, small, GPU, NOTHING)
    assert Imagined.asked == 1, "what surely fits costs no request"
