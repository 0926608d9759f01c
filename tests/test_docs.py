"""What the documents promise: links that lead somewhere, commands that parse, configurations that load."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from reverie import cli, config
from reverie.presets import FOLDER, PRESETS

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.ko.md"]
SWEEPS = {"experiment", "pinpad_sweep"}
"""Presets that stand for many configurations; the tests of the sweep expand them."""
LADDER = [name for name in PRESETS if name.startswith("ladder/")]

LINK = re.compile(r"\]\(([^)#\s]+)|(?:src|href)=\"([^\"#]+)")
COMMAND = re.compile(r"^\$? *(?:python (run_dreamer\.py)|(?:python -m )?reverie\b)(.*)$")


def relative_links(text: str) -> Iterator[str]:
    found = (markdown or html for markdown, html in LINK.findall(text))
    return (link for link in found if not re.match(r"[a-z]+:", link))


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every call of the program inside a code block; [brackets] mark a pattern, which is no call."""
    for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if (match := COMMAND.match(line.strip())) and "[" not in line:
                yield shlex.split(("train" if match[1] else "") + match[2], comments=True)


@pytest.mark.parametrize("name", READMES)
def test_relative_links_lead_to_files(name: str) -> None:
    links = list(relative_links((ROOT / name).read_text(encoding="utf-8")))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", READMES)
def test_commands_are_known_to_the_program(name: str) -> None:
    calls = list(commands((ROOT / name).read_text(encoding="utf-8")))
    assert calls
    for arguments in calls:
        cli.parser().parse_args(arguments)


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - SWEEPS))
def test_preset_loads(name: str) -> None:
    config.load(name)


@pytest.mark.parametrize("task", ["default", "pinpad", "minigrid"])
@pytest.mark.parametrize("arm", LADDER)
def test_arm_of_the_ladder_changes_any_task(arm: str, task: str) -> None:
    changed, plain = config.build(config.merge(config.read(task), config.read(arm))), config.load(task)
    assert changed.hierarchy.enabled == ("a0" not in arm and "a1" not in arm)
    assert (changed.env, changed.run, changed.world) == (plain.env, plain.run, plain.world)


def test_every_preset_is_described_and_every_description_has_its_preset() -> None:
    files = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.json")}
    assert files == PRESETS.keys()
    assert len(LADDER) > 1
