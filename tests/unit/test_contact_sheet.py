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

from producer.contact_sheet import CARDS_MOST, LIVE, ContactSheet, write_contact_sheet
from producer.records import BatchRecord
from shared.errors import RequestError

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{csp}} \u202e\x1b[31m 🙈 &amp;"


class Page(HTMLParser):
    """Tags, attributes and text of a page; not what stands ready for one picture at a time."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        #: what is known about each card beside what it shows
        self.facts: list[dict[str, str]] = []
        self._ready = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._ready = self._ready or tag == "dialog"
        if self._ready and tag != "script":
            return
        self.tags.append((tag, dict(attrs)))
        if facts := dict(attrs).get("data-facts"):
            self.facts.append(dict(json.loads(facts)))

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

    assert {tag for tag, _ in page.tags} - {tag for tag, _ in plain.tags} <= {"img", "a", "code", "option"}
    assert len(page.all("script")) == 1
    assert [image["src"] for image in page.all("img")] == ["./a.png"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "{{csp}}" in page.text
    assert page.facts[0]["id"] == page.facts[0]["model"] == page.facts[0][HOSTILE] == HOSTILE
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
    for text in ("second", '"label": "cat"', "out_of_memory", "does not fit"):
        assert text in page.text
    assert {
        "temperature": "0.8",
        "seed": "7",
        "device time": "0.25 s",
        "file": "s.png · 1.23 kB",
    }.items() <= page.facts[0].items()
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
    assert path.stat().st_size < 6e6
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


def test_a_film_has_its_poster_and_what_stands_beside_it_is_no_picture_of_its_own(tmp_path: Path) -> None:
    film = {**picture("f.mp4", part="video", width=640, height=360, seconds=2.0), "media_type": "video/mp4"}
    still = {**picture("f.jpg", part="poster", width=640, height=360), "media_type": "image/jpeg"}
    small = {**picture("f.webp", part="preview", width=320, height=180), "media_type": "image/webp"}
    bare = {**film, "path": "g.mp4"}

    _, page = sheet(tmp_path, line(1, artifacts=[film, still, small]), line(2, artifacts=[bare]))

    first, second = page.all("video")
    assert (first["src"], first["poster"], first["width"], first["height"]) == ("./f.mp4", "./f.jpg", "640", "360")
    assert "poster" not in second
    assert page.all("img") == []


def test_labels_are_bars_vectors_have_a_name_and_long_json_is_shortened(tmp_path: Path) -> None:
    labels = [{"label": f"label {n}", "score": 0.9 - n / 10} for n in range(9)]
    vector = [n / 7 for n in range(384)]
    html, page = sheet(
        tmp_path,
        line(1, data=labels),
        line(2, data=[labels[:1], labels[1:2]]),
        line(3, data=vector),
        line(4, data=[vector, vector]),
        line(5, artifacts=[{**picture("v.npy", texts=3, dimensions=768), "media_type": "application/x-npy"}]),
        line(6, data={"rows": list(range(1000)), "text": None, "deep": [[[[[[[[[[1]]]]]]]]]], "long": "x" * 9000}),
        line(7, data={"text": "what was heard", "pieces": [{"text": "what"}]}),
        line(8, artifacts=[{**picture("e.png"), "scores": {"bleu": 31.4159, "wer": None}}]),
        line(9, data=[{"label": "no number", "score": float("nan")}, {"label": "large", "score": 12.5}]),
    )

    for text in ("label 0", "0.900", "… and 3 more", "1 vector of 384 numbers", "2 vectors of 384 numbers"):
        assert text in page.text
    for text in ("3 vectors of 768 numbers", "… 1,000 in all", "… (9,000 characters)", "31.42", "nan", "12.500"):
        assert text in page.text
    assert "label 7" not in page.text
    assert [rect["width"] for rect in page.all("rect")[1:3]] == ["90.0", "80.0"]
    assert all(rect["width"] in ("0", "1000.00") or 0 < float(str(rect["width"])) <= 90 for rect in page.all("rect"))
    assert "what was heard" in page.text
    assert len(html) < 60_000


def test_a_grid_shows_on_each_card_what_tells_it_from_the_others_and_the_prompt_once(tmp_path: Path) -> None:
    def cell(n: int, scale: int, steps: int) -> dict[str, Any]:
        params = {"prompt": "a red circle", "guidance_scale": scale, "num_inference_steps": steps, "width": 64}
        return line(n, params=params, seed=n % 2, task="text-to-image", artifacts=[picture(f"{n}.png", width=64)])

    cells = [cell(n, scale, steps) for n, (scale, steps) in enumerate([(3, 10), (3, 20), (5, 10), (5, 20)])]
    html, page = sheet(tmp_path, *cells)

    tags = re.findall(r'<ul class="tags">(.*?)</ul>', html)
    assert [re.findall(r"<b>(.*?)</b><span>(.*?)</span>", tag) for tag in tags] == [
        [("guidance_scale", str(scale)), ("num_inference_steps", str(steps))]
        for scale, steps in [(3, 10), (3, 20), (5, 10), (5, 20)]
    ]
    assert page.text.count("a red circle") == 1
    assert [option["value"] for option in page.all("option")] == ["", "guidance_scale", "num_inference_steps"]


def test_tasks_stand_apart_each_with_what_varies_in_it(tmp_path: Path) -> None:
    html, page = sheet(
        tmp_path,
        line(1, text="x"),
        line(2, task="text-to-image", model="m", artifacts=[picture("a.png", width=64)]),
        line(3, text="y", params={"prompt": "New shoes:", "temperature": 0.5}),
        line(4, text="z", params={"prompt": "Other words", "temperature": 0.5, "top_k": 7}),
    )

    assert re.findall(r"<h2>(.*?) <em>(\d)</em></h2>", html) == [("text-generation", "3"), ("text-to-image", "1")]
    assert [grid["class"] for grid in page.all("div") if "grid" in str(grid.get("class"))] == ["grid reading", "grid"]
    assert html.count('<ul class="tags">') == 3
    assert [option["value"] for option in page.all("option")] == ["", "task", "temperature"]


def test_pictures_of_one_job_have_seeds_of_their_own(tmp_path: Path) -> None:
    _, page = sheet(tmp_path, line(1, artifacts=[picture(f"{n}.png", seed=7 + n) for n in range(2)]))
    _, alone = sheet(tmp_path, line(1, artifacts=[picture("0.png", seed=7)]))

    assert [link["data-seed"] for link in page.all("a")] == ["7", "8"]
    assert "data-seed" not in alone.all("a")[0]


def test_files_that_jobs_read_tell_no_cards_apart(tmp_path: Path) -> None:
    html, _ = sheet(tmp_path, *(line(n, params={"image": f"file:f{n}", "strength": 0.5}) for n in range(3)))

    assert "tags" not in html.partition("<body")[2].partition("<script")[0]


def test_what_has_not_begun_has_no_card_and_is_counted(tmp_path: Path) -> None:
    path = write_contact_sheet(
        tmp_path, batch(5, succeeded=1, running=1, queued=2, waiting=1),
        [line(1, text="x"), line(2, "running"), line(3, "queued"), line(4, "queued"), line(5, "waiting")],
    )  # fmt: skip

    html = path.read_text()
    assert html.count("<article") == 2
    assert "3 jobs have not begun yet" in html


# --- while a batch is followed ---


def told(out: Path, name: str) -> list[Any]:
    """The arguments of the one call that a file of news consists of."""
    text = (out / LIVE / name).read_bytes()
    assert text.isascii()
    call = re.fullmatch(rb"aigcSheet\.(now|cards)\((.*)\)\n", text)
    assert call is not None
    return json.loads(b"[%s]" % call[2])  # type: ignore[no-any-return]


def test_news_are_what_the_page_has_and_only_what_changed_is_written(tmp_path: Path) -> None:
    growing = ContactSheet(batch(300, running=2, queued=298))
    for n in (1, 250):
        growing.add(line(n, "running", params={"prompt": f"{HOSTILE} {n}"}))
    growing.write(tmp_path, live=True)
    now, _ = told(tmp_path, "now.js")
    page = Page((tmp_path / "index.html").read_text())
    assert json.loads(str(page.all("body")[0]["data-versions"])) == now["versions"]
    assert now["versions"].keys() == {"0", "2"}
    assert "'strict-dynamic'; base-uri" in str(page.all("meta")[1]["content"])
    first, second = (tmp_path / LIVE / "0.js", tmp_path / LIVE / "2.js")
    before = (first.stat().st_ino, second.stat().st_ino)

    growing.add(line(250, text=HOSTILE, params={"prompt": f"{HOSTILE} 250"}))
    growing.write(tmp_path, live=True)

    after, _ = told(tmp_path, "now.js")
    assert [after["versions"][n] == now["versions"][n] for n in ("0", "2")] == [True, False]
    assert (first.stat().st_ino == before[0], second.stat().st_ino == before[1]) == (True, False)
    number, _, version, html = told(tmp_path, "2.js")
    assert (number, version) == (2, after["versions"]["2"])
    assert html in (tmp_path / "index.html").read_text()
    assert {tag for tag, _ in Page(html).tags} == {"article", "div", "p", "details", "summary", "bdi", "span"}


def test_once_it_is_done_the_page_stands_alone(tmp_path: Path) -> None:
    growing = ContactSheet(batch(1, succeeded=1))
    growing.add(line(1, text="x"))
    growing.write(tmp_path, live=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", LIVE]

    growing.write(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    page = Page((tmp_path / "index.html").read_text())
    assert "data-live" not in page.all("body")[0]
    assert "strict-dynamic" not in str(page.all("meta")[1]["content"])


def test_a_job_that_was_put_back_loses_its_card(tmp_path: Path) -> None:
    growing = ContactSheet(batch(1, failed=1))
    growing.add(line(1, "failed", error={"code": "x", "message": "y"}))
    assert not growing.succeeded(1)
    growing.add(line(1, "queued"))
    assert growing.write(tmp_path).read_text().count("<article") == 0
