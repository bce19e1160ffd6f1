"""What stands beside tiny models of pictures, and one of them in a single file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiny_models.building import cached
from tiny_models.pictures import stable_diffusion, stable_diffusion_xl

#: rank of the LoRA adapters
RANK = 4


def _save_lora(folder: Path, model: Path, seed: int, *, words: bool) -> None:
    import torch
    from diffusers import DiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    pipe = DiffusionPipeline.from_pretrained(model)
    torch.manual_seed(seed)
    layers = {}
    for name, targets in (
        ("unet", ["to_q", "to_k", "to_v"]),
        ("text_encoder", ["q_proj", "k_proj", "v_proj", "out_proj"]),
    )[: 1 + words]:
        part = getattr(pipe, name)
        part.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights="gaussian"))
        state = get_peft_model_state_dict(part)
        layers[f"{name}_lora_layers"] = {
            # The half that training begins with as zeros: an adapter that does something.
            key: torch.randn_like(value) if "lora_B" in key else value
            for key, value in state.items()
        }
    type(pipe).save_lora_weights(folder, **layers)


@cached
def lora(folder: Path) -> None:
    """A LoRA adapter for the tiny Stable Diffusion, its text encoder included."""
    _save_lora(folder, stable_diffusion(folder.parent), 11, words=True)


@cached
def lora_other(folder: Path) -> None:
    """Another one, which leaves the text encoder alone."""
    _save_lora(folder, stable_diffusion(folder.parent), 12, words=False)


@cached
def lora_xl(folder: Path) -> None:
    """One for the tiny Stable Diffusion XL."""
    _save_lora(folder, stable_diffusion_xl(folder.parent), 13, words=False)


def _save_controlnet(folder: Path, model: Path) -> None:
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(14)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32), load_weights_from_unet=True)
    # What training begins with as zeros, so that it steers.
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=3.0)
    for part in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(part.weight, std=0.3)
    net.save_pretrained(folder)


@cached
def controlnet(folder: Path) -> None:
    """A ControlNet for the tiny Stable Diffusion."""
    _save_controlnet(folder, stable_diffusion(folder.parent))


@cached
def controlnet_xl(folder: Path) -> None:
    """One for the tiny Stable Diffusion XL."""
    _save_controlnet(folder, stable_diffusion_xl(folder.parent))


@cached
def ip_adapter(folder: Path) -> None:
    """An IP-Adapter for the tiny Stable Diffusion, with the model that looks at pictures."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(15)
    unet = UNet2DConditionModel.from_pretrained(stable_diffusion(folder.parent), subfolder="unet")
    width, tokens, seen = unet.config.cross_attention_dim, 4, 24
    made = {
        "image_proj.proj.weight": torch.randn(tokens * width, seen),
        "image_proj.proj.bias": torch.zeros(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    # Numbered by all layers that attend, of which only those to words (the odd ones) have weights.
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            layer = unet.get_submodule(name.removesuffix(".processor"))
            for part in ("to_k", "to_v"):
                shape = getattr(layer, part).weight.shape
                made[f"ip_adapter.{number}.{part}_ip.weight"] = 0.5 * torch.randn(shape)
    save_file(made, folder / "ip-adapter.safetensors")
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=seen,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")


@cached
def comfyui(folder: Path) -> None:
    """A folder of models as ComfyUI keeps them: the tiny Stable Diffusion in one file, and what stands beside it in
    others.

    Configs of so small a model lie beside it; those of real ones come with the worker.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file, save_file

    model = stable_diffusion(folder.parent)
    configs = folder / "checkpoints" / "tiny.config"
    shutil.copytree(model, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    made = {f"model.diffusion_model.{name}": weight for name, weight in _unet(pipe.unet)}
    made |= {f"first_stage_model.{name}": weight for name, weight in _vae(pipe.vae)}
    words = {name.removeprefix("text_model."): weight for name, weight in pipe.text_encoder.state_dict().items()}
    made |= {f"cond_stage_model.transformer.text_model.{name}": weight for name, weight in words.items()}
    made["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[
        None
    ]  # as real ones have
    save_file({name: weight.contiguous() for name, weight in made.items()}, folder / "checkpoints" / "tiny.safetensors")
    (folder / "loras").mkdir()
    (folder / "controlnet" / "tiny.config").mkdir(parents=True)
    net = controlnet(folder.parent)
    shutil.copy(net / "config.json", folder / "controlnet" / "tiny.config")
    shutil.copy(net / "diffusion_pytorch_model.safetensors", folder / "controlnet" / "tiny.safetensors")
    adapter = load_file(lora(folder.parent) / "pytorch_lora_weights.safetensors")
    save_file(dict(_as_trainers_save_it(adapter)), folder / "loras" / "tiny.safetensors")


@cached
def comfyui_xl(folder: Path) -> None:
    """The same with a tiny Stable Diffusion XL, whose second text encoder is saved as OpenCLIP has it."""
    import torch
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextModelWithProjection

    pipe = StableDiffusionXLPipeline.from_pretrained(stable_diffusion_xl(folder.parent))
    torch.manual_seed(16)
    # The text encoders are told apart by their widths, so the second one is another than there.
    wider = pipe.text_encoder_2.config.to_dict() | {"hidden_size": 48, "intermediate_size": 96, "projection_dim": 48}
    second = CLIPTextModelWithProjection(type(pipe.text_encoder_2.config).from_dict(wider))
    told = 48 + 6 * pipe.unet.config.addition_time_embed_dim
    unet = UNet2DConditionModel.from_config(
        {**pipe.unet.config, "cross_attention_dim": 32 + 48, "projection_class_embeddings_input_dim": told}
    )
    pipe = StableDiffusionXLPipeline(
        **{**pipe.components, "text_encoder_2": second, "unet": unet}, add_watermarker=False
    )
    model = folder / "whole"
    pipe.save_pretrained(model)
    configs = folder / "checkpoints" / "tiny.config"
    shutil.copytree(model, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    made = {f"model.diffusion_model.{name}": weight for name, weight in _unet(pipe.unet)}
    made |= {f"first_stage_model.{name}": weight for name, weight in _vae(pipe.vae)}
    for name, weight in pipe.text_encoder.state_dict().items():
        made[f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    made |= {f"conditioner.embedders.1.model.{name}": weight for name, weight in _open_clip(second)}
    save_file({name: weight.contiguous() for name, weight in made.items()}, folder / "checkpoints" / "tiny.safetensors")


def _open_clip(encoder: Any) -> Iterator[tuple[str, Any]]:
    import torch

    state = {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items()}
    places = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    words = {"layer_norm1.": "ln_1.", "layer_norm2.": "ln_2.", "mlp.fc1.": "mlp.c_fc.", "mlp.fc2.": "mlp.c_proj.",
             "self_attn.out_proj.": "attn.out_proj."}  # fmt: skip
    for name, weight in state.items():
        if name in places:
            yield places[name], weight
        elif name == "text_projection.weight":
            yield "text_projection", weight.T
        elif ".q_proj." in name:
            at, kind = name.split(".self_attn.q_proj.")
            three = [state[f"{at}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            yield f"transformer.resblocks.{at.split('.')[-1]}.attn.in_proj_{kind}", torch.cat(three)
        elif ".k_proj." not in name and ".v_proj." not in name and name.startswith("encoder.layers."):
            rest = name.removeprefix("encoder.layers.")
            for ours, theirs in words.items():
                rest = rest.replace(ours, theirs)
            yield f"transformer.resblocks.{rest}", weight


def _as_trainers_save_it(adapter: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A LoRA adapter by the names of kohya's trainer, which most files in such folders have."""
    import torch

    for name, weight in adapter.items():
        part, _, rest = name.partition(".")
        layer, side = rest.rsplit(".lora_", 1)
        place = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        key = place + layer.removeprefix("text_model.").replace(".", "_")
        yield f"{key}.lora_{'down' if side.startswith('A') else 'up'}.weight", weight
        yield f"{key}.alpha", torch.tensor(float(RANK))


def _renamed(state: dict[str, Any], places: list[tuple[str, str]], inside: dict[str, list[tuple[str, str]]]) -> Any:
    """Weights by their names in the original code: first where a part stands, then how it calls what is in it."""
    for name, weight in state.items():
        ours, theirs = next(pair for pair in places if name.startswith(pair[0]))
        rest = name.removeprefix(ours)
        for kind, words in inside.items():
            if kind in ours:
                for one, other in words:
                    rest = rest.replace(one, other)
        yield theirs + rest, weight


def _unet(unet: Any) -> Iterator[tuple[str, Any]]:
    blocks, layers = len(unet.config.block_out_channels), unet.config.layers_per_block
    places = [
        ("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."), ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2."),
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.0.", "middle_block.0."), ("mid_block.resnets.1.", "middle_block.2."),
    ]  # fmt: skip
    for i in range(blocks):
        for j in range(layers):
            at = f"input_blocks.{(layers + 1) * i + j + 1}"
            places += [(f"down_blocks.{i}.resnets.{j}.", f"{at}.0."), (f"down_blocks.{i}.attentions.{j}.", f"{at}.1.")]
        for j in range(layers + 1):
            at = f"output_blocks.{(layers + 1) * i + j}"
            places += [(f"up_blocks.{i}.resnets.{j}.", f"{at}.0."), (f"up_blocks.{i}.attentions.{j}.", f"{at}.1.")]
        places.append((f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{(layers + 1) * (i + 1)}.0.op."))
        attends = "CrossAttn" in unet.config.up_block_types[i]
        up = f"output_blocks.{(layers + 1) * i + layers}.{2 if attends else 1}."
        places.append((f"up_blocks.{i}.upsamplers.0.", up))
    resnet = [
        ("norm1.", "in_layers.0."), ("conv1.", "in_layers.2."), ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."), ("time_emb_proj.", "emb_layers.1."), ("conv_shortcut.", "skip_connection."),
    ]  # fmt: skip
    return _renamed(unet.state_dict(), places, {"resnets": resnet})


def _vae(vae: Any) -> Iterator[tuple[str, Any]]:
    blocks = len(vae.config.block_out_channels)
    places = [("quant_conv.", "quant_conv."), ("post_quant_conv.", "post_quant_conv.")]
    for side in ("encoder", "decoder"):
        places += [(f"{side}.{part}", f"{side}.{part}") for part in ("conv_in.", "conv_out.")]
        places.append((f"{side}.conv_norm_out.", f"{side}.norm_out."))
        places.append((f"{side}.mid_block.attentions.0.", f"{side}.mid.attn_1."))
        places += [(f"{side}.mid_block.resnets.{j}.", f"{side}.mid.block_{j + 1}.") for j in range(2)]
    for i in range(blocks):
        down, up = f"encoder.down.{i}.", f"decoder.up.{blocks - 1 - i}."
        for j in range(vae.config.layers_per_block + 1):
            places.append((f"encoder.down_blocks.{i}.resnets.{j}.", f"{down}block.{j}."))
            places.append((f"decoder.up_blocks.{i}.resnets.{j}.", f"{up}block.{j}."))
        places.append((f"encoder.down_blocks.{i}.downsamplers.0.", f"{down}downsample."))
        places.append((f"decoder.up_blocks.{i}.upsamplers.0.", f"{up}upsample."))
    words = {
        "resnets": [("conv_shortcut.", "nin_shortcut.")],
        "attentions": [("group_norm.", "norm."), ("to_q.", "q."), ("to_k.", "k."), ("to_v.", "v."),
                       ("to_out.0.", "proj_out.")],
    }  # fmt: skip
    for name, weight in _renamed(vae.state_dict(), places, words):
        linear = ".attn_1." in name and weight.ndim == 2
        yield name, weight[:, :, None, None] if linear else weight
