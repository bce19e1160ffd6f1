"""Tiny models of families that are prompted as they were trained, for tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tiny_models.building import cached
from tiny_models.vision import _CHAT, _byte_pieces, _llama, _save_parts, _word_pieces, llava

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


@cached
def florence2(folder: Path) -> None:
    import torch
    from transformers import (
        BartConfig,
        CLIPImageProcessorPil,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
        PreTrainedTokenizerFast,
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_pieces([]).backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    torch.manual_seed(23)
    text = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=96, init_std=0.3,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    vision = Florence2VisionConfig(
        depths=(1, 1, 1, 1), embed_dim=(16, 16, 16, 32), num_heads=(2, 2, 2, 2), num_groups=(2, 2, 2, 2), window_size=4,
        projection_dim=32, initializer_range=0.3,
    )  # fmt: skip
    config = Florence2Config(
        text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id, bos_token_id=0,
        eos_token_id=1, pad_token_id=1, decoder_start_token_id=1,
    )  # fmt: skip
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False, image_seq_length=5)
    images.image_seq_length = 5
    tokenizer.save_pretrained(folder)
    Florence2Processor(images, tokenizer).save_pretrained(folder)


@cached
def donut(folder: Path) -> None:
    import torch
    from transformers import (
        DonutImageProcessorPil,
        DonutSwinConfig,
        DonutSwinModel,
        MBartConfig,
        MBartForCausalLM,
        VisionEncoderDecoderModel,
    )

    tokenizer: Any = _byte_pieces(["<s_shoes>"])
    torch.manual_seed(24)
    encoder = DonutSwinModel(
        DonutSwinConfig(
            image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4,
            initializer_range=0.3,
        )
    )  # fmt: skip
    decoder = MBartForCausalLM(
        MBartConfig(
            vocab_size=len(tokenizer), d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=64,
            max_position_embeddings=96, is_decoder=True, add_cross_attention=True, is_encoder_decoder=False,
            init_std=0.3, bos_token_id=0, eos_token_id=1, pad_token_id=1, forced_eos_token_id=None,
        )
    )  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.decoder_start_token_id = 0
    model.config.pad_token_id = 1
    model.generation_config.decoder_start_token_id = 0
    model.save_pretrained(folder)
    DonutImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@cached
def llava_untold(folder: Path) -> None:
    """A LLaVA whose files say nothing of how it is talked to."""
    shutil.copytree(llava(folder.parent), folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").unlink()


@cached
def instructblip(folder: Path) -> None:
    import torch
    from transformers import (
        BlipImageProcessorPil,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
    )

    tokenizer, words = _byte_pieces(["<image>"]), _word_pieces()
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = InstructBlipProcessor(images, tokenizer, words, num_query_tokens=4)
    torch.manual_seed(29)
    qformer = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "encoder_hidden_size": 32, "vocab_size": len(words), "initializer_range": 0.3,
    }  # fmt: skip
    config = InstructBlipConfig(
        vision_config=_VISION, qformer_config=qformer, text_config=_llama(tokenizer) | {"model_type": "llama"},
        num_query_tokens=4, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    InstructBlipForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


@cached
def pix2struct(folder: Path) -> None:
    import torch
    from transformers import (
        Pix2StructConfig,
        Pix2StructForConditionalGeneration,
        Pix2StructImageProcessorPil,
        Pix2StructProcessor,
    )

    tokenizer = _byte_pieces([])
    torch.manual_seed(30)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
        "pad_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "patch_embed_hidden_size": 768, "d_ff": 64, "d_kv": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "seq_len": 64,
    }  # fmt: skip
    config = Pix2StructConfig(
        text_config=text, vision_config=vision, pad_token_id=1, eos_token_id=1, decoder_start_token_id=0
    )
    Pix2StructForConditionalGeneration(config).save_pretrained(folder)
    Pix2StructProcessor(Pix2StructImageProcessorPil(max_patches=16), tokenizer).save_pretrained(folder)


# --- that chat --------------------------------------------------------------------------------------------------------

CLIP = _VISION | {"projection_dim": 32}


@cached
def llava_next(folder: Path) -> None:
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )

    tokenizer = _byte_pieces(["<image>"])
    places = [[32, 64], [64, 32], [64, 64]]
    torch.manual_seed(25)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**CLIP), text_config=LlamaConfig(**_llama(tokenizer)), vision_feature_layer=-2,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_grid_pinpoints=places,
    )  # fmt: skip
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=places
    )
    LlavaNextProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_CHAT.replace("MARK", "<image>"),
    ).save_pretrained(folder)  # fmt: skip


@cached
def llava_onevision(folder: Path) -> None:
    import torch
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
    )

    tokenizer = _byte_pieces(["<image>", "<video>"])
    places = [[32, 64], [64, 32], [64, 64]]
    picture, video = map(tokenizer.convert_tokens_to_ids, ("<image>", "<video>"))
    torch.manual_seed(26)
    config = LlavaOnevisionConfig(
        vision_config=_VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=_llama(tokenizer) | {"model_type": "qwen2"}, image_token_index=picture, video_token_index=video,
        image_grid_pinpoints=places, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    images = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=places)
    more = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    _save_parts(folder, tokenizer, images, "LlavaOnevisionProcessor", _CHAT.replace("MARK", "<image>"), more)


@cached
def gemma3(folder: Path) -> None:
    import torch
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
        PreTrainedTokenizerFast,
    )

    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_pieces([]).backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        extra_special_tokens=marks,
    )  # fmt: skip
    soft, begin, end = map(tokenizer.convert_tokens_to_ids, marks.values())
    torch.manual_seed(27)
    config = Gemma3Config(
        text_config=_llama(tokenizer) | {"head_dim": 8, "sliding_window": 64},
        vision_config=_VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=4, image_token_index=soft, boi_token_index=begin, eoi_token_index=end,
    )  # fmt: skip
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    Gemma3Processor(
        images, tokenizer, image_seq_length=4, chat_template=_CHAT.replace("MARK", "<start_of_image>")
    ).save_pretrained(folder)


@cached
def idefics3(folder: Path) -> None:
    import torch
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer = _byte_pieces(marks)
    torch.manual_seed(28)
    config = Idefics3Config(
        text_config=_llama(tokenizer) | {"model_type": "llama"}, vision_config=_VISION, scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=_CHAT.replace("MARK", "<image>")
    ).save_pretrained(folder)
