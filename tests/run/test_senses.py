"""A whole run with text, sound that may be missing, pictures and numbers: it resumes, wherever it is played."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from reverie.env import ENVIRONMENTS
from reverie.errors import ConfigError
from reverie.run.train import DreamerV3Trainer
from tests.env.test_tokens import word_tokenizer
from tests.run.test_train import digest, final_state, make_config


class Room(gymnasium.Env):
    """Everything that it shows depends on the seed and on the steps; the sound is heard at every other step."""

    def __init__(self):
        sound = spaces.Box(-32768, 32767, (80,), np.int16)
        sound.rate, sound.optional = 8_000, True
        shown = {"say": spaces.Text(9), "hear": sound, "see": spaces.Box(0, 255, (8, 8, 3), np.uint8)}
        self.observation_space = spaces.Dict(shown | {"feel": spaces.Box(-1, 1, (2,))})
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(self, action):
        self.count += 1
        return self._observe(), float(action), False, self.count == 7, {}

    def _observe(self):
        return {
            "say": ("", "빨간", "go left")[self.count % 3],
            "hear": self.np_random.integers(-9000, 9000, 80).astype(np.int16) if self.count % 2 else None,
            "see": self.np_random.integers(0, 256, (8, 8, 3)).astype(np.uint8),
            "feel": self.np_random.uniform(-1, 1, 2).astype(np.float32),
        }


@pytest.fixture(autouse=True)
def _room(monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "room", Room)


def test_a_run_with_every_sense_resumes_bit_for_bit_and_is_the_same_in_processes(tmp_path):
    states = {}
    for name, mode, stop in (("whole", "inline", 0), ("resumed", "inline", 70), ("processes", "processes", 0)):
        changes = {"env": {"name": "room", "mode": mode}, "run": {"steps": stop or 100}}
        DreamerV3Trainer(make_config(tmp_path / name, **changes)).train()
        if stop:
            assert final_state(tmp_path / name)["updates"] > 0
            DreamerV3Trainer.resume(tmp_path / name / "run/checkpoints/latest.pt", ["run.steps=100"]).train()
        states[name] = final_state(tmp_path / name)
    described = states["whole"]["spaces"]["observation"]
    assert described == {
        "feel": "float32[2]",
        "hear": "int16[80], 8000 Hz, optional",
        "hear/present": "bool[] of 2 classes",
        "say": "uint8[9], text",
        "see": "uint8[8, 8, 3]",
    }
    for other in ("resumed", "processes"):
        for section in ("model_state", "world_optimizer", "generators"):
            assert digest(states[other][section]) == digest(states["whole"][section]), (other, section)


def test_a_run_in_tokens_goes_on_bit_for_bit_without_the_file_of_its_tokenizer(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    files = {name: tmp_path / f"{name}.json" for name in ("mine", "other")}
    files["mine"].write_text(json.dumps(word_tokenizer(["go", "left", "[UNK]"])))
    files["other"].write_text(json.dumps(word_tokenizer(["go", "빨간", "[UNK]"])))
    states = {}
    for name, mode, stop in (("whole", "inline", 0), ("resumed", "inline", 70), ("processes", "processes", 0)):
        env = {"name": "room", "mode": mode, "kinds": dict.fromkeys(["hear", "see"])}
        env |= {"text_length": 3, "text_tokenizer": str(files["mine"])}
        sections = {"env": env, "run": {"steps": stop or 100}}
        DreamerV3Trainer(make_config(tmp_path / name, **sections)).train()
        if stop:
            assert final_state(tmp_path / name)["updates"] > 0
            moved = files["mine"].rename(tmp_path / "elsewhere.json")
            DreamerV3Trainer.resume(tmp_path / name / "run/checkpoints/latest.pt", ["run.steps=100"]).train()
            moved.rename(files["mine"])
        states[name] = final_state(tmp_path / name)
    assert states["whole"]["spaces"]["observation"]["say"].startswith("uint16[3] of 4 classes, text, tokenizer ")
    for other in ("resumed", "processes"):
        for section in ("model_state", "world_optimizer", "generators"):
            assert digest(states[other][section]) == digest(states["whole"][section]), (other, section)
    with pytest.raises(ConfigError, match=r"does not fit: observation say .*; changed: env.text_tokenizer") as refusal:
        DreamerV3Trainer.resume(tmp_path / "whole/run/checkpoints/latest.pt", [f"env.text_tokenizer={files['other']}"])
    assert len(str(refusal.value)) < 600


def test_every_sense_can_be_filmed(tmp_path):
    sections = {"env": {"name": "room"}, "run": {"steps": 50, "evaluate_every": 50, "evaluate_episodes": 1}}
    DreamerV3Trainer(make_config(tmp_path, **sections)).train()
    films = {path.stem.partition("_")[2] for path in (tmp_path / "run" / "media").rglob("*.*")}
    assert {"say", "hear", "see", "feel"} <= films
