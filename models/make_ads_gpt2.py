"""Make ``models/ads-gpt2``: a small GPT-2 for product ads, news items and weather reports, from scratch.

    python models/make_ads_gpt2.py

writes the tokenizer, the weights, the measured figures (``figures.json``) and the model card (``README.md``)
to ``--out``.  The texts come from :mod:`ads_grammar`; nothing is downloaded.  The same arguments on the same
machine with the same versions make the same model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import ads_grammar as grammar

if TYPE_CHECKING:
    import numpy as np
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

EOS, PAD, USER, ASSISTANT = "<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_SHARE = 0.15
LOWER_CASE_SHARE = 0.1  #: plain texts whose topic is written in lower case, as people type it
POSITIONS = 256
BATCH = 8
TOPICS = 200
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('only the roles user and assistant are known, not ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Figures:
    """What was measured, on held-out texts unless it says otherwise."""

    date: str
    versions: str
    seed: int
    steps: int
    parameters: int
    vocabulary: int
    training_tokens: int
    training_minutes: float
    held_out_texts: int
    held_out_tokens: int
    perplexity: float
    unigram_perplexity: float
    trigram_perplexity: float
    seen_topics_perplexity: float  #: fresh texts of the grammar about topics of the training
    topics: int
    named_and_ended: float  #: share of sampled texts that name their topic again and end within 120 tokens
    named: float
    ended: float


def main() -> None:
    """Parse the arguments, make the model, measure it, write its card."""
    args = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))  # has no effect once torch is imported
    import torch

    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.measure_only:
        before = Figures(**json.loads((out / "figures.json").read_text()))
        seed, steps = before.seed, before.steps
        tokens, minutes = before.training_tokens, before.training_minutes
    else:
        seed, steps = args.seed, args.steps
        texts = training_texts(seed, steps)
        begun = load(Path(args.start)) if args.start else None
        tokenizer = begun[1] if begun else train_tokenizer(texts[:30_000], args.vocabulary)
        tokenizer.save_pretrained(out)
        rows = pack(texts, tokenizer)[: steps * BATCH]
        if len(rows) < steps * BATCH:
            raise RuntimeError(f"the texts fill {len(rows)} rows, {steps * BATCH} are needed")
        tokens = rows.size
        started = time.monotonic()
        model = begun[0] if begun else new_model(tokenizer)
        save(train(model, rows, steps, seed, peak=1.2e-3 if begun else 2e-3), out)
        minutes = (time.monotonic() - started) / 60
    figures = measure(out, seed=seed, steps=steps, training_tokens=tokens, training_minutes=minutes)
    (out / "figures.json").write_text(json.dumps(asdict(figures), indent=2) + "\n")
    (out / "README.md").write_text(card(figures, examples(out)))
    log(json.dumps(asdict(figures), indent=2))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train, measure and describe models/ads-gpt2.")
    parser.add_argument("--out", default=str(Path(__file__).parent / "ads-gpt2"), help="folder of the model")
    parser.add_argument("--steps", type=int, default=1800, help=f"steps of {BATCH} x {POSITIONS} tokens")
    parser.add_argument("--seed", type=int, default=22, help="seed of texts, weights and samples")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--vocabulary", type=int, default=2560, help="tokens of the tokenizer")
    parser.add_argument("--start", default=None, help="folder of a model of this script to train further")
    parser.add_argument("--measure-only", action="store_true", help="measure the model in --out, rewrite its card")
    return parser.parse_args()


def log(text: str) -> None:
    """Write a line to standard error at once."""
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------- data


def render(sample: grammar.Sample, rng: random.Random) -> str:
    """One text as the model sees it: plain or as a chat, ended by the eos token."""
    if rng.random() < CHAT_SHARE:
        return f"{USER}{sample.question}{ASSISTANT}{sample.body}{EOS}"
    text = sample.text
    return (text[0].lower() + text[1:] if rng.random() < LOWER_CASE_SHARE else text) + EOS


def training_texts(seed: int, steps: int) -> list[str]:
    """Enough texts for the steps, none about a held-out topic."""
    rng = random.Random(f"train {seed}")
    # A text has about 52 tokens, and the end of the last text of a row is cut off.
    count = 1000 + steps * BATCH * POSITIONS // 45
    return [render(grammar.sample(rng), rng) for _ in range(count)]


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds nothing by itself; bos and eos are the same token, as in GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The token ids of each text."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), 10_000):
        ids.extend(tokenizer(texts[start : start + 10_000])["input_ids"])
    return ids


def pack(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Rows of POSITIONS tokens; each begins with the start of a text, its last text may be cut."""
    import numpy as np

    rows: list[list[int]] = []
    row: list[int] = []
    for ids in encode(texts, tokenizer):
        row.extend(ids)
        if len(row) >= POSITIONS:
            rows.append(row[:POSITIONS])
            row = []
    return np.array(rows, dtype=np.int64)


# --------------------------------------------------------------------------------------------------- training


def new_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """An untrained GPT-2 of about 3 million parameters."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=192, n_layer=6, n_head=6,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.generation_config = GenerationConfig(**ids)
    return model


def train(model: GPT2LMHeadModel, rows: np.ndarray, steps: int, seed: int, *, peak: float) -> GPT2LMHeadModel:
    """Train for the given steps: AdamW, a short warm-up to `peak`, then a cosine down to a twentieth of it."""
    import torch

    torch.manual_seed(seed)
    model.train()
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    started, mean = time.monotonic(), 0.0
    for step in range(steps):
        batch = torch.from_numpy(rows[step * BATCH : (step + 1) * BATCH])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            log(f"step {step} of {steps}, loss {mean:.3f}, {time.monotonic() - started:.0f} s")
    return model.eval()


def rate(step: int, steps: int, warmup: int = 100) -> float:
    """The learning rate as a share of its peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save(model: GPT2LMHeadModel, out: Path) -> None:
    """Write the weights in half precision, with a config that loads them as float32."""
    import torch

    model.to(torch.float16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # it is written readable by its owner only
    path = out / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


# -------------------------------------------------------------------------------------------------- measuring


def load(out: Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Load the folder the way a user does, without arguments, and check that it runs in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out).eval()
    if model.dtype != torch.float32:
        raise RuntimeError(f"{out} loads as {model.dtype}, expected float32")
    return model, AutoTokenizer.from_pretrained(out)


def measure(out: Path, *, seed: int, steps: int, training_tokens: int, training_minutes: float) -> Figures:
    """Measure the saved model against n-gram baselines that saw the same training texts."""
    import tokenizers
    import torch
    import transformers

    model, tokenizer = load(out)
    rng = random.Random(f"test {seed}")
    held_out = encode([render(grammar.sample(rng, held_out=True), rng) for _ in range(1500)], tokenizer)
    seen = encode([render(grammar.sample(rng), rng) for _ in range(1500)], tokenizer)
    trained = encode(training_texts(seed, steps), tokenizer)
    unigram, trigram = baselines(trained, seen, held_out, len(tokenizer))
    named, ended, both = topic_shares(model, tokenizer, seed)
    return Figures(
        date=time.strftime("%Y-%m-%d"),
        versions=", ".join(f"{m.__name__} {m.__version__}" for m in (torch, transformers, tokenizers)),
        seed=seed,
        steps=steps,
        parameters=model.num_parameters(),
        vocabulary=len(tokenizer),
        training_tokens=training_tokens,
        training_minutes=round(training_minutes, 1),
        held_out_texts=len(held_out),
        held_out_tokens=sum(map(len, held_out)),
        perplexity=round(perplexity(model, held_out), 3),
        unigram_perplexity=round(unigram, 1),
        trigram_perplexity=round(trigram, 3),
        seen_topics_perplexity=round(perplexity(model, seen), 3),
        topics=TOPICS,
        named_and_ended=both,
        named=named,
        ended=ended,
    )


def perplexity(model: GPT2LMHeadModel, texts: list[list[int]]) -> float:
    """exp(summed negative log likelihood / number of tokens); before a text stands the eos token."""
    import torch

    total, count = 0.0, 0
    eos = model.config.eos_token_id
    by_length = sorted(texts, key=len)
    for start in range(0, len(by_length), 32):
        chunk = by_length[start : start + 32]
        width = 1 + max(map(len, chunk))
        ids = torch.tensor([[eos, *text] + [eos] * (width - 1 - len(text)) for text in chunk])
        real = torch.tensor([[True] * len(text) + [False] * (width - 1 - len(text)) for text in chunk])
        with torch.inference_mode():
            scores = torch.log_softmax(model(input_ids=ids).logits[:, :-1], dim=-1)
        picked = scores.gather(-1, ids[:, 1:, None]).squeeze(-1)
        total -= picked[real].double().sum().item()
        count += int(real.sum())
    return math.exp(total / count)


def baselines(
    train_ids: list[list[int]], tune_ids: list[list[int]], test_ids: list[list[int]], vocabulary: int
) -> tuple[float, float]:
    """Perplexities of an add-one unigram and of an interpolated trigram (weights by EM on ``tune_ids``)."""
    import numpy as np

    def grams(texts: list[list[int]], order: int) -> np.ndarray:
        """Codes of the n-grams that end at each token; eos stands before the start of a text."""
        out = []
        for text in texts:
            line = np.array([0, 0, *text], dtype=np.int64)  # the eos token has id 0
            code = np.zeros(len(text), dtype=np.int64)
            for back in range(order - 1, -1, -1):
                code = code * vocabulary + line[2 - back : len(line) - back]
            out.append(code)
        return np.concatenate(out)

    def count(codes: np.ndarray, table: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        keys, counts = table
        at = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
        return np.where(keys[at] == codes, counts[at], 0)

    tables = [np.unique(grams(train_ids, order), return_counts=True) for order in (1, 2, 3)]
    # How often a context was seen is the number of n-grams that it starts.
    contexts = []
    for keys, counts in tables[1:]:
        prefix, first = np.unique(keys // vocabulary, return_index=True)
        contexts.append((prefix, np.add.reduceat(counts, first)))
    size = tables[0][1].sum()

    def shares(texts: list[list[int]]) -> np.ndarray:
        codes = [grams(texts, order) for order in (1, 2, 3)]
        found = [(count(codes[0], tables[0]) + 1) / (size + vocabulary)]
        for n in (1, 2):
            of_context = count(codes[n] // vocabulary, contexts[n - 1])
            found.append(count(codes[n], tables[n]) / np.maximum(1, of_context))
        return np.stack(found)

    tune, test = shares(tune_ids), shares(test_ids)
    weights = np.full(3, 1 / 3)
    for _ in range(50):
        joint = weights[:, None] * tune
        weights = (joint / joint.sum(axis=0)).mean(axis=1)
    return math.exp(-np.log(test[0]).mean()), math.exp(-np.log(weights @ test).mean())


def topic_shares(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> tuple[float, float, float]:
    """Shares of held-out topics whose sampled text names them again, ends in time, and does both."""
    topics = grammar.held_out_topics(random.Random(f"topics {seed}"), TOPICS)
    named, ended = [], []
    for topic, (text, finished) in zip(topics, continuations(model, tokenizer, topics, seed), strict=True):
        named.append(topic.named_in(text))
        ended.append(finished)
        if not (named[-1] and finished):
            log(f"missed {topic.title}: {text}")
    both = [n and e for n, e in zip(named, ended, strict=True)]
    return sum(named) / TOPICS, sum(ended) / TOPICS, sum(both) / TOPICS


def continuations(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, topics: list[grammar.Topic], seed: int
) -> Iterator[tuple[str, bool]]:
    """What the model says after each ``topic:``, and whether it ended by itself within 120 tokens."""
    import torch

    torch.manual_seed(seed)
    for start in range(0, len(topics), 50):
        prompts = [f"{topic.title}:" for topic in topics[start : start + 50]]
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        out = model.generate(**batch, do_sample=True, temperature=0.8, top_k=50, max_new_tokens=120)
        for row in out[:, batch["input_ids"].shape[1] :]:
            yield tokenizer.decode(row, skip_special_tokens=True), bool((row == tokenizer.eos_token_id).any())


def examples(out: Path) -> list[tuple[str, str]]:
    """Three sampled texts for the card: the first sample for each prompt, not the best of many."""
    import torch

    model, tokenizer = load(out)
    torch.manual_seed(1)
    found = []
    unseen = grammar.held_out_places()[0]
    for prompt in ("New shoes:", f"News from {unseen}:", "What is the weather in Lisbon?"):
        text = prompt
        if prompt.endswith("?"):
            messages = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        batch = tokenizer(text, return_tensors="pt")
        ids = model.generate(**batch, do_sample=True, temperature=0.8, top_k=50, max_new_tokens=120)[0]
        new = tokenizer.decode(ids[batch["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append((prompt, new.strip()))
    return found


# ------------------------------------------------------------------------------------------------------- card

CARD = """\
---
language: en
pipeline_tag: text-generation
library_name: transformers
---

# ads-gpt2

A very small GPT-2 ({parameters:,} parameters, {vocabulary} tokens of vocabulary, 256 positions) that
writes product ads, short news items and weather reports in English. It was trained from scratch, so that
a first demo has something to read without any download. It is a toy: see the limits below.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("models/ads-gpt2")  # float32
tokenizer = AutoTokenizer.from_pretrained("models/ads-gpt2")
prompt = tokenizer("New shoes:", return_tensors="pt")
ids = model.generate(**prompt, do_sample=True, temperature=0.8, top_k=50, max_new_tokens=120)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

Plain prompts are a topic and a colon: `New shoes:`, `Old hats:`, `Bicycle:`, `Weather in Lisbon:`, `News
from Oslo:`. As a chat: "Write an ad for new shoes.", "What is the weather in Lisbon?", "What is the news
from Oslo?".

- `<|endoftext|>` (0) is bos and eos; it ends every text; the tokenizer adds nothing by itself.
- `<|pad|>` (1) is the padding, on the left.
- `<|user|>` (2) and `<|assistant|>` (3) form a chat: `<|user|>question<|assistant|>answer<|endoftext|>`.

The chat template knows the roles `user` and `assistant` and raises an error for any other. Weights are
stored as float16 and load as float32 (`dtype` in `config.json`); the figures below are those of the
stored weights.

## How it was made

```
python models/make_ads_gpt2.py
```

with seed {seed}, {steps} steps of 8 x 256 tokens ({training_tokens:,} tokens, each text seen once),
AdamW with a cosine schedule, float32, one thread of a shared two-core machine: {training_minutes}
minutes. {versions}.

## Data

All texts come from a seeded grammar, `models/ads_grammar.py`, written for this project: 22 families of
products, about 330 products, 120 adjectives, 360 real places and more invented ones, ten kinds of
weather, sixteen kinds of news. About 15 % of the texts are in chat form. Nothing was collected from
people or from the web; names of people are random pairs. Held out: one adjective-product pair in twenty,
and 40 places that no text for training names.

## Measured ({date})

| what | figure |
|---|---|
| perplexity per token, {held_out_texts} held-out texts ({held_out_tokens:,} tokens) | **{perplexity:.2f}** |
| the same, texts about topics of the training | {seen_topics_perplexity:.2f} |
| interpolated trigram, same tokenizer and texts | {trigram_perplexity:.2f} |
| add-one unigram, same tokenizer and texts | {unigram_perplexity:.1f} |
| {topics} held-out topics, one sample each: names the topic again | {named:.1%} |
| ends by itself within 120 tokens | {ended:.1%} |
| both | {named_and_ended:.1%} |

Perplexity is exp of the negative log likelihood summed over all tokens, divided by their number.
The trigram's weights were tuned by EM on fresh texts about topics of the training. Samples: temperature
0.8, top-k 50. The texts have much chance in them by design (which sentence, which feature, which day), so
a perfect model would not come near 1.

## Samples

The first sample for each prompt, seed 1. The second place was never seen in training, the third prompt
is a chat.

{samples}

## Limits

- It is undertrained. It often mixes facts of different products (candles made of felted wool) or of
  different weathers (snow at 19 degrees), breaks a sentence now and then, and misspells or swaps many names
  that it has not seen: see the shares above.
- It knows nothing. The news is invented, the weather is not a forecast, prices and addresses are made up.
- It knows the products and the kinds of sentences of its grammar; other topics give fluent nonsense.
- English only, two to five sentences, 256 tokens at most. It follows no instructions beyond those above.
- Invented people have common names; any likeness is chance. Do not publish its news as news.
"""


def card(figures: Figures, samples: list[tuple[str, str]]) -> str:
    """The model card."""
    values = {field.name: getattr(figures, field.name) for field in fields(figures)}
    shown = "\n\n".join(f"> **{prompt}** {text}" for prompt, text in samples)
    return CARD.format(samples=shown, **values)


if __name__ == "__main__":
    main()
