"""What makes pictures with other models beside its own."""

from __future__ import annotations

from typing import Any

import input_files
import tiny_models
from contract import PICTURE, Kind
from input_adapters import place

PHOTOS = input_files.photos()
LORA, OTHER = {"model": place("lora")}, {"model": place("lora_other"), "weight": 0.5}
FILE = {"model": "file:tiny.safetensors", "weight": 0.7}


def control(image: str, name: str = "controlnet", **how: Any) -> dict[str, Any]:
    return {"model": place(name), "image": PHOTOS[image], **how}


LIKE = {"model": place("ip_adapter"), "images": [PHOTOS["square"]]}

KINDS = [
    Kind(
        "stable diffusion with adapters",
        "text-to-image",
        "diffusers_text_to_image:DiffusersTextToImage",
        tiny_models.stable_diffusion,
        mixed=(
            PICTURE | {"prompt": "a hat", "adapters": [LORA]},
            PICTURE | {"prompt": "a hat"},
            PICTURE | {"prompt": "a road", "adapters": [LORA], "negative_prompt": "red"},
            PICTURE | {"prompt": "a cup", "adapters": [LORA | {"weight": -0.5}], "num_images": 2},
            PICTURE | {"prompt": "a cup", "adapters": [OTHER, LORA]},
            PICTURE | {"prompt": "a shoe", "adapters": [FILE], "guidance_scale": 1.0},
            PICTURE | {"prompt": "a shoe", "controlnet": control("other")},
            PICTURE | {"prompt": "a road", "controlnet": control("wide"), "adapters": [OTHER]},
            PICTURE | {"prompt": "a hat", "controlnet": control("square")},
            PICTURE | {"prompt": "a hat", "ip_adapter": LIKE},
            PICTURE | {"prompt": "a cup", "ip_adapter": LIKE, "guidance_scale": 1.0},
            PICTURE | {"prompt": "a cup", "ip_adapter": LIKE, "controlnet": control("other"), "adapters": [LORA]},
        ),
        several=(PICTURE | {"prompt": "hats", "num_images": 3, "adapters": [LORA], "controlnet": control("other")}, 3),
        bad=(
            (PICTURE | {"prompt": "x", "adapters": [{"model": place("lora_xl")}]}, "adapter_unfit"),
            (PICTURE | {"prompt": "x", "controlnet": control("square", "controlnet_xl")}, "controlnet_unfit"),
            (PICTURE | {"prompt": "x", "controlnet": control("square", "gpt2")}, "controlnet_unfit"),
            (PICTURE | {"prompt": "x", "ip_adapter": LIKE | {"model": place("lora")}}, "adapter_unfit"),
            (PICTURE | {"prompt": "x", "adapters": [{"model": place("ip_adapter")}]}, "adapter_unfit"),
        ),
    ),
    Kind(
        "stable diffusion xl with adapters",
        "text-to-image",
        "diffusers_text_to_image:DiffusersTextToImage",
        tiny_models.stable_diffusion_xl,
        mixed=(
            PICTURE | {"prompt": "a hat", "adapters": [{"model": place("lora_xl")}]},
            PICTURE | {"prompt": "a hat"},
            PICTURE | {"prompt": "a cup", "controlnet": control("other", "controlnet_xl", scale=0.5, end=0.8)},
            PICTURE | {"prompt": "a road", "controlnet": control("square", "controlnet_xl", scale=0.5, end=0.8)},
        ),
        bad=((PICTURE | {"prompt": "x", "controlnet": control("square")}, "controlnet_unfit"),),
    ),
    Kind(
        "picture from a picture with adapters",
        "image-to-image",
        "diffusers_image_to_image:DiffusersImageToImage",
        tiny_models.stable_diffusion,
        mixed=(
            PICTURE | {"prompt": "a hat", "image": PHOTOS["square"], "adapters": [LORA], "strength": 0.9},
            PICTURE | {"prompt": "a hat", "image": PHOTOS["other"], "controlnet": control("wide"), "strength": 0.9},
            PICTURE | {"prompt": "a cup", "image": PHOTOS["square"], "controlnet": control("wide"), "strength": 0.9},
            PICTURE | {"prompt": "a cup", "image": PHOTOS["wide"], "ip_adapter": LIKE},
        ),
    ),
    Kind(
        "part of a picture with adapters",
        "inpainting",
        "diffusers_inpainting:DiffusersInpainting",
        tiny_models.stable_diffusion,
        mixed=(
            PICTURE | {"prompt": "a hat", "image": PHOTOS["square"], "mask": PHOTOS["mask"], "adapters": [LORA]},
            PICTURE
            | {"prompt": "a hat", "image": PHOTOS["other"], "mask": PHOTOS["mask"], "controlnet": control("square")},
            PICTURE | {"prompt": "a cup", "image": PHOTOS["other"], "mask": PHOTOS["mask"], "ip_adapter": LIKE},
        ),
    ),
]
