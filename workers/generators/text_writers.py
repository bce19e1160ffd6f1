"""Which model of transformers can be told in words what to do: an encoder-decoder, or one that chats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.errors import ModelRejected
from workers.generators import Device, Generator, ModelFiles
from workers.generators.causal_lm import CausalLM
from workers.generators.encoder_decoder import EncoderDecoder


def writer_for(files: ModelFiles | None, device: Device, *, task: str) -> Generator:
    """The generator of texts for this model.

    Raises `ModelRejected` if it writes no texts, or is a causal model without a chat template: that one goes on with a
    text, and does nothing with it that it is told.
    """
    if files is None:
        raise ModelRejected("model_not_found", f"{task} needs a model")
    if EncoderDecoder.serves(files):
        return EncoderDecoder.load(files, device)
    if not CausalLM.serves(files):
        raise ModelRejected("model_wrong_task", f"{files.ref} cannot do {task}: it writes no texts")
    writer = CausalLM.load(files, device)
    if not writer.chats:
        raise ModelRejected(
            "model_wrong_task",
            f"{files.ref} cannot do {task}: it has no chat template, and only goes on with a text; take a model that "
            "was trained to follow instructions, or an encoder-decoder",
        )
    return writer


def serves(files: ModelFiles | None) -> bool:
    """Whether the config names a model that writes texts; whether it chats is known when it is loaded."""
    return EncoderDecoder.serves(files) or CausalLM.serves(files)


def own_prefix(config: Mapping[str, Any], name: str) -> str | None:
    """What a model of several tasks (T5) wants before the text; None if it says nothing about this one."""
    tasks = config.get("task_specific_params") or {}
    found = tasks.get(name) or {}
    prefix = found.get("prefix")
    return prefix if isinstance(prefix, str) else None
