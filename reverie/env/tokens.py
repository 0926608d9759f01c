"""Text as tokens of a tokenizer, one trained on texts of the user's own or one from Hugging Face.

A tokenizer travels as its JSON: in the configuration, so in every checkpoint, and in what the environment says that it
shows. Nothing goes back to the file that it was read from. The package `tokenizers` is needed where texts are.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reverie.errors import ConfigError

MOST_CLASSES = 2**16
"""Tokens and the end of a text, as uint16."""

RARE = "\N{CYRILLIC LETTER MULTIOCULAR O}"
"""A letter that few tokenizers have a token for."""


def read_tokenizer(source: str) -> str:
    """The JSON of a tokenizer on one line; ``source`` is that, or the path of its file.

    Raises ValueError where there is no file, or something else in it.
    """
    content = source if source.lstrip().startswith("{") else _content(Path(source))
    try:
        tree = json.loads(content)
        if tree["model"]["vocab"]:
            line = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
            return line.encode().decode()  # halves of surrogate pairs are an error here
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise ValueError("this is no trained tokenizer; give the tokenizer.json that the package tokenizers saves")


def classes(tokenizer: str) -> int:
    """How many tokens there are, and one class for the end of a text. Raises ConfigError as `to_classes` does."""
    found = 2 + max(_load(tokenizer).get_vocab().values())
    if found > MOST_CLASSES:
        raise ConfigError(f"env.text_tokenizer: has {found - 1} tokens, should have at most {MOST_CLASSES - 1}; "
                          "train a smaller one")  # fmt: skip
    return found


def to_classes(text: str, tokenizer: str) -> list[int]:
    """The tokens of a text, each the number of its class; zero, the end, is none of them.

    Raises ConfigError where the package is missing or cannot use the tokenizer.
    """
    return [1 + token for token in _load(tokenizer).encode(text, add_special_tokens=False).ids]


def from_classes(tokens: Iterable[int], tokenizer: str) -> str:
    """The text of tokens, which are classes but the end."""
    return _load(tokenizer).decode([token - 1 for token in tokens], skip_special_tokens=False)


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ValueError("there is no such file; give the path of a tokenizer.json")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None


@functools.cache
def _load(tokenizer: str) -> Any:
    """The tokenizer of the package, which tells unknown letters and neither fills nor cuts. Raises ConfigError."""
    try:
        from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ConfigError(
            "env.text_tokenizer needs the package tokenizers: pip install 'reverie[tokenizers]'"
        ) from None
    try:
        loaded = Tokenizer.from_str(tokenizer)
        loaded.no_padding()
        loaded.no_truncation()
        loaded.encode(RARE, add_special_tokens=False)
    except Exception as error:  # the package raises no other type
        raise ConfigError(f"env.text_tokenizer: cannot be used: {error}; train it with an unknown token, or on bytes"
                          ) from error  # fmt: skip
    return loaded
