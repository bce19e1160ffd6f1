"""Tiny models of families that are prompted as they were trained, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models.building import cached
from tiny_models.vision import _byte_pieces, _word_pieces

_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8, "initializer_range": 0.3,
}  # fmt: skip


@cached
def paligemma(folder: Path) -> None:
    import torch
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
    )

    tokenizer: Any = _byte_pieces(["<image>"])
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32}, image_seq_length=16)
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    torch.manual_seed(20)
    text = GemmaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**_VISION), text_config=text, projection_dim=32, hidden_size=32,
        vocab_size=len(tokenizer), image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


@cached
def blip_2(folder: Path) -> None:
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessorPil,
        OPTConfig,
    )

    tokenizer: Any = _byte_pieces(["<image>"])
    processor = Blip2Processor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4)
    torch.manual_seed(21)
    text = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, word_embed_proj_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        init_std=0.3,
    )  # fmt: skip
    qformer = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "encoder_hidden_size": 32, "vocab_size": 40, "initializer_range": 0.3,
    }  # fmt: skip
    config = Blip2Config(
        vision_config=_VISION, qformer_config=qformer, text_config=text, num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


@cached
def git(folder: Path) -> None:
    import torch
    from transformers import CLIPImageProcessorPil, GitConfig, GitForCausalLM, GitProcessor

    tokenizer: Any = _word_pieces()
    torch.manual_seed(22)
    config = GitConfig(
        vision_config=_VISION, vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    GitForCausalLM(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(images, tokenizer).save_pretrained(folder)
