"""Nested plain values, as JSON has them: what they hold, under which dotted key, and how that is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reverie.errors import ConfigError


def children(value: Any) -> dict[Any, Any]:
    """What a value holds, by key or index."""
    return value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}


def join(path: str, key: str | int) -> str:
    """A dotted path with one more part, printable whatever the part is."""
    name = str(key) if str(key).isprintable() else json.dumps(key)
    return f"{path}.{name}" if path else name


def find(tree: Any, key: str) -> Any:
    """The value under a dotted key of nested values; None where nothing is."""
    for part in key.split("."):
        tree = children(tree).get(part)
    return tree


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value under a dotted key, in sections that are made where they are missing. Raises ConfigError."""
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{join('', key)} = {show(value)}: {section} = {show(tree)} should be a section")
    tree[name] = value


def merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, changed by others section by section."""
    merged = dict(tree)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def show(value: Any) -> str:
    """A value as JSON on one line, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
