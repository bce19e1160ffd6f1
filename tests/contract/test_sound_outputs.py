"""What the tasks of sound make, opened by another library and compared with what is said of it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import input_sounds
import numpy as np
import pyloudnorm
import pytest
import soundfile
import tiny_models
from contract import CPU, FakeRun, Kind, bodies, facts, files_of, run_all, text_of, work
from kinds.sounds import KINDS, MUSIC, NOISE, SOUNDS, TEXT

from shared.errors import ModelRejected
from shared.tasks import all_tasks
from workers.generators import Done, Failed, Generator, Outcome

Load = Callable[..., Generator]
MADE = [kind for kind in KINDS if kind.task != "automatic-speech-recognition"]
NAMES = {kind.name: kind for kind in KINDS}


def of(name: str, load: Load) -> Callable[..., Outcome]:
    """Run one job of a kind: `ask(seed=1, prompt=…)`."""
    kind: Kind = NAMES[name]
    loaded = load(kind.generator(), kind.model)

    def ask(*, seed: int = 1, **params: Any) -> Outcome:
        return run_all(loaded, [work(kind, params, seed=seed)])["job-0"]

    return ask


def heard(outcome: Outcome, index: int = 0) -> tuple[np.ndarray, int]:
    """(channels, samples) and rate, as another library reads them."""
    sound, rate = soundfile.read(io.BytesIO(bodies(outcome)[index]), always_2d=True)
    return sound.T, rate


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in MADE])
def test_every_file_is_what_its_facts_say(kind: Kind, load: Load) -> None:
    loaded = load(kind.generator(), kind.model)
    jobs = [work(kind, params, number) for number, params in enumerate(kind.mixed)]

    for job, outcome in zip(jobs, run_all(loaded, jobs).values(), strict=False):
        assert isinstance(outcome, Done)
        for index, output in enumerate(outcome.outputs):
            sound, rate = heard(outcome, index)
            said = output.facts
            assert (said["sample_rate"], said["channels"]) == (rate, len(sound)), job
            assert abs(sound.shape[1] / rate - said["seconds"]) < 0.15
            assert np.abs(sound).max() > 0
            info = soundfile.info(io.BytesIO(bodies(outcome)[index]))
            container = {"wav": "WAV", "flac": "FLAC", "mp3": "MPEG", "ogg": "OGG", "opus": "OGG"}[said["format"]]
            assert info.format.startswith(container) or (said["format"] == "mp3" and info.format == "MP3")


# --- text-to-speech ---


def test_a_sentence_sounds_the_same_whatever_follows_it(load: Load) -> None:
    ask = of("voice vits", load)

    one, rate = heard(ask(text="New shoes."))
    both, _ = heard(ask(text="New shoes. Old hats.", pause_s=0.5))

    assert np.abs(both[:, : one.shape[1]] - one).max() < 1e-3
    pause = both[0, one.shape[1] : one.shape[1] + rate // 2]
    assert np.abs(pause).max() == 0


def test_long_texts_have_no_clicks_where_they_were_cut(load: Load) -> None:
    ask = of("voice vits", load)

    outcome = ask(text=" ".join([TEXT] * 3), pause_s=0.1)
    [sound], rate = heard(outcome)

    silent = np.flatnonzero(np.abs(sound) > 0)
    ends = silent[np.flatnonzero(np.diff(silent) > rate * 0.09)]
    assert facts(outcome)["sentences"] == 9
    assert len(ends) == 8
    for end in ends:
        assert abs(sound[end]) < 0.01


def test_another_seed_speaker_and_speed_sound_different(load: Load) -> None:
    ask = of("voice vits", load)

    first, faster = facts(ask(text=TEXT)), facts(ask(text=TEXT, speed=2))

    made = {bodies(ask(text=TEXT, **params))[0] for params in ({}, {"seed": 2}, {"speaker": 1}, {"speaker": 2})}
    assert len(made) == 4
    assert 0.4 < faster["seconds"] / first["seconds"] < 0.75
    assert bodies(ask(text=TEXT)) == bodies(ask(text=TEXT, speaker=0, speed=1))


def test_fastspeech_speaks_slower_and_with_another_voice(load: Load) -> None:
    ask = of("voice fastspeech2", load)

    assert facts(ask(text=TEXT, speed=0.5))["seconds"] > 1.5 * facts(ask(text=TEXT))["seconds"]
    assert bodies(ask(text=TEXT, speaker=1)) != bodies(ask(text=TEXT))
    assert bodies(ask(text=TEXT, speaker=0)) == bodies(ask(text=TEXT))


def test_an_x_vector_is_another_voice(load: Load) -> None:
    ask = of("voice speecht5", load)

    assert bodies(ask(text="Buy two.")) != bodies(ask(text="Buy two.", speaker_embedding=SOUNDS["voice"]))


def test_a_speecht5_without_a_voice_asks_for_one_and_without_a_vocoder_is_refused(root: Path, tmp_path: Path) -> None:
    import shutil

    mute, dumb = tmp_path / "mute", tmp_path / "dumb"
    for folder in (mute, dumb):
        shutil.copytree(tiny_models.speecht5(root), folder)
    (mute / "speaker.npy").unlink()
    shutil.rmtree(dumb / "vocoder")
    kind = NAMES["voice speecht5"]
    loaded = kind.generator().load(files_of(lambda _: mute, root), CPU)

    outcome = run_all(loaded, [work(kind, {"text": "Buy two."})])["job-0"]
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "speaker_missing"
    given = work(kind, {"text": "Buy two.", "speaker_embedding": SOUNDS["voice"]})
    assert isinstance(run_all(loaded, [given])["job-0"], Done)
    with pytest.raises(ModelRejected, match="vocoder"):
        kind.generator().load(files_of(lambda _: dumb, root), CPU)


def test_barks_voices_are_read_from_the_model_only(load: Load) -> None:
    ask = of("voice bark", load)

    assert bodies(ask(text="Buy two.", speaker="v2/en_speaker_0")) != bodies(ask(text="Buy two."))


# --- text-to-audio ---


@pytest.mark.parametrize(
    ("name", "channels", "rate"),
    [
        ("composer musicgen", 1, 16000),
        ("composer musicgen_stereo", 2, 16000),
        ("composer musicgen_melody", 1, 16000),
        ("noises stable_audio", 2, 8000),
        ("noises audioldm2", 1, 16000),
    ],
)
def test_pieces_have_the_seconds_and_channels_of_the_model(name: str, channels: int, rate: int, load: Load) -> None:
    about = MUSIC if name.startswith("composer") else NOISE
    outcome = of(name, load)(**about | {"prompt": "rain", "seconds": 0.77})
    sound, read_rate = heard(outcome)

    assert (len(sound), read_rate) == (channels, rate)
    assert abs(sound.shape[1] - 0.77 * rate) <= 1
    if channels == 2:
        assert np.abs(sound[0] - sound[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["composer musicgen", "noises stable_audio", "noises audioldm2"])
def test_pieces_of_one_form_share_a_pass(name: str, load: Load) -> None:
    kind = NAMES[name]
    loaded = load(kind.generator(), kind.model)
    about = {"prompt": "rain"} | (MUSIC if name.startswith("composer") else NOISE)
    jobs = [work(kind, about, number) for number in range(3)]
    alone, together = FakeRun(), FakeRun()

    run_all(loaded, jobs[:1], run=alone)
    run_all(loaded, jobs, run=together)

    assert len(together.steps) == len(alone.steps)
    assert together.steps[0][0] == ("job-0", "job-1", "job-2")
    assert len(loaded.cut([work(kind, about | {"num_waveforms": 3}, number) for number in range(4)], 6)) == 2


def test_guidance_and_temperature_change_the_music(load: Load) -> None:
    ask = of("composer musicgen", load)
    about = MUSIC | {"prompt": "a calm piano"}

    made = {bodies(ask(**about | more))[0] for more in ({}, {"guidance_scale": 9}, {"temperature": 0.3}, {"seed": 2})}

    assert len(made) == 4
    assert bodies(ask(**about)) == bodies(ask(**about | {"guidance_scale": 3, "temperature": 1}))


# --- audio-to-audio ---


def test_noise_is_taken_down_and_the_voice_stays(load: Load) -> None:
    seconds, rate = 6, 44100
    [sound], read_rate = heard(of("cleaner", load)(audio=SOUNDS["noisy"], denoise_db=20))
    clean = input_sounds.speech(seconds, rate)[:, 0]
    noisy, _ = soundfile.read(SOUNDS["noisy"])

    assert read_rate == rate
    assert abs(len(sound) - len(noisy)) <= rate * 0.05
    late = slice(2 * rate, 5 * rate)  # when the noise is known
    error_before, error_after = (np.mean((each[late] - clean[late]) ** 2) for each in (noisy, sound))
    assert 10 * np.log10(error_before / error_after) > 5
    assert np.corrcoef(sound[late], clean[late])[0, 1] > 0.99


@pytest.mark.parametrize("target", [-23.0, -16.0])
@pytest.mark.parametrize("name", ["short", "stereo", "music", "long"])
def test_loudness_is_what_another_meter_says(name: str, target: float, load: Load) -> None:
    outcome = of("cleaner", load)(audio=SOUNDS[name], loudness_lufs=target, peak_dbtp=0)
    sound, rate = heard(outcome)
    said = facts(outcome)

    measured = pyloudnorm.Meter(rate).integrated_loudness(sound.T)
    assert abs(measured - said["loudness_lufs"]) < 0.3
    assert said["loudness_lufs"] == pytest.approx(target, abs=0.11) or said["peak_dbtp"] == pytest.approx(0, abs=0.02)


def test_peaks_hold_the_gain_back(load: Load) -> None:
    outcome = of("cleaner", load)(audio=SOUNDS["short"], loudness_lufs=-5)
    sound, _ = heard(outcome)
    said = facts(outcome)

    assert said["peak_dbtp"] == pytest.approx(-1, abs=0.02)
    assert said["loudness_lufs"] < -6
    assert 10 ** (-3 / 20) < np.abs(sound).max() <= 10 ** (-1 / 20) + 0.001


def test_resampling_lets_nothing_fold_back(tmp_path: Path, load: Load) -> None:
    rate = 96000
    at = np.arange(rate) / rate
    path = tmp_path / "tones.wav"
    soundfile.write(path, 0.4 * np.sin(2 * np.pi * 1000 * at) + 0.4 * np.sin(2 * np.pi * 15000 * at), rate)

    [sound], new = heard(of("cleaner", load)(audio=str(path), sample_rate=16000))

    spectrum = np.abs(np.fft.rfft(sound[2000:14000] * np.hanning(12000)))
    hertz = np.fft.rfftfreq(12000, 1 / new)
    tone = spectrum[np.abs(hertz - 1000) < 20].max()
    assert new == 16000
    assert spectrum[hertz > 1200].max() < tone / 1000


def test_nothing_asked_for_is_another_format(load: Load) -> None:
    sound, rate = heard(of("cleaner", load)(audio=SOUNDS["stereo"], format="wav"))
    before, _ = soundfile.read(SOUNDS["stereo"], always_2d=True)

    assert rate == 44100
    assert np.abs(sound.T - before).max() < 2 / 32768


# --- automatic-speech-recognition ---


@pytest.mark.parametrize("name", ["recogniser whisper", "recogniser wav2vec2"])
def test_subtitles_follow_each_other_within_the_recording(name: str, load: Load) -> None:
    ask = of(name, load)
    clock = r"(\d\d):(\d\d):(\d\d)[,.](\d\d\d)"

    for form in ("srt", "vtt"):
        outcome = ask(audio=SOUNDS["long"], format=form)
        times = re.findall(rf"^{clock} --> {clock}$", text_of(outcome), re.MULTILINE)
        spans = [(seconds(*time[:4]), seconds(*time[4:])) for time in times]
        assert len(spans) == facts(outcome)["pieces"] > 0
        assert all(0 <= begin <= end <= 65.01 for begin, end in spans)
        assert [begin for begin, _ in spans] == sorted(begin for begin, _ in spans)


def seconds(hours: str, minutes: str, whole: str, thousandths: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + int(whole) + int(thousandths) / 1000


@pytest.mark.parametrize("name", ["recogniser whisper", "recogniser wav2vec2"])
def test_the_pieces_of_a_text_are_the_text(name: str, load: Load) -> None:
    data = json.loads(text_of(of(name, load)(audio=SOUNDS["stereo"], format="json", timestamps="word")))

    assert data["seconds"] == pytest.approx(3.2, abs=0.01)
    assert "".join(piece["text"] for piece in data["pieces"]).replace(" ", "") == data["text"].replace(" ", "")
    assert all(0 <= piece["begin_s"] <= piece["end_s"] <= 3.2 for piece in data["pieces"])


def test_a_format_without_room_for_timestamps_is_refused() -> None:
    with pytest.raises(ValueError, match="a text has no place for timestamps"):
        all_tasks()["automatic-speech-recognition"].params(audio="x.wav", timestamps="word")


def test_windows_of_several_recordings_share_a_pass(load: Load) -> None:
    kind = NAMES["recogniser whisper"]
    loaded = load(kind.generator(), kind.model)
    jobs = [work(kind, {"audio": SOUNDS[name]}, number) for number, name in enumerate(("short", "long", "music"))]
    passes: list[int] = []
    hook = loaded._model.model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    try:
        together = run_all(loaded, jobs)
    finally:
        hook.remove()

    windows = 1 + 3 + 1
    assert set(passes) == {windows}
    assert {id_: text_of(outcome) for id_, outcome in together.items()} == {
        job.job_id: text_of(run_all(loaded, [job])[job.job_id]) for job in jobs
    }


def test_times_of_words_leave_the_model_as_it_was(load: Load) -> None:
    ask = of("recogniser whisper", load)
    before = text_of(ask(audio=SOUNDS["long"]))

    ask(audio=SOUNDS["short"], format="json", timestamps="word")
    kind = NAMES["recogniser whisper"]

    assert load(kind.generator(), kind.model)._model.config._attn_implementation != "eager"
    assert text_of(ask(audio=SOUNDS["long"])) == before


@pytest.mark.parametrize("name", ["recogniser whisper", "recogniser wav2vec2"])
def test_a_recording_that_breaks_off_fails_alone(name: str, tmp_path: Path, load: Load) -> None:
    kind = NAMES[name]
    path = tmp_path / "broken.flac"
    soundfile.write(path, input_sounds.speech(8, 16000), 16000)
    path.write_bytes(path.read_bytes()[:-20000])
    loaded = load(kind.generator(), kind.model)
    jobs = [work(kind, {"audio": source}, number) for number, source in enumerate((SOUNDS["short"], str(path)))]

    outcomes = run_all(loaded, jobs)

    assert isinstance(outcomes["job-0"], Done)
    assert isinstance(outcomes["job-1"], Failed)
    assert outcomes["job-1"].error.code == "input_unreadable"


def test_a_pass_that_does_not_fit_is_run_in_halves(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = NAMES["recogniser whisper"]
    loaded = load(kind.generator(), kind.model)
    expected = text_of(run_all(loaded, [work(kind, {"audio": SOUNDS["long"]})])["job-0"])
    forward, sizes = loaded._pipe.forward, []

    def narrow(inputs: dict[str, Any], **told: Any) -> Any:
        sizes.append(len(inputs["input_features"]))
        if sizes[-1] > 1:
            raise RuntimeError("CUDA out of memory")
        return forward(inputs, **told)

    monkeypatch.setattr(loaded._pipe, "forward", narrow)
    monkeypatch.setattr(loaded, "_fits", loaded._fits)

    assert text_of(run_all(loaded, [work(kind, {"audio": SOUNDS["long"]})])["job-0"]) == expected
    assert sizes == [3, 2, 1, 1, 1]


def test_a_piece_that_does_not_fit_is_made_in_halves(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = NAMES["composer musicgen"]
    loaded = load(kind.generator(), kind.model)
    params = MUSIC | {"prompt": "rain", "num_waveforms": 3}
    expected = bodies(run_all(loaded, [work(kind, params)])["job-0"])
    made, sizes = loaded.made, []

    def narrow(pieces: Any, say: Any) -> Any:
        sizes.append(len(pieces))
        if sizes[-1] > 1:
            raise RuntimeError("CUDA out of memory")
        return made(pieces, say)

    monkeypatch.setattr(loaded, "made", narrow)
    monkeypatch.setattr(loaded, "_fits", None)

    found = bodies(run_all(loaded, [work(kind, params)])["job-0"])
    assert sizes == [3, 2, 1, 1, 1]
    for one, other in zip(found, expected, strict=True):
        a, b = (soundfile.read(io.BytesIO(body))[0] for body in (one, other))
        assert np.abs(a - b).max() < 1e-3
