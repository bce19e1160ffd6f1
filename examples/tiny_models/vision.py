"""Tiny models that see: enlargers of pictures, and writers about them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_models.building import WORDS, cached, save_clip_tokenizer

_CHAT = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}"
    "{% if part.type == 'image' %}MARK{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@cached
def swin2sr(folder: Path) -> None:
    """A Swin2SR that doubles pictures, in windows of four pixels."""
    import torch
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    torch.manual_seed(7)
    config = Swin2SRConfig(
        image_size=16, embed_dim=16, depths=[2], num_heads=[2], window_size=4, upscale=2, initializer_range=0.04,
    )  # fmt: skip
    Swin2SRForImageSuperResolution(config).save_pretrained(folder)


@cached
def sd_upscaler(folder: Path) -> None:
    """A Stable Diffusion upscaler by four."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )

    text_encoder, tokenizer = _clip(folder, seed=8)
    torch.manual_seed(8)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=7, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=32, num_class_embeds=1000, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32), norm_num_groups=4, latent_channels=4, scaling_factor=0.08333,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    StableDiffusionUpscalePipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(prediction_type="v_prediction"), max_noise_level=350,
    ).save_pretrained(folder)  # fmt: skip


@cached
def sd_latent_upscaler(folder: Path) -> None:
    """A latent upscaler of Stable Diffusion, by two."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionLatentUpscalePipeline,
        UNet2DConditionModel,
    )

    text_encoder, tokenizer = _clip(folder, seed=9)
    torch.manual_seed(9)
    unet = UNet2DConditionModel(
        act_fn="gelu", attention_head_dim=8, norm_num_groups=None, block_out_channels=(32, 32, 64, 64),
        time_cond_proj_dim=128 + 32, conv_in_kernel=1, conv_out_kernel=1, cross_attention_dim=32, in_channels=8,
        out_channels=5, mid_block_type=None, only_cross_attention=False, resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier", timestep_post_act="gelu", sample_size=16,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    StableDiffusionLatentUpscalePipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
        scheduler=EulerDiscreteScheduler(prediction_type="sample"),
    ).save_pretrained(folder)  # fmt: skip


def _clip(folder: Path, *, seed: int) -> tuple[Any, Any]:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    size = save_clip_tokenizer(folder / "scratch")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "scratch")
    shutil.rmtree(folder / "scratch")
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    )  # fmt: skip
    return CLIPTextModel(config), tokenizer


# --- writers ----------------------------------------------------------------------------------------------------------


@cached
def blip(folder: Path) -> None:
    """A BLIP that captions."""
    from transformers import BlipForConditionalGeneration

    _save_blip(folder, BlipForConditionalGeneration)


@cached
def blip_vqa(folder: Path) -> None:
    """A BLIP that answers questions."""
    from transformers import BlipForQuestionAnswering

    _save_blip(folder, BlipForQuestionAnswering)


def _save_blip(folder: Path, kind: Any) -> None:
    import torch
    from transformers import BlipConfig, BlipImageProcessorPil, BlipProcessor

    tokenizer = _word_pieces()
    torch.manual_seed(10)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64, "encoder_hidden_size": 32, "initializer_range": 0.3,
        "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"), "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8, "initializer_range": 0.3,
    }  # fmt: skip
    model = kind(BlipConfig(text_config=text, vision_config=vision, projection_dim=32))
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def _word_pieces() -> Any:
    """A WordPiece tokenizer, as BERT has it, in which letters are pieces too."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word.strip(".,;!&:").lower() for word in WORDS.split()} - {""})
    letters = sorted({letter for word in words for letter in word} | set("qxzvj'?.,!"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *words, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        extra_special_tokens=["[DEC]"], model_max_length=64,
    )  # fmt: skip


@cached
def vit_gpt2(folder: Path) -> None:
    """A ViT before a GPT-2; like many of its kind it was saved without its encoder's pooler."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        GenerationConfig,
        GPT2Config,
        GPT2LMHeadModel,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessorPil,
        ViTModel,
    )

    tokenizer = _byte_pieces([])
    torch.manual_seed(11)
    encoder = ViTModel(
        ViTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
            patch_size=8, initializer_range=0.3,
        )
    )  # fmt: skip
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=96, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1,
            initializer_range=0.3, add_cross_attention=True, is_decoder=True,
        )
    )  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.decoder_start_token_id = 0
    model.config.pad_token_id = 1
    # A model whose own defaults would change every text, if they were taken over.
    model.generation_config = GenerationConfig(
        num_beams=4, max_length=16, decoder_start_token_id=0, eos_token_id=1, pad_token_id=1, bos_token_id=0
    )
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("encoder.pooler.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@cached
def llava(folder: Path) -> None:
    """A LLaVA of a CLIP and a Llama: each picture is sixteen tokens."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _byte_pieces(["<image>"])
    torch.manual_seed(12)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=32, initializer_range=0.3,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**_llama(tokenizer)), vision_feature_layer=-2,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=16,
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_CHAT.replace("MARK", "<image>"),
    ).save_pretrained(folder)  # fmt: skip


@cached
def qwen2_vl(folder: Path) -> None:
    """A Qwen2-VL: a picture has as many tokens as it is large."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _byte_pieces(marks)
    begin, end, picture, video = map(tokenizer.convert_tokens_to_ids, marks)
    torch.manual_seed(13)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2VLConfig(
        text_config=_llama(tokenizer) | {"rope_parameters": rope},
        vision_config={
            "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
            "initializer_range": 0.3,
        },
        image_token_id=picture, video_token_id=video, vision_start_token_id=begin, vision_end_token_id=end,
    )  # fmt: skip
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024})
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    _save_parts(folder, tokenizer, images, "Qwen2VLProcessor", _CHAT.replace("MARK", mark))


@cached
def smolvlm(folder: Path) -> None:
    """A SmolVLM, which looks at the parts of a picture and at the whole."""
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil

    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    marks += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = _byte_pieces(marks)
    torch.manual_seed(14)
    config = SmolVLMConfig(
        text_config=_llama(tokenizer) | {"model_type": "llama"},
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8, "initializer_range": 0.3,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2,
    )  # fmt: skip
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    images = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    more = {"image_seq_len": 4}
    _save_parts(folder, tokenizer, images, "SmolVLMProcessor", _CHAT.replace("MARK", "<image>"), more)


def _llama(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.3,
    }  # fmt: skip


def _byte_pieces(marks: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer with marks of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator([WORDS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.add_special_tokens({"extra_special_tokens": list(marks)})
    return fast


def _save_parts(
    folder: Path, tokenizer: Any, images: Any, processor: str, template: str, more: Mapping[str, Any] | None = None
) -> None:
    """The files of a processor that cannot be made here: its part for videos needs torchvision."""
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor, **(more or {})}))
