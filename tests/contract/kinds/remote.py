"""What remote services make: asked over HTTP, of one that answers by the seed."""

from __future__ import annotations

import functools
from pathlib import Path

import tiny_models
from contract import Kind
from remote_server import RemoteServer

from shared.services import Service
from shared.settings import Settings
from workers.generators import ModelFiles
from workers.model_files import resolve

WRONG = (tiny_models.gpt2, tiny_models.stable_diffusion)
NONE_INSIDE = ()


@functools.cache
def server() -> RemoteServer:
    return RemoteServer(key="secret-key")


@functools.cache
def service() -> Service:
    return Service(name="lab", url=server().url, key="secret-key", image_seed=True)


def model(root: Path) -> ModelFiles:
    return resolve("lab:tiny", settings=Settings(_env_file=None, data_dir=root, services=(service(),)))


KINDS = [
    Kind(
        "remote chat",
        "text-generation",
        "remote_chat:RemoteChat",
        model,
        mixed=(
            {"prompt": "New shoes:", "max_new_tokens": 12},
            {"prompt": "old hats", "temperature": 0.9},
            {"prompt": "old hats", "temperature": 0.9, "top_p": 0.8, "num_return_sequences": 2},
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A road?"}]},
            {"prompt": "stop it", "stop": ["a", "e"], "max_new_tokens": 3},
        ),
        several=({"prompt": "old hats", "temperature": 1.2, "num_return_sequences": 3}, 3),
        bad=(
            ({"prompt": "refuse this"}, "content_refused"),
            ({"prompt": "hat " * 200}, "prompt_too_long"),
            ({"prompt": "x", "repetition_penalty": 1.3}, "param_unsupported"),
            ({"prompt": "x", "num_beams": 3}, "param_unsupported"),
            ({"prompt": "x", "max_length": 30}, "param_unsupported"),
            ({"prompt": "x", "top_k": 5}, "param_unsupported"),
        ),
        wrong=WRONG,
        wrong_inside=NONE_INSIDE,
    ),
    Kind(
        "remote pictures",
        "text-to-image",
        "remote_pictures:RemotePictures",
        model,
        mixed=(
            {"prompt": "a hat"},
            {"prompt": "a road", "width": 64, "height": 32, "format": "jpeg"},
            {"prompt": "a road", "num_images": 2, "format": "webp"},
        ),
        several=({"prompt": "hats", "num_images": 3}, 3),
        bad=(
            ({"prompt": "refuse this"}, "content_refused"),
            ({"prompt": "x", "negative_prompt": "y"}, "param_unsupported"),
            ({"prompt": "x", "num_inference_steps": 5}, "param_unsupported"),
            ({"prompt": "x", "scheduler": "ddim"}, "param_unsupported"),
        ),
        wrong=WRONG,
        wrong_inside=NONE_INSIDE,
    ),
    Kind(
        "remote speech",
        "text-to-speech",
        "remote_speech:RemoteSpeech",
        model,
        mixed=(
            {"text": "New shoes for every road. Come and try them on!"},
            {"text": "Old hats.", "speaker": "alloy", "format": "flac", "speed": 1.5},
            {"text": "A long winter is coming, and so are warm coats. " * 120, "speaker": "nova"},
        ),
        bad=(
            ({"text": "x", "speaker": 3}, "param_unsupported"),
            ({"text": "x", "speaker": "nobody"}, "request_refused"),
            ({"text": "x", "pause_s": 1}, "param_unsupported"),
            ({"text": "  "}, "text_unreadable"),
        ),
        wrong=WRONG,
        wrong_inside=NONE_INSIDE,
    ),
    Kind(
        "remote embeddings",
        "feature-extraction",
        "remote_embeddings:RemoteEmbeddings",
        model,
        mixed=(
            {"text": [f"{n} pairs of shoes" for n in range(600)]},
            {"text": "new shoes", "format": "json"},
            {"text": ["old hats", "blue cups"], "normalize": False, "prefix": "query: "},
            {"text": "old hats", "dimensions": 8},
        ),
        bad=(
            ({"text": "x", "dimensions": 99}, "param_unsupported"),
            ({"text": "x", "pooling": "cls"}, "param_unsupported"),
            ({"text": "x", "long_text": "truncate"}, "param_unsupported"),
        ),
        wrong=WRONG,
        wrong_inside=NONE_INSIDE,
    ),
]
