"""What a GPU may break: resume, half precision, acting beside learning, graphs, and files that other machines read.

Every test also runs on the CPU, so that it is known to run before there is a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reverie import native
from reverie.run.train import DreamerV3Trainer
from reverie.types import Metrics
from tests.core import FLAT, IMAGE, PASSES, PLANNED, VECTORS, OptimizerOptions, make_agent, make_batch, shake
from tests.run.test_train import MANAGED, digest, final_state, make_config
from tests.test_compilation import learn

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])


def tensors(tree: Any) -> list[torch.Tensor]:
    """All tensors in nested plain containers."""
    if isinstance(tree, dict | list | tuple):
        return [tensor for item in (tree.values() if isinstance(tree, dict) else tree) for tensor in tensors(item)]
    return [tree] if isinstance(tree, torch.Tensor) else []


def close(mine: Metrics, expected: Metrics, tolerance: float) -> None:
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        difference = (mine[name].cpu() - value.cpu()).abs() / value.cpu().abs().clamp(min=0.1)
        assert float(difference) < tolerance, name


def pixels(folder: Path, device: str, steps: int = 160) -> DreamerV3Trainer:
    """A tiny run with a manager that sees pictures."""
    env = {"name": "minigrid/Empty-5x5", "kwargs": {"pixels": True}, "size": 16}
    return DreamerV3Trainer(make_config(folder, env=env, run={"device": device, "steps": steps}, **MANAGED))


@DEVICES
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, device: str) -> None:
    pytest.importorskip("minigrid")
    pixels(tmp_path / "whole", device).train()
    pixels(tmp_path / "parts", device, steps=100).train()
    DreamerV3Trainer.resume(tmp_path / "parts/run/checkpoints/latest.pt", ["run.steps=160"]).train()
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    assert whole["updates"] == parts["updates"] > 5
    for key in whole:
        assert digest(whole[key]) == digest(parts[key]) or key in (
            "seconds",
            "directory",
            "config",
            "replay",
            "metrics",
        ), key


@DEVICES
def test_a_checkpoint_opens_where_there_is_no_such_device(tmp_path: Path, device: str) -> None:
    trainer = DreamerV3Trainer(make_config(tmp_path, run={"device": device}, **MANAGED))
    trainer.train()
    stored = tensors(torch.load(tmp_path / "run/checkpoints/latest.pt"))
    assert len(stored) > 50
    assert {tensor.device.type for tensor in stored} == {"cpu"}
    elsewhere = DreamerV3Trainer.resume(tmp_path / "run/checkpoints/latest.pt", ["run.device=cpu", "run.steps=200"])
    assert elsewhere.train() == 0
    assert elsewhere.updates > trainer.updates


@DEVICES
def test_a_thread_acts_while_the_agent_learns(tmp_path: Path, device: str) -> None:
    run = {"device": device, "asynchronous": True, "checkpoint_every": 50, "train_ratio": 8}
    trainer = DreamerV3Trainer(make_config(tmp_path, run=run, **MANAGED))
    before = [parameter.detach().cpu().clone() for parameter in trainer.agent.parameters()]
    assert trainer.train() == 0
    assert trainer.step == 160 and trainer.updates > 20
    assert (trainer.player.stream is None) == (device == "cpu")  # it has a stream of its own on a GPU
    after = [parameter.detach().cpu() for parameter in trainer.agent.parameters()]
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    for copied, original in zip(trainer.player.copies, trainer.player.originals, strict=True):
        assert torch.equal(copied, original)  # it acts by the newest weights


@DEVICES
@pytest.mark.parametrize("hierarchy", [FLAT, PLANNED])
def test_devices_explain_a_batch_alike(monkeypatch: pytest.MonkeyPatch, device: str, hierarchy: Any) -> None:
    monkeypatch.setattr(native, "_enabled", frozenset())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    there, here = (make_agent(IMAGE | VECTORS, hierarchy=hierarchy, device=name) for name in (device, "cpu"))
    for agent in (there, here):
        shake(agent)
    batch = make_batch(here.world)
    noise = torch.rand(*batch.reward.shape, here.world.sizes.stoch, generator=torch.Generator().manual_seed(0))
    found = []
    for agent in (there, here):
        *_, losses = agent.world.loss(batch.to(agent.device), noise.to(agent.device))
        found.append({name: loss.detach().mean() for name, loss in losses.items()})
    close(*found, tolerance=1e-3)


@DEVICES
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_points_the_gradient_the_same_way(device: str, precision: str) -> None:
    gradients = []
    for choice in ("fp32", precision):
        still = OptimizerOptions(rate=0)
        agent = make_agent(IMAGE | VECTORS, precision=choice, optimizer=still, behavior=PASSES, device=device)
        shake(agent, 0.05)
        gradients.append(torch.zeros_like(agent.optimizers["world"].gradient))
        for _ in range(8):  # rounding lets a sample fall into another class now and then
            metrics, fresh = agent.learn(make_batch(agent.world))
            assert not metrics["world/skipped"]
            gradients[-1] += agent.optimizers["world"].gradient
        assert {tensor.dtype for tensor in agent.parameters()} == {torch.float32} == {fresh["deter"].dtype}
        assert all(value.isfinite() for value in metrics.values())
    whole, mine = gradients
    assert float(mine @ whole / mine.norm() / whole.norm()) > 0.99


@pytest.mark.timeout(600)
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.compiler), CUDA])
def test_graphs_learn_what_is_written_and_keep_what_they_returned(device: str) -> None:
    found = learn("inductor", agent={"compile": "graphs"}, device=device)
    assert found["compiled"] and not found["compiled later"] and not found["broken"]
    assert found["kept"]  # also when the next updates write over the memory of their graphs
    for difference in (found["gradients"], found["metrics"], found["later"]):
        assert all(value < 1e-2 for value in difference.values()), difference
