"""Tiny models that speak, listen, and make music and noises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_models.building import WORDS, cached, save_t5_tokenizer

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_HIFIGAN = {
    "upsample_initial_channel": 16, "upsample_rates": [4, 4, 4, 4], "upsample_kernel_sizes": [8, 8, 8, 8],
    "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]], "initializer_range": 0.2,
}  # fmt: skip


@cached
def whisper(folder: Path) -> None:
    """A Whisper of two languages with timestamps of segments and words."""
    import torch
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    end = "<|endoftext|>"
    tokenizer = WhisperTokenizer(vocab={token: n for n, token in enumerate([*letters, end])}, merges=[])
    special = ["startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev", "nospeech"]
    tokenizer.add_tokens([AddedToken(f"<|{name}|>", special=True) for name in (*special, "notimestamps")], True)
    tokenizer.add_tokens([AddedToken(f"<|{n * 0.02:.2f}|>", special=False) for n in range(1501)])
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in (*special, "notimestamps", "endoftext")}
    torch.manual_seed(21)
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=16, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_source_positions=1500, max_target_positions=64, init_std=0.4, pad_token_id=ids["endoftext"],
        bos_token_id=ids["endoftext"], eos_token_id=ids["endoftext"], decoder_start_token_id=ids["startoftranscript"],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_length=24, pad_token_id=ids["endoftext"], bos_token_id=ids["endoftext"], eos_token_id=ids["endoftext"],
        decoder_start_token_id=ids["startoftranscript"], no_timestamps_token_id=ids["notimestamps"],
        prev_sot_token_id=ids["startofprev"], is_multilingual=True, max_initial_timestamp_index=50,
        lang_to_id={f"<|{name}|>": ids[name] for name in ("en", "de")},
        task_to_id={name: ids[name] for name in ("translate", "transcribe")}, alignment_heads=[[0, 0], [1, 1]],
        return_timestamps=False,
    )  # fmt: skip
    model.save_pretrained(folder)


@cached
def wav2vec2(folder: Path) -> None:
    """A wav2vec 2.0 that spells what it hears."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *_LETTERS.upper()]
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    torch.manual_seed(22)
    config = Wav2Vec2Config(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, initializer_range=0.5,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)


@cached
def vits(folder: Path) -> None:
    """A VITS of three speakers."""
    import torch
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    tokens = ["<pad>", " ", "'", ",", ".", "!", "?", "-", *"0123456789", *_LETTERS, "<unk>"]
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    tokenizer = VitsTokenizer(str(folder / "vocab.json"), phonemize=False, is_uroman=False)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(23)
    config = VitsConfig(
        vocab_size=len(tokens), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, flow_size=16,
        spectrogram_bins=9, num_speakers=3, speaker_embedding_size=8, duration_predictor_filter_channels=16,
        duration_predictor_num_flows=2, prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=2, **_HIFIGAN,
    )  # fmt: skip
    VitsModel(config).save_pretrained(folder)


@cached
def speecht5(folder: Path) -> None:
    """A SpeechT5 with its vocoder and a voice of its own."""
    import numpy as np
    import sentencepiece
    import torch
    from transformers import (
        SpeechT5Config,
        SpeechT5ForTextToSpeech,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        SpeechT5Tokenizer,
    )

    with (folder / "spm_char.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([WORDS, f"{_LETTERS} 0123456789 ,.!?'-"]), model_writer=file, model_type="char",
            vocab_size=48, hard_vocab_limit=False, bos_id=0, pad_id=1, eos_id=2, unk_id=3, minloglevel=2,
        )  # fmt: skip
    tokenizer = SpeechT5Tokenizer(str(folder / "spm_char.model"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(24)
    config = SpeechT5Config(
        vocab_size=len(tokenizer), hidden_size=24, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=20, speaker_embedding_dim=16,
        speech_decoder_prenet_units=16, speech_decoder_postnet_units=16, speech_decoder_postnet_layers=2,
    )  # fmt: skip
    model = SpeechT5ForTextToSpeech(config)
    with torch.no_grad():
        model.speech_decoder_postnet.prob_out.weight.mul_(20)
        model.speech_decoder_postnet.prob_out.bias.fill_(-3.0)
    model.save_pretrained(folder)
    SpeechT5HifiGan(SpeechT5HifiGanConfig(model_in_dim=20, **_HIFIGAN)).save_pretrained(folder / "vocoder")
    np.save(folder / "speaker.npy", np.linspace(-1, 1, 16, dtype=np.float32))


@cached
def fastspeech2(folder: Path) -> None:
    """A FastSpeech2Conformer with its vocoder; its tokens are letters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        FastSpeech2ConformerConfig,
        FastSpeech2ConformerHifiGanConfig,
        FastSpeech2ConformerWithHifiGan,
        FastSpeech2ConformerWithHifiGanConfig,
        PreTrainedTokenizerFast,
    )

    tokens = ["<pad>", "<unk>", " ", *_LETTERS, *_LETTERS.upper(), *",.!?'-0123456789"]
    raw = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(25)
    narrow: dict[str, Any] = {
        f"{part}_{what}": size
        for part in ("duration_predictor", "energy_predictor", "pitch_predictor")
        for what, size in (("layers", 1), ("channels", 8))
    }
    config = FastSpeech2ConformerConfig(
        hidden_size=16, vocab_size=len(tokens), num_mel_bins=20, encoder_layers=1, encoder_linear_units=32,
        decoder_layers=1, decoder_linear_units=32, speech_decoder_postnet_layers=2, speech_decoder_postnet_units=16,
        encoder_kernel_size=3, decoder_kernel_size=3, num_speakers=2, **narrow,
    )  # fmt: skip
    vocoder = FastSpeech2ConformerHifiGanConfig(model_in_dim=20, sampling_rate=16000, **_HIFIGAN)
    model = FastSpeech2ConformerWithHifiGan(
        FastSpeech2ConformerWithHifiGanConfig(model_config=config.to_dict(), vocoder_config=vocoder.to_dict())
    )
    with torch.no_grad():
        model.model.duration_predictor.linear.bias.fill_(1.6)
    model.save_pretrained(folder)


def _fill_codebooks(model: Any) -> None:
    """An EnCodec begins with codebooks of zeros: whatever is written would sound the same."""
    for module in model.modules():
        if type(module).__name__ == "EncodecEuclideanCodebook":
            module.embed.normal_(0.0, 2.0)


def _codec(*, rate: int, codebook_size: int, codebooks: int) -> Any:
    """An EnCodec that keeps so many codebooks."""
    from transformers import EncodecConfig

    config = EncodecConfig(
        sampling_rate=rate, num_filters=2, hidden_size=8, codebook_size=codebook_size, codebook_dim=8,
        num_lstm_layers=1, target_bandwidths=[1.0],
    )  # fmt: skip
    config.target_bandwidths = [codebooks * config.frame_rate * config.codebook_nbits / 1000]
    return config


@cached
def bark(folder: Path) -> None:
    """A Bark with one voice, `v2/en_speaker_0`."""
    import numpy as np
    import torch
    from transformers import (
        BarkCoarseConfig,
        BarkConfig,
        BarkFineConfig,
        BarkModel,
        BarkSemanticConfig,
        BertTokenizer,
        GenerationConfig,
    )

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *_LETTERS,
        *(f"##{letter}" for letter in _LETTERS),
        *",.!?-'",
    ]
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(26)
    size: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "initializer_range": 0.3}
    semantic = BarkSemanticConfig(input_vocab_size=200, output_vocab_size=48, block_size=320, **size)
    coarse = BarkCoarseConfig(input_vocab_size=80, output_vocab_size=80, block_size=128, **size)
    fine = BarkFineConfig(
        input_vocab_size=20, output_vocab_size=20, block_size=64, n_codes_total=4, n_codes_given=1, **size
    )
    codec = _codec(rate=24000, codebook_size=16, codebooks=4)
    model = BarkModel(
        BarkConfig(
            semantic_config=semantic.to_dict(), coarse_acoustics_config=coarse.to_dict(),
            fine_acoustics_config=fine.to_dict(), codec_config=codec.to_dict(),
        )
    )  # fmt: skip
    _fill_codebooks(model)
    model.generation_config = GenerationConfig(
        sample_rate=24000, codebook_size=16,
        semantic_config={
            "eos_token_id": 40, "max_new_tokens": 16, "do_sample": True, "temperature": 0.7, "text_encoding_offset": 50,
            "text_pad_token": 199, "semantic_infer_token": 198, "semantic_vocab_size": 40,
            "max_input_semantic_length": 256, "semantic_rate_hz": 49.9,
        },
        coarse_acoustics_config={
            "do_sample": True, "temperature": 0.7, "coarse_semantic_pad_token": 72, "coarse_infer_token": 73,
            "coarse_rate_hz": 75, "n_coarse_codebooks": 2, "max_coarse_input_length": 32, "max_coarse_history": 48,
            "sliding_window_len": 24,
        },
        fine_acoustics_config={
            "temperature": 0.5, "max_fine_history_length": 16, "max_fine_input_length": 32, "n_fine_codebooks": 4,
        },
    )  # fmt: skip
    model.save_pretrained(folder)
    rng = np.random.default_rng(0)
    voice = {
        "semantic_prompt": rng.integers(0, 40, 12),
        "coarse_prompt": rng.integers(0, 16, (2, 18)),
        "fine_prompt": rng.integers(0, 16, (4, 18)),
    }
    (folder / "speaker_embeddings" / "v2").mkdir(parents=True)
    paths = {}
    for name, prompt in voice.items():
        paths[name] = f"speaker_embeddings/v2/en_speaker_0_{name}.npy"
        np.save(folder / paths[name], prompt)
    index = {"repo_or_path": "somebody/else", "v2/en_speaker_0": paths}
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(index))


def _text_encoder(size: int) -> Any:
    from transformers import T5Config

    return T5Config(
        vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip


def _save_musicgen(folder: Path, *, channels: int, melody: bool = False) -> None:
    import torch
    import transformers

    size = save_t5_tokenizer(folder)
    torch.manual_seed(27)
    name = "MusicgenMelody" if melody else "Musicgen"
    codebooks = 4 * channels
    decoder = getattr(transformers, f"{name}DecoderConfig")(
        vocab_size=32, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, num_codebooks=codebooks,
        audio_channels=channels, max_position_embeddings=256, initializer_factor=0.1, pad_token_id=32, bos_token_id=32,
    )  # fmt: skip
    codec = _codec(rate=16000, codebook_size=32, codebooks=4)
    config = getattr(transformers, f"{name}Config")(
        text_encoder=_text_encoder(size).to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict(),
        **({"num_chroma": 4, "chroma_length": 10} if melody else {}),
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    _fill_codebooks(model)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, guidance_scale=3.0, max_length=200, pad_token_id=32, bos_token_id=32, decoder_start_token_id=32
    )
    model.save_pretrained(folder)


@cached
def musicgen(folder: Path) -> None:
    """A MusicGen of 16 kHz."""
    _save_musicgen(folder, channels=1)


@cached
def musicgen_stereo(folder: Path) -> None:
    """The same with two channels."""
    _save_musicgen(folder, channels=2)


@cached
def musicgen_melody(folder: Path) -> None:
    """A MusicGen that could also be given a melody."""
    _save_musicgen(folder, channels=1, melody=True)


@cached
def stable_audio(folder: Path) -> None:
    """A Stable Audio of two channels and up to 2 s, with the scheduler of the published one."""
    import torch
    from diffusers import (
        AutoencoderOobleck,
        CosineDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )
    from transformers import T5EncoderModel, T5TokenizerFast

    size = save_t5_tokenizer(folder / "tokenizer", most=32)
    torch.manual_seed(28)
    StableAudioPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=4, downsampling_ratios=[4, 8], decoder_channels=4, decoder_input_channels=4,
            audio_channels=2, channel_multiples=[1, 2], sampling_rate=8000,
        ),
        text_encoder=T5EncoderModel(_text_encoder(size)),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=32, conditioning_dim=16, min_value=0, max_value=512
        ),
        tokenizer=T5TokenizerFast.from_pretrained(folder / "tokenizer"),
        transformer=StableAudioDiTModel(
            sample_size=500, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            num_key_value_attention_heads=1, cross_attention_dim=16, cross_attention_input_dim=16, time_proj_dim=8,
            global_states_input_dim=32,
        ),
        scheduler=CosineDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500, solver_order=2, prediction_type="v_prediction", sigma_data=1.0,
            sigma_schedule="exponential",
        ),
    ).save_pretrained(folder)  # fmt: skip


@cached
def audioldm2(folder: Path) -> None:
    """An AudioLDM 2 of 16 kHz."""
    import torch
    from diffusers import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
        AutoencoderKL,
        DDIMScheduler,
    )
    from tokenizers import pre_tokenizers
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        GPT2Config,
        GPT2LMHeadModel,
        RobertaTokenizer,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        T5EncoderModel,
        T5TokenizerFast,
    )

    size = save_t5_tokenizer(folder / "tokenizer_2")
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    torch.manual_seed(29)
    clap = ClapConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
            "num_hidden_layers": 1, "projection_dim": 16, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
            "max_position_embeddings": 80,
        },
        audio_config={
            "spec_size": 64, "window_size": 4, "num_mel_bins": 64, "intermediate_size": 32, "depths": [1, 1],
            "num_attention_heads": [2, 2], "num_hidden_layers": 2, "hidden_size": 192, "projection_dim": 16,
            "patch_size": 2, "patch_stride": 2, "patch_embed_input_channels": 4, "patch_embeds_hidden_size": 96,
        },
        projection_dim=16,
    )  # fmt: skip
    language_model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=100, n_positions=128))
    language_model.config.max_new_tokens = 8
    AudioLDM2Pipeline(
        vae=AutoencoderKL(
            block_out_channels=[8, 16], norm_num_groups=4, in_channels=1, out_channels=1, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1,
        ),
        text_encoder=ClapModel(clap),
        text_encoder_2=T5EncoderModel(_text_encoder(size)),
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=16, text_encoder_1_dim=32, langauge_model_dim=16),
        language_model=language_model,
        tokenizer=RobertaTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77),
        tokenizer_2=T5TokenizerFast.from_pretrained(folder / "tokenizer_2"),
        feature_extractor=ClapFeatureExtractor(feature_size=64, sampling_rate=16000),
        unet=AudioLDM2UNet2DConditionModel(
            block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, sample_size=32, in_channels=4,
            out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=([None, 16, 32], [None, 16, 32]),
            attention_head_dim=4,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False,
        ),
        vocoder=SpeechT5HifiGan(SpeechT5HifiGanConfig(model_in_dim=16, normalize_before=False, **_HIFIGAN)),
    ).save_pretrained(folder)  # fmt: skip
