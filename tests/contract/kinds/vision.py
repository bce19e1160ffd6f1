"""What enlarges pictures, and what writes about them."""

from __future__ import annotations

import input_files
import input_vision
import tiny_models
from contract import Kind

PHOTOS = input_files.photos()
VIEWS = input_vision.views()

DIFFUSION = {"num_inference_steps": 3, "guidance_scale": 3.0}

SHORT = {"max_new_tokens": 10}
#: of a model that chats
ASKED = (
    SHORT | {"image": PHOTOS["square"], "question": "which shoes?"},
    SHORT | {"image": PHOTOS["other"], "question": "which shoes?"},
    SHORT | {"image": PHOTOS["other"], "question": "which shoes?", "temperature": 0.9, "top_k": 50, "top_p": 0.9},
    {"image": VIEWS["wide"], "question": "two new cups for a long winter?", "max_new_tokens": 14, "temperature": 1.4},
    SHORT | {"image": VIEWS["wide"], "prompt": "tell me"},
    SHORT | {"image": VIEWS["turned"], "stop": ["e", "zz"], "repetition_penalty": 1.3, "min_new_tokens": 4},
    SHORT | {"image": [PHOTOS["square"], PHOTOS["other"]], "no_repeat_ngram_size": 2},
    SHORT | {"image": [PHOTOS["other"], VIEWS["odd"]], "question": "which of them?"},
    SHORT | {"image": PHOTOS["clear"], "num_beams": 3, "num_return_sequences": 2},
    SHORT | {"image": PHOTOS["square"], "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.4},
)
BAD_QUESTIONS = (
    (SHORT | {"image": PHOTOS["square"], "question": "hat " * 600}, "prompt_too_long"),
    ({"image": PHOTOS["square"], "max_new_tokens": 5000}, "length_unsupported"),
    (SHORT | {"image": [PHOTOS["square"], PHOTOS["other"]], "num_beams": 2}, "param_unsupported"),
)
NO_WRITERS = (tiny_models.gpt2, tiny_models.classifier, tiny_models.stable_diffusion, tiny_models.swin2sr)
SEVERAL = (SHORT | {"image": PHOTOS["square"], "temperature": 1.3, "num_return_sequences": 3}, 3)

KINDS = [
    Kind(
        "swin2sr",
        "super-resolution",
        "swin2sr:Swin2SR",
        tiny_models.swin2sr,
        mixed=(
            {"image": VIEWS["large"], "tile": 64, "overlap": 16},
            {"image": VIEWS["odd"]},
            {"image": VIEWS["odd too"], "format": "jpeg", "quality": 80},
            {"image": VIEWS["wide"], "tile": 64},
            {"image": VIEWS["turned"], "format": "webp"},
            {"image": VIEWS["sixteen"]},
            {"image": VIEWS["dot"]},
            {"image": PHOTOS["clear"]},
        ),
        bad=(
            ({"image": VIEWS["odd"], "prompt": "a shoe"}, "param_unsupported"),
            ({"image": VIEWS["odd"], "num_inference_steps": 3}, "param_unsupported"),
            ({"image": VIEWS["odd"], "noise_level": 3}, "param_unsupported"),
        ),
        wrong=(tiny_models.stable_diffusion, tiny_models.sd_upscaler, tiny_models.gpt2, tiny_models.blip),
    ),
    Kind(
        "stable diffusion upscaler",
        "super-resolution",
        "diffusers_upscale:DiffusersUpscale",
        tiny_models.sd_upscaler,
        mixed=(
            DIFFUSION | {"image": VIEWS["odd"], "prompt": "a shoe"},
            DIFFUSION | {"image": VIEWS["odd too"], "prompt": "two hats"},
            DIFFUSION | {"image": VIEWS["odd"], "guidance_scale": 1.0, "format": "webp"},
            DIFFUSION | {"image": VIEWS["wide"], "tile": 64, "overlap": 16, "noise_level": 40},
            DIFFUSION | {"image": VIEWS["turned"], "negative_prompt": "red", "scheduler": "euler"},
            DIFFUSION | {"image": PHOTOS["clear"], "num_inference_steps": 2, "format": "jpeg"},
        ),
        bad=(
            (DIFFUSION | {"image": VIEWS["odd"], "noise_level": 900}, "param_unsupported"),
            (DIFFUSION | {"image": VIEWS["odd"], "prompt": "a shoe " * 60}, "prompt_too_long"),
        ),
        wrong=(tiny_models.stable_diffusion, tiny_models.ddpm, tiny_models.swin2sr, tiny_models.gpt2),
    ),
    Kind(
        "latent upscaler",
        "super-resolution",
        "diffusers_upscale:DiffusersUpscale",
        tiny_models.sd_latent_upscaler,
        mixed=(
            DIFFUSION | {"image": VIEWS["odd"], "prompt": "a shoe"},
            DIFFUSION | {"image": VIEWS["odd too"], "negative_prompt": "red"},
            DIFFUSION | {"image": VIEWS["odd"], "guidance_scale": 0.0},
            DIFFUSION | {"image": VIEWS["wide"], "tile": 64, "overlap": 16},
        ),
        bad=(
            (DIFFUSION | {"image": VIEWS["odd"], "noise_level": 9}, "param_unsupported"),
            (DIFFUSION | {"image": VIEWS["odd"], "scheduler": "ddim"}, "param_unsupported"),
            (DIFFUSION | {"image": VIEWS["odd"], "prompt": "x", "guidance_scale": 0}, "param_unsupported"),
        ),
        wrong=(tiny_models.stable_diffusion, tiny_models.swin2sr),
    ),
    *(
        Kind(
            f"chat about pictures {model.__name__}",
            "image-to-text",
            "picture_reader:PictureReader",
            model,
            mixed=ASKED,
            several=SEVERAL,
            bad=(*BAD_QUESTIONS, (SHORT | {"image": PHOTOS["square"], "question": f"a {mark}?"}, "prompt_refused")),
            wrong=NO_WRITERS,
        )
        for model, mark in (
            (tiny_models.llava, "<image>"),
            (tiny_models.qwen2_vl, "<|image_pad|>"),
            (tiny_models.smolvlm, "<image>"),
        )
    ),
    *(
        Kind(
            f"captions {model.__name__}",
            "image-to-text",
            "picture_reader:PictureReader",
            model,
            mixed=(
                SHORT | {"image": PHOTOS["square"]},
                SHORT | {"image": VIEWS["wide"]},
                SHORT | {"image": VIEWS["turned"], "temperature": 0.9, "top_k": 20},
                SHORT | {"image": PHOTOS["other"], "prompt": "new shoes"},
                SHORT | {"image": PHOTOS["square"], "prompt": "new shoes", "repetition_penalty": 1.5},
                SHORT | {"image": VIEWS["odd"], "num_beams": 3, "num_return_sequences": 2},
                SHORT | {"image": VIEWS["wide"], "num_beams": 3, "num_return_sequences": 2},
            ),
            several=SEVERAL,
            bad=(
                (SHORT | {"image": PHOTOS["square"], "question": "what is it?"}, "param_unsupported"),
                (SHORT | {"image": [PHOTOS["square"], PHOTOS["other"]]}, "param_unsupported"),
                BAD_QUESTIONS[1],
            ),
            wrong=NO_WRITERS,
        )
        for model in (tiny_models.blip, tiny_models.vit_gpt2)
    ),
    Kind(
        "answers blip_vqa",
        "image-to-text",
        "picture_reader:PictureReader",
        tiny_models.blip_vqa,
        mixed=(
            SHORT | {"image": PHOTOS["square"], "question": "which shoes?"},
            SHORT | {"image": VIEWS["wide"], "question": "which shoes?"},
            SHORT | {"image": VIEWS["wide"], "question": "two new cups for a long winter?", "temperature": 0.8},
            SHORT | {"image": PHOTOS["other"], "question": "warm coats?", "num_beams": 2},
        ),
        several=(SEVERAL[0] | {"question": "which shoes?"}, 3),
        bad=(
            (SHORT | {"image": PHOTOS["square"]}, "question_missing"),
            (SHORT | {"image": PHOTOS["square"], "prompt": "a photo of"}, "question_missing"),
            (SHORT | {"image": PHOTOS["square"], "question": "hat " * 600}, "prompt_too_long"),
        ),
        wrong=NO_WRITERS,
    ),
]
