"""What judges texts, pictures and recordings."""

from __future__ import annotations

import input_scores
import tiny_models
from contract import Kind
from input_scores import noise, sound, tone, written

TEXTS = ["The cat sat on the mat.", "It rained all day.", ""]
TARGETS = ["The cat is sitting on the mat.", "It rained the whole day.", "Nobody came."]
MANY = [f"{number} pairs of new shoes" + " and a hat" * (number % 5) for number in range(1, 21)]

REAL = [noise(f"real-{number}", number) for number in range(20)]
MADE = [noise(f"made-{number}", 100 + number, spread=200) for number in range(20)]
WIDE = noise("wide", 50, size=(40, 20))
TINY = noise("tiny", 51, size=(8, 8))

SPOKEN = [sound(f"spoken-{number}", tone(200 + 90 * number, seconds=0.5)) for number in range(3)]
NOISY = [
    sound(f"noisy-{number}", tone(200 + 90 * number, seconds=0.5) + 0.05 * tone(3000, seconds=0.5))
    for number in range(3)
]
SHORT = sound("short", tone(200, seconds=0.2))
SILENT = sound("silent", 0 * tone(200, seconds=0.5))

WRONG = (tiny_models.stable_diffusion, tiny_models.t5)

KINDS = [
    Kind(
        "evaluator",
        "evaluate",
        "evaluator:Evaluator",
        None,
        mixed=(
            {"metrics": ["bleu", "chrf", "rouge"], "outputs": TEXTS, "references": TARGETS},
            {"metrics": ["distinct", "self_bleu"], "outputs": MANY, "options": {"self_bleu": {"sample": 5}}},
            {"metrics": ["psnr", "ssim"], "outputs": MADE[:3], "references": REAL[:3]},
            {"metrics": ["snr", "si_sdr"], "outputs": NOISY, "references": SPOKEN},
            {
                "metrics": ["wer", "cer"],
                "outputs": {"lines": written("heard", "the cat sat\nit rained\n")},
                "references": {"text_files": [written("one", "The cat sat."), written("two", "It rained a lot.\n")]},
            },
        ),
        bad=(
            (
                {"metrics": ["bleu"], "outputs": {"lines": written("three", "a\nb\nc")}, "references": TARGETS[:2]},
                "counts_differ",
            ),
            (
                {"metrics": ["wer"], "outputs": ["a"], "references": {"text_files": [written("blank", " \n")]}},
                "reference_empty",
            ),
            ({"metrics": ["wer"], "outputs": ["a"], "references": ["?!"]}, "reference_empty"),
            ({"metrics": ["distinct"], "outputs": ["", " "]}, "texts_empty"),
            ({"metrics": ["self_bleu"], "outputs": ["one", ""]}, "texts_empty"),
            ({"metrics": ["rouge"], "outputs": ["кот"], "references": ["кот сидел"]}, "tokenizer_unfit"),
            ({"metrics": ["ssim"], "outputs": [WIDE], "references": REAL[:1]}, "sizes_differ"),
            ({"metrics": ["ssim"], "outputs": [TINY], "references": [TINY]}, "picture_too_small"),
            ({"metrics": ["psnr"], "outputs": REAL[:2], "references": REAL[:1]}, "counts_differ"),
            ({"metrics": ["snr"], "outputs": [SHORT], "references": SPOKEN[:1]}, "lengths_differ"),
            ({"metrics": ["snr"], "outputs": SPOKEN[:1], "references": [SILENT]}, "reference_empty"),
            ({"metrics": ["fid"], "outputs": MADE, "references": REAL}, "metric_needs_other_model"),
            ({"metrics": ["lpips"], "outputs": MADE, "references": MADE}, "metric_needs_other_model"),
            (
                {"metrics": ["wer"], "outputs": {"recordings": SPOKEN[:1]}, "references": ["a"]},
                "metric_needs_other_model",
            ),
        ),
    ),
    *(
        Kind(
            f"evaluator with {model.__name__}",
            "evaluate",
            "evaluator_language:LanguageEvaluator",
            model,
            mixed=(
                {"metrics": ["perplexity"], "outputs": MANY},
                {"metrics": ["perplexity", "distinct"], "outputs": ["a long winter " * 40, "shoes"]},
                {
                    "metrics": ["perplexity"],
                    "outputs": ["a long winter " * 9, ""],
                    "options": {"perplexity": {"window": 16, "stride": 5}},
                },
            ),
            bad=(
                ({"metrics": ["perplexity"], "outputs": [""]}, "texts_empty"),
                (
                    {"metrics": ["perplexity"], "outputs": ["a"], "options": {"perplexity": {"window": 5000}}},
                    "param_unsupported",
                ),
                ({"metrics": ["fid"], "outputs": MADE, "references": REAL}, "metric_needs_other_model"),
            ),
            wrong=(*WRONG, tiny_models.classifier),
            wrong_inside=(),
        )
        for model in (tiny_models.gpt2, tiny_models.llama)
    ),
    Kind(
        "evaluator with clip",
        "evaluate",
        "evaluator_clip:ClipEvaluator",
        tiny_models.clip,
        mixed=(
            {"metrics": ["clip_score"], "outputs": MADE, "prompts": MANY},
            {"metrics": ["clip_score"], "outputs": [WIDE], "prompts": ["a very long " * 20]},
            {"metrics": ["fid", "kid", "clip_score"], "outputs": MADE[:9], "references": REAL, "prompts": MANY[:9]},
        ),
        bad=(
            ({"metrics": ["clip_score"], "outputs": MADE[:1]}, "prompts_missing"),
            ({"metrics": ["clip_score"], "outputs": MADE[:2], "prompts": ["one"]}, "counts_differ"),
            ({"metrics": ["perplexity"], "outputs": ["a"]}, "metric_needs_other_model"),
        ),
        wrong=(*WRONG, tiny_models.dinov2),
        wrong_inside=(),
    ),
    Kind(
        "evaluator with dinov2",
        "evaluate",
        "evaluator_pictures:PictureEvaluator",
        tiny_models.dinov2,
        mixed=(
            {"metrics": ["fid", "kid"], "outputs": MADE, "references": REAL},
            {"metrics": ["kid"], "outputs": MADE, "references": REAL, "options": {"kid": {"subset_size": 7}}},
            {"metrics": ["fid", "psnr"], "outputs": MADE[:2], "references": REAL[:2]},
        ),
        bad=(
            ({"metrics": ["fid"], "outputs": MADE[:1], "references": REAL}, "too_few_outputs"),
            ({"metrics": ["kid"], "outputs": MADE, "references": REAL[:1]}, "too_few_outputs"),
            (
                {"metrics": ["kid"], "outputs": MADE, "references": REAL, "options": {"kid": {"subset_size": 99}}},
                "too_few_outputs",
            ),
            ({"metrics": ["clip_score"], "outputs": MADE}, "metric_needs_other_model"),
        ),
        wrong=(*WRONG, tiny_models.gpt2),
        wrong_inside=(),
    ),
    Kind(
        "evaluator that hears",
        "evaluate",
        "evaluator_speech:SpeechEvaluator",
        input_scores.hearing,
        mixed=(
            {"metrics": ["wer", "cer"], "outputs": {"recordings": SPOKEN}, "references": TARGETS},
            {"metrics": ["wer"], "outputs": {"recordings": NOISY[:1]}, "references": ["a bad cab"]},
            {"metrics": ["wer"], "outputs": ["new shoes"], "references": ["old shoes"]},
        ),
        bad=(
            (
                {
                    "metrics": ["wer"],
                    "outputs": {"recordings": SPOKEN[:1]},
                    "references": ["a"],
                    "options": {"recognition": {"language": "de"}},
                },
                "param_unsupported",
            ),
            ({"metrics": ["fid"], "outputs": MADE, "references": REAL}, "metric_needs_other_model"),
        ),
        wrong=(*WRONG, tiny_models.gpt2),
        wrong_inside=(),
    ),
    Kind(
        "evaluator with vgg16",
        "evaluate",
        "evaluator_lpips:LpipsEvaluator",
        input_scores.vgg16,
        mixed=(
            {"metrics": ["lpips"], "outputs": MADE[:3], "references": REAL[:3]},
            {"metrics": ["lpips", "ssim"], "outputs": [WIDE], "references": [WIDE]},
        ),
        bad=(
            ({"metrics": ["lpips"], "outputs": [WIDE], "references": REAL[:1]}, "sizes_differ"),
            ({"metrics": ["lpips"], "outputs": [TINY], "references": [TINY]}, "picture_too_small"),
            ({"metrics": ["kid"], "outputs": MADE, "references": REAL}, "metric_needs_other_model"),
        ),
        wrong=(*WRONG, tiny_models.gpt2),
        wrong_inside=(),
    ),
]
