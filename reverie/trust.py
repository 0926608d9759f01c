"""Which values of a configuration run code, and who may say so: the user, but no file that came from elsewhere.

A configuration or a checkpoint is data that people pass on. Whoever opens one should not run what it names unseen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from reverie.errors import ConfigError
from reverie.trees import children, join

CODE_OR_FILE = re.compile(r"[:/\\]|[^\W\d]\w*\.[^\W\d]")
"""Some environments import what an argument names (``module.Class``, ``module:Id``) or read the file at a path."""


def refuse_code(tree: Mapping[str, Any], own: Mapping[str, Any], source: str) -> None:
    """Raises ConfigError where nested values run code that the user's ``own`` values do not name as well."""
    vouched = set(code(own))
    for key, text in code(tree):
        if (key, text) not in vouched:
            raise ConfigError(f"{source}: {key} = {json.dumps(text)[:60]} runs code or reads a file; give it yourself, "
                              "or --trust (from Python trust=True) if you trust where it came from")  # fmt: skip


def code(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys and texts of nested values that lead to code or files."""
    env = children(tree).get("env")
    for name in ("name", "plugins", "kwargs"):
        for key, text in _texts(children(env).get(name), f"env.{name}"):
            if name == "plugins" or (":" in text if name == "name" else CODE_OR_FILE.search(text)):
                yield key, text


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    for key, item in children(value).items():
        yield from _texts(item, join(path, key))
