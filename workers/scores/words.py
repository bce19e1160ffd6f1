"""How many words (WER) or letters (CER) of a transcript are wrong; by jiwer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shared.errors import JobFailed
from shared.tasks.evaluate import WordOptions
from workers.scores import Score, Tick, signed
from workers.scores.case import Case


def wer(case: Case, tick: Tick) -> Iterator[Score]:
    """Word error rate: all errors by all words of the references; it can be more than 1."""
    return _rate("wer", case, tick)


def cer(case: Case, tick: Tick) -> Iterator[Score]:
    """Character error rate, spaces included; for languages without spaces between words the one to look at."""
    return _rate("cer", case, tick)


def _rate(name: str, case: Case, tick: Tick) -> Iterator[Score]:
    import jiwer

    told: WordOptions = case.params.told(name)
    plain = [jiwer.ToLowerCase(), jiwer.RemovePunctuation()] if told.normalize == "plain" else []
    tidy = jiwer.Compose([*plain, jiwer.RemoveMultipleSpaces(), jiwer.Strip()])
    units: Any = jiwer.ReduceToListOfListOfWords() if name == "wer" else jiwer.ReduceToListOfListOfChars()
    counted = dict.fromkeys(("hits", "substitutions", "deletions", "insertions"), 0)
    items: list[float | None] = []
    for number, (text, [target]) in enumerate(zip(case.texts, case.targets, strict=True)):
        reference = tidy(target)
        if not reference:
            message = f"{case.compared.call(number)} has no words besides punctuation: there is nothing to compare with"
            raise JobFailed("reference_empty", message)
        found = jiwer.process_words(reference, tidy(text), units, units)
        items.append(found.wer)
        for what in counted:
            counted[what] += getattr(found, what)
        tick()
    wrong = counted["substitutions"] + counted["deletions"] + counted["insertions"]
    total = counted["hits"] + counted["substitutions"] + counted["deletions"]
    signature = signed(unit="words" if name == "wer" else "letters", normalize=told.normalize, over="all_references")
    yield Score(
        name, wrong / total, "lower", "0 = none", "jiwer", signature, len(items), items,
        {**counted, "reference_units": total, "heard_by": case.made.get("heard_by")},
    )  # fmt: skip
