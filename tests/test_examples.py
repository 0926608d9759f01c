"""The examples run, for a short while."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from reverie import DECODERS, ENCODERS, ENVIRONMENTS, MODALITY_CONFIGS, config
from reverie.run import train

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs an example in a folder of its own, with small networks; what it registers is gone afterwards."""
    registries: list[dict[str, Any]] = [DECODERS, ENCODERS, ENVIRONMENTS, MODALITY_CONFIGS]
    saved = [dict(registry) for registry in registries]
    monkeypatch.chdir(tmp_path)
    whole = train.DreamerV3Trainer.__init__
    small = ["replay.batch_size=4", "replay.length=8", "agent.starts=0", "env.envs=2", "run.evaluate_every=0"]
    small += ["run.threads=1", "run.train_ratio=4", "run.log_every=50", "logger.tensorboard=false"]
    monkeypatch.setattr(
        train.DreamerV3Trainer,
        "__init__",
        lambda self, chosen: whole(self, config.override(chosen.model_dump(mode="json"), small)),
    )

    def call(name: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    yield call
    for registry, before in zip(registries, saved, strict=True):
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize(("name", "seen"), [("custom_env", "vector"), ("custom_modality", "lidar")])
def test_an_environment_and_a_modality_of_ones_own_are_trained(run, name, seen, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run(name, "100")
    assert ended.value.code == 0
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    assert f'"world/recon_{seen}"' in metrics.read_text()


def test_a_world_model_learns_from_data_alone(run, capsys):
    run("worldmodel_on_data", "2")
    assert "words read off their melodies alone" in capsys.readouterr().out
