"""The page as a browser has it, opened from the disk: its own script runs under its own policy, and it grows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_contact_sheet import HOSTILE, Page, batch, line, picture

from producer.contact_sheet import LIVE, ContactSheet, write_contact_sheet

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def opened(page: Path, profile: Path, *, after_ms: int = 200) -> Page:
    """The page so long after it was opened, as the browser sees it then."""
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom",
        f"--virtual-time-budget={after_ms}", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return Page(done.stdout)


@pytest.fixture
def growing() -> ContactSheet:
    sheet = ContactSheet(batch(3, running=3))
    sheet.add(line(1, text="the first"))
    return sheet


def test_the_script_runs_and_nothing_of_a_prompt_does(tmp_path: Path) -> None:
    hostile = line(1, params={"prompt": HOSTILE, HOSTILE: HOSTILE}, text=HOSTILE, artifacts=[picture("a.png")])
    sound = {**picture("a.wav"), "media_type": "audio/wav"}
    spoken = line(2, task="text-to-speech", custom_id=HOSTILE, artifacts=[sound])
    page = opened(write_contact_sheet(tmp_path, batch(2), [hostile, spoken]), tmp_path / "profile")

    assert [image.get("src") for image in page.all("img")] == ["./a.png"]
    assert len(page.all("script")) == 1
    assert page.all("audio")[0]["preload"] == "metadata", "the script has seen that it is near"


def test_what_is_new_comes_to_a_page_that_is_open(tmp_path: Path, growing: ContactSheet) -> None:
    page = growing.write(tmp_path, live=True)
    then = page.read_bytes()
    growing.add(line(2, text=HOSTILE))
    growing.add(line(250, task="text-to-image", artifacts=[picture("a.png")]))
    growing.write(tmp_path, live=True)
    page.write_bytes(then)

    found = opened(page, tmp_path / "profile", after_ms=3500)

    assert [card["data-n"] for card in found.all("article")] == ["1", "2", "250"]
    assert "the first" in found.text
    assert "<script>alert(1)</script>" in found.text
    assert [image.get("src") for image in found.all("img")] == ["./a.png"]
    assert [option["value"] for option in found.all("option")][:2] == ["", "task"]


def test_once_the_news_are_gone_the_page_loads_itself_again_and_not_for_ever(
    tmp_path: Path, growing: ContactSheet
) -> None:
    page = growing.write(tmp_path, live=True)
    shutil.rmtree(tmp_path / LIVE)

    found = opened(page, tmp_path / "profile", after_ms=20_000)

    assert "data-live" not in found.all("body")[0]
