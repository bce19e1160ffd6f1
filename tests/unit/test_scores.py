"""Scores are the numbers of the papers and their reference implementations, worked out by hand where that can be."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from input_scores import noise, picture, sound, tone, written

from shared.errors import JobFailed
from shared.tasks.evaluate import EvaluateParams
from shared.tasks.inputs import references
from workers.generators import Work
from workers.generators.evaluator import Evaluator
from workers.inputs.looks import Limits, examine
from workers.scores import Score, pictures, sounds, texts, words
from workers.scores.case import Case, case_of
from workers.scores.chart import chart

Measure = Callable[[Case, Callable[[], None]], Iterator[Score]]

#: the example of sacrebleu's own documentation, and what it says of it
DOGS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
DOGS_MEANT = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def work(**said: Any) -> Work:
    params = EvaluateParams.model_validate(said)
    limits = Limits(pixels=10**6, seconds=100.0)
    files = {each.place: examine(Path(each.text), each.kind, each.text, limits) for each in references(params)}
    return Work("job-1", "evaluate", params, seed=3, inputs=files)


def measured(measure: Measure, **said: Any) -> list[Score]:
    return list(measure(case_of(work(**said)), lambda: None))


# --- texts ---


def test_bleu_and_chrf_of_sacrebleus_own_example() -> None:
    said = {"metrics": ["bleu", "chrf"], "outputs": DOGS, "references": DOGS_MEANT}
    [bleu], [chrf] = measured(texts.bleu, **said), measured(texts.chrf, **said)

    assert round(bleu.value or 0, 2) == 48.53
    assert [round(each, 1) for each in bleu.details["precisions"]] == [82.4, 50.0, 45.5, 37.5]
    assert round(bleu.details["brevity_penalty"], 3) == 0.943
    assert bleu.signature.startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert round(chrf.value or 0, 2) == 59.73
    assert chrf.signature.startswith("nrefs:2|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_bleu_of_the_whole_is_not_the_mean_of_its_sentences() -> None:
    [bleu] = measured(texts.bleu, metrics=["bleu"], outputs=DOGS, references=DOGS_MEANT)

    assert bleu.items is not None
    assert bleu.items[0] == pytest.approx(100)
    assert abs(sum(each or 0 for each in bleu.items) / 3 - (bleu.value or 0)) > 0.5


def test_an_empty_output_scores_nothing_and_breaks_nothing() -> None:
    said = {"outputs": ["", DOGS[0]], "references": ["Nobody came.", DOGS[0]]}
    [bleu] = measured(texts.bleu, metrics=["bleu"], **said)
    [chrf] = measured(texts.chrf, metrics=["chrf"], **said)
    found = measured(texts.rouge, metrics=["rouge"], **said)

    assert [score.items[0] for score in (bleu, chrf, *found) if score.items] == [0] * 5
    [nothing] = measured(texts.bleu, metrics=["bleu"], outputs=[""], references=["Nobody came."])
    assert nothing.value == 0


def test_rouge_counts_words_and_common_subsequences() -> None:
    """Six of eight words are among the nine of the reference, five of them in order."""
    one, two, longest = measured(
        texts.rouge,
        metrics=["rouge"],
        outputs=["The quick brown dog jumps on the log."],
        references=["The quick brown fox jumps over the lazy dog"],
    )

    assert (one.metric, two.metric, longest.metric) == ("rouge1", "rouge2", "rougeL")
    assert one.details == {"precision": 6 / 8, "recall": 6 / 9}
    assert one.value == pytest.approx(2 * 6 / (8 + 9))
    assert two.value == pytest.approx(2 * 2 / (7 + 8))
    assert longest.value == pytest.approx(2 * 5 / (8 + 9))


def test_rouge_of_other_scripts_wants_another_tokenizer_and_then_works() -> None:
    said = {"metrics": ["rouge"], "outputs": ["кот сидел"], "references": ["кот сидел дома"]}
    with pytest.raises(JobFailed, match="tokenizer") as error:
        measured(texts.rouge, **said)
    assert error.value.code == "tokenizer_unfit"

    found = measured(texts.rouge, **said, options={"rouge": {"tokenizer": "unicode", "types": ["rouge1"]}})
    assert found[0].value == pytest.approx(2 * 2 / (2 + 3))


def test_distinct_counts_ngrams_over_all_texts() -> None:
    """a b a b, a c: three of six words, and of four pairs (ab, ba, ab, ac) three, are different."""
    one, two = measured(texts.distinct, metrics=["distinct"], outputs=["a b a b", "a c", ""])

    assert (one.value, two.value) == (3 / 6, 3 / 4)
    assert (list(one.items or ()), list(two.items or ())) == ([0.5, 1.0, None], [2 / 3, 1.0, None])


def test_self_bleu_is_high_for_texts_that_repeat_each_other() -> None:
    said = ["the cat sat on the mat", "the cat sat on the mat", "dogs run away very fast", ""]
    [score] = measured(texts.self_bleu, metrics=["self_bleu"], outputs=said)

    assert [each if each is None else round(each) for each in score.items or ()] == [100, 100, 0, None]
    assert score.value == pytest.approx(200 / 3)
    assert (score.n, len(score.notes)) == (3, 1)


def test_self_bleu_draws_by_the_seed() -> None:
    said = {"metrics": ["self_bleu"], "outputs": [f"{n} hats and {n} shoes for {n % 3} days" for n in range(40)]}
    sampled = {**said, "options": {"self_bleu": {"sample": 6}}}
    [one], [other] = measured(texts.self_bleu, **sampled), measured(texts.self_bleu, **sampled)

    assert one == other
    assert one.n == 6
    assert sum(each is not None for each in one.items or ()) == 6
    assert one.notes == ["of 6 texts drawn by the seed out of 40"]


def test_word_errors_are_summed_before_they_are_divided() -> None:
    """Two of six words are left out, and one is too many where there is one: 3 of 7, and not the mean of 1/3 and 1."""
    said = {"outputs": ["The cat sat mat", "Hello there!"], "references": ["the cat sat on the mat", "hello"]}
    [wer] = measured(words.wer, metrics=["wer"], **said)

    assert wer.value == pytest.approx(3 / 7)
    assert list(wer.items or ()) == pytest.approx([1 / 3, 1.0])
    counts = {name: wer.details[name] for name in ("hits", "substitutions", "deletions", "insertions")}
    assert counts == {"hits": 5, "substitutions": 0, "deletions": 2, "insertions": 1}


def test_case_and_punctuation_count_only_where_they_are_to() -> None:
    said = {"outputs": ["Hello, World!"], "references": ["hello world"]}
    [plain] = measured(words.wer, metrics=["wer"], **said)
    [exact] = measured(words.wer, metrics=["wer"], **said, options={"wer": {"normalize": "none"}})
    [letters] = measured(words.cer, metrics=["cer"], outputs=["abd"], references=["abc"])

    assert (plain.value, exact.value, letters.value) == (0, 1, 1 / 3)


def test_nothing_heard_is_every_word_left_out() -> None:
    [wer] = measured(words.wer, metrics=["wer"], outputs=["", "new shoes"], references=["old hats", "new shoes"])

    assert (list(wer.items or ()), wer.value) == ([1.0, 0.0], 0.5)


# --- pictures ---


def test_psnr_and_ssim_of_two_greys() -> None:
    """MSE 100 of 255²; of flat pictures SSIM has its first factor alone, with C1 = (0.01 x 255)²."""
    said = {"outputs": [picture("grey-110", 110)], "references": [picture("grey-100", 100)]}
    [psnr] = measured(pictures.psnr, metrics=["psnr"], **said)
    [ssim] = measured(pictures.ssim, metrics=["ssim"], **said)

    assert psnr.value == pytest.approx(10 * math.log10(255**2 / 100))
    c1 = (0.01 * 255) ** 2
    assert ssim.value == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1))


def test_luma_is_that_of_papers_on_super_resolution() -> None:
    """Y of BT.601 runs from 16 to 235: a difference of 10 becomes one of 10 x 219/255."""
    said = {"outputs": [picture("grey-110", 110)], "references": [picture("grey-100", 100)]}
    [psnr] = measured(pictures.psnr, metrics=["psnr"], **said, options={"psnr": {"channels": "luma"}})

    assert psnr.value == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)), abs=1e-3)


def test_a_border_is_cut_off() -> None:
    shades = np.full((20, 24, 3), 100, dtype=np.uint8)
    framed = shades.copy()
    framed[:2], framed[-2:], framed[:, :2], framed[:, -2:] = 0, 0, 0, 0
    framed[2:-2, 2:-2] += 10
    said = {"outputs": [picture("framed", framed)], "references": [picture("flat", shades)]}
    [psnr] = measured(pictures.psnr, metrics=["psnr"], **said, options={"psnr": {"crop_border": 2}})

    assert psnr.value == pytest.approx(10 * math.log10(255**2 / 100))


def test_pictures_are_compared_as_the_camera_was_held(tmp_path: Path) -> None:
    """One lies on its side, and says so; the other stands."""
    from PIL import ExifTags, Image

    with Image.open(noise("upright", 3, size=(40, 24))) as image:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        image.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
        image.rotate(90, expand=True).save(tmp_path / "silent.png")
        image.save(tmp_path / "standing.png")
    said = {"metrics": ["ssim"], "references": [str(tmp_path / "standing.png")]}

    [score] = measured(pictures.ssim, **said, outputs=[str(tmp_path / "lying.png")])
    assert score.value == pytest.approx(1)
    with pytest.raises(JobFailed, match=r"has 24x40 pixels and .* 40x24"):
        measured(pictures.ssim, **said, outputs=[str(tmp_path / "silent.png")])


@pytest.mark.parametrize("mode", ["I;16", "CMYK", "LA", "P", "1"])
def test_pictures_of_any_mode_are_compared_in_eight_bits_of_rgb(tmp_path: Path, mode: str) -> None:
    from PIL import Image

    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    shade = 40_000 if mode == "I;16" else 1 if mode == "1" else 0
    Image.new(mode, (16, 16), shade if mode != "LA" else (0, 255)).save(path)
    said = {"outputs": [str(path)], "references": [picture("white", 250, (16, 16))]}
    [score] = measured(pictures.psnr, metrics=["psnr"], **said)

    assert score.value is not None
    assert math.isfinite(score.value)


def test_equal_pictures_are_no_infinite_mean() -> None:
    same, other = noise("same", 1), noise("other", 2)
    said = {"outputs": [same, other], "references": [same, same]}
    [psnr], [ssim] = (
        measured(pictures.psnr, metrics=["psnr"], **said),
        measured(pictures.ssim, metrics=["ssim"], **said),
    )

    assert (psnr.n, psnr.items[0] if psnr.items else 0, psnr.details["equal"]) == (1, None, 1)
    assert psnr.value is not None
    assert math.isfinite(psnr.value)
    assert (ssim.items or ())[0] == pytest.approx(1)
    [alone] = measured(pictures.psnr, metrics=["psnr"], outputs=[same], references=[same])
    assert alone.value is None
    assert "infinite" in alone.notes[0]


# --- recordings ---


def test_snr_is_the_energy_of_the_reference_by_that_of_the_rest() -> None:
    """A tenth of the amplitude is missing: 20 dB; to SI-SDR a quieter copy is no worse."""
    said = {"outputs": [sound("quiet", 0.9 * tone(440))], "references": [sound("loud", tone(440))]}
    [snr] = measured(sounds.snr, metrics=["snr"], **said)
    [si_sdr] = measured(sounds.si_sdr, metrics=["si_sdr"], **said)

    assert snr.value == pytest.approx(20, abs=0.02)
    assert (si_sdr.value or 0) > 60


def test_si_sdr_is_the_energy_of_what_is_alike_by_that_of_the_rest() -> None:
    """Noise of a tenth of the amplitude, at a right angle to the signal, on half of it."""
    mixed = 0.5 * (tone(440) + 0.1 * tone(440, phase=math.pi / 2))
    said = {"outputs": [sound("mixed", mixed)], "references": [sound("pure", tone(440))]}
    [si_sdr] = measured(sounds.si_sdr, metrics=["si_sdr"], **said)

    assert si_sdr.value == pytest.approx(20, abs=0.02)


def test_recordings_are_compared_at_the_rate_of_the_reference() -> None:
    said = {
        "outputs": [sound("high", np.stack([tone(440, rate=48_000)] * 2), 48_000)],
        "references": [sound("low", tone(440, rate=16_000))],
    }
    [snr] = measured(sounds.snr, metrics=["snr"], **said)

    assert (snr.value or 0) > 25


def test_equal_recordings_are_no_infinite_mean() -> None:
    same, other = sound("one", tone(440)), sound("another", 0.9 * tone(440))
    [snr] = measured(sounds.snr, metrics=["snr"], outputs=[same, other], references=[same, same])

    assert (snr.n, (snr.items or ())[0]) == (1, None)
    assert snr.value == pytest.approx(20, abs=0.02)


# --- what is read ---


def test_a_line_is_a_text_and_a_file_is_one(tmp_path: Path) -> None:
    whole = written("whole", "\ufeffone\ntwo\n")
    lines = case_of(work(metrics=["distinct"], outputs={"lines": whole}))
    files = case_of(work(metrics=["distinct"], outputs={"text_files": [whole, whole]}))

    separated = case_of(work(metrics=["distinct"], outputs={"lines": written("odd", "a\u2028b\r\n\nc\n")}))

    assert lines.texts == ["one", "two"]
    assert separated.texts == ["a\u2028b", "", "c"]
    assert files.texts == ["one\ntwo"] * 2


# --- the files of a job ---


class Steps:
    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []

    def step(self, job_ids: Any, done: int, total: int) -> None:
        self.done.append((done, total))

    def wanted(self, job_id: str) -> bool:
        return True


def evaluated(**said: Any) -> tuple[dict[str, Any], Any, Steps]:
    run = Steps()
    [outcome] = Evaluator.load(None, None).generate([work(**said)], run)  # type: ignore[arg-type]
    table, plot = outcome.outputs  # type: ignore[union-attr]
    return json.loads(table.body), (table, plot), run


def test_the_table_says_all_that_a_value_depends_on() -> None:
    table, (output, plot), run = evaluated(
        metrics=["psnr", "ssim"], outputs=[noise("a", 1), noise("b", 2)], references=[noise("c", 3), noise("d", 4)]
    )
    [psnr, ssim] = table["scores"]

    for score in (psnr, ssim):
        assert score["library"] == "scikit-image"
        assert score["version"].count(".") >= 1
        assert score["n"] == 2
        assert "channels:RGB" in score["signature"]
        values = [row[score["metric"]] for row in table["items"]]
        assert score["value"] == pytest.approx(sum(values) / 2, abs=1e-7)
    assert [Path(row["output"]).name for row in table["items"]] == ["a.png", "b.png"]
    assert output.facts == {
        "outputs": 2, "references": 2, "scores": {"psnr": psnr["value"], "ssim": ssim["value"]},
    }  # fmt: skip
    assert run.done == [(step, 4) for step in (1, 2, 3, 4)]
    assert plot.facts["plot"]


def test_the_plot_says_the_numbers_of_the_table() -> None:
    def plot(value: float) -> bytes:
        return chart([Score("fid", value, "lower", "0 = none", "numpy", "", 2)])

    assert plot(-4e-10) == plot(0.0)
    assert plot(0.5) != plot(0.0)


def test_the_plot_is_a_picture_with_a_row_for_each_score() -> None:
    import io

    from PIL import Image

    _, (_, plot), _ = evaluated(metrics=["bleu", "chrf", "rouge"], outputs=DOGS, references=DOGS_MEANT)
    with Image.open(io.BytesIO(plot.body())) as image:
        assert (image.format, image.size) == ("PNG", (plot.facts["width"], plot.facts["height"]))
        rows = np.asarray(image.convert("L")).reshape(5, -1, image.width)
    assert all(row.min() < 100 for row in rows)


def test_what_needs_no_model_needs_no_torch() -> None:
    code = (
        "import json, sys; from workers.generators.evaluator import Evaluator; "
        "from workers.scores import pictures, texts, words; import sacrebleu, jiwer, rouge_score.rouge_scorer; "
        "import skimage.metrics; print(json.dumps([m for m in ('torch', 'transformers') if m in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []


def test_a_job_that_nobody_wants_any_more_ends_between_two_outputs() -> None:
    class Cancelled(Steps):
        def wanted(self, job_id: str) -> bool:
            return len(self.done) < 2

    run = Cancelled()
    job = work(metrics=["bleu"], outputs=DOGS * 3, references=DOGS_MEANT * 3)
    assert list(Evaluator.load(None, None).generate([job], run)) == []  # type: ignore[arg-type]
    assert run.done == [(1, 9), (2, 9)]
