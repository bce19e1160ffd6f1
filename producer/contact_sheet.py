"""A page to look through the results of a batch: `index.html` beside the files, complete in itself and offline.

Prompts, ids and outputs come from strangers. All of it is escaped, links lead only to files of the same folder, and the
page's own policy (CSP) allows the one script and the one style of the template, by their hashes, and nothing else.

While a batch is followed, the folder `index.live` stands beside the page: what is new, as scripts, for a page from the
disk may load nothing else. The page's own script asks for them (`strict-dynamic`: what stands in the HTML cannot), and
puts new cards into their places. Once the folder is gone, the page loads itself again: it is complete by then.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from producer.contact_card import STATES, TAGS_MOST, Card, Line, card_of, state_of
from producer.contact_values import safe
from producer.local_files import explained, replacing
from producer.records import BatchRecord
from producer.watch import rate

#: jobs on the page; a browser gets slow with more
CARDS_MOST = 5000
#: what is new, while a batch is followed
LIVE = "index.live"
#: jobs in one of its files
LIVE_CARDS = 100
#: values of a param by which the page can be grouped
GROUPS_MOST = 40

_BEGUN = tuple(state for state in STATES if state not in ("queued", "waiting"))
#: a file's id tells cards apart, but nobody anything
_REFERENCE = re.compile(r"(file|artifact|https|s3):")


def write_contact_sheet(out: Path, batch: BatchRecord, lines: Iterable[Line] | Path) -> Path:
    """Write `out/index.html` from the lines of a batch, or from its `results.jsonl`; returns its path.

    The page shows the first 5,000 jobs that have begun, and says so if there are more. It refers to the media files by
    the `path` of the lines, relative to `out`. Raises `RequestError` if it cannot be written, `Unavailable` if the disk
    is full.
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
        #: the counters that the page shows
        self.batch = batch
        self._cards: dict[int, Card] = {}
        #: what open pages have been told
        self._told, self._versions = "{}", dict[int, str]()

    @property
    def full(self) -> bool:
        """Whether it takes no more cards."""
        return len(self._cards) >= CARDS_MOST

    def succeeded(self, index: int) -> bool:
        """Whether the job at this line has a card that will not change any more."""
        card = self._cards.get(index)
        return card is not None and card.state == "succeeded"

    def add(self, line: Line) -> None:
        """Another job, or one anew. Left out where the page is full, and while it has not begun."""
        said = line.get("index")
        index = max(self._cards, default=0) + 1 if said is None else int(said)
        if state_of(line) not in _BEGUN:
            self._cards.pop(index, None)
        elif index in self._cards or not self.full:
            self._cards[index] = card_of(line, index)

    def write(self, out: Path, *, live: bool = False) -> Path:
        """Write `index.html` into a folder; returns its path. With `live`, what is new as well, for open pages."""
        target = out / "index.html"
        page = _Page(self.batch, [self._cards[index] for index in sorted(self._cards)], live=live)
        with explained(out):
            (out / LIVE if live else out).mkdir(parents=True, exist_ok=True)
        for number, (version, html) in page.chunks.items():
            if self._versions.get(number) != version:
                said = ",".join(map(json.dumps, (number, LIVE_CARDS, version, html)))
                _put(out / LIVE / f"{number}.js", f"aigcSheet.cards({said})\n")
        _put(target, page.html)
        if live:
            self._told, self._versions = page.told, page.versions
            self.beat(out)
        else:
            shutil.rmtree(out / LIVE, ignore_errors=True)
        return target

    def beat(self, out: Path) -> None:
        """Let open pages know that the batch is still followed."""
        with explained(out):
            (out / LIVE).mkdir(exist_ok=True)
        _put(out / LIVE / "now.js", f"aigcSheet.now({self._told},{time.time():.0f})\n")


def _put(target: Path, content: str) -> None:
    with replacing(target) as append:
        append(content.encode("utf-8", "replace"))


class _Page:
    """The page with these cards, as text."""

    def __init__(self, batch: BatchRecord, cards: Sequence[Card], *, live: bool) -> None:
        self._batch = batch
        self._cards = cards
        self._live = live
        self._tasks = _by_task(cards)
        self._varied = {task: _varied(of) for task, of in self._tasks.items()}
        asked = {card.asked for card in cards}
        #: what every job was asked for: said once
        self._shared = asked.pop() if len(asked) == 1 and len(cards) > 1 and len(self._tasks) == 1 else ""
        self._html = {card.index: self._card(card) for card in cards}
        #: runs of cards, as version and HTML
        self.chunks = self._chunked() if live else {}

    @property
    def versions(self) -> dict[int, str]:
        """What each run of cards is known by; empty unless the batch is followed."""
        return {number: version for number, (version, _) in self.chunks.items()}

    @property
    def told(self) -> str:
        """What open pages ask for again and again, as JSON: all around the cards, and which of those are new."""
        values = self._values()
        told = {name: values[name] for name in ("about", "bar", "chips", "groups", "shared", "cut")}
        return json.dumps(told | {"versions": self.versions, "run": LIVE_CARDS})

    @property
    def html(self) -> str:
        parts = {name: _part(f"contact_sheet.{name}") for name in ("css", "js")}
        values = self._values() | {
            "csp": _policy(parts["css"], parts["js"], live=self._live),
            "style": parts["css"],
            "script": parts["js"],
            "live": f' data-live="{LIVE}" data-versions="{safe(json.dumps(self.versions))}"' if self._live else "",
            "sections": "".join(self._section(task, cards) for task, cards in self._tasks.items()),
        }
        # In one pass, so that a prompt with {{…}} in it stays what it is.
        return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], _part("contact_sheet.html"))

    def _values(self) -> dict[str, str]:
        name = safe(self._batch.name or self._batch.id)
        return {
            "title": name, "about": _about(self._batch, sorted({card.model for card in self._cards if card.model})),
            "bar": _bar(self._batch), "chips": _chips(self._cards), "groups": self._groups(), "shared": self._shared,
            "cut": _cut(self._batch, len(self._cards)),
        }  # fmt: skip

    def _card(self, card: Card) -> str:
        html = card.html(varied=self._varied[card.task], with_prompt=not self._shared)
        if not self._live:
            return html
        return html.replace("<article ", f'<article data-v="{_digest(html)}" ', 1)

    def _chunked(self) -> dict[int, tuple[str, str]]:
        texts: dict[int, list[str]] = {}
        for index, html in self._html.items():
            texts.setdefault(index // LIVE_CARDS, []).append(html)
        return {number: (_digest(html := "".join(parts)), html) for number, parts in texts.items()}

    def _section(self, task: str, cards: Sequence[Card]) -> str:
        reading = 2 * sum(card.pictured for card in cards) < len(cards)
        title = f"<h2>{safe(task)} <em>{len(cards):,}</em></h2>" if len(self._tasks) > 1 else ""
        inside = "\n".join(self._html[card.index] for card in cards)
        return f'<section>{title}<div class="grid{" reading" if reading else ""}">\n{inside}\n</div></section>'

    def _groups(self) -> str:
        """By what the page can be grouped; by task where there are several."""
        names = ["task"] if len(self._tasks) > 1 else []
        for task, varied in self._varied.items():
            values = {name: {card.params.get(name) for card in self._tasks[task]} for name in varied}
            names += [name for name in varied if name not in names and len(values[name]) <= GROUPS_MOST]
        options = "".join(f'<option value="{safe(name)}">by {safe(name)}</option>' for name in names)
        return f'<option value="">in order</option>{options}' if options else ""


def _read(path: Path) -> Iterator[Line]:
    with explained(path, doing="read"):
        stream = path.open(encoding="utf-8")
    with stream:
        for line in stream:
            yield json.loads(line)


@cache
def _part(name: str) -> str:
    return resources.files("producer").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str, *, live: bool) -> str:
    style, script = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script))
    news = " 'strict-dynamic'" if live else ""
    return (
        f"default-src 'none'; img-src 'self' file:; media-src 'self' file:; style-src 'sha256-{style}'; "
        f"script-src 'sha256-{script}'{news}; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]


def _by_task(cards: Iterable[Card]) -> dict[str, list[Card]]:
    found: dict[str, list[Card]] = {}
    for card in cards:
        found.setdefault(card.task, []).append(card)
    return found


def _varied(cards: Sequence[Card]) -> list[str]:
    """Names of the params that tell apart what was asked in the same words, in the order of the task."""
    alike: dict[str, list[Card]] = {}
    for card in cards:
        alike.setdefault(card.asked, []).append(card)
    names = list(dict.fromkeys(name for card in cards for name in card.params))
    return [name for name in names if any(_differ(name, group) for group in alike.values())][:TAGS_MOST]


def _differ(name: str, cards: Sequence[Card]) -> bool:
    found = {card.params.get(name) for card in cards}
    return len(found) > 1 and not any(_REFERENCE.match(value) for value in found if value)


def _about(batch: BatchRecord, models: list[str]) -> str:
    more = f" and {len(models) - 4} more" if len(models) > 4 else ""
    made = time.strftime("%-d %B %Y, %H:%M UTC", time.gmtime(batch.created_at))
    items = [
        ("", f"{batch.total:,} {'job' if batch.total == 1 else 'jobs'}"),
        ("made with" if models else "", ", ".join(models[:4]) + more),
        ("submitted", made),
        ("", rate(batch.rate_per_s).replace("/", " jobs/") if batch.rate_per_s else ""),
        ("batch", batch.id if batch.name else ""),
    ]
    looks = {"done": "cancelled" if batch.counts.get("failed") else "succeeded", "running": "running"}
    state = f'<li class="now"><i class="{looks.get(batch.status, "queued")}"></i>{safe(batch.status.capitalize())}</li>'
    return state + "".join(
        f"<li>{f'<b>{label}</b>' if label else ''}<span>{safe(text)}</span></li>" for label, text in items if text
    )


def _bar(batch: BatchRecord) -> str:
    counts = {state: batch.counts.get(state, 0) for state in STATES}
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


def _chips(cards: Sequence[Card]) -> str:
    counts = {state: sum(card.state == state for card in cards) for state in _BEGUN}
    chips = [f'<button class="chip" data-status="" aria-pressed="true">All <em>{len(cards):,}</em></button>']
    chips += [
        f'<button class="chip" data-status="{state}" aria-pressed="false"><i class="{state}"></i>'
        f"{state.capitalize()} <em>{count:,}</em></button>"
        for state, count in counts.items()
        if count
    ]
    return "".join(chips)


def _cut(batch: BatchRecord, shown: int) -> str:
    """What the page does not show."""
    to_come = batch.counts.get("queued", 0) + batch.counts.get("waiting", 0)
    beyond = max(batch.total - shown - to_come, 0)
    parts = [f"… and {beyond:,} more in the results file"] if beyond else []
    parts += [f"{to_come:,} {'job has' if to_come == 1 else 'jobs have'} not begun yet"] if to_come else []
    return "; ".join(parts)
