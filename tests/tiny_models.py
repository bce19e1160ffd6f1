"""Tiny models with random weights, saved through the libraries' public classes: no download, made in a second.

Each function takes a folder to build in and returns the model's own folder; a second call finds it there.
"""

from __future__ import annotations

import atexit
import json
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path

WORDS = "new shoes for every road; old hats, blue cups & warm coats for a long winter. buy two, pay for one today! " * 8
CHAT = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('the system message comes first') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _cached(build: Callable[[Path], None]) -> Callable[[Path], Path]:
    @wraps(build)
    def make(root: Path) -> Path:
        folder = root / build.__name__.replace("_", "-")
        if not folder.exists():
            building = folder.with_suffix(".building")
            building.mkdir(parents=True)
            build(building)
            building.rename(folder)
        return folder

    return make


def _save_tokenizer(folder: Path, *, bos: bool = False, chat: bool = False) -> int:
    """A byte-level BPE tokenizer; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([WORDS], trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    if chat:
        fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return len(fast)


def _save_gpt2(folder: Path, *, chat: bool, kind: str = "GPT2LMHeadModel") -> None:
    import torch
    import transformers

    size = _save_tokenizer(folder, chat=chat)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=size, n_positions=96, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1,
        initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = getattr(transformers, kind)(config)
    # A model whose own defaults would change every text, if they were taken over.
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.3, top_k=3, repetition_penalty=1.7, eos_token_id=1, bos_token_id=0
    )
    model.save_pretrained(folder)


@_cached
def gpt2(folder: Path) -> None:
    """A GPT-2 of 96 positions, without a pad token and without a chat template."""
    _save_gpt2(folder, chat=False)


@_cached
def gpt2_chat(folder: Path) -> None:
    """The same with a chat template that refuses a late system message."""
    _save_gpt2(folder, chat=True)


@_cached
def llama(folder: Path) -> None:
    """A Llama with rotary positions whose tokenizer begins every prompt with `<s>`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = _save_tokenizer(folder, bos=True)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@_cached
def sliding(folder: Path) -> None:
    """A Mistral that attends to the last sixteen tokens only."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    size = _save_tokenizer(folder, bos=True)
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)


@_cached
def headless(folder: Path) -> None:
    """A GPT-2 saved without its head."""
    _save_gpt2(folder, chat=False, kind="GPT2Model")


@_cached
def no_head_weights(folder: Path) -> None:
    """A Llama whose config promises a head that its weights do not have."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(llama(folder.parent), folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@_cached
def classifier(folder: Path) -> None:
    """A DistilBERT that classifies."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    size = _save_tokenizer(folder)
    config = DistilBertConfig(vocab_size=size, dim=32, hidden_dim=64, n_layers=1, n_heads=2)
    DistilBertForSequenceClassification(config).save_pretrained(folder)


@_cached
def nli(folder: Path) -> None:
    """The same, trained (it says) to tell what follows from what."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    size = _save_tokenizer(folder)
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    config = DistilBertConfig(vocab_size=size, dim=32, hidden_dim=64, n_layers=1, n_heads=2, id2label=labels,
                              label2id={name: n for n, name in labels.items()})  # fmt: skip
    DistilBertForSequenceClassification(config).save_pretrained(folder)


def _save_t5(folder: Path, tasks: dict[str, dict[str, str]] | None) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Config, T5ForConditionalGeneration, T5TokenizerFast

    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    raw.train_from_iterator([WORDS, "summarize: translate English to German: "], trainer)
    tokenizer = T5TokenizerFast(tokenizer_object=raw, extra_ids=0, model_max_length=96)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(4)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False, task_specific_params=tasks,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


@_cached
def t5(folder: Path) -> None:
    """A T5 of several tasks, which each want a prefix."""
    prefixes = {"summarization": "summarize: ", "translation_en_to_de": "translate English to German: "}
    _save_t5(folder, {name: {"prefix": prefix} for name, prefix in prefixes.items()})


@_cached
def bart(folder: Path) -> None:
    """A BART of 96 positions whose own defaults (beams, least lengths) would change every text."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

    size = _save_tokenizer(folder)
    torch.manual_seed(5)
    config = BartConfig(
        vocab_size=size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=96, init_std=0.3,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        num_beams=4, min_length=20, no_repeat_ngram_size=3, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        decoder_start_token_id=1,
    )  # fmt: skip
    model.save_pretrained(folder)


def photos() -> dict[str, str]:
    """Pictures to begin with, by what is special about them: paths of files that are made once per process."""
    import tempfile

    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="aigc-photos-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    noise = Image.effect_noise((16, 16), 90)
    made = {
        "square": Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180))),
        "other": Image.linear_gradient("L").resize((16, 16)).convert("RGB"),
        "wide": Image.radial_gradient("L").resize((40, 20)).convert("RGB"),
        "clear": Image.merge("RGBA", (noise, noise, noise, Image.linear_gradient("L").resize((16, 16)))),
        "mask": Image.new("L", (16, 16), 0),
    }
    made["mask"].paste(255, (0, 0, 8, 16))
    for name, picture in made.items():
        picture.save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in made}


@_cached
def pickle_only(folder: Path) -> None:
    """A GPT-2 whose weights are a pickle."""
    import torch

    shutil.copytree(gpt2(folder.parent), folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


@_cached
def remote_code(folder: Path) -> None:
    """A model of a type that only its own Python file knows."""
    shutil.copytree(gpt2(folder.parent), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoModelForCausalLM": "modeling_homemade.Homemade"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_homemade.py").write_text("raise SystemExit('this must never run')\n")


@_cached
def empty(folder: Path) -> None:
    """A folder with a text file and no model."""
    (folder / "readme.txt").write_text("nothing here")


def _save_clip_tokenizer(folder: Path) -> int:
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    shutil.rmtree(folder)
    tokenizer.save_pretrained(folder)
    return len(tokens)


@_cached
def stable_diffusion(folder: Path) -> None:
    """A Stable Diffusion of 16 pixels (VAE by 2), one CLIP text encoder in which each letter is a token."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    size = _save_clip_tokenizer(folder / "scratch")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "scratch")
    shutil.rmtree(folder / "scratch")
    torch.manual_seed(0)
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
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


@_cached
def stable_diffusion_xl(folder: Path) -> None:
    """A Stable Diffusion XL of 16 pixels (VAE by 2) with two CLIP text encoders."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    size = _save_clip_tokenizer(folder / "scratch")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "scratch")
    shutil.rmtree(folder / "scratch")
    torch.manual_seed(2)
    text = CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=64,
        attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 6 * 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet, add_watermarker=False,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    ).save_pretrained(folder)  # fmt: skip


@_cached
def ddpm(folder: Path) -> None:
    """An unconditional DDPM: a diffusers pipeline that takes no prompt."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)


@_cached
def custom_pipeline(folder: Path) -> None:
    """A Stable Diffusion that wants to run a pipeline of its own."""
    shutil.copytree(stable_diffusion(folder.parent), folder, dirs_exist_ok=True)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "Homemade"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "pipeline.py").write_text("raise SystemExit('this must never run')\n")
