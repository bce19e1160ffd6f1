"""A page to look through the results of a batch: `index.html` beside the files, complete in itself and offline.

Prompts, ids and outputs come from strangers. All of it is escaped, links lead only to files of the same folder, and the
page's own policy (CSP) allows the one script and the one style of the template, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from producer.local_files import explained, replacing
from producer.records import BatchRecord

#: jobs on the page; a browser gets slow with more
CARDS_MOST = 5000
#: characters of one text on a card
TEXT_MOST = 6000
#: texts of one job on its card
MANY = 8
#: pictures narrower than this are enlarged pixel by pixel
SMALL_PX = 200

_PICTURES = {"image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "image/avif"}
_STATES = ("succeeded", "failed", "cancelled", "running", "queued", "waiting")
_SHOWN_ELSEWHERE = {"prompt", "messages"}
_FIXED_FACTS = {"role", "path", "problem", "media_type", "bytes", "sha256"}

Line = Mapping[str, Any]


def write_contact_sheet(out: Path, batch: BatchRecord, lines: Iterable[Line] | Path) -> Path:
    """Write `out/index.html` from the lines of a batch, or from its `results.jsonl`; returns its path.

    The page shows the first 5,000 jobs and says so if there are more. It refers to the media files by the `path` of the
    lines, relative to `out`. Raises `RequestError` if it cannot be written, `Unavailable` if the disk is full.
    """
    sheet = ContactSheet(batch)
    for line in _read(lines) if isinstance(lines, Path) else lines:
        sheet.add(line)
        if sheet.full:
            break
    return sheet.write(out)


class ContactSheet:
    """The page while it grows, line by line; memory is bounded, however many lines come."""

    def __init__(self, batch: BatchRecord) -> None:
        self._batch = batch
        self._cards: list[str] = []
        self._models: set[str] = set()
        self._counts = dict.fromkeys(_STATES, 0)
        self._texts = 0

    @property
    def full(self) -> bool:
        """Whether it takes no more cards."""
        return len(self._cards) >= CARDS_MOST

    def add(self, line: Line) -> None:
        """Another job, in order; left out once the page is full."""
        if self.full:
            return
        self._cards.append(_card(line))
        self._counts[_state(line)] += 1
        self._texts += "text" in line or "data" in line or "messages" in (line.get("params") or {})
        if line.get("model"):
            self._models.add(str(line["model"]))

    def write(self, out: Path) -> Path:
        """Write `index.html` into a folder; returns its path."""
        target = out / "index.html"
        with explained(out):
            out.mkdir(parents=True, exist_ok=True)
        with replacing(target) as append:
            append(self._page().encode("utf-8", "replace"))
        return target

    def _page(self) -> str:
        template = resources.files("producer").joinpath("contact_sheet.html").read_text(encoding="utf-8")
        left = max(self._batch.total - len(self._cards), 0)
        name = self._batch.name or self._batch.id
        reading = 2 * self._texts > len(self._cards)
        values = {
            "csp": _policy(template),
            "title": _safe(name),
            "heading": _safe(name),
            "about": _about(self._batch, sorted(self._models)),
            "bar": _bar(self._batch),
            "chips": _chips(self._counts),
            "look": " reading" if reading else " mixed" if self._texts else "",
            "cards": "\n".join(self._cards),
            "cut": f'<p class="cut">… and {left:,} more in the results file</p>' if left else "",
        }
        # In one pass, so that a prompt with {{…}} in it stays what it is.
        return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)


def _read(path: Path) -> Iterator[Line]:
    with explained(path, doing="read"):
        stream = path.open(encoding="utf-8")
    with stream:
        for line in stream:
            yield json.loads(line)


def _policy(template: str) -> str:
    hashes = {}
    for tag in ("style", "script"):
        content = template.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        hashes[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src 'self' file:; media-src 'self' file:; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'; base-uri 'none'; form-action 'none'"
    )


def _about(batch: BatchRecord, models: list[str]) -> str:
    more = f" and {len(models) - 4} more" if len(models) > 4 else ""
    made = time.strftime("%-d %B %Y, %H:%M UTC", time.gmtime(batch.created_at))
    items = [
        ("", f"{batch.total:,} {'job' if batch.total == 1 else 'jobs'}"),
        ("made with" if models else "", ", ".join(models[:4]) + more),
        ("submitted", made),
        ("", f"{batch.rate_per_s:,.3g} jobs/s" if batch.rate_per_s else ""),
        ("batch", batch.id if batch.name else ""),
    ]
    looks = {"done": "cancelled" if batch.counts.get("failed") else "succeeded", "running": "running"}
    state = (
        f'<li class="now"><i class="{looks.get(batch.status, "queued")}"></i>{_safe(batch.status.capitalize())}</li>'
    )
    return state + "".join(
        f"<li>{f'<b>{label}</b>' if label else ''}<span>{_safe(text)}</span></li>" for label, text in items if text
    )


def _bar(batch: BatchRecord) -> str:
    counts = {state: batch.counts.get(state, 0) for state in _STATES}
    total = sum(counts.values()) or 1
    parts, at = [], 0.0
    for state, count in counts.items():
        width = 1000 * count / total
        look = "queued" if state == "waiting" else state
        parts.append(f'<rect class="{look}" x="{at:.2f}" y="0" width="{width:.2f}" height="6"/>' if count else "")
        at += width
    words = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    return (
        f'<svg class="bar" viewBox="0 0 1000 6" preserveAspectRatio="none" role="img" aria-label="{words}">'
        f"{''.join(parts)}</svg>"
    )


def _chips(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    chips = [f'<button class="chip" data-status="" aria-pressed="true">All <em>{total:,}</em></button>']
    chips += [
        f'<button class="chip" data-status="{state}" aria-pressed="false"><i class="{state}"></i>'
        f"{state.capitalize()} <em>{count:,}</em></button>"
        for state, count in counts.items()
        if count
    ]
    return "".join(chips)


def _card(line: Line) -> str:
    state = _state(line)
    files = [a for a in line.get("artifacts") or () if a.get("role") == "output"]
    pictures = [a for a in files if _kind(a) in _PICTURES and _address(a)]
    top = _pictures(line, pictures) + "".join(_player(a) for a in files)
    body = _prompt(line.get("params") or {})
    texts = line.get("texts") or ([line["text"]] if line.get("text") is not None else [])
    body += "".join(f'<p class="said" dir="auto">{_safe(text[:TEXT_MOST])}</p>{_rest(text)}' for text in texts[:MANY])
    datas = line.get("datas") or ([line["data"]] if "data" in line else [])
    for text in (json.dumps(data, ensure_ascii=False, indent=2) for data in datas[:MANY]):
        body += f"<pre>{_safe(text[:TEXT_MOST])}</pre>{_rest(text)}"
    unseen = max(len(texts), len(datas)) - MANY
    body += f'<p class="more">… and {unseen:,} more</p>' if unseen > 0 else ""
    body += "".join(_file(a) for a in files)
    body += "".join(_trouble("damaged_output", str(a["problem"])) for a in files if a.get("problem"))
    if state != "succeeded":
        error = line.get("error") or {}
        body += (
            _trouble(str(error.get("code", state)), str(error.get("message", "")))
            if state == "failed"
            else f'<span class="state"><i class="{state}"></i>{state.capitalize()}</span>'
        )
    look = f"card {state}{' pictured' if pictures else ''}"
    return (
        f'<article class="{look}" data-status="{state}">{top}<div class="body">{body}</div>'
        f'<div class="foot">{_details(line, files)}</div></article>'
    )


def _pictures(line: Line, pictures: list[Mapping[str, Any]]) -> str:
    tags = []
    alt = _safe(str((line.get("params") or {}).get("prompt", line.get("custom_id", "")))[:300])
    for picture in pictures:
        width, height = picture.get("width"), picture.get("height")
        size = look = ""
        if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
            size = f' width="{width}" height="{height}"'  # the browser keeps the room before the picture is there
            look = ' class="small"' if width < SMALL_PX else ""
        address = _address(picture)
        tags.append(
            f'<a href="{address}" target="_blank" rel="noopener" title="{alt}">'
            f'<img src="{address}" alt="{alt}"{size}{look} loading="lazy"></a>'
        )
    return f'<div class="pictures{" many" if len(tags) > 1 else ""}">{"".join(tags)}</div>' if tags else ""


def _player(artifact: Mapping[str, Any]) -> str:
    tag, address = _kind(artifact).partition("/")[0], _address(artifact)
    if tag not in ("audio", "video") or not address:
        return ""
    return f'<div class="media"><{tag} src="{address}" controls preload="none"></{tag}></div>'


def _file(artifact: Mapping[str, Any]) -> str:
    """A link, for what the page cannot show itself."""
    address = _address(artifact)
    if not address or _kind(artifact) in _PICTURES or _kind(artifact).startswith(("audio/", "video/")):
        return ""
    return f'<div><a class="file" href="{address}" download>{_safe(artifact["path"])} · {_bytes(artifact)}</a></div>'


def _prompt(params: Mapping[str, Any]) -> str:
    if isinstance(params.get("messages"), list):
        turns = [m for m in params["messages"] if isinstance(m, Mapping)]
        said = "".join(f'<span class="turn" dir="auto">{_turn(turn)}</span>' for turn in turns[-6:])
        return f'<div class="prompt">{said}</div>'
    prompt = params.get("prompt", params.get("text"))
    return f'<p class="prompt" dir="auto">{_safe(prompt[:TEXT_MOST])}</p>' if isinstance(prompt, str) else ""


def _turn(turn: Mapping[str, Any]) -> str:
    return f"<b>{_safe(turn.get('role'))}</b>{_safe(str(turn.get('content'))[:TEXT_MOST])}"


def _rest(text: str) -> str:
    left = len(text) - TEXT_MOST
    return f'<p class="more">… {left:,} more characters</p>' if left > 0 else ""


def _trouble(code: str, message: str) -> str:
    return f'<p class="trouble"><code>{_safe(code)}</code><span dir="auto">{_safe(message[:TEXT_MOST])}</span></p>'


def _details(line: Line, files: list[Mapping[str, Any]]) -> str:
    params = line.get("params") or {}
    first = files[0] if files else {}
    short = []
    if "num_inference_steps" in params:
        short.append(f"{params['num_inference_steps']} steps")
    short.append(f"seed {line.get('seed')}")
    rows = [("id", line.get("custom_id")), ("model", line.get("model")), ("task", line.get("task"))]
    rows += [("seed", line.get("seed")), *((k, v) for k, v in params.items() if k not in _SHOWN_ELSEWHERE)]
    rows += [(k, v) for k, v in first.items() if k not in _FIXED_FACTS and k not in params and k != "seed"]
    rows += [("outputs", len(files))] if len(files) > 1 else []
    rows += [("file", f"{a['path']} · {_bytes(a)}") for a in files if a.get("path")]
    rows += [("metadata", line.get("metadata")), ("attempts", line.get("attempts"))]
    seconds = (line.get("timings") or {}).get("device_s")
    rows.append(("device time", f"{seconds:.3g} s" if seconds is not None else None))
    pairs = "".join(f'<dt>{_safe(k)}</dt><dd dir="auto">{_value(v)}</dd>' for k, v in rows if v is not None)
    name = _safe(str(line.get("custom_id"))[:80])
    return (
        f'<details><summary title="{_safe(_hint(line, params))}"><bdi class="id">{name}</bdi>'
        f'<span class="facts">{_safe(" · ".join(short))}</span></summary><dl>{pairs}</dl></details>'
    )


def _hint(line: Line, params: Mapping[str, Any]) -> str:
    shown = [f"{k}: {v}" for k, v in params.items() if k not in _SHOWN_ELSEWHERE and isinstance(v, str | int | float)]
    return "\n".join([f"model: {line.get('model')}", f"seed: {line.get('seed')}", *shown[:12]])[:800]


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _safe(text[:1000] + ("…" if len(text) > 1000 else ""))


def _state(line: Line) -> str:
    state = str(line.get("status"))
    return state if state in _STATES else "queued"


def _kind(artifact: Mapping[str, Any]) -> str:
    return str(artifact.get("media_type", "")).partition(";")[0].strip().lower()


def _address(artifact: Mapping[str, Any]) -> str:
    """Where the file lies, as a link; empty unless it is inside this folder."""
    path = artifact.get("path")
    if not isinstance(path, str) or not path or "\\" in path:
        return ""
    parts = PurePosixPath(path)
    return "" if parts.is_absolute() or ".." in parts.parts else "./" + quote(str(parts))


def _bytes(artifact: Mapping[str, Any]) -> str:
    size = float(artifact.get("bytes") or 0)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"


def _safe(text: object) -> str:
    """For any place between tags or inside a quoted attribute; control characters become visible."""
    shown = "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(text))
    return html.escape(shown, quote=True)
