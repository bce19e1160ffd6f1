"""What writes, reads and measures texts."""

from __future__ import annotations

import broken_models
import tiny_models
from contract import LONG, Kind

TEXTS = (
    {"prompt": "New shoes:", "max_new_tokens": 12},
    {"prompt": "old hats, blue cups & warm coats for", "max_new_tokens": 20},
    {"prompt": "buy", "max_new_tokens": 16, "temperature": 0.9, "top_k": 50, "top_p": 0.95},
    {"prompt": "buy two, pay for one", "max_new_tokens": 9, "temperature": 1.5},
    {"prompt": "for a long winter", "max_new_tokens": 16, "top_p": 0.7, "stop": ["e", "zz"]},
    {"prompt": "a", "max_length": 30, "top_k": 7, "repetition_penalty": 1.4, "min_new_tokens": 5},
    {"prompt": "today! today! today!", "max_new_tokens": 14, "no_repeat_ngram_size": 1},
    {"prompt": "every road; every", "max_new_tokens": 14, "num_beams": 3, "num_return_sequences": 2},
    {"prompt": "hats", "max_new_tokens": 14, "num_beams": 3, "num_return_sequences": 2, "repetition_penalty": 1.3},
    {
        "prompt": "cups",
        "max_new_tokens": 10,
        "num_beams": 2,
        "early_stopping": True,
        "length_penalty": 0.4,
        "stop": "a",
    },
)
WRONG_TEXTS = (
    broken_models.headless,
    broken_models.no_head_weights,
    tiny_models.classifier,
    tiny_models.stable_diffusion,
)
BAD_TEXTS = (
    ({"prompt": "hat " * 200, "max_new_tokens": 5}, "prompt_too_long"),
    ({"prompt": "buy", "max_length": 5000}, "length_unsupported"),
    ({"prompt": "buy", "max_new_tokens": 5000}, "length_unsupported"),
    ({"prompt": "buy", "max_length": 20, "min_new_tokens": 19}, "length_unsupported"),
    ({"prompt": "warm coats for a long winter", "max_length": 3}, "prompt_too_long"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "no_chat_template"),
)

PAIR = {"source_language": "en", "target_language": "de", "max_new_tokens": 10}
BAD_ANSWERS = (
    ({"prompt": "hat " * 200, "max_new_tokens": 5}, "prompt_too_long"),
    ({"prompt": "buy", "max_new_tokens": 5000}, "length_unsupported"),
)
#: more than one pass takes, of several lengths
MANY_TEXTS = [f"{number} pairs of new shoes" + " and a hat" * (number % 5) for number in range(1, 41)]

KINDS = [
    *(
        Kind(
            f"causal-lm {model.__name__}",
            "text-generation",
            "causal_lm:CausalLM",
            model,
            mixed=TEXTS,
            several=({"prompt": "old hats", "max_new_tokens": 12, "temperature": 1.2, "num_return_sequences": 3}, 3),
            bad=BAD_TEXTS,
            wrong=WRONG_TEXTS,
        )
        for model in (tiny_models.gpt2, tiny_models.llama)
    ),
    *(
        Kind(
            f"encoder-decoder {model.__name__}",
            "text-generation",
            "encoder_decoder:EncoderDecoder",
            model,
            mixed=TEXTS,
            several=({"prompt": "old hats", "max_new_tokens": 12, "temperature": 1.2, "num_return_sequences": 3}, 3),
            bad=BAD_ANSWERS if model is tiny_models.bart else BAD_ANSWERS[:1],
            wrong=(tiny_models.gpt2, tiny_models.classifier, tiny_models.stable_diffusion),
        )
        for model in (tiny_models.t5, tiny_models.bart)
    ),
    *(
        Kind(
            f"summarizer {model.__name__}",
            "summarization",
            "summarizer:Summarizer",
            model,
            mixed=(
                {"text": "new shoes for every road", "max_new_tokens": 12},
                {"text": "old hats, blue cups & warm coats for a long winter", "num_beams": 1, "max_new_tokens": 9},
                {"text": "buy two", "max_new_tokens": 14, "min_new_tokens": 6},
                {"text": LONG * 5, "long_text": "truncate", "max_new_tokens": 8},
            ),
            bad=(({"text": LONG * 5}, "prompt_too_long"),),
            wrong=(tiny_models.gpt2, tiny_models.classifier, tiny_models.stable_diffusion),
            wrong_inside=(tiny_models.gpt2,),
        )
        for model in (tiny_models.t5, tiny_models.bart)
    ),
    Kind(
        "translator t5",
        "translation",
        "translator:Translator",
        tiny_models.t5,
        mixed=(
            {"text": "new shoes for every road"} | PAIR,
            {"text": "old hats", "num_beams": 1} | PAIR,
            {"text": "for a long winter", "num_beams": 2, "length_penalty": 0.5} | PAIR,
        ),
        bad=(
            ({"text": LONG * 5} | PAIR, "prompt_too_long"),
            ({"text": "x", "source_language": "en", "target_language": "fr", "max_new_tokens": 9}, "language_unknown"),
        ),
        wrong=(tiny_models.gpt2, tiny_models.classifier, tiny_models.stable_diffusion),
        wrong_inside=(tiny_models.gpt2,),
    ),
    Kind(
        "classifier",
        "text-classification",
        "text_classifier:TextClassifier",
        tiny_models.classifier,
        mixed=(
            {"text": MANY_TEXTS},
            {"text": "new shoes"},
            {"text": ["old hats", "blue cups and warm coats for a long winter"], "top_k": 1},
            {"text": "buy two", "function_to_apply": "sigmoid"},
            {"text": "buy two", "function_to_apply": "none"},
            {"text": LONG * 12, "long_text": "truncate"},
        ),
        bad=(({"text": LONG * 12}, "text_too_long"),),
        wrong=(broken_models.headless, tiny_models.gpt2, tiny_models.stable_diffusion),
    ),
    Kind(
        "nli",
        "zero-shot-classification",
        "zero_shot_classifier:ZeroShotClassifier",
        tiny_models.nli,
        mixed=(
            {"text": MANY_TEXTS, "candidate_labels": ["shoes", "hats"]},
            {"text": "new shoes", "candidate_labels": ["shoes", "hats", "cups"]},
            {"text": ["a", "b"], "candidate_labels": ["shoes"], "multi_label": True},
            {"text": "new", "candidate_labels": ["x", "y"], "hypothesis_template": "{}!"},
        ),
        bad=(({"text": LONG * 12, "candidate_labels": ["x", "y"]}, "text_too_long"),),
        wrong=(tiny_models.classifier, tiny_models.gpt2, tiny_models.stable_diffusion),
    ),
    *(
        Kind(
            f"embedder {model.__name__}",
            "feature-extraction",
            "text_embedder:TextEmbedder",
            model,
            mixed=(
                {"text": MANY_TEXTS},
                {"text": "new shoes", "pooling": "cls"},
                {"text": ["old hats", "blue cups and warm coats for a long winter"], "pooling": "last"},
                {"text": "buy two", "normalize": False, "prefix": "query: "},
                {"text": "buy two", "dimensions": 8, "format": "json"},
                {"text": LONG * 12, "long_text": "truncate"},
            ),
            bad=(({"text": LONG * 12}, "text_too_long"), ({"text": "x", "dimensions": 999}, "param_unsupported")),
            wrong=(tiny_models.stable_diffusion,),
        )
        for model in (tiny_models.classifier, tiny_models.gpt2)
    ),
]
