"""One job on the contact sheet: what it made, what it was asked for, and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from producer.contact_values import MANY, TEXT_MOST, safe, said, scores, unseen, value, vectors_in_words

#: pictures narrower than this are enlarged pixel by pixel
SMALL_PX = 200
#: names of params that tell the cards apart, on one card
TAGS_MOST = 4
#: characters of one of their values
TAG_MOST = 48
#: turns of a conversation, and texts of one job, that are shown of what was asked
TURNS_MOST = 6

STATES = ("succeeded", "failed", "cancelled", "running", "queued", "waiting")
_PICTURES = {"image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "image/avif"}
#: what was asked for stands on the card, not among the facts
_ASKED = ("prompt", "messages", "text")
#: what stands beside a film, for those who look at it
_BESIDE = ("poster", "preview")
_FIXED_FACTS = {"role", "path", "problem", "media_type", "bytes", "sha256", "scores"}

Line = Mapping[str, Any]
Artifact = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Card:
    """A job, rendered but for what depends on the other cards."""

    index: int
    state: str
    task: str
    model: str
    #: what the job was asked for, as HTML; empty if it was nothing in words
    asked: str
    #: params with one short value, and the model: those that differ between cards are shown on each
    params: Mapping[str, str]
    #: pictures and players
    top: str
    #: texts, values, files, troubles
    made: str
    foot: str
    #: name and value of everything that is known, as JSON in an attribute between single quotes
    facts: str
    pictured: bool

    def html(self, *, varied: Sequence[str] = (), with_prompt: bool = True) -> str:
        """The card, with the params that tell it from others."""
        shown = ((name, self.params[name][:TAG_MOST]) for name in varied if name in self.params)
        tags = "".join(f"<li><b>{safe(name)}</b><span>{safe(text)}</span></li>" for name, text in shown)
        body = (f'<ul class="tags">{tags}</ul>' if tags else "") + (self.asked if with_prompt else "") + self.made
        body = f'<div class="body">{body}</div>' if body else ""
        look = f"card {self.state}{' pictured' if self.pictured else ''}"
        return (
            f'<article class="{look}" data-n="{self.index}" data-status="{self.state}"'
            f" data-facts='{self.facts}'>"
            f"{self.top}{body}{self.foot}</article>"
        )


def card_of(line: Line, index: int) -> Card:
    """The card of a line of `results.jsonl`; everything in it is escaped."""
    params = line.get("params") or {}
    state = state_of(line)
    artifacts = line.get("artifacts") or ()
    every = [a for a in artifacts if a.get("role") == "output"]
    files = [a for a in every if a.get("part") not in _BESIDE]
    posters = [a for a in every if a.get("part") == "poster" and _is_picture(a)]
    pictures = [a for a in files if _is_picture(a)]
    films = [a for a in files if _kind(a).startswith("video/")]
    top = [_pictures(line, pictures), *map(_film, films, [*posters, *[None] * len(films)]), *map(_sound, files)]
    short = {name: _one(v) for name, v in params.items() if name not in _ASKED and isinstance(v, str | int | float)}
    return Card(
        index=index, state=state, task=str(line.get("task") or ""), model=str(line.get("model") or ""),
        asked=_asked(params), params={"model": str(line.get("model") or "–"), **short}, top="".join(top),
        made=_made(line, files, state), foot=_foot(line), facts=_facts(line, params, files),
        pictured=bool(pictures or films),
    )  # fmt: skip


def state_of(line: Line) -> str:
    """How the job stands; what is unknown counts as queued."""
    state = str(line.get("status"))
    return state if state in STATES else "queued"


def _made(line: Line, files: Sequence[Artifact], state: str) -> str:
    texts = line.get("texts") or ([line["text"]] if line.get("text") is not None else [])
    datas = line.get("datas") or ([line["data"]] if "data" in line else [])
    parts = [scores(a["scores"]) for a in files if isinstance(a.get("scores"), Mapping)]
    parts += [*map(said, texts[:MANY]), *map(value, datas[:MANY]), unseen(max(len(texts), len(datas)) - MANY)]
    parts += map(_file, files)
    parts += [_trouble("damaged_output", str(a["problem"])) for a in files if a.get("problem")]
    error = line.get("error") or {}
    if state == "failed":
        parts.append(_trouble(str(error.get("code", state)), str(error.get("message", ""))))
    elif state != "succeeded":
        parts.append(f'<span class="state"><i class="{state}"></i>{state.capitalize()}</span>')
    return "".join(parts)


def _pictures(line: Line, pictures: Sequence[Artifact]) -> str:
    alt = safe(str((line.get("params") or {}).get("prompt", line.get("custom_id", "")))[:300])
    tags = []
    for picture in pictures:
        small = isinstance(width := picture.get("width"), int) and width < SMALL_PX
        address = _address(picture)
        own = f' data-seed="{safe(picture["seed"])}"' if len(pictures) > 1 and "seed" in picture else ""
        tags.append(
            f'<a href="{address}" target="_blank" rel="noopener"{own}><img src="{address}" alt="{alt}"{_size(picture)}'
            f'{" class=small" if small else ""} loading="lazy" decoding="async"></a>'
        )
    many = f" many{' three' if len(tags) % 3 == 0 else ''}" if len(tags) > 1 else ""
    return f'<div class="pictures{many}">{"".join(tags)}</div>' if tags else ""


def _size(artifact: Artifact) -> str:
    """The browser keeps the room before the picture is there."""
    width, height = artifact.get("width"), artifact.get("height")
    known = type(width) is int and type(height) is int and width > 0 and height > 0
    return f' width="{width}" height="{height}"' if known else ""


def _film(artifact: Artifact, poster: Artifact | None) -> str:
    if not (address := _address(artifact)):
        return ""
    still = f' poster="{_address(poster)}"' if poster is not None else ""
    size = _size(artifact)
    return f'<div class="film"><video src="{address}"{still}{size} controls playsinline preload="none"></video></div>'


def _sound(artifact: Artifact) -> str:
    if not _kind(artifact).startswith("audio/") or not (address := _address(artifact)):
        return ""
    return f'<div class="sound"><audio src="{address}" controls preload="none"></audio></div>'


def _file(artifact: Artifact) -> str:
    """A link, for what the page cannot show itself."""
    address = _address(artifact)
    if not address or _is_picture(artifact) or _kind(artifact).startswith(("audio/", "video/")):
        return ""
    texts, dimensions = artifact.get("texts"), artifact.get("dimensions")
    about = ""
    if isinstance(texts, int) and isinstance(dimensions, int):
        about = f'<p class="vector">{vectors_in_words(texts, dimensions)}</p>'
    link = f'<a class="file" href="{address}" download>{safe(artifact["path"])} · {_bytes(artifact)}</a>'
    return f"{about}<div>{link}</div>"


def _asked(params: Mapping[str, Any]) -> str:
    if isinstance(params.get("messages"), list):
        turns = [m for m in params["messages"] if isinstance(m, Mapping)]
        told = "".join(f'<span class="turn" dir="auto">{_turn(turn)}</span>' for turn in turns[-TURNS_MOST:])
        return f'<div class="prompt">{told}</div>'
    asked = next((params[name] for name in _ASKED if params.get(name) is not None), None)
    if isinstance(asked, str):
        return f'<p class="prompt" dir="auto">{safe(asked[:TEXT_MOST])}</p>' if asked else ""
    if isinstance(asked, list):
        shown = "".join(f'<span class="turn" dir="auto">{safe(str(text)[:TEXT_MOST])}</span>' for text in asked[:MANY])
        return f'<div class="prompt">{shown}</div>{unseen(len(asked) - MANY)}'
    return ""


def _turn(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    if isinstance(content, list):  # text and pictures, as vision models are asked
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return f"<b>{safe(turn.get('role'))}</b>{safe(str(content)[:TEXT_MOST])}"


def _trouble(code: str, message: str) -> str:
    return f'<p class="trouble"><code>{safe(code)}</code><span dir="auto">{safe(message[:TEXT_MOST])}</span></p>'


def _foot(line: Line) -> str:
    return (
        f'<details class="foot"><summary><bdi class="id">{safe(str(line.get("custom_id"))[:80])}</bdi>'
        f'<span class="facts">seed {safe(line.get("seed"))}</span></summary></details>'
    )


def _facts(line: Line, params: Mapping[str, Any], files: Sequence[Artifact]) -> str:
    """Everything else that is known, as pairs of texts; the page makes a list of them when it is asked for.

    Five thousand lists would be four fifths of the page.
    """
    first = files[0] if files else {}
    rows = [("id", line.get("custom_id")), ("task", line.get("task")), ("model", line.get("model"))]
    rows += [("seed", line.get("seed")), *((k, v) for k, v in params.items() if k not in _ASKED)]
    rows += [(k, v) for k, v in first.items() if k not in _FIXED_FACTS and k not in params and k != "seed"]
    rows += [("outputs", len(files))] if len(files) > 1 else []
    rows += [("file", f"{a['path']} · {_bytes(a)}") for a in files if a.get("path")]
    rows += [("metadata", line.get("metadata")), ("attempts", line.get("attempts"))]
    seconds = (line.get("timings") or {}).get("device_s")
    rows.append(("device time", f"{seconds:.3g} s" if seconds is not None else None))
    pairs = json.dumps([[str(k)[:200], _one(v)] for k, v in rows if v is not None], ensure_ascii=False)
    return safe(pairs).replace("&quot;", '"')


def _one(fact: object) -> str:
    """A value in at most a thousand characters."""
    if isinstance(fact, float) and fact.is_integer() and abs(fact) < 1e15:
        fact = int(fact)
    text = fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False)
    return text if len(text) <= 1000 else f"{text[:999]}…"


def _is_picture(artifact: Artifact) -> bool:
    return _kind(artifact) in _PICTURES and bool(_address(artifact))


def _kind(artifact: Artifact) -> str:
    return str(artifact.get("media_type", "")).partition(";")[0].strip().lower()


def _address(artifact: Artifact) -> str:
    """Where the file lies, as a link; empty unless it is inside this folder."""
    path = artifact.get("path")
    if not isinstance(path, str) or not path or "\\" in path:
        return ""
    parts = PurePosixPath(path)
    return "" if parts.is_absolute() or ".." in parts.parts else "./" + quote(str(parts))


def _bytes(artifact: Artifact) -> str:
    size = float(artifact.get("bytes") or 0)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"
