"""Tiny models with random weights, saved through the libraries' public classes: no download, made in a second.

Each function takes a folder to build in and returns the model's own folder; a second call finds it there.
"""

from __future__ import annotations

from tiny_models.adapters import comfyui, comfyui_xl, controlnet, controlnet_xl, ip_adapter, lora, lora_other, lora_xl
from tiny_models.pictures import ddpm, stable_diffusion, stable_diffusion_xl
from tiny_models.texts import bart, classifier, gpt2, gpt2_chat, llama, nli, sliding, t5

__all__ = [
    "bart", "classifier", "comfyui", "comfyui_xl", "controlnet", "controlnet_xl", "ddpm", "gpt2", "gpt2_chat",
    "ip_adapter", "llama", "lora", "lora_other", "lora_xl", "nli", "sliding", "stable_diffusion", "stable_diffusion_xl",
    "t5",
]  # fmt: skip
