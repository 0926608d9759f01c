"""The grid of a sweep: every combination of the lists in a configuration, as runs with names. Nothing runs here."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, get_args, get_origin

from reverie import config as configuration
from reverie.config import FLAT, LONGEST_NAME, Config
from reverie.errors import ConfigError
from reverie.options import Options
from reverie.trees import find

MOST_TRIALS = 10_000

SEED = "run.seed"
PLACES = ("run.name", "run.directory", "run.checkpoint_dir")
"""Options that a sweep sets for each trial: every trial has its folder inside the sweep's."""


@dataclass(frozen=True)
class Trial:
    """One combination: the axes' values by key, and the run that they make."""

    name: str
    settings: dict[str, Any]
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.run.directory) / self.name


@dataclass(frozen=True)
class Grid:
    """All trials of one configuration, their folder, and the configuration in full, lists included."""

    folder: Path
    axes: dict[str, list[Any]]
    trials: list[Trial]
    tree: dict[str, Any]


def axes(tree: Mapping[str, Any], options: type[Options] = Config, prefix: str = "") -> dict[str, list[Any]]:
    """The lists in nested values that stand where an option takes one value, by the option's key.

    Options with short names come first and the seed last, in whatever order they were written.
    """
    found: dict[str, list[Any]] = {}
    for name, value in tree.items():
        kind = options.model_fields[name].annotation if name in options.model_fields else None
        if isinstance(kind, type) and issubclass(kind, Options):
            found |= axes(value, kind, f"{prefix}{name}.") if isinstance(value, dict) else {}
        elif kind is not None and isinstance(value, list) and not _takes_lists(kind):
            found[prefix + name] = value
    return found if prefix else _ordered(found)


def single(tree: Mapping[str, Any]) -> Config:
    """The Config of nested values for one run. Raises ConfigError, also where a list makes them a sweep."""
    if found := axes(tree):
        raise ConfigError(
            f"{', '.join(found)}: a list makes this a sweep, which `reverie sweep` runs; choose one value"
        )
    return configuration.build(tree)


def _ordered(found: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    order = [*FLAT.values(), *configuration.keys(Config)]
    return dict(sorted(found.items(), key=lambda axis: (axis[0] == SEED, order.index(axis[0]))))


def expand(tree: Mapping[str, Any], name: str) -> Grid:
    """The grid that nested values with lists describe, called ``name`` unless they say ``run.name``; every run valid.

    Raises ConfigError for the first value that is wrong.
    """
    found = axes(tree)
    _refuse(found)
    base = configuration.change(tree, (), {"run.name": find(tree, "run.name") or _safe(name)})
    combinations = itertools.product(*found.values())
    configs = [_build(base, dict(zip(found, values, strict=True))) for values in combinations]
    folder = Path(configs[0].run.directory) / str(configs[0].run.name)
    trials: dict[str, Trial] = {}
    for trial in (_trial(config, folder, list(found)) for config in configs):
        if trial.name in trials:
            raise ConfigError(f"two trials are {describe(trial.settings)}; write every value of an axis once")
        trials[trial.name] = trial
    whole = configuration.change(configs[0].model_dump(mode="json"), (), found)
    return Grid(folder, found, list(trials.values()), whole)


def describe(settings: Mapping[str, Any]) -> str:
    """Such as ``kl_scale=0.5,free_nats=1.0``."""
    return ",".join(f"{label(key)}={show(value)}" for key, value in settings.items())


def label(key: str) -> str:
    """A short name for an option: the one that configuration files know, or its key without ``run.``."""
    return next((short for short, full in FLAT.items() if full == key), key.removeprefix("run."))


def show(value: Any) -> str:
    """A value as in a configuration file, text without quotes."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)


def _takes_lists(kind: Any) -> bool:
    return any(get_origin(part) in (list, tuple) for part in (kind, *get_args(kind)))


def _refuse(found: Mapping[str, list[Any]]) -> None:
    if not found:
        raise ConfigError("nothing to sweep: write a list where an option takes one value, such as kl_scale=[0.5,1.0]")
    for key, values in found.items():
        if key in PLACES:
            raise ConfigError(f"{key} = {json.dumps(values)}: should be one text, trials have folders of their own")
        if not values:
            raise ConfigError(f"{key} = []: should be one value, or a list of at least one")
    if (count := math.prod(map(len, found.values()))) > MOST_TRIALS:
        raise ConfigError(f"{', '.join(found)}: {count} combinations; a sweep has at most {MOST_TRIALS}")


def _build(base: Mapping[str, Any], settings: Mapping[str, Any]) -> Config:
    config = configuration.override(base, (), settings)
    if not 0 < config.run.evaluate_every <= config.run.steps:
        raise ConfigError(f"run.evaluate_every = {config.run.evaluate_every}: a sweep ranks evaluations; it should be "
                          f"from 1 to run.steps = {config.run.steps}")  # fmt: skip
    return config


def _trial(config: Config, folder: Path, keys: list[str]) -> Trial:
    """The trial with a name for its folder; a digest stands for what had to be left out of the name."""
    values = config.model_dump(mode="json")
    settings = {key: find(values, key) for key in keys}
    text = describe(settings)
    name = _safe(text)
    if name != text or len(name.encode()) > LONGEST_NAME:
        short = name.encode()[: LONGEST_NAME - 10].decode(errors="ignore")
        name = f"{short}-{blake2b(text.encode(), digest_size=4).hexdigest()}"
    places = {"name": name, "directory": str(folder), "checkpoint_dir": str(folder / name / "checkpoints")}
    return Trial(name, settings, config.model_copy(update={"run": config.run.model_copy(update=places)}))


def _safe(text: str) -> str:
    """The text with what ``run.name`` does not take replaced."""
    return re.sub(r"[^\w.=,-]+", "-", text).strip("._=,-") or "sweep"
