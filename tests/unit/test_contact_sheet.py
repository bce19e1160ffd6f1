"""The page: everything of a stranger's is escaped, nothing is fetched from elsewhere, large batches stay usable."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from producer.contact_sheet import CARDS_MOST, write_contact_sheet
from producer.records import BatchRecord
from shared.errors import RequestError

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{csp}} \u202e\x1b[31m 🙈 &amp;"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def line(index: int, status: str = "succeeded", **changes: Any) -> dict[str, Any]:
    return {
        "index": index, "custom_id": f"ad-{index}", "job_id": f"b1-{index}", "status": status,
        "task": "text-generation", "model": "gpt2", "params": {"prompt": "New shoes:", "temperature": 0.8},
        "seed": 7, "metadata": None, "artifacts": [], "error": None, "attempts": 1, "timings": {"device_s": 0.25},
    } | changes  # fmt: skip


def picture(path: str, **facts: Any) -> dict[str, Any]:
    return {"role": "output", "path": path, "media_type": "image/png", "bytes": 1234, "sha256": "0" * 64, **facts}


def batch(total: int, name: str | None = "spring", **counts: int) -> BatchRecord:
    states = dict.fromkeys(("waiting", "queued", "running", "succeeded", "failed", "cancelled"), 0)
    return BatchRecord("b1", name, "done", total, states | counts, 2.5, 0.0, (), 1_700_000_000.0, cancelled=False)


def sheet(out: Path, *lines: dict[str, Any], name: str | None = "spring") -> tuple[str, Page]:
    path = write_contact_sheet(out, batch(len(lines), name, succeeded=len(lines)), lines)
    assert path == out / "index.html"
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def test_what_strangers_wrote_is_text_and_nothing_else(tmp_path: Path) -> None:
    plain_html, plain = sheet(tmp_path, *(line(n, text="x", data={"k": 1}) for n in range(4)))
    everywhere = line(
        1,
        custom_id=HOSTILE,
        model=HOSTILE,
        params={"prompt": HOSTILE, HOSTILE: HOSTILE},
        text=HOSTILE,
        data={HOSTILE: 1},
    )
    spoken = line(2, params={"messages": [{"role": HOSTILE, "content": HOSTILE}]}, text="x", metadata={HOSTILE: 1})
    broken = line(3, "failed", error={"code": HOSTILE, "message": HOSTILE})
    pictured = line(4, params={"prompt": HOSTILE}, artifacts=[picture("a.png", width=HOSTILE, height=HOSTILE)])

    html, page = sheet(tmp_path, everywhere, spoken, broken, pictured, name=HOSTILE)

    assert {tag for tag, _ in page.tags} - {tag for tag, _ in plain.tags} <= {"img", "a", "code"}
    assert len(page.all("script")) == 1
    assert [image["src"] for image in page.all("img")] == ["./a.png"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "{{csp}}" in page.text
    assert "\x1b" not in html
    assert plain_html.count("</script>") == html.count("</script>") == 1


def test_the_policy_allows_the_two_hashes_and_no_address(tmp_path: Path) -> None:
    html, page = sheet(tmp_path, line(1, artifacts=[picture("a.png")]))

    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b.png", "..\\b.png", "", 7, None])
def test_links_lead_nowhere_but_into_the_folder(tmp_path: Path, path: Any) -> None:
    _, page = sheet(tmp_path, line(1, artifacts=[picture(path), {**picture(path), "media_type": "model/x"}]))

    assert page.all("img") == page.all("a") == []


@pytest.mark.parametrize("path", ["javascript:alert(1)", "https://x.example/a.png", "a b#?.png"])
def test_a_path_is_never_an_address(tmp_path: Path, path: str) -> None:
    _, page = sheet(tmp_path, line(1, artifacts=[picture(path)]))

    address = page.all("img")[0]["src"]
    assert address is not None
    assert re.fullmatch(r"\./[A-Za-z0-9%/._-]+", address)


def test_each_kind_of_output_has_its_place(tmp_path: Path) -> None:
    _, page = sheet(
        tmp_path,
        line(1, artifacts=[picture("s.png", width=64, height=48)]),
        line(2, artifacts=[picture("l.png", width=512, height=512), picture("m.png", width=512, height=512)]),
        line(3, artifacts=[{**picture("a.wav"), "media_type": "audio/wav"}]),
        line(4, artifacts=[{**picture("v.mp4"), "media_type": "video/mp4"}]),
        line(5, artifacts=[{**picture("w.safetensors"), "media_type": "application/x-safetensors"}]),
        line(6, text="first", texts=["first", "second"]),
        line(7, data={"label": "cat"}),
        line(8, "failed", error={"code": "out_of_memory", "message": "does not fit"}),
        line(9, "running"),
    )

    small, large, _ = page.all("img")
    assert (small["class"], small["width"], small["height"]) == ("small", "64", "48")
    assert "class" not in large
    assert all(image["loading"] == "lazy" for image in page.all("img"))
    assert [audio["src"] for audio in page.all("audio")] == ["./a.wav"]
    assert [video["src"] for video in page.all("video")] == ["./v.mp4"]
    assert [a["href"] for a in page.all("a")] == ["./s.png", "./l.png", "./m.png", "./w.safetensors"]
    for text in ("second", '"label": "cat"', "out_of_memory", "does not fit", "temperature", "0.25 s", "1.23 kB"):
        assert text in page.text
    cards = page.all("article")
    assert [card["data-status"] for card in cards] == ["succeeded"] * 7 + ["failed", "running"]
    assert "failed" in str(cards[7]["class"])
    chips = [b["data-status"] for b in page.all("button")]
    assert chips == ["", "succeeded", "failed", "running"]


def test_from_a_results_file(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line(n, text="x")) + "\n" for n in range(3)))

    write_contact_sheet(tmp_path, batch(3), tmp_path / "results.jsonl")

    assert (tmp_path / "index.html").read_text().count("<article") == 3
    with pytest.raises(RequestError, match="cannot be read"):
        write_contact_sheet(tmp_path, batch(3), tmp_path / "nothing.jsonl")


def test_five_thousand_pictures_are_quick_and_small(tmp_path: Path) -> None:
    prompt = "a big red circle on a white ground, soft light, studio, 50 mm"
    lines = (
        line(n, params={"prompt": prompt, "num_inference_steps": 20}, artifacts=[picture(f"{n:06}.png", width=512)])
        for n in range(1, 1_000_000)
    )
    began = time.monotonic()

    path = write_contact_sheet(tmp_path, batch(1_000_000), lines)

    assert time.monotonic() - began < 10
    assert path.stat().st_size < 12e6
    assert path.read_text().count("<article") == CARDS_MOST
    assert "995,000 more" in path.read_text()
    assert next(lines)["index"] == CARDS_MOST + 1, "no more is read than is shown"


def test_long_texts_are_cut_on_the_card(tmp_path: Path) -> None:
    html, page = sheet(
        tmp_path, line(1, text="x" * 1_000_000, texts=["x" * 1_000_000] * 64, params={"prompt": "y" * 10**6})
    )

    assert len(html) < 150_000
    assert "more characters" in page.text
    assert "56 more" in page.text


def test_an_empty_batch_and_a_folder_that_is_a_file(tmp_path: Path) -> None:
    _, page = sheet(tmp_path / "new", name=None)
    assert "b1" in page.text

    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written"):
        write_contact_sheet(tmp_path / "file", batch(0), [])
