"""Sound in and out of files: every format, and files that are not what they seem."""

from __future__ import annotations

import io
from pathlib import Path

import input_sounds
import numpy as np
import pytest
import soundfile

from shared.errors import JobFailed
from workers.generators.sound_files import MEDIA_TYPES, facts_of, rate_within, read_sound, write_sound
from workers.inputs.looks import InputFile, Limits, examine

LIMITS = Limits(pixels=10**6, seconds=100.0)


def heard(body: bytes) -> tuple[np.ndarray, int]:
    """A file as another library reads it: (channels, samples) and rate."""
    sound, rate = soundfile.read(io.BytesIO(body), always_2d=True)
    return sound.T, rate


def taken(path: Path, rate: int = 16000) -> np.ndarray:
    """As a worker does it: looked at when it is fetched, then decoded."""
    return read_sound(examine(path, "audio", path.name, LIMITS), rate=rate)


# --- files that are not what they seem ---


@pytest.mark.parametrize("content", [b"", b"\0" * 4000, b"no sound at all\n" * 50, b"RIFF\x24\0\0\0WAVE"])
def test_what_is_no_sound_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(content)

    with pytest.raises(JobFailed) as error:
        taken(path)
    assert (error.value.code, error.value.retryable) == ("input_unreadable", False)


def test_a_picture_called_sound_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "sound.wav"
    Image.new("RGB", (8, 8)).save(path, "PNG")

    with pytest.raises(JobFailed, match=r"sound\.wav is no sound that can be read"):
        taken(path)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_a_sound_without_length_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / "sound"
    soundfile.write(path, np.zeros((0, 1), dtype=np.float32), 16000, format=form)

    with pytest.raises(JobFailed) as error:
        taken(path)
    assert error.value.code == "input_unreadable"


@pytest.mark.parametrize("form", ["WAV", "FLAC", "AIFF"])
def test_a_file_that_breaks_off_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / "sound"
    soundfile.write(path, input_sounds.speech(6, 16000), 16000, format=form)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(JobFailed) as error:
        taken(path)
    assert error.value.code == "input_unreadable"


def test_a_damaged_place_is_passed_over_but_not_a_damaged_file(tmp_path: Path) -> None:
    body = bytearray(write_sound(input_sounds.speech(20, 16000).T, rate=16000, form="mp3"))
    scratched, ruined = tmp_path / "scratched.mp3", tmp_path / "ruined.mp3"
    middle = len(body) // 2
    body[middle : middle + 300] = b"\xff" * 300
    scratched.write_bytes(body)
    rng = np.random.default_rng(1)
    for start in range(2000, len(body) - 400, 800):
        body[start : start + 400] = rng.bytes(400)
    ruined.write_bytes(body)

    assert 19 < taken(scratched).shape[1] / 16000 < 21
    with pytest.raises(JobFailed) as error:
        taken(ruined)
    assert error.value.code == "input_unreadable"


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("sample", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(sample: float, subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    sound = input_sounds.speech(2, 16000)
    sound[20_000] = sample
    soundfile.write(path, sound, 16000, subtype=subtype)

    with pytest.raises(JobFailed, match=r"samples that are not numbers, at 1\.\d s") as error:
        taken(path)
    assert error.value.code == "input_unreadable"


def test_a_file_that_holds_far_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "sound.ogg"
    path.write_bytes(write_sound(np.zeros((1, 90 * 16000), dtype=np.float32), rate=16000, form="ogg"))
    file = InputFile(path, "audio", "audio/*", {"seconds": 0.1})

    with pytest.raises(JobFailed, match=r"far more sound in the file than the 0\.1 s that it claims"):
        read_sound(file, rate=16000)


def test_the_name_of_a_file_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(write_sound(input_sounds.speech(2, 22050).T, rate=22050, form="mp3"))

    assert abs(taken(path).shape[1] - 32000) < 3000


def test_a_playlist_leads_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "sound.m3u8"
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.wav\n")

    with pytest.raises(JobFailed) as error:
        taken(path)
    assert error.value.code == "input_unreadable"


# --- reading ---


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2), (44100, 2), (48000, 6), (96000, 1)])
@pytest.mark.parametrize("wanted", [(16000, 1), (44100, 2)])
def test_sound_is_read_at_the_rate_that_is_wanted(
    rate: int, channels: int, wanted: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "sound.wav"
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate * 2) / rate)
    soundfile.write(path, np.stack([tone] * channels, axis=1), rate)

    sound = read_sound(examine(path, "audio", path.name, LIMITS), rate=wanted[0], channels=wanted[1])

    assert sound.dtype == np.float32
    assert sound.shape[0] == wanted[1]
    assert abs(sound.shape[1] - 2 * wanted[0]) <= 32
    loudest = np.abs(np.fft.rfft(sound[0])).argmax() * wanted[0] / sound.shape[1]
    assert abs(loudest - 440) < 2


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_sound_of_every_depth_is_read(subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    sound = input_sounds.speech(1, 16000)
    soundfile.write(path, sound, 16000, subtype=subtype)

    assert np.abs(taken(path)[0] - sound[:, 0]).max() < (0.01 if subtype == "PCM_U8" else 1e-3)


# --- writing ---


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 96000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form", list(MEDIA_TYPES))
def test_a_file_is_what_its_facts_say(form: str, channels: int, rate: int) -> None:
    sound = input_sounds.speech(1.7, rate, channels).T

    read, read_rate = heard(write_sound(sound, rate=rate, form=form))
    facts = facts_of(sound, rate=rate, form=form)

    assert (facts["sample_rate"], facts["channels"], facts["format"]) == (read_rate, len(read), form)
    assert abs(read.shape[1] / read_rate - facts["seconds"]) < (0.001 if form in ("wav", "flac") else 0.15)
    if form in ("wav", "flac"):
        assert np.abs(read - sound).max() < 2 / 32768


@pytest.mark.parametrize("form", list(MEDIA_TYPES))
def test_each_channel_stays_where_it_is(form: str) -> None:
    sound = np.zeros((2, 48000), dtype=np.float32)
    sound[1] = 0.5 * np.sin(2 * np.pi * 500 * np.arange(48000) / 48000)

    read, _ = heard(write_sound(sound, rate=48000, form=form))

    left, right = np.sqrt((read**2).mean(axis=1))
    assert left < 0.02
    assert 0.3 < right < 0.4


@pytest.mark.parametrize("form", list(MEDIA_TYPES))
def test_a_file_is_the_same_each_time(form: str) -> None:
    sound = input_sounds.speech(1, 24000).T

    assert write_sound(sound, rate=24000, form=form) == write_sound(sound, rate=24000, form=form)


def test_what_is_too_loud_is_clipped() -> None:
    read, _ = heard(write_sound(np.full((1, 16000), 3.0, dtype=np.float32), rate=16000, form="wav"))

    assert read.max() <= 1.0
    assert read.min() > 0.99


@pytest.mark.parametrize(
    ("form", "rate", "kept"),
    [("wav", 96000, 96000), ("mp3", 96000, 48000), ("mp3", 15000, 16000), ("opus", 22050, 24000), ("ogg", 7000, 8000)],
)
def test_rates_that_a_format_does_not_know_become_the_next(form: str, rate: int, kept: int) -> None:
    assert rate_within(form, rate) == kept
