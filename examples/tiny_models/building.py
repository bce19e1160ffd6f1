"""How tiny models are made: once per folder, with a tokenizer of their own."""

from __future__ import annotations

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


def cached(build: Callable[[Path], None]) -> Callable[[Path], Path]:
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


def save_tokenizer(folder: Path, *, bos: bool = False, chat: bool = False) -> int:
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


def save_clip_tokenizer(folder: Path) -> int:
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


def save_t5_tokenizer(folder: Path, *, most: int = 96) -> int:
    """A Unigram tokenizer of T5's kind, for texts of at most so many tokens; returns its size.

    Its pieces are written down, not trained: training chooses others in each process.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import T5TokenizerFast

    text = f"{WORDS} summarize: translate English to German:"
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [(name, 0.0) for name in special]
    pieces += [(letter, -6.0) for letter in sorted({"\u2581", *text.replace(" ", "")})]
    pieces += [(f"\u2581{word}", -4.0) for word in sorted(set(text.split()))]
    raw = Tokenizer(models.Unigram(pieces, unk_id=special.index("<unk>")))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = T5TokenizerFast(tokenizer_object=raw, extra_ids=0, model_max_length=most)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)
