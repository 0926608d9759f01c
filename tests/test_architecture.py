"""The rules that keep the package readable, as tests: who may import whom, how long, and what never."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from reverie.types import Latent

ROOT = Path(__file__).parents[1]

BASE = {"errors", "options", "types", "functional"}
BELOW_AGENT = BASE | {
    "compilation",
    "nets",
    "native",
    "world",
    "behavior",
    "imagine",
    "optim",
    "clipping",
    "directions",
    "learned_rates",
    "rate_free",
}
BELOW_CONFIG = BELOW_AGENT | {
    "agent",
    "compatibility",
    "aliases",
    "env",
    "presets",
    "replay",
    "strict_json",
    "trees",
    "trust",
}
BELOW_RUN = BELOW_CONFIG | {"config"}

MAY_IMPORT = {
    "errors": set(),
    "types": set(),
    "aliases": set(),
    "functional": {"types"},
    "trees": {"errors"},
    "options": {"errors", "trees"},
    "strict_json": {"errors", "trees"},
    "trust": {"errors", "trees"},
    "native": set(),
    "presets": {"errors"},
    "compilation": {"native"},
    "env": BASE,
    "replay": BASE,
    "clipping": set(),
    "directions": set(),
    "optim": BASE | {"clipping", "compatibility", "directions", "native"},
    "learned_rates": BASE | {"compatibility", "optim"},
    "rate_free": BASE | {"compatibility", "directions", "optim"},
    "nets": BASE | {"native"},
    "world": BASE | {"compilation", "nets", "native"},
    "behavior": BASE | {"compilation", "nets", "optim"},
    "imagine": BASE | {"compilation", "nets", "world", "behavior"},
    "compatibility": {"errors", "trees", "types"},
    "agent": BELOW_AGENT | {"compatibility"},
    "config": BELOW_CONFIG,
    "run": BELOW_RUN,
    "flags": {"errors"},
    "cli": BELOW_RUN | {"flags", "run"},
    "__main__": {"cli"},
    "__init__": BELOW_RUN | {"run"},
}
"""The layers of ARCHITECTURE.md: a part of the package, and the other parts that it may import."""

HEAVY = {
    *("ale_py", "crafter", "dm_control", "highway_env", "minigrid", "mujoco"),
    *("av", "matplotlib", "prodigyopt", "ray", "tensorboard", "tokenizers", "wandb"),
}
"""Slow or optional: imported inside a function, when it is used."""

WITHOUT_STRINGS = {"agent.py", "behavior/ppo.py", "behavior/hierarchy.py"}
"""The algorithm. A variant is an entry of a registry, never a comparison with a name here."""

COMPUTES = BELOW_AGENT - {"native"} | {"agent"}
"""All parts that hold tensors, without the fence around C."""

FILE_LINES = 330
FUNCTION_LINES = 65


@dataclass(frozen=True)
class Source:
    """One file of the package."""

    path: str
    """Relative to the package, such as ``env/vector.py``."""
    text: str

    @property
    def part(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def at(self, node: ast.stmt | ast.expr, what: str) -> str:
        return f"reverie/{self.path}:{node.lineno}: {what}"

    def imports(self) -> Iterator[tuple[ast.stmt, str]]:
        """Every import with its absolute dotted target, the imported name included."""
        package = ["reverie", *self.path.split("/")[:-1]]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def forbidden_layers(source: Source) -> Iterator[str]:
    allowed = MAY_IMPORT[source.part] | {source.part}
    for node, target in source.imports():
        package, _, rest = target.partition(".")
        if package == "reverie" and rest.split(".")[0] not in allowed:
            yield source.at(node, f"{source.part} must not import {target}")


def heavy_imports(source: Source) -> Iterator[str]:
    functions = [n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef)]
    inside = {child.lineno for function in functions for child in ast.walk(function) if isinstance(child, ast.stmt)}
    for node, target in source.imports():
        lazy = source.part in {"env", "rate_free", "run"} and node.lineno in inside
        if (target.split(".")[0] in HEAVY or target.startswith("torch.utils.tensorboard")) and not lazy:
            yield source.at(node, f"{target} is imported only inside a function of env, rate_free or run")


def string_comparisons(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree) if source.path in WITHOUT_STRINGS else ():
        compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        compared += [node.value] if isinstance(node, ast.MatchValue) else []
        if any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in compared):
            yield source.at(compared[0], "the algorithm does not compare with a string")


def lengths(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > FILE_LINES:
        yield f"reverie/{source.path}: {lines} lines, at most {FILE_LINES}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield source.at(node, f"{node.name} has {length} lines, at most {FUNCTION_LINES}")


def unsafe_calls(source: Source) -> Iterator[str]:
    for node, target in source.imports():
        if target.split(".")[0] == "pickle" or target.startswith("torch.distributions"):
            yield source.at(node, f"{target} is not used here")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributions":
            yield source.at(node, "torch.distributions is not used here")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in {"eval", "exec"}:
            yield source.at(node, f"{name} runs text as code")
        if keywords.get("allow_pickle", "False") != "False":
            yield source.at(node, "allow_pickle runs code that a file brings")
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield source.at(node, "torch.load needs weights_only=True")
        if name.endswith(".cuda"):
            yield source.at(node, "a tensor goes to the agent's device, not to cuda()")


def fence(source: Source) -> Iterator[str]:
    """What computes knows of C through ``native`` alone, whose checks Python never leaves out."""
    for node, target in source.imports() if source.part in COMPUTES else ():
        if target.split(".")[0] in {"ctypes", "struct"}:
            yield source.at(node, f"{target} is used in native only")
    for node in ast.walk(source.tree) if source.part == "native" else ():
        if isinstance(node, ast.Assert):
            yield source.at(node, "a check of native is an exception: python -O leaves assertions out")


Rule = Callable[[Source], Iterator[str]]
RULES: list[Rule] = [forbidden_layers, heavy_imports, string_comparisons, lengths, unsafe_calls, fence]


@pytest.mark.parametrize("rule", RULES)
def test_package_keeps_the_rule(rule: Rule) -> None:
    files = sorted((ROOT / "reverie").rglob("*.py"))
    sources = [
        Source(file.relative_to(ROOT / "reverie").as_posix(), file.read_text(encoding="utf-8")) for file in files
    ]
    offenders = [offender for source in sources for offender in rule(source)]
    assert sources
    assert not offenders, "\n" + "\n".join(offenders)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (forbidden_layers, "world/rssm.py", "from reverie.behavior.ppo import improve"),
        (forbidden_layers, "world/rssm.py", "from ..behavior import ppo"),
        (forbidden_layers, "replay.py", "def load():\n    from . import config"),
        (forbidden_layers, "env/vector.py", "import reverie.optim"),
        (forbidden_layers, "types.py", "from reverie import Agent"),
        (heavy_imports, "env/minigrid.py", "import minigrid"),
        (heavy_imports, "agent.py", "def watch():\n    import wandb"),
        (heavy_imports, "run/logger.py", "from torch.utils.tensorboard import SummaryWriter"),
        (string_comparisons, "agent.py", "flat = options.kind == 'flat'"),
        (string_comparisons, "behavior/ppo.py", "match kind:\n    case 'flat': pass"),
        (lengths, "cli.py", "\n" * (FILE_LINES + 1)),
        (lengths, "cli.py", "def main():\n" + "    pass\n" * FUNCTION_LINES),
        (unsafe_calls, "replay.py", "import pickle"),
        (unsafe_calls, "replay.py", "np.load(path, allow_pickle=True)"),
        (unsafe_calls, "run/checkpoint.py", "torch.load(path)"),
        (unsafe_calls, "agent.py", "x.cuda()"),
        (unsafe_calls, "config.py", "eval(text)"),
        (unsafe_calls, "nets/distributions.py", "import torch.distributions as D"),
        (fence, "optim.py", "import struct"),
        (fence, "world/rssm_kernels.py", "from ctypes import byref"),
        (fence, "native/layers.py", "assert x.is_contiguous()"),
        (unsafe_calls, "nets/distributions.py", "D = torch.distributions.Normal"),
    ],
)
def test_rule_finds_what_it_forbids(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("run/train.py", "import torch\nfrom reverie.config import Config\nfrom ..agent import Agent"),
        ("env/minigrid.py", "def make():\n    import minigrid\n    from . import wrappers"),
        ("agent.py", "model.eval()\nx = rewards['icm']\nif 3 == x: pass"),
        ("run/checkpoint.py", "torch.load(path, weights_only=True)"),
    ],
)
def test_rules_let_good_code_pass(path: str, text: str) -> None:
    assert [offender for rule in RULES for offender in rule(Source(path, text))] == []


def test_tests_check_the_shapes_in_annotations() -> None:
    deter, stoch = torch.zeros(2, 3, 8), torch.zeros(2, 3, 4, 5)
    assert Latent(deter, stoch, stoch).features.shape == (2, 3, 28)
    with pytest.raises(TypeCheckError):
        Latent(deter, stoch[:1], stoch)
