"""Tiny models of texts."""

from __future__ import annotations

from pathlib import Path

from tiny_models.building import cached, save_t5_tokenizer, save_tokenizer


def save_gpt2(folder: Path, *, chat: bool, kind: str = "GPT2LMHeadModel") -> None:
    import torch
    import transformers

    size = save_tokenizer(folder, chat=chat)
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


@cached
def gpt2(folder: Path) -> None:
    """A GPT-2 of 96 positions, without a pad token and without a chat template."""
    save_gpt2(folder, chat=False)


@cached
def gpt2_chat(folder: Path) -> None:
    """The same with a chat template that refuses a late system message."""
    save_gpt2(folder, chat=True)


@cached
def llama(folder: Path) -> None:
    """A Llama with rotary positions whose tokenizer begins every prompt with `<s>`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = save_tokenizer(folder, bos=True)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@cached
def sliding(folder: Path) -> None:
    """A Mistral that attends to the last sixteen tokens only."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    size = save_tokenizer(folder, bos=True)
    torch.manual_seed(2)
    config = MistralConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)


@cached
def classifier(folder: Path) -> None:
    """A DistilBERT that classifies."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    size = save_tokenizer(folder)
    config = DistilBertConfig(vocab_size=size, dim=32, hidden_dim=64, n_layers=1, n_heads=2)
    DistilBertForSequenceClassification(config).save_pretrained(folder)


@cached
def nli(folder: Path) -> None:
    """The same, trained (it says) to tell what follows from what."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    size = save_tokenizer(folder)
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    config = DistilBertConfig(vocab_size=size, dim=32, hidden_dim=64, n_layers=1, n_heads=2, id2label=labels,
                              label2id={name: n for n, name in labels.items()})  # fmt: skip
    DistilBertForSequenceClassification(config).save_pretrained(folder)


def _save_t5(folder: Path, tasks: dict[str, dict[str, str]] | None) -> None:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    size = save_t5_tokenizer(folder)
    torch.manual_seed(4)
    config = T5Config(
        vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=False, task_specific_params=tasks,
        initializer_factor=0.2,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


@cached
def t5(folder: Path) -> None:
    """A T5 of several tasks, which each want a prefix."""
    prefixes = {"summarization": "summarize: ", "translation_en_to_de": "translate English to German: "}
    _save_t5(folder, {name: {"prefix": prefix} for name, prefix in prefixes.items()})


@cached
def bart(folder: Path) -> None:
    """A BART of 96 positions whose own defaults (beams, least lengths) would change every text."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

    size = save_tokenizer(folder)
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
