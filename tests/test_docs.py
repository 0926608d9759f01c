"""What the documents promise: links that lead somewhere, commands that parse, options that exist, presets that load."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from reverie import cli, config, trees
from reverie.aliases import FLAT, RENAMED
from reverie.env.text import decode, encode, text_spec
from reverie.presets import FOLDER, PRESETS
from reverie.run.grid import axes
from reverie.run.train import DreamerV3Trainer
from tests.env.test_tokens import word_tokenizer
from tests.run.test_train import make_config

ROOT = Path(__file__).parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
READMES = ["README.md", "README.ko.md"]
LONGEST_README = 160
OWN_FILES = {"my_task.json", "configs/custom.json"}
"""Configurations that a reader is told to write."""
OWN_TOKENIZER = "missions.json"
"""One that a reader is told to train."""
SWEEPS = {"experiment", "pinpad_sweep"}
"""Presets that stand for many configurations; the tests of the sweep expand them."""
LADDER = [name for name in PRESETS if name.startswith("ladder/")]

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"^(?:python (run_dreamer\.py)|(?:\.venv/bin/|python -m )?reverie(?= ))(.*)$")
BENCHMARK = re.compile(r"^python (benchmarks/\w+\.py)(.*)$")
OPTION = re.compile(r"^((?:run|env|replay|world|behavior|hierarchy|agent|logger)\.[\w.]+)(=.*)?$")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def links(text: str) -> Iterator[tuple[str, str]]:
    """Path and heading of every link inside the repository."""
    for markdown, html in LINK.findall(FENCE.sub("", text)):
        if not re.match(r"[a-z]+:", target := markdown or html):
            path, _, heading = target.partition("#")
            yield path, heading


def headings(text: str) -> list[str]:
    return re.findall(r"^(#+ .*)$", FENCE.sub("", text), flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """What a heading is called in an address."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def lines(text: str) -> Iterator[str]:
    """Everything that a reader may type: lines of shell blocks, without comments, and quoted commands."""
    for language, block in FENCE.findall(text):
        if language in ("bash", "sh", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                yield re.sub(r"\s+# .*$", "", line.strip())
    yield from QUOTED.findall(FENCE.sub("", text))


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every call of the program; one that ends in dots stands for many, and a bare name for none."""
    for line in lines(text):
        if (match := COMMAND.match(line)) and "..." not in line and "…" not in line:
            yield shlex.split(("train" if match[1] else "") + match[2])


def benchmarks(text: str) -> Iterator[tuple[str, list[str]]]:
    """The script and the arguments of every call of a benchmark."""
    for line in lines(text):
        if match := BENCHMARK.match(line):
            yield match[1], shlex.split(match[2])


def options(text: str) -> Iterator[tuple[str, str | None]]:
    """Every option that is quoted, with its value if it has one."""
    words = (word for line in lines(text) for word in _words(line))
    for match in filter(None, map(OPTION.match, words)):
        yield match[1], match[2]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # prose
        return []


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files_and_headings(page: str) -> None:
    here = ROOT / page
    for path, heading in links(read(page)):
        target = (here.parent / path).resolve() if path else here
        assert target.exists(), path
        assert target.is_relative_to(ROOT), path
        if heading:
            found = map(anchor, headings(target.read_text(encoding="utf-8")))
            assert heading in found, f"{path}#{heading}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_known_to_the_program(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(OWN_TOKENIZER).write_text(json.dumps(word_tokenizer()))
    for arguments in commands(read(page)):
        call = cli.parse(arguments)
        if "overrides" in call and not vars(call).get("checkpoint"):
            check_configuration(call)


def check_configuration(call: argparse.Namespace) -> None:
    """Asserts that what a command would run with is valid; a file of the reader's own stands for no change."""
    sources = ["multimodal"] if call.multimodal else call.config
    tree: dict[str, Any] = {}
    for source in sources:
        name = source.removeprefix("configs/").removesuffix(".json")
        assert name in PRESETS or source in OWN_FILES, source
        tree = trees.merge(tree, config.read(name) if name in PRESETS else {})
    tree = config.change(tree, call.overrides)
    if not axes(tree):
        config.build(tree)


def test_film_in_the_readme_is_small_and_moves() -> None:
    film = ROOT / "docs" / "media" / "dream.webp"
    assert film.stat().st_size < 2_000_000
    with Image.open(film) as frames:
        assert getattr(frames, "n_frames", 1) == 100


def test_pages_of_use_show_commands() -> None:
    silent = [
        page for page in PAGES if not list(commands(read(page))) and page not in ("ARCHITECTURE.md", "docs/python.md")
    ]
    assert silent == []


@pytest.mark.parametrize("page", PAGES)
def test_options_exist_and_take_the_quoted_value(page: str) -> None:
    known = {*config.keys(config.Config), *FLAT, *(RENAMED if page == "docs/configuration.md" else ())}
    for key, value in options(read(page)):
        assert key in known, key
        if value and not value.startswith("=["):
            config.change({}, [key + value])


def test_every_other_name_of_an_option_is_in_its_table() -> None:
    page = read("docs/configuration.md")
    for short, key in FLAT.items():
        assert f"| `{short}` | `{key}` |" in page
    for old, new in RENAMED.items():
        assert re.search(
            rf"^\| `{re.escape(old)}`.* \| .*`{re.escape(re.findall(r'[a-z]+[.][a-z_]+', new)[0])}`", page, re.MULTILINE
        )


@pytest.mark.parametrize("page", PAGES)
def test_benchmarks_are_there(page: str) -> None:
    for script, arguments in benchmarks(read(page)):
        source = (ROOT / script).read_text(encoding="utf-8")
        ast.parse(source)
        for argument in arguments:
            if not argument.isdecimal() and not argument.startswith("-"):
                assert argument.split("_")[0] in source or f"ladder/{argument}" in PRESETS, argument
            elif argument.startswith("--"):
                assert f'"{argument}"' in source, f"{script} {argument}"


@pytest.mark.parametrize("page", PAGES)
def test_examples_in_python_are_valid(page: str) -> None:
    for language, block in FENCE.findall(read(page)):
        if language == "python":
            ast.parse(block)


def test_loop_that_acts_with_a_trained_agent_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (loop,) = [block for _, block in FENCE.findall(read("docs/python.md")) if "agent.act" in block]
    (tmp_path / "checkpoints").mkdir()
    DreamerV3Trainer(make_config(tmp_path, run={"steps": 60})).train()
    shutil.copy(tmp_path / "run/checkpoints/latest.pt", tmp_path / "checkpoints/best_model.pt")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(loop, "docs/python.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0


def test_a_tokenizer_is_trained_as_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    (lesson,) = [block for _, block in FENCE.findall(read("docs/environments.md")) if "from tokenizers" in block]
    monkeypatch.chdir(tmp_path)
    Path("missions.txt").write_text("go to the red ball\ngo to the blue key\n" * 20, encoding="utf-8")
    exec(compile(lesson, "docs/environments.md", "exec"), {})
    spec = text_spec(spaces.Text(30), 6, config.load(values={"env.text_tokenizer": OWN_TOKENIZER}).env.text_tokenizer)
    array = encode("go to the red ball", spec, "say", "")
    assert np.count_nonzero(array) == 5 and decode(array, spec) == "go to the red ball"


@pytest.mark.parametrize("page", READMES)
def test_a_readme_is_one_page(page: str) -> None:
    assert len(read(page).splitlines()) <= LONGEST_README


def test_both_readmes_say_the_same() -> None:
    english, korean = map(read, READMES)
    numbers = [
        re.findall(r"\d[\d,.]*\d|\d", re.sub(r"\]\([^)]*\)|^#.*$", "", text, flags=re.MULTILINE))
        for text in (english, korean)
    ]
    assert sorted(numbers[0]) == sorted(numbers[1])
    assert [title.count("#") for title in headings(english)] == [title.count("#") for title in headings(korean)]
    assert list(commands(english)) == list(commands(korean))
    assert list(options(english)) == list(options(korean))
    others = {"README.md", "README.ko.md"}
    assert [link for link in links(english) if link[0] not in others] == [
        link for link in links(korean) if link[0] not in others
    ]


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - SWEEPS))
def test_preset_loads(name: str) -> None:
    config.load(name)


@pytest.mark.parametrize("task", ["default", "pinpad", "minigrid"])
@pytest.mark.parametrize("arm", LADDER)
def test_arm_of_the_ladder_changes_any_task(arm: str, task: str) -> None:
    changed, plain = config.build(trees.merge(config.read(task), config.read(arm))), config.load(task)
    assert changed.hierarchy.enabled == ("a0" not in arm and "a1" not in arm)
    assert (changed.env, changed.run, changed.world) == (plain.env, plain.run, plain.world)


def test_every_preset_is_described_and_every_description_has_its_preset() -> None:
    files = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.json")}
    assert files == PRESETS.keys()
    assert len(LADDER) > 1
