"""Tiny models with random weights, saved through the libraries' public classes: no download, made in a second.

Each function takes a folder to build in and returns the model's own folder; a second call finds it there.
"""

from __future__ import annotations

from tiny_models.adapters import comfyui, comfyui_xl, controlnet, controlnet_xl, ip_adapter, lora, lora_other, lora_xl
from tiny_models.pictures import ddpm, stable_diffusion, stable_diffusion_xl
from tiny_models.scores import clip, dinov2
from tiny_models.sounds import (
    audioldm2,
    bark,
    fastspeech2,
    musicgen,
    musicgen_melody,
    musicgen_stereo,
    speecht5,
    stable_audio,
    vits,
    wav2vec2,
    whisper,
)
from tiny_models.texts import bart, classifier, gpt2, gpt2_chat, llama, nli, sliding, t5
from tiny_models.videos import (
    animatediff,
    cogvideox,
    cogvideox_of_pictures,
    ltx,
    ltx2,
    stable_video_diffusion,
    wan,
    wan_of_pictures,
)
from tiny_models.vision import (
    blip,
    blip_vqa,
    llava,
    qwen2_vl,
    sd_latent_upscaler,
    sd_upscaler,
    smolvlm,
    swin2sr,
    vit_gpt2,
)

__all__ = [
    "animatediff", "audioldm2", "bark", "bart", "blip", "blip_vqa", "classifier", "clip", "cogvideox",
    "cogvideox_of_pictures", "comfyui", "comfyui_xl", "controlnet", "controlnet_xl", "ddpm", "dinov2", "fastspeech2",
    "gpt2", "gpt2_chat", "ip_adapter", "llama", "llava", "lora", "lora_other", "lora_xl", "ltx", "ltx2", "musicgen",
    "musicgen_melody", "musicgen_stereo", "nli", "qwen2_vl", "sd_latent_upscaler", "sd_upscaler", "sliding",
    "smolvlm", "speecht5", "stable_audio", "stable_diffusion", "stable_diffusion_xl", "stable_video_diffusion",
    "swin2sr", "t5", "vit_gpt2", "vits", "wan", "wan_of_pictures", "wav2vec2", "whisper",
]  # fmt: skip
