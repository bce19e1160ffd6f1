"""What a param may be, in words: its choices or its range, out of its JSON schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def may_be(schema: Mapping[str, Any]) -> str:
    """Choices (`png, jpeg or webp`) or a range (`1 to 64`); empty where there is nothing to tell in a few words."""
    if "anyOf" in schema:  # a list is told where one of it may not stand alone
        ways = list(dict.fromkeys(may_be(each) for each in schema["anyOf"]))
        return " or ".join(way for way in ways if way and not (way.startswith("each ") and way[5:] in ways))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return _listed([str(each) for each in schema["enum"]])
    if "items" in schema:
        item = may_be(schema["items"])
        return f"each {item}" if item else ""
    if schema.get("type") in ("integer", "number"):
        return _range(schema)
    return "true or false" if schema.get("type") == "boolean" else ""


def _listed(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _range(schema: Mapping[str, Any]) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f"{_plain(least)} to {_plain(most)}"
    told = []
    if above is not None:
        told.append(f"more than {_plain(above)}")
    elif least is not None:
        told.append(f"at least {_plain(least)}")
    if below is not None:
        told.append(f"less than {_plain(below)}")
    elif most is not None:
        told.append(f"at most {_plain(most)}")
    return ", ".join(told)


def _plain(number: float) -> str:
    return f"{number:.12g}"
