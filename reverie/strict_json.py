"""JSON as RFC 8259 means it: Python's reader lets keys pass that are written twice, NaN, and halves of characters."""

from __future__ import annotations

import json
import math
from typing import Any

from reverie.trees import children, join
from reverie.types import ConfigError

TWICE = object()


def parse(text: str) -> Any:
    """The value of a JSON text. ``1e6`` is as good an integer as 1000000.

    Raises ConfigError for what is unsound, with its place, and json.JSONDecodeError for what is no JSON at all.
    """
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, object_pairs_hook=_object)
        _refuse_unsound(value, "")
    except RecursionError:
        raise ConfigError("nested too deeply; a configuration has three levels") from None
    return value


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


def _refuse_unsound(value: Any, path: str) -> None:
    if value is TWICE:
        raise ConfigError(f"{path}: written twice; keep one")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} = {value}: should be a finite number".removeprefix(" = "))
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{path} = {json.dumps(value)[:60]}: should be whole characters")
    for key, item in children(value).items():
        _refuse_unsound(key, path)
        _refuse_unsound(item, join(path, key))
