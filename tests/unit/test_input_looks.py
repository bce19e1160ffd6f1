"""Files that are not what they seem: told by their content, before a generator sees them."""

from __future__ import annotations

import struct
import wave
import zlib
from pathlib import Path

import pytest
from PIL import Image

from shared.errors import JobFailed
from workers.inputs.looks import Limits, examine

LIMITS = Limits(pixels=1_000_000, seconds=10.0)


def picture(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: object) -> Path:
    Image.new(mode, size, 0).save(path, **options)
    return path


def sound(path: Path, *, rate: int = 8000, channels: int = 1, seconds: float = 0.5) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\0\0" * channels * int(rate * seconds))
    return path


def bomb(path: Path) -> Path:
    """A PNG of 50,000 by 50,000 in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def refused(path: Path, kind: str, limits: Limits = LIMITS) -> str:
    with pytest.raises(JobFailed) as error:
        examine(path, kind, "file:f1", limits)  # type: ignore[arg-type]
    assert not error.value.retryable
    assert "file:f1" in error.value.message
    return error.value.code


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.png", "RGBA"), ("a.png", "I;16"), ("a.png", "P"), ("a.jpg", "CMYK"), ("a.jpg", "L"),
     ("a.webp", "RGBA"), ("a.gif", "P"), ("a.bmp", "RGB"), ("a.tiff", "RGB")],
)  # fmt: skip
def test_a_picture_of_any_usual_kind_is_taken_and_measured(tmp_path: Path, name: str, mode: str) -> None:
    found = examine(picture(tmp_path / name, mode=mode), "image", "file:f1", LIMITS)

    assert found.facts == {"width": 40, "height": 30}
    assert found.media_type.startswith("image/")


def test_the_name_of_a_file_says_nothing(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png").rename(tmp_path / "content")
    assert examine(path, "image", "file:f1", LIMITS).media_type == "image/png"
    assert refused(sound(tmp_path / "b.wav").rename(tmp_path / "b.png"), "image") == "input_unreadable"


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=r"1,000,000 \(AIGC_INPUT_PIXELS\) that this worker takes") as error:
        examine(bomb(tmp_path / "bomb.png"), "image", "file:f1", LIMITS)
    assert error.value.code == "input_too_big"


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_a_refusal_names_no_file_of_the_workers_own(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(JobFailed) as error:
        examine(path, kind, "file:f1", LIMITS)  # type: ignore[arg-type]
    assert str(tmp_path) not in error.value.message


def test_a_picture_beyond_the_limit_is_refused_with_its_size(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="2000x1000 pixels, and this worker takes 1,000,000"):
        examine(picture(tmp_path / "a.png", (2000, 1000)), "image", "file:f1", LIMITS)


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
@pytest.mark.parametrize(
    "body", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WAVE", b"<svg></svg>", b"%PDF-1.4"]
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, kind: str, body: bytes) -> None:
    path = tmp_path / "content"
    path.write_bytes(body)
    assert refused(path, kind) == "input_unreadable"


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refused(path, "image") == "input_unreadable"


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44_100, 2), (96_000, 2)])
def test_sound_is_measured(tmp_path: Path, rate: int, channels: int) -> None:
    facts = examine(sound(tmp_path / "a.wav", rate=rate, channels=channels), "audio", "file:f1", LIMITS).facts

    assert facts["seconds"] == pytest.approx(0.5, abs=0.01)
    assert (facts["sample_rate"], facts["channels"]) == (rate, channels)


def test_sound_without_length_or_with_too_much_is_refused(tmp_path: Path) -> None:
    assert refused(sound(tmp_path / "a.wav", seconds=0), "audio") == "input_unreadable"
    assert refused(sound(tmp_path / "b.wav", seconds=11), "audio") == "input_too_big"


@pytest.mark.parametrize("body", ["new shoes", "\ufeffneue Schuhe für drei\n"])
def test_a_text_is_taken_and_measured(tmp_path: Path, body: str) -> None:
    path = tmp_path / "content"
    path.write_text(body, encoding="utf-8")
    found = examine(path, "text", "file:f1", LIMITS)

    assert (found.media_type, found.facts) == ("text/plain", {"characters": len(body.lstrip("\ufeff"))})


@pytest.mark.parametrize("body", [b"\xff\xfeh\0i\0", b"gr\xfc\xdfe", b"zero\0bytes", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_text_is_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "content"
    path.write_bytes(body)
    assert refused(path, "text") == "input_unreadable"


def test_a_playlist_leads_nowhere(tmp_path: Path) -> None:
    """What FFmpeg would take for a list of other files, here or on the network."""
    secret = sound(tmp_path / "secret.wav")
    path = tmp_path / "content"
    for body in (f"ffconcat version 1.0\nfile '{secret}'\n", f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n"):
        path.write_text(body)
        assert refused(path, "audio") == "input_unreadable"
        assert refused(path, "video") == "input_unreadable"
