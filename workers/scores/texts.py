"""Texts against references (BLEU, chrF, ROUGE), and how much they differ among themselves (distinct-n, self-BLEU)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from shared.errors import JobFailed
from shared.tasks.evaluate import BleuOptions, ChrfOptions, DistinctOptions, RougeOptions, SelfBleuOptions
from workers.scores import Score, Tick, mean, signed
from workers.scores.case import Case

#: share of letters beyond a–z from which the tokenizer of ROUGE would drop too much of a text
_FOREIGN = 0.1


def bleu(case: Case, tick: Tick) -> Iterator[Score]:
    """BLEU (Papineni et al. 2002) of the whole, which is not the mean of its sentences; those are smoothed alone."""
    told: BleuOptions = case.params.told("bleu")
    whole, each = _bleu(told), _bleu(told, effective_order=True)
    found = whole.corpus_score(case.texts, _streams(case.targets))
    yield Score(
        "bleu", found.score, "higher", "0–100", "sacrebleu", str(whole.get_signature()), len(case.texts),
        _sentences(each, case, tick),
        {"precisions": list(found.precisions), "brevity_penalty": found.bp,
         "output_tokens": found.sys_len, "reference_tokens": found.ref_len},
    )  # fmt: skip


def chrf(case: Case, tick: Tick) -> Iterator[Score]:
    """chrF (Popović 2015), or chrF++ with a word order of 2; of the whole, by its counts."""
    from sacrebleu.metrics import CHRF

    told: ChrfOptions = case.params.told("chrf")
    metric = CHRF(told.char_order, told.word_order, told.beta, told.lowercase)
    found = metric.corpus_score(case.texts, _streams(case.targets))
    signature = str(metric.get_signature())
    yield Score(
        "chrf", found.score, "higher", "0–100", "sacrebleu", signature, len(case.texts), _sentences(metric, case, tick)
    )


def rouge(case: Case, tick: Tick) -> Iterator[Score]:
    """ROUGE (Lin 2004): F-measures, the mean over the texts; of several references the best one counts."""
    from rouge_score.rouge_scorer import RougeScorer

    told: RougeOptions = case.params.told("rouge")
    if told.tokenizer == "ascii":
        _require_ascii(case)
    scorer = RougeScorer(
        list(told.types), use_stemmer=told.stem, tokenizer=_Words() if told.tokenizer == "unicode" else None
    )
    found: list[Any] = []
    for text, references in zip(case.texts, case.targets, strict=True):
        found.append(scorer.score_multi(references, text))
        tick()
    for kind in told.types:
        values = [each[kind] for each in found]
        items = [each.fmeasure for each in values]
        details = {
            "precision": mean([each.precision for each in values]),
            "recall": mean([each.recall for each in values]),
        }
        signature = signed(type=kind, measure="f", stem=told.stem, tokenizer=told.tokenizer, of_references="best")
        yield Score(kind, mean(items), "higher", "0–1", "rouge-score", signature, len(items), items, details)


def distinct(case: Case, tick: Tick) -> Iterator[Score]:
    """Distinct-n (Li et al. 2016): different n-grams among all n-grams of the texts; words are what spaces part."""
    told: DistinctOptions = case.params.told("distinct")
    words = []
    for text in case.texts:
        words.append((text.lower() if told.lowercase else text).split())
        tick()
    for order in told.orders:
        grams = [[tuple(each[at : at + order]) for at in range(len(each) - order + 1)] for each in words]
        total = sum(map(len, grams))
        if not total:
            raise JobFailed("texts_empty", f"no text has {order} words: there is no distinct-{order}")
        different = len({gram for each in grams for gram in each})
        yield Score(
            f"distinct{order}", different / total, "higher", "0–1", "aigc",
            signed(order=order, words="whitespace", lowercase=told.lowercase), len(words),
            [len(set(each)) / len(each) if each else None for each in grams],
            {"ngrams": total, "different": different}, ("it falls as texts get longer: compare like lengths",),
        )  # fmt: skip


def self_bleu(case: Case, tick: Tick) -> Iterator[Score]:
    """Self-BLEU (Zhu et al. 2018): the mean BLEU of each text with all others as references; low = various."""
    told: SelfBleuOptions = case.params.told("self_bleu")
    there = [number for number, text in enumerate(case.texts) if text.strip()]
    if len(there) < 2:
        raise JobFailed("texts_empty", "self_bleu compares texts with each other, and fewer than two are not empty")
    drawn = sorted(random.Random(case.seed).sample(there, told.sample)) if len(there) > told.sample else there
    metric = _bleu(told, effective_order=True)
    items: list[float | None] = [None] * len(case.texts)
    for number in drawn:
        others = [case.texts[other] for other in drawn if other != number]
        items[number] = metric.sentence_score(case.texts[number], others).score
        tick()
    signature = re.sub(r"nrefs:\d+", "nrefs:all_others", str(metric.get_signature()))
    notes = [f"of {len(drawn)} texts drawn by the seed out of {len(there)}"] if len(drawn) < len(there) else []
    if len(there) < len(case.texts):
        notes.append(f"{len(case.texts) - len(there)} empty texts are left out")
    yield Score("self_bleu", mean(items), "lower", "0–100", "sacrebleu", signature, len(drawn), items, notes=notes)


def self_bleu_steps(case: Case) -> int:
    """How many texts it looks at."""
    told: SelfBleuOptions = case.params.told("self_bleu")
    return min(told.sample, sum(1 for text in case.texts if text.strip()))


class _Words:
    """For rouge-score: words of any script."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def _bleu(told: BleuOptions, *, effective_order: bool = False) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(
        tokenize=told.tokenize, smooth_method=told.smooth_method, lowercase=told.lowercase,
        max_ngram_order=told.max_ngram_order, effective_order=effective_order,
    )  # fmt: skip


def _streams(targets: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References as sacrebleu takes them: all first ones, all second ones, …; None where there is none."""
    most = max(map(len, targets))
    return [[each[nth] if nth < len(each) else None for each in targets] for nth in range(most)]


def _sentences(metric: Any, case: Case, tick: Tick) -> list[float]:
    scores = []
    for text, references in zip(case.texts, case.targets, strict=True):
        scores.append(metric.sentence_score(text, references).score)
        tick()
    return scores


def _require_ascii(case: Case) -> None:
    letters = "".join(text for each in case.targets for text in each)
    count = sum(1 for letter in letters if letter.isalpha())
    foreign = sum(1 for letter in letters if letter.isalpha() and not letter.isascii())
    if foreign > _FOREIGN * count:
        raise JobFailed(
            "tokenizer_unfit",
            f"{foreign / count:.0%} of the references' letters are none of a–z, and ROUGE's own tokenizer would drop "
            'them: set options {"rouge": {"tokenizer": "unicode"}}',
        )
