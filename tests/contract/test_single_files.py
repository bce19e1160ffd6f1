"""Checkpoints in a single file, as ComfyUI and AUTOMATIC1111's web UI keep them: read without a network."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import input_adapters
import numpy as np
import pytest
import tiny_models
from contract import CPU, PICTURE, bodies, generator, pixels, run_all
from input_files import photos

from shared.errors import ModelRejected
from shared.settings import Settings
from shared.tasks.adapters import models_beside
from shared.tasks.text_to_image import TextToImageParams
from workers import single_files
from workers.generators import Generator, Work
from workers.inputs.looks import Limits, examine
from workers.model_files import resolve

pytestmark = [pytest.mark.torch, pytest.mark.models]

PHOTOS = photos()
CONFIGS = Path(single_files.__file__).parent / "pipeline_configs"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker's folder of models, for tests that change it."""
    made = tmp_path_factory.mktemp("models")
    shutil.copytree(input_adapters.made("comfyui"), made, dirs_exist_ok=True)
    return made


def load(path: str, models_dir: Path, ref: str = "file:tiny.safetensors") -> Any:
    settings = Settings(_env_file=None, data_dir=models_dir, models_dir=models_dir)
    return generator(path).load(resolve(ref, settings=settings), CPU)


def paint(painter: Any, **said: Any) -> np.ndarray:
    params = TextToImageParams.model_validate(PICTURE | {"prompt": "a hat"} | said)
    assert not models_beside(params)
    return pixels(bodies(run_all(painter, [Work("job", "text-to-image", params, 7)])["job"])[0])


def test_a_picture_is_that_of_the_same_model_in_a_folder(load_folder: Callable[..., Generator], folder: Path) -> None:
    path = "diffusers_text_to_image:DiffusersTextToImage"
    single, whole = load(path, folder), load_folder(generator(path), tiny_models.stable_diffusion)
    for said in ({}, {"negative_prompt": "red", "guidance_scale": 5.0}, {"scheduler": "euler_a", "num_images": 1}):
        assert np.array_equal(paint(single, **said), paint(whole, **said))
    single.unload()


@pytest.fixture
def load_folder(load: Callable[..., Generator]) -> Callable[..., Generator]:
    return load


@pytest.mark.parametrize(
    ("task", "path", "more"),
    [
        ("image-to-image", "diffusers_image_to_image:DiffusersImageToImage", {"strength": 0.9}),
        ("inpainting", "diffusers_inpainting:DiffusersInpainting", {"mask": PHOTOS["mask"]}),
    ],
)
def test_it_serves_pictures_from_pictures_too(
    task: str, path: str, more: dict[str, Any], load_folder: Callable[..., Generator], folder: Path
) -> None:
    from shared.tasks import get_task
    from shared.tasks.inputs import references

    said = get_task(task).params.model_validate(PICTURE | {"prompt": "a hat", "image": PHOTOS["square"]} | more)
    files = {
        each.place: examine(Path(each.text), "image", each.text, Limits(10**7, 100.0)) for each in references(said)
    }
    job = Work("job", task, said, 7, inputs=files)
    single, whole = load(path, folder), load_folder(generator(path), tiny_models.stable_diffusion)
    one, other = (pixels(bodies(run_all(each, [job])["job"])[0]) for each in (single, whole))
    assert np.array_equal(one, other)
    single.unload()


def test_xl_with_both_of_its_text_encoders_comes_out_of_one_file(tmp_path: Path) -> None:
    folder = Path(input_adapters.made("comfyui_xl"))
    path = "diffusers_text_to_image:DiffusersTextToImage"
    single = load(path, folder)
    whole = generator(path).load(
        resolve(str(folder / "whole"), settings=Settings(_env_file=None, data_dir=tmp_path)), CPU
    )
    for said in ({}, {"negative_prompt": "red", "guidance_scale": 5.0}):
        assert np.array_equal(paint(single, **said), paint(whole, **said))
    for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
        ours, theirs = (getattr(each._pipe, name).state_dict() for each in (single, whole))
        assert all((ours[key] == value).all() for key, value in theirs.items())


def without(folder: Path, name: str, prefix: str) -> str:
    """A copy of the tiny checkpoint that lacks some weights, with its configs."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "checkpoints" / "tiny.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "checkpoints" / f"{name}.safetensors")
    shutil.copytree(folder / "checkpoints" / "tiny.config", folder / "checkpoints" / f"{name}.config")
    return f"file:{name}.safetensors"


@pytest.mark.parametrize(
    "prefix",
    ["model.diffusion_model.middle_block.1.norm", "first_stage_model.decoder.mid.block_1", "cond_stage_model."],
)
def test_a_checkpoint_that_lacks_weights_is_refused(prefix: str, folder: Path) -> None:
    ref = without(folder, prefix.replace(".", "-"), prefix)
    with pytest.raises(ModelRejected) as error:
        load("diffusers_text_to_image:DiffusersTextToImage", folder, ref)
    assert error.value.code == "model_not_a_model"
    assert ref in error.value.message


def test_a_broken_file_is_refused(folder: Path) -> None:
    whole = (folder / "checkpoints" / "tiny.safetensors").read_bytes()
    (folder / "checkpoints" / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(folder / "checkpoints" / "tiny.config", folder / "checkpoints" / "half.config")
    with pytest.raises(ModelRejected) as error:
        load("diffusers_text_to_image:DiffusersTextToImage", folder, "file:half.safetensors")
    assert error.value.code == "model_not_a_model"


def test_configs_of_its_own_may_bring_no_pickles(folder: Path) -> None:
    shutil.copy(folder / "checkpoints" / "tiny.safetensors", folder / "checkpoints" / "sly.safetensors")
    shutil.copytree(folder / "checkpoints" / "tiny.config", folder / "checkpoints" / "sly.config")
    (folder / "checkpoints" / "sly.config" / "text_encoder" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelRejected) as error:
        load("diffusers_text_to_image:DiffusersTextToImage", folder, "file:sly.safetensors")
    assert error.value.code == "model_pickle_only"


# --- what comes with the package ---


@pytest.mark.parametrize("family", sorted(path.parent.name for path in CONFIGS.glob("*/model_index.json")))
def test_bundled_configs_make_models_of_the_size_that_is_known_of_them(family: str) -> None:
    """The numbers of parameters that are published for the families."""
    import diffusers
    import torch
    import transformers

    xl = "xl" in family
    index = json.loads((CONFIGS / family / "model_index.json").read_text())
    assert hasattr(diffusers, index["_class_name"])
    known = {
        "unet": 2_567_463_684 if xl else 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }  # fmt: skip
    for name, (library, class_name) in ((k, v) for k, v in index.items() if isinstance(v, list) and v[0]):
        if "tokenizer" in name:
            continue
        kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
        if name == "scheduler":
            scheduler = kind.from_pretrained(CONFIGS / family, subfolder=name)
            assert (scheduler.config.beta_start, scheduler.config.beta_end) == (0.00085, 0.012)
            continue
        with torch.device("meta"):
            if library == "diffusers":
                model = kind.from_config(kind.load_config(CONFIGS / family, subfolder=name, local_files_only=True))
            else:
                model = kind(kind.config_class.from_pretrained(CONFIGS / family, subfolder=name))
        extra = 5 * 320 * 9 if name == "unet" and "inpainting" in family else 0
        assert sum(parameter.numel() for parameter in model.parameters()) == known[name] + extra


def test_the_bundled_tokenizer_is_clips() -> None:
    """Ids that CLIP is known to have for these texts."""
    from workers.generators.clip_tokens import clip_tokenizer

    tokenizer = clip_tokenizer()
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A diagram")["input_ids"] == [49406, 320, 22697, 49407]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (49408, 77, 49407)
    assert tokenizer.decode(tokenizer("größer 🎩!")["input_ids"], skip_special_tokens=True).strip() == "größer 🎩!"
    second = clip_tokenizer(pad="!")
    assert second.pad_token_id == 0
    assert second("x", padding="max_length", max_length=77)["input_ids"][3:] == [0] * 74


def header(path: Path, **shapes: tuple[int, ...]) -> str:
    """A file of weights by its header alone, with nothing but zeros behind it."""
    said, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        said[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    body = json.dumps(said).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(body).to_bytes(8, "little") + body)
        file.truncate(8 + len(body) + at)  # a hole takes no room on the disk
    return f"file:{path.name}"


UNET = "model.diffusion_model.input_blocks"
PARTS = {"first_stage_model.encoder.conv_in.bias": (128,), "cond_stage_model.x": (1,)}


def looks(channels: int, width: int) -> dict[str, tuple[int, ...]]:
    attends = f"{UNET}.{1 if width < 2048 else 4}.1.transformer_blocks.0.attn2.to_k.weight"
    return PARTS | {f"{UNET}.0.0.weight": (320, channels, 3, 3), attends: (320, width)}


@pytest.mark.parametrize(
    ("shapes", "kind", "task"),
    [
        (looks(4, 768), "StableDiffusionPipeline", "text-to-image"),
        (looks(9, 768), "StableDiffusionInpaintPipeline", "inpainting"),
        (looks(4, 2048), "StableDiffusionXLPipeline", "text-to-image"),
        (looks(9, 2048), "StableDiffusionXLInpaintPipeline", "inpainting"),
    ],
)
def test_a_file_is_known_by_its_header(shapes: Any, kind: str, task: str, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, models_dir=tmp_path)
    ref = header(tmp_path / "Stable-diffusion" / "x.safetensors", **shapes)
    files = resolve(ref, settings=settings)
    assert (files.kind, files.config["_class_name"]) == ("diffusers", kind)
    assert files.weights == tmp_path / "Stable-diffusion" / "x.safetensors"
    serving = {"text-to-image": "diffusers_text_to_image:DiffusersTextToImage",
               "inpainting": "diffusers_inpainting:DiffusersInpainting"}[task]  # fmt: skip
    assert generator(serving).serves(files)


def test_a_file_of_real_size_loads_with_what_comes_with_the_package(tmp_path: Path) -> None:
    """Every tensor of Stable Diffusion 1.5 at its place and in its shape; the numbers are a hole in the file."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from tiny_models import adapters
    from transformers import CLIPTextConfig, CLIPTextModel

    from workers.generators.picture_pipelines import load_pipeline, weight_bytes

    configs = CONFIGS / "stable-diffusion-v1-5"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(configs, subfolder="unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs, subfolder="vae"))
        words = CLIPTextModel(CLIPTextConfig.from_pretrained(configs, subfolder="text_encoder")).state_dict()
    made = {f"model.diffusion_model.{name}": weight for name, weight in adapters._unet(unet)}
    made |= {f"first_stage_model.{name}": weight for name, weight in adapters._vae(vae)}
    prefix = "cond_stage_model.transformer.text_model."
    made |= {prefix + name.removeprefix("text_model."): weight for name, weight in words.items()}
    ref = header(tmp_path / "real.safetensors", **{name: tuple(weight.shape) for name, weight in made.items()})
    files = resolve(ref, settings=Settings(_env_file=None, data_dir=tmp_path, models_dir=tmp_path))
    pipe = load_pipeline(files, StableDiffusionPipeline, torch.float16)
    assert weight_bytes(files, torch.float16) == pytest.approx(2.13e9, rel=0.01)
    assert pipe.tokenizer("a photo of a cat")["input_ids"][1:-1] == [320, 1125, 539, 320, 2368]
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float16
    (tmp_path / "real.safetensors").unlink()


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (looks(4, 1024), "width of 1024"),
        (looks(4, 2048) | {"v_pred": (1,)}, "marked v_pred"),
        ({name: shape for name, shape in looks(4, 768).items() if "first_stage" not in name}, "has no VAE"),
        ({name: shape for name, shape in looks(4, 768).items() if "cond_stage" not in name}, "has no text encoder"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (4, 320)}, "looks like a LoRA adapter"),
        ({"control_model.zero_convs.0.0.weight": (320, 320)}, "looks like a ControlNet"),
        ({"double_blocks.0.img_attn.qkv.weight": (3, 3)}, "looks like Flux without"),
        ({"something": (1,)}, "is no checkpoint of a whole pipeline"),
    ],
)
def test_what_is_no_checkpoint_says_what_it_may_be(shapes: Any, words: str, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, models_dir=tmp_path)
    with pytest.raises(ModelRejected, match=words) as error:
        resolve(header(tmp_path / "x.safetensors", **shapes), settings=settings)
    assert error.value.code == "model_not_a_model"


# --- ControlNets ---


def test_a_controlnet_in_one_file_steers_as_in_a_folder(load_folder: Callable[..., Generator]) -> None:
    from shared.tasks.inputs import references

    painter = load_folder(generator("diffusers_text_to_image:DiffusersTextToImage"), tiny_models.stable_diffusion)
    pictures = []
    for name in ("file:tiny.safetensors", input_adapters.made("controlnet")):
        said = TextToImageParams.model_validate(
            PICTURE | {"prompt": "a hat", "controlnet": {"model": name, "image": PHOTOS["square"]}}
        )
        files = {
            each.place: examine(Path(each.text), "image", each.text, Limits(10**7, 1.0)) for each in references(said)
        }
        job = Work("job", "text-to-image", said, 7, inputs=files, adapters=input_adapters.found(said))
        pictures.append(pixels(bodies(run_all(painter, [job])["job"])[0]))
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("family", ["stable-diffusion-v1-5", "stable-diffusion-xl"])
def test_bundled_configs_of_controlnets_are_those_of_their_family(family: str) -> None:
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):
        config = ControlNetModel.load_config(CONFIGS / f"controlnet-{family}", local_files_only=True)
        ours = ControlNetModel.from_config(config)
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(CONFIGS / family, subfolder="unet", local_files_only=True)
        )
        theirs = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    assert {name: part.shape for name, part in ours.named_parameters()} == {
        name: part.shape for name, part in theirs.named_parameters()
    }


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768)}, None),
        ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
          "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
          "down_blocks.2.attentions.0.transformer_blocks.9.norm1.weight": (1280,)}, None),
        ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
          "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (1280, 2048)}, "is no ControlNet"),
        ({"lora_unet_x.lora_down.weight": (4, 320)}, "is no ControlNet"),
        (looks(4, 768), "is no ControlNet"),
    ],
)  # fmt: skip
def test_a_controlnet_is_known_by_its_header(shapes: Any, words: str | None, tmp_path: Path) -> None:
    from workers.model_files import resolve_adapter

    settings = Settings(_env_file=None, data_dir=tmp_path, models_dir=tmp_path)
    ref = header(tmp_path / "controlnet" / "x.safetensors", **shapes)
    if words is None:
        files = resolve_adapter("controlnet", ref, settings=settings)
        assert (files.config["_class_name"], files.weights) == (
            "ControlNetModel",
            tmp_path / "controlnet" / "x.safetensors",
        )
        return
    with pytest.raises(ModelRejected, match=words):
        resolve_adapter("controlnet", ref, settings=settings)
