"""JSON as RFC 8259 means it: Python's reader lets keys pass that are written twice, NaN, and halves of characters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reverie.errors import ConfigError
from reverie.trees import children, join, show

LARGEST_FILE = 1_000_000

TWICE = object()

DEEPEST = 50
"""Levels of nesting; a configuration has three, and arguments of environments a few more."""


def parse(text: str) -> Any:
    """The value of a JSON text. ``1e6`` is as good an integer as 1000000.

    Raises ConfigError for what is unsound, with its place, and json.JSONDecodeError for what is no JSON at all.
    """
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, object_pairs_hook=_object)
        _refuse_unsound(value, "", 0)
    except RecursionError:
        raise ConfigError(f"nested too deeply; write at most {DEEPEST} levels") from None
    return value


def read_file(path: Path) -> dict[str, Any]:
    """The values in a JSON file. Raises ConfigError, which says where in the file something is wrong."""
    try:
        if not path.is_file():
            raise ConfigError(f"a {'folder' if path.is_dir() else 'device or pipe'}; name a JSON file or a preset")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ConfigError(f"larger than {LARGEST_FILE} bytes; a configuration is smaller")
        text = content.decode("utf-8-sig")  # some editors begin with a mark of the byte order
        if not text.strip():
            raise ConfigError("empty; write at least {}")
        tree = parse(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{show(tree)} is not an object; write {{...}}")
    return tree


def plain(value: Any) -> Any:
    """What JSON has for a path, a mapping, and a number of numpy or torch. Raises TypeError for other things."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is no text, number, list or dict")


def _number(text: str) -> float:
    """Beyond what a float can count, nothing is an integer."""
    value = float(text)
    return int(value) if "." not in text and abs(value) < 2**53 and value.is_integer() else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        tree |= {key: TWICE for key in keys if keys.count(key) > 1}
    return tree


def _refuse_unsound(value: Any, path: str, depth: int) -> None:
    if depth > DEEPEST:
        raise RecursionError
    if value is TWICE:
        raise ConfigError(f"{path}: written twice; keep one")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} = {value}: should be a finite number".removeprefix(" = "))
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{path} = {json.dumps(value)[:60]}: should be whole characters")
    for key, item in children(value).items():
        _refuse_unsound(key, path, depth)
        _refuse_unsound(item, join(path, key), depth + 1)
