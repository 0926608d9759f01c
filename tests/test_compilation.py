"""Compiled functions are the functions as written: compiled once, only where an agent learns, and never required."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from reverie import compilation, native
from reverie.compilation import compiled, learning, repays
from reverie.native import build
from tests.core import close

CPU = torch.device("cpu")


@pytest.fixture
def fresh(monkeypatch):
    """A compiler that has done nothing yet, and traces but makes no machine code."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    monkeypatch.setattr(compilation, "_failed", False)
    torch._dynamo.reset()
    counters.clear()
    yield monkeypatch
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


# --- whole updates ---


def learn(backend: str, **choices: Any) -> dict[str, Any]:
    task = {"backend": backend, "kernels": False, "agent": {}, "world": {}, **choices}
    command = [sys.executable, "-m", "tests.fused", json.dumps(task)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1]).stdout)


HALVED = {"agent": {"precision": "bf16"}, "world": {"gradient_checkpointing": True}}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("choices", [{}, pytest.param(HALVED, marks=pytest.mark.compiler)])
def test_an_update_is_compiled_in_whole_functions_and_only_once(choices):
    found = learn("eager", **choices)
    assert found["as written"] == 0 and found["compiled"] > 3
    assert found["broken"] == []
    assert found["compiled later"] == 0  # three more updates, and acting
    assert max(found["metrics"].values()) == max(found["gradients"].values()) == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_of_an_update_is_needed_when_the_next_one_reuses_its_memory(checkpointing):
    found = learn("lender", world={"gradient_checkpointing": checkpointing})
    assert found["reclaimed"] > 20
    assert found["kept"]  # metrics and latents, which others read later
    assert all(value < 1e-3 for value in found["later"].values()), found["later"]


@pytest.mark.compiler
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "choices",
    [
        {"kernels": True},
        {"kernels": False},
        {"world": {"gradient_checkpointing": True}},
        {"agent": {"compile": "graphs"}},
    ],
)
def test_a_compiled_update_is_the_update_as_written(choices):
    found = learn("inductor", **choices)
    assert found["compiled"] and not found["compiled later"] and not found["broken"]
    assert all(value < 1e-4 for value in found["gradients"].values()), found["gradients"]
    assert all(value < 1e-4 for value in found["metrics"].values()), found["metrics"]


@pytest.mark.compiler
@pytest.mark.timeout(1200)
def test_a_compiled_update_in_half_precision_is_near_the_update_as_written():
    found = learn("inductor", agent={"precision": "bf16"})
    assert found["compiled"] and not found["compiled later"] and not found["broken"]
    # Where bf16 draws one other action it is another dream, of which actor and critic make something else.
    assert all(value < 1 for value in found["gradients"].values()), found["gradients"]
    assert found["gradients"]["world"] < 0.02
    assert all(value < 0.02 for name, value in found["metrics"].items() if name.startswith("world/")), found["metrics"]


# --- where functions are compiled ---


@compiled
def double(x: Tensor) -> Tensor:
    return 2 * torch.sin(x)


@compiled
def triple(x: Tensor) -> Tensor:
    return double(x) + torch.sin(x)


@pytest.mark.usefixtures("fresh")
def test_functions_are_compiled_only_where_an_agent_learns():
    x = torch.ones(3)
    double(x)
    with learning(False):
        double(x)
    assert graphs() == 0
    with learning(True):
        close(double(x), 2 * torch.sin(x))
    assert graphs() == 1
    double(torch.ones(4))
    assert graphs() == 1


@pytest.mark.usefixtures("fresh")
def test_a_compiled_function_takes_in_those_that_it_calls():
    with learning(True):
        close(triple(torch.ones(3)), 3 * torch.sin(torch.ones(3)))
    assert graphs() == 1


@pytest.mark.usefixtures("fresh")
def test_another_thread_that_acts_meanwhile_is_not_compiled():
    with learning(True), ThreadPoolExecutor() as pool:
        pool.submit(double, torch.ones(5)).result()
    assert graphs() == 0


@pytest.mark.usefixtures("both_ways")
def test_a_run_is_compiled_when_told_to_or_where_it_is_long_and_no_kernels_serve():
    assert repays("on", CPU) and repays("graphs", CPU) and not repays("off", CPU, 1e9)
    assert repays("auto", CPU, compilation.REPAID) == (not native.version())
    assert not repays("auto", CPU, compilation.REPAID - 1) and not repays("auto", CPU)


# --- where they cannot be ---


def test_without_a_compiler_functions_run_as_written_and_one_line_says_so(fresh, tmp_path, caplog):
    fresh.setattr(compilation, "BACKEND", "inductor")
    fresh.setenv(compilation.CACHE, str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        for _ in range(2):
            with learning(True):
                close(double(torch.ones(3)), 2 * torch.sin(torch.ones(3)))
    (line,) = [record.message for record in caplog.records if record.name == compilation.__name__]
    assert "cannot compile" in line and "agent.compile=off" in line and line.isprintable() and len(line) < 200
    assert not compilation.works()


def test_a_compiler_that_fails_on_the_way_back_is_not_needed_either(fresh, caplog):
    def refuse(graph: torch.fx.GraphModule, _: Any) -> Any:
        raise RuntimeError("no way back")

    fresh.setattr(compilation, "BACKEND", aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=refuse))
    x = torch.ones(3, requires_grad=True)
    with learning(True):
        double(x).sum().backward()
    close(x.grad, 2 * torch.cos(torch.ones(3)))
    assert not compilation.works() and "no way back" in caplog.text


@pytest.mark.usefixtures("fresh")
def test_a_mistake_in_a_function_is_not_the_compilers(caplog):
    with learning(True), pytest.raises(TypeError, match="sin"):
        double("one")  # type: ignore[arg-type]
    assert compilation.works()
    assert compilation.__name__ not in {record.name for record in caplog.records if record.levelname == "WARNING"}


def test_compiled_functions_are_kept_where_the_user_says_or_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(compilation.CACHE, "/chosen")
    assert compilation.folder() == "/chosen"
    monkeypatch.delenv(compilation.CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "cache_folder", build.cache_folder.__wrapped__)  # the process knows its own already
    assert compilation.folder() == str(tmp_path / "reverie" / "compiled")
    monkeypatch.delenv(compilation.CACHE)
