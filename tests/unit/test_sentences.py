"""Long texts in sentences, and the sound of sentences in one piece."""

from __future__ import annotations

import numpy as np
import pytest

from workers.generators.sentences import joined, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("New shoes. Old hats! Blue cups? Yes", ["New shoes.", "Old hats!", "Blue cups?", "Yes"]),
        ("Dr. Smith wears No. 7, i.e. a hat. Really!", ["Dr. Smith wears No. 7, i.e. a hat.", "Really!"]),
        ("It costs 3.50 today. Buy.", ["It costs 3.50 today.", "Buy."]),
        ('He said "Go!" Then he went.', ['He said "Go!"', "Then he went."]),
        ("J. R. R. Tolkien wrote. We read…", ["J. R. R. Tolkien wrote.", "We read…"]),
        ("新しい靴。古い帽子！青い？", ["新しい靴。", "古い帽子！", "青い？"]),
        ("A title\n\nA text\nover two lines.", ["A title", "A text over two lines."]),
        ("Schuhe, z. B. neue. Gut.", ["Schuhe, z. B. neue.", "Gut."]),
        ("… — !", []),
        ("  ", []),
    ],
)
def test_texts_are_cut_where_sentences_end(text: str, expected: list[str]) -> None:
    assert sentences(text, most=300) == expected


def test_long_sentences_are_cut_at_commas_then_between_words_and_nothing_is_lost() -> None:
    text = "New shoes for every road, " * 20 + "x" * 100 + " and a hat"

    pieces = sentences(text, most=60)

    assert max(map(len, pieces)) <= 60
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert pieces[0].endswith(",")


def test_sentences_are_joined_without_clicks() -> None:
    rate = 16000
    loud = np.full((1, rate // 2), 0.9, dtype=np.float32)  # begins and ends with a jump

    whole = joined([loud, -loud, loud], rate=rate, pause_s=0.1)

    assert whole.shape == (1, 3 * rate // 2 + 2 * rate // 10)
    assert np.abs(np.diff(whole[0], prepend=0, append=0)).max() < 0.02
    assert np.abs(whole[0, rate // 2 : rate // 2 + rate // 10]).max() == 0
    assert np.abs(joined([loud, -loud], rate=rate, pause_s=0)[0, 1000:7000]).min() == np.float32(0.9)


def test_a_piece_shorter_than_its_fade_is_joined_too() -> None:
    assert joined([np.ones((1, 3), dtype=np.float32)] * 2, rate=48000, pause_s=0).shape == (1, 6)
