"""Flags that several commands of `reverie.cli` share, and what they say to the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reverie.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; see {self.prog} --help")


def at_least(smallest: int) -> Callable[[str], int]:
    """The type of an argument: a whole number that is not smaller."""

    def number(text: str) -> int:
        value = _whole(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{text} should be at least {smallest}")
        return value

    return number


def seed(text: str) -> int:
    """The type of an argument: a seed."""
    value = at_least(0)(text)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} should be less than {2**32}")
    return value


def _whole(text: str) -> int:
    """A whole number, which may be written as 1e3."""
    try:
        return int(text)
    except ValueError:
        if "." in text or not float(text).is_integer():
            raise argparse.ArgumentTypeError(f"{text} should be a whole number") from None
        return int(float(text))


def add_config_flags(command: argparse.ArgumentParser) -> None:
    """What says which configuration a command runs with."""
    command.add_argument("--config", metavar="FILE|PRESET", action="append", default=[],
                         help="a JSON file or a preset, or several: the later changes the earlier "
                         "(default: the preset `default`)")  # fmt: skip
    command.add_argument("--multimodal", action="store_true", help="the preset `multimodal`: image, text and vector")
    command.add_argument("--env", help="environment: a Gymnasium id, suite/task, module:callable or module:id")
    add_code_flags(command)
    command.add_argument("--device", help="auto, cpu, cuda or cuda:<number>")
    command.add_argument("--steps", type=at_least(1), help="steps of the agent, all environments together")
    command.add_argument("--seed", type=seed)
    command.add_argument("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    command.add_argument("overrides", nargs="*", metavar="section.key=value")


def add_code_flags(command: argparse.ArgumentParser) -> None:
    """What says whose code may run."""
    command.add_argument(
        "--plugin",
        metavar="MODULE|FILE.py",
        type=_plugin,
        action="append",
        help="import this first, where it registers environments; may be given several times",
    )
    command.add_argument("--trust", action="store_true", help="run the code that a configuration or checkpoint names")


def _plugin(text: str) -> str:
    """A module as it is; a file by its whole path, since the run may go on from another folder."""
    return str(Path(text).resolve()) if text.endswith(".py") else text


def add_sweep_flags(command: argparse.ArgumentParser) -> None:
    """What belongs to runs that are kept, one or many."""
    command.add_argument("--name", help="the run's or the sweep's folder inside run.directory")
    command.add_argument("--parallel", type=at_least(1), help="trials of a sweep that run side by side (default: 1)")


def values(options: argparse.Namespace) -> dict[str, Any]:
    """The flags as configuration keys."""
    flags = {
        "env.name": options.env,
        "env.plugins": options.plugin,
        "run.name": vars(options).get("name"),
        "run.device": options.device,
        "run.steps": options.steps,
        "run.seed": options.seed,
        "logger.level": options.log_level,
    }
    return {key: value for key, value in flags.items() if value is not None}
