"""Subtitles as players read them."""

from __future__ import annotations

import re

from workers.generators.subtitles import Said, as_srt, as_vtt, in_lines


def test_subrip() -> None:
    assert as_srt([Said(" New shoes ", 0, 1.5), Said("Old\n\nhats", 3599.9996, 36001.25)]) == (
        "1\n00:00:00,000 --> 00:00:01,500\nNew shoes\n\n2\n01:00:00,000 --> 10:00:01,250\nOld\nhats\n"
    )


def test_webvtt_takes_no_text_for_a_tag() -> None:
    text = as_vtt([Said("a <b> & -->", 0.001, 61)])

    assert text == "WEBVTT\n\n00:00:00.001 --> 00:01:01.000\na &lt;b&gt; &amp; --&gt;\n"


def test_nothing_said_is_a_file_without_subtitles() -> None:
    assert as_srt([]) == ""
    assert as_vtt([]) == "WEBVTT\n\n"


def test_words_become_lines_that_fit_under_a_picture() -> None:
    words = [
        Said(f" word{n}", n * 0.3 + (5 if n >= 40 else 0), n * 0.3 + 0.2 + (5 if n >= 40 else 0)) for n in range(60)
    ]

    lines = in_lines(words)

    assert re.findall(r"\d+", " ".join(line.text for line in lines)) == [str(n) for n in range(60)]
    assert all(len(line.text) <= 80 and line.end - line.begin <= 6 for line in lines)
    assert any(line.begin == words[40].begin for line in lines)  # a silence begins another
    assert len(lines) < 20
