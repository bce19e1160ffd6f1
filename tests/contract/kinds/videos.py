"""What makes videos."""

from __future__ import annotations

import input_files
import tiny_models
from contract import LONG, Kind

PHOTOS = input_files.photos()
SIZE_16 = {"width": 16, "height": 16}
SIZE_32 = {"width": 32, "height": 32}
SHORT = {"num_inference_steps": 2, "guidance_scale": 3.0, "preview": "none"}

WORDS = "text-to-video"
WORDS_BY = "diffusers_text_to_video:DiffusersTextToVideo"
PICTURES = "image-to-video"
PICTURES_BY = "diffusers_image_to_video:DiffusersImageToVideo"
#: more tokens than the text encoder of any of them reads
ENDLESS = LONG * 20

KINDS = [
    Kind(
        "ltx of words",
        WORDS,
        WORDS_BY,
        tiny_models.ltx,
        mixed=(
            SHORT | SIZE_32 | {"prompt": "a hat", "num_frames": 9},
            SHORT | SIZE_32 | {"prompt": "two blue cups", "num_frames": 9, "preview": "webp"},
            SHORT | SIZE_32 | {"prompt": "a road", "num_frames": 9, "num_videos": 2, "negative_prompt": "cars"},
            SHORT | SIZE_32 | {"prompt": "a road", "num_frames": 17, "fps": 12, "format": "webm"},
            SHORT | {"prompt": "a road", "width": 64, "height": 32, "num_frames": 1, "guidance_scale": 1.0},
            SHORT | SIZE_32 | {"prompt": LONG * 3, "num_frames": 9, "long_prompt": "truncate", "format": "webp"},
        ),
        several=(SHORT | SIZE_32 | {"prompt": "hats", "num_frames": 9, "num_videos": 3, "preview": "webp"}, 3),
        bad=(
            (SHORT | SIZE_32 | {"prompt": "x", "num_frames": 12}, "frames_unsupported"),
            (SHORT | {"prompt": "x", "width": 40, "height": 32, "num_frames": 9}, "size_unsupported"),
            (SHORT | SIZE_32 | {"prompt": ENDLESS, "num_frames": 9}, "prompt_too_long"),
            (SHORT | SIZE_32 | {"prompt": "x", "num_frames": 9, "decode_chunk_size": 2}, "param_unsupported"),
        ),
        wrong=(
            tiny_models.stable_diffusion, tiny_models.gpt2, tiny_models.wan_of_pictures,
            tiny_models.stable_video_diffusion,
        ),
    ),
    Kind(
        "ltx2 of words",
        WORDS,
        WORDS_BY,
        tiny_models.ltx2,
        mixed=(
            SHORT | SIZE_32 | {"prompt": "a hat", "num_frames": 9},
            SHORT | SIZE_32 | {"prompt": "a cup", "num_frames": 9, "format": "webm"},
            SHORT | SIZE_32 | {"prompt": "a cup", "num_frames": 9, "format": "webp", "num_videos": 2},
        ),
        several=(SHORT | SIZE_32 | {"prompt": "hats", "num_frames": 9, "num_videos": 2}, 2),
        bad=((SHORT | SIZE_32 | {"prompt": "x", "num_frames": 10}, "frames_unsupported"),),
        wrong=(tiny_models.stable_diffusion, tiny_models.gpt2, tiny_models.wan_of_pictures),
    ),
    Kind(
        "wan of words",
        WORDS,
        WORDS_BY,
        tiny_models.wan,
        mixed=(
            SHORT | SIZE_16 | {"prompt": "a hat", "num_frames": 5},
            SHORT | SIZE_16 | {"prompt": "two blue cups", "num_frames": 5},
            SHORT | SIZE_16 | {"prompt": "a road", "num_frames": 5, "format": "gif"},
            SHORT | {"prompt": "a road", "width": 32, "height": 16, "num_frames": 9},
        ),
        several=(SHORT | SIZE_16 | {"prompt": "hats", "num_frames": 5, "num_videos": 2}, 2),
        bad=(
            (SHORT | SIZE_16 | {"prompt": "x", "num_frames": 4}, "frames_unsupported"),
            (SHORT | {"prompt": "x", "width": 24, "height": 16, "num_frames": 5}, "size_unsupported"),
        ),
        wrong=(tiny_models.stable_diffusion, tiny_models.gpt2, tiny_models.cogvideox_of_pictures),
    ),
    Kind(
        "cogvideox of words",
        WORDS,
        WORDS_BY,
        tiny_models.cogvideox,
        mixed=(
            SHORT | {"prompt": "a hat"},
            SHORT | {"prompt": "two blue cups"},
            SHORT | {"prompt": "a road", "num_videos": 2},
            SHORT | {"prompt": "a road", "width": 32, "height": 16, "num_frames": 17},
        ),
        several=(SHORT | {"prompt": "hats", "num_videos": 2}, 2),
        bad=((SHORT | {"prompt": "x", "num_frames": 5}, "frames_unsupported"),),
        wrong=(tiny_models.stable_diffusion, tiny_models.gpt2, tiny_models.cogvideox_of_pictures),
    ),
    Kind(
        "animatediff",
        WORDS,
        WORDS_BY,
        tiny_models.animatediff,
        mixed=(
            SHORT | {"prompt": "a hat", "num_frames": 3},
            SHORT | {"prompt": "two blue cups", "num_frames": 3, "negative_prompt": "red"},
            SHORT | {"prompt": "two blue cups", "num_frames": 3, "decode_chunk_size": 2},
            SHORT | {"prompt": "a road", "num_frames": 8, "num_videos": 2, "format": "webp"},
            SHORT | {"prompt": "a road", "num_frames": 2, "guidance_scale": 1.0},
        ),
        several=(SHORT | {"prompt": "hats", "num_frames": 3, "num_videos": 3}, 3),
        bad=(
            (SHORT | {"prompt": "x", "num_frames": 9}, "frames_unsupported"),
            (SHORT | {"prompt": ENDLESS, "num_frames": 3}, "prompt_too_long"),
        ),
        wrong=(tiny_models.stable_diffusion, tiny_models.ddpm, tiny_models.gpt2),
    ),
    Kind(
        "ltx of pictures",
        PICTURES,
        PICTURES_BY,
        tiny_models.ltx,
        mixed=(
            SHORT | SIZE_32 | {"prompt": "a hat", "image": PHOTOS["square"], "num_frames": 9},
            SHORT | SIZE_32 | {"prompt": "a cup", "image": PHOTOS["other"], "num_frames": 9},
            SHORT | {"prompt": "a road", "image": PHOTOS["wide"], "num_frames": 9, "num_videos": 2},
            SHORT | SIZE_32 | {"prompt": "a road", "image": PHOTOS["wide"], "num_frames": 1, "fit": "pad"},
        ),
        several=(SHORT | {"prompt": "hats", "image": PHOTOS["square"], "num_frames": 9, "num_videos": 2}, 2),
        bad=(
            (SHORT | SIZE_32 | {"image": PHOTOS["square"], "num_frames": 9}, "prompt_missing"),
            (
                SHORT | SIZE_32 | {"prompt": "x", "image": PHOTOS["square"], "num_frames": 9, "motion_bucket_id": 9},
                "param_unsupported",
            ),
        ),
        wrong=(tiny_models.stable_diffusion, tiny_models.gpt2, tiny_models.cogvideox, tiny_models.animatediff),
    ),
    *(
        Kind(
            f"{model.__name__} of pictures",
            PICTURES,
            PICTURES_BY,
            model,
            mixed=(
                SHORT | {"prompt": "a hat", "image": PHOTOS["square"], "num_frames": 5},
                SHORT | {"prompt": "a cup", "image": PHOTOS["other"], "num_frames": 5},
                SHORT | {"prompt": "a road", "image": PHOTOS["wide"], "num_frames": 5, "num_videos": 2},
            ),
            several=(SHORT | {"prompt": "hats", "image": PHOTOS["square"], "num_frames": 5, "num_videos": 2}, 2),
            bad=((SHORT | {"prompt": "x", "image": PHOTOS["square"], "num_frames": 6}, "frames_unsupported"),),
            wrong=(tiny_models.stable_diffusion, tiny_models.gpt2, tiny_models.cogvideox),
        )
        for model in (tiny_models.wan, tiny_models.wan_of_pictures)
    ),
    Kind(
        "cogvideox of pictures",
        PICTURES,
        PICTURES_BY,
        tiny_models.cogvideox_of_pictures,
        mixed=(
            SHORT | {"prompt": "a hat", "image": PHOTOS["square"]},
            SHORT | {"prompt": "a cup", "image": PHOTOS["other"]},
            SHORT | {"prompt": "a road", "image": PHOTOS["wide"], "num_videos": 2},
        ),
        several=(SHORT | {"prompt": "hats", "image": PHOTOS["square"], "num_videos": 2}, 2),
        bad=(
            (SHORT | {"prompt": "x", "image": PHOTOS["square"], "width": 32, "height": 16}, "size_unsupported"),
            (SHORT | {"prompt": "x", "image": PHOTOS["square"], "num_frames": 7}, "frames_unsupported"),
        ),
        wrong=(tiny_models.stable_diffusion, tiny_models.gpt2, tiny_models.cogvideox),
    ),
    Kind(
        "stable video diffusion",
        PICTURES,
        PICTURES_BY,
        tiny_models.stable_video_diffusion,
        mixed=(
            SHORT | {"image": PHOTOS["square"]},
            SHORT | {"image": PHOTOS["other"]},
            SHORT | {"image": PHOTOS["square"], "motion_bucket_id": 200, "noise_aug_strength": 0.5, "fps": 12},
            SHORT | {"image": PHOTOS["other"], "decode_chunk_size": 3},
            SHORT | {"image": PHOTOS["square"], "decode_chunk_size": 3},
            SHORT | {"image": PHOTOS["wide"], "num_frames": 3, "num_videos": 2},
        ),
        several=(SHORT | {"image": PHOTOS["square"], "num_videos": 3, "decode_chunk_size": 3}, 3),
        bad=(
            (SHORT | {"image": PHOTOS["square"], "prompt": "a hat"}, "param_unsupported"),
            (SHORT | {"image": PHOTOS["square"], "negative_prompt": "red"}, "param_unsupported"),
        ),
        wrong=(tiny_models.stable_diffusion, tiny_models.gpt2, tiny_models.animatediff),
    ),
]  # fmt: skip
