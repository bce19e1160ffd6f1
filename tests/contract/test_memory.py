"""Models held otherwise: less memory, and the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from contract import CPU, PICTURE, bodies, files_of, generator, moving_pixels, pixels, run_all

from shared.errors import ModelRejected
from shared.tasks.text_to_image import TextToImageParams
from shared.tasks.text_to_video import TextToVideoParams
from workers.generators import Generator, Work
from workers.generators.memory import MemoryPlan
from workers.inputs.looks import Limits, examine

pytestmark = [pytest.mark.torch, pytest.mark.models]


def painter() -> type[Generator]:
    return generator("diffusers_text_to_image:DiffusersTextToImage")


def paint(sd: Any) -> list[np.ndarray]:
    said = TextToImageParams.model_validate(PICTURE | {"prompt": "a hat", "num_images": 2, "width": 32, "height": 32})
    return [pixels(body) for body in bodies(run_all(sd, [Work("job", "text-to-image", said, 7)])["job"])]


def held(root: Path, **plan: Any) -> Any:
    return painter().load(replace(files_of(tiny_models.stable_diffusion, root), memory=MemoryPlan(**plan)), CPU)


@pytest.mark.parametrize("setting", ["vae_slicing", "attention_slicing", "vae_tiling"])
def test_slices_and_tiles_make_the_same_picture(setting: str, root: Path, load: Callable[..., Generator]) -> None:
    plain = paint(load(painter(), tiny_models.stable_diffusion))
    sliced = held(root, **{setting: True})
    vae = sliced._pipe.vae
    assert vae.use_slicing is (setting == "vae_slicing")
    assert vae.use_tiling is (setting == "vae_tiling")
    slices = {type(each).__name__ for each in sliced._pipe.unet.attn_processors.values()}
    assert ("SlicedAttnProcessor" in slices) is (setting == "attention_slicing")
    for one, other in zip(paint(sliced), plain, strict=True):
        assert np.abs(one - other).max() <= 2
    sliced.unload()


def test_attention_in_slices_comes_back_after_an_ip_adapter(root: Path) -> None:
    from input_adapters import found, made
    from input_files import photos

    sliced, square = held(root, attention_slicing=True), photos()["square"]
    before = paint(sliced)
    kinds = {name: type(each) for name, each in sliced._pipe.unet.attn_processors.items()}
    like = {"ip_adapter": {"model": made("ip_adapter"), "images": [square]}}
    said = TextToImageParams.model_validate(PICTURE | {"prompt": "a hat"} | like)
    look = examine(Path(square), "image", square, Limits(10**7, 1.0))
    job = Work("job", "text-to-image", said, 7, inputs={"ip_adapter.images.0": look}, adapters=found(said))
    assert bodies(run_all(sliced, [job])["job"])
    assert all(np.array_equal(one, other) for one, other in zip(paint(sliced), before, strict=True))
    assert {name: type(each) for name, each in sliced._pipe.unet.attn_processors.items()} == kinds
    sliced.unload()


def film(wan: Any) -> list[np.ndarray]:
    said = {"prompt": "a hat", "width": 64, "height": 32, "num_frames": 5, "num_inference_steps": 2, "num_videos": 2}
    job = Work("job", "text-to-video", TextToVideoParams.model_validate(said), 7)
    return [moving_pixels(body) for body in bodies(run_all(wan, [job])["job"])[:2]]


def filmer(root: Path, device: Any = CPU, **plan: Any) -> Any:
    kind, files = generator("diffusers_text_to_video:DiffusersTextToVideo"), files_of(tiny_models.wan, root)
    assert plan.keys() <= kind.heeds
    return kind.load(replace(files, memory=MemoryPlan(**plan)), device)


@pytest.mark.parametrize("setting", ["vae_slicing", "vae_tiling"])
def test_videos_are_decoded_one_by_one_or_in_tiles(setting: str, root: Path) -> None:
    plain, held = film(filmer(root)), filmer(root, **{setting: True}, offload="model")
    assert held._pipe.vae.use_slicing is (setting == "vae_slicing")
    assert held._pipe.vae.use_tiling is (setting == "vae_tiling")
    for one, other in zip(film(held), plain, strict=True):
        assert np.abs(one - other).mean() <= 2
    held.unload()


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_fewer_bits_are_refused_where_there_is_no_gpu(quantization: str, root: Path) -> None:
    with pytest.raises(ModelRejected, match="needs an NVIDIA GPU") as error:
        held(root, quantization=quantization)
    assert error.value.code == "memory_unsupported"


def test_offloading_means_nothing_on_a_cpu(root: Path, load: Callable[..., Generator]) -> None:
    away = held(root, offload="sequential", dtype="float16")
    plain = paint(load(painter(), tiny_models.stable_diffusion))
    assert all(np.array_equal(one, other) for one, other in zip(paint(away), plain, strict=True))
    away.unload()


def test_what_a_pipeline_cannot_do_is_refused(root: Path) -> None:
    files = replace(files_of(tiny_models.ddpm, root), memory=MemoryPlan(vae_tiling=True))
    with pytest.raises(ModelRejected, match="DDPMPipeline knows no vae_tiling: leave it out") as error:
        generator("diffusers_unconditional:DiffusersUnconditional").load(files, CPU)
    assert error.value.code == "memory_unsupported"


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a GPU")
@pytest.mark.parametrize("plan", [{"offload": "model"}, {"offload": "sequential"}, {"dtype": "float32"}])
def test_on_a_gpu_a_model_may_be_elsewhere(plan: dict[str, Any], root: Path) -> None:
    from workers.generators import Device

    files = files_of(tiny_models.stable_diffusion, root)
    there = painter().load(files, Device("cuda:0", "float32"))
    away = painter().load(replace(files, memory=MemoryPlan(**plan)), Device("cuda:0", "float32"))
    for _ in range(2):  # what was brought to the GPU for one call is there for the next
        for one, other in zip(paint(away), paint(there), strict=True):
            assert np.abs(one - other).max() <= 2


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a GPU")
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_on_a_gpu_a_model_of_videos_may_be_elsewhere(offload: str, root: Path) -> None:
    from workers.generators import Device

    device = Device("cuda:0", "float32")
    there, away = filmer(root, device), filmer(root, device, offload=offload)
    for _ in range(2):
        for one, other in zip(film(away), film(there), strict=True):
            assert np.abs(one - other).mean() <= 2
        assert away.park()
        away.unpark()


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("causal_lm:CausalLM", tiny_models.gpt2),
        ("encoder_decoder:EncoderDecoder", tiny_models.t5),
        ("text_classifier:TextClassifier", tiny_models.classifier),
    ],
)
def test_texts_in_fewer_bits_are_refused_where_there_is_no_gpu(path: str, model: Any, root: Path) -> None:
    assert "quantization" in generator(path).heeds
    with pytest.raises(ModelRejected, match="needs an NVIDIA GPU") as error:
        generator(path).load(replace(files_of(model, root), memory=MemoryPlan(quantization="8bit")), CPU)
    assert error.value.code == "memory_unsupported"
