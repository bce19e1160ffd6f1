"""Tiny models of videos."""

from __future__ import annotations

import shutil
import string
from pathlib import Path
from typing import Any

from tiny_models.building import cached, save_clip_tokenizer, save_tokenizer


def _t5_tokenizer() -> Any:
    """In which each letter is a token: one that is trained comes out differently each time."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import T5TokenizerFast

    marks = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, *string.digits, *string.punctuation]
    raw = Tokenizer(models.Unigram([(mark, -float(place)) for place, mark in enumerate(marks)], unk_id=2))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    return T5TokenizerFast(tokenizer_object=raw, extra_ids=0, model_max_length=512)


def _t5_encoder(size: int, *, kind: str = "T5") -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=size, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return getattr(transformers, f"{kind}EncoderModel")(config)


def _clip_vision(*, side: int, patch: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=32, projection_dim=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        image_size=side, patch_size=patch,
    )  # fmt: skip


@cached
def ltx(folder: Path) -> None:
    """An LTX of 32 pixels and 9 frames to a step of its latents, for words and for pictures."""
    import torch
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    torch.manual_seed(20)
    tokenizer = _t5_tokenizer()
    scaled = (True, True, True, False)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=scaled,
        decoder_spatio_temporal_scaling=scaled, decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4, timestep_conditioning=False, patch_size=4, patch_size_t=1,
    )  # fmt: skip
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip
    LTXPipeline(
        scheduler=scheduler, vae=vae, text_encoder=_t5_encoder(len(tokenizer)), tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)  # fmt: skip


@cached
def ltx2(folder: Path) -> None:
    """An LTX-2, which makes sound as well: sides by 32, frames by 2."""
    import torch
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

    size = save_tokenizer(folder / "scratch")
    tokenizer = AutoTokenizer.from_pretrained(folder / "scratch")
    shutil.rmtree(folder / "scratch")
    torch.manual_seed(27)
    text_encoder = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={
                "vocab_size": size, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 1,
            },
            vision_config={
                "hidden_size": 16, "intermediate_size": 17, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 16, "patch_size": 4,
            },
            mm_tokens_per_image=4, image_token_index=0, boi_token_index=0, eoi_token_index=1,
        )
    )  # fmt: skip
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatiotemporal",), upsample_residual=(False,),
        upsample_factor=(1,), timestep_conditioning=False, patch_size=4, patch_size_t=1,
    )  # fmt: skip
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", dropout=0.0,
        mid_block_add_attention=False, sample_rate=16000, mel_hop_length=160, is_causal=True, mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[16, 10],
        upsample_factors=[16, 10], resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=32, text_proj_in_factor=3, connector_rope_base_seq_len=32,
        video_connector_num_attention_heads=4, video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=1, caption_channels=32,
        rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, audio_vae=audio_vae, text_encoder=text_encoder,
        tokenizer=tokenizer, connectors=connectors, transformer=transformer, vocoder=vocoder,
    ).save_pretrained(folder)  # fmt: skip


def _wan_parts(size: int, *, channels: int, seed: int, **more: Any) -> dict[str, Any]:
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 20  # else there is hardly anything to be seen
    return {
        "vae": vae,
        "transformer": WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16,
            text_dim=32, freq_dim=256, ffn_dim=32, num_layers=1, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", rope_max_seq_len=32, **more,
        ),
        "text_encoder": _t5_encoder(size, kind="UMT5"),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    }  # fmt: skip


@cached
def wan(folder: Path) -> None:
    """A Wan as 2.2 has it in its small size, for words and for pictures: sides by 16, frames by 4."""
    from diffusers import WanPipeline

    tokenizer = _t5_tokenizer()
    parts = _wan_parts(len(tokenizer), channels=16, seed=21)
    WanPipeline(tokenizer=tokenizer, expand_timesteps=True, **parts).save_pretrained(folder)


@cached
def wan_of_pictures(folder: Path) -> None:
    """A Wan as 2.1 has it for pictures, which a CLIP looks at."""
    from diffusers import WanImageToVideoPipeline
    from transformers import CLIPImageProcessor, CLIPVisionModel

    tokenizer = _t5_tokenizer()
    parts = _wan_parts(len(tokenizer), channels=36, seed=22, image_dim=32, added_kv_proj_dim=24)
    WanImageToVideoPipeline(
        tokenizer=tokenizer, image_encoder=CLIPVisionModel(_clip_vision(side=32, patch=8)),
        image_processor=CLIPImageProcessor(crop_size=32, size=32), **parts,
    ).save_pretrained(folder)  # fmt: skip


def _cogvideox_parts(size: int, *, channels: int, seed: int, **more: Any) -> dict[str, Any]:
    import torch
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXTransformer3DModel

    torch.manual_seed(seed)
    return {
        "vae": AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
            temporal_compression_ratio=4,
        ),
        "transformer": CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=4, time_embed_dim=2,
            text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
            temporal_compression_ratio=4, max_text_seq_length=226, use_rotary_positional_embeddings=True, **more,
        ),
        "text_encoder": _t5_encoder(size),
        "scheduler": CogVideoXDPMScheduler(),
    }  # fmt: skip


@cached
def cogvideox(folder: Path) -> None:
    """A CogVideoX of 16 pixels and 9 frames, whose sampler draws noise at each step."""
    from diffusers import CogVideoXPipeline

    tokenizer = _t5_tokenizer()
    CogVideoXPipeline(tokenizer=tokenizer, **_cogvideox_parts(len(tokenizer), channels=4, seed=23)).save_pretrained(
        folder
    )


@cached
def cogvideox_of_pictures(folder: Path) -> None:
    """The same for pictures, of one size only."""
    from diffusers import CogVideoXImageToVideoPipeline

    tokenizer = _t5_tokenizer()
    parts = _cogvideox_parts(len(tokenizer), channels=8, seed=24, use_learned_positional_embeddings=True)
    CogVideoXImageToVideoPipeline(tokenizer=tokenizer, **parts).save_pretrained(folder)


@cached
def animatediff(folder: Path) -> None:
    """An AnimateDiff of 16 pixels and at most 8 frames."""
    import torch
    from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    size = save_clip_tokenizer(folder / "scratch")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "scratch")
    shutil.rmtree(folder / "scratch")
    torch.manual_seed(25)
    text = CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    motion = MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=4,
        motion_num_attention_heads=2, motion_max_seq_length=8,
    )  # fmt: skip
    AnimateDiffPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, motion_adapter=motion,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1),
    ).save_pretrained(folder)  # fmt: skip


@cached
def stable_video_diffusion(folder: Path) -> None:
    """A Stable Video Diffusion that makes 4 frames (VAE by 2)."""
    import torch
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    torch.manual_seed(26)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=32,
        num_attention_heads=(2, 4), projection_class_embeddings_input_dim=96, addition_time_embed_dim=32, num_frames=4,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", interpolation_type="linear",
        prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, timestep_spacing="leading", steps_offset=1,
        timestep_type="continuous", use_karras_sigmas=True,
    )  # fmt: skip
    StableVideoDiffusionPipeline(
        vae=vae, image_encoder=CLIPVisionModelWithProjection(_clip_vision(side=224, patch=56)), unet=unet,
        scheduler=scheduler, feature_extractor=CLIPImageProcessor(crop_size=224, size=224),
    ).save_pretrained(folder)  # fmt: skip
