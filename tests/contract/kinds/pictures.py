"""What makes pictures."""

from __future__ import annotations

import input_files
import tiny_models
from contract import LONG, PICTURE, Kind

PHOTOS = input_files.photos()

KINDS = [
    Kind(
        "stable diffusion",
        "text-to-image",
        "diffusers_text_to_image:DiffusersTextToImage",
        tiny_models.stable_diffusion,
        mixed=(
            PICTURE | {"prompt": "a hat"},
            PICTURE | {"prompt": "two blue cups", "negative_prompt": "red"},
            PICTURE | {"prompt": "a blue cup", "negative_prompt": "tall"},
            PICTURE | {"prompt": "a road", "num_images": 2, "format": "webp"},
            PICTURE | {"prompt": "a road", "guidance_scale": 1.0, "format": "jpeg"},
            PICTURE | {"prompt": "a road", "width": 24, "height": 32, "scheduler": "euler_a"},
            PICTURE | {"prompt": "a shoe", "width": 24, "height": 32, "scheduler": "euler_a"},
            PICTURE | {"prompt": LONG},
            PICTURE | {"prompt": LONG + "and red", "num_inference_steps": 2},
            PICTURE | {"prompt": LONG, "long_prompt": "truncate"},
        ),
        several=(PICTURE | {"prompt": "hats", "num_images": 3, "scheduler": "ddpm"}, 3),
        bad=((PICTURE | {"prompt": LONG, "long_prompt": "fail"}, "prompt_too_long"),),
        wrong=(tiny_models.ddpm, tiny_models.gpt2, tiny_models.classifier),
    ),
    Kind(
        "picture from a picture",
        "image-to-image",
        "diffusers_image_to_image:DiffusersImageToImage",
        tiny_models.stable_diffusion,
        mixed=(
            PICTURE | {"prompt": "a hat", "image": PHOTOS["square"], "strength": 0.9},
            PICTURE | {"prompt": "two blue cups", "image": PHOTOS["other"], "strength": 0.9},
            PICTURE | {"prompt": "a road", "image": PHOTOS["square"], "strength": 0.5, "num_inference_steps": 6},
            PICTURE | {"prompt": "a road", "image": PHOTOS["wide"]},
            PICTURE | {"prompt": "a road", "image": PHOTOS["wide"], "width": 24, "height": 32, "fit": "pad"},
            PICTURE | {"prompt": "a shoe", "image": PHOTOS["clear"], "num_images": 2, "format": "webp"},
        ),
        several=(PICTURE | {"prompt": "hats", "image": PHOTOS["square"], "strength": 1.0, "num_images": 3}, 3),
        bad=(
            (PICTURE | {"prompt": "x", "image": PHOTOS["square"], "strength": 0.1}, "param_unsupported"),
            (PICTURE | {"prompt": "x", "image": PHOTOS["square"], "image_guidance_scale": 2}, "param_unsupported"),
        ),
        wrong=(tiny_models.ddpm, tiny_models.gpt2, tiny_models.classifier),
    ),
    Kind(
        "part of a picture",
        "inpainting",
        "diffusers_inpainting:DiffusersInpainting",
        tiny_models.stable_diffusion,
        mixed=(
            PICTURE | {"prompt": "a hat", "image": PHOTOS["square"], "mask": PHOTOS["mask"], "strength": 1.0},
            PICTURE | {"prompt": "a cup", "image": PHOTOS["other"], "mask": PHOTOS["mask"], "strength": 1.0},
            PICTURE | {"prompt": "a cup", "image": PHOTOS["other"], "mask": PHOTOS["mask"], "keep": False},
            PICTURE | {"prompt": "a cup", "image": PHOTOS["wide"], "mask": PHOTOS["mask"], "format": "jpeg"},
        ),
        several=(
            PICTURE
            | {"prompt": "hats", "image": PHOTOS["square"], "mask": PHOTOS["mask"], "strength": 1.0, "num_images": 3},
            3,
        ),
        wrong=(tiny_models.ddpm, tiny_models.gpt2, tiny_models.classifier),
    ),
    Kind(
        "ddpm",
        "unconditional-image-generation",
        "diffusers_unconditional:DiffusersUnconditional",
        tiny_models.ddpm,
        mixed=(
            {"num_inference_steps": 3},
            {"num_inference_steps": 3, "num_images": 2},
            {"num_inference_steps": 2, "format": "webp"},
            {"num_inference_steps": 3, "scheduler": "ddim"},
        ),
        several=({"num_inference_steps": 3, "num_images": 3}, 3),
        wrong=(tiny_models.stable_diffusion, tiny_models.gpt2),
    ),
]
