"""Configurations that come with the package, found by name wherever a command is called from.

``pendulum`` is ``pendulum.json`` beside this file, and so is ``configs/pendulum.json`` where nobody wrote such a file.
"""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path

from reverie.errors import ConfigError

FOLDER = Path(__file__).parent

PRESETS = {
    "acrobot": "Acrobot-v1, a small task with a sparse end",
    "atari": "Atari games with 200 million frames, from the picture",
    "atari100k": "Atari games with 400,000 frames, from the picture",
    "crafter": "Crafter, from the picture",
    "deep_sea": "the deep sea, which only exploration solves",
    "default": "CartPole-v1 with a manager over a worker: what runs where no configuration is named",
    "dmc": "tasks of the DeepMind Control Suite",
    "dreamerv3": "the published algorithm alone",
    "experiment": "a sweep of CartPole's losses",
    "flat": "CartPole-v1 with one level",
    "highway": "driving among other cars",
    "ladder/a0_reinforce": "an arm of the ablation, on top of another preset: the published actor loss",
    "ladder/a1_ppo": "an arm: PPO with one level",
    "ladder/a3_director": "an arm: a manager with the settings of Director",
    "ladder/a3_hybrid": "an arm: a manager beside the task's own reward",
    "ladder/a7_reinforce": "an arm: a manager with the published actor loss",
    "ladder/a8_frozen": "an arm: a manager that does not learn",
    "lunarlander": "LunarLander-v3, which takes longer than the other small tasks",
    "minigrid": "MiniGrid's rooms with doors and keys, as symbols",
    "multimodal": "a MiniGrid room where a text says what to fetch: picture, text and vector",
    "multimodal_audio": "the room of senses, where a sound says at which wall: picture, sound and vector",
    "pendulum": "Pendulum-v1, a small task with continuous actions",
    "pinpad": "boards of pads to be touched in one order",
    "pinpad_sweep": "a sweep of how goals and returns are weighed on the pads",
    "pixels": "a MiniGrid room as a picture",
    "reference": "every option at its default",
    "small_batch": "for little memory",
}
"""Name -> what it is."""

log = logging.getLogger(__name__)


def locate(name: str | Path) -> Path:
    """The file that a name stands for: the user's own where there is one, else the preset.

    Raises ConfigError, with the most similar preset, where there is neither.
    """
    path = Path(name)
    if os.path.exists(path) and not (os.path.isdir(path) and str(name) in PRESETS):
        return path
    preset = path.as_posix()
    if path.suffix == ".json" and path.parts[0] == "configs":
        preset = Path(*path.parts[1:]).with_suffix("").as_posix()
        if preset in PRESETS:
            log.info("there is no file %s here; the preset %s that comes with the package is used", path, preset)
    if preset not in PRESETS:
        similar = difflib.get_close_matches(path.stem, PRESETS, n=1)
        advice = f"did you mean the preset {similar[0]}?" if similar else "`reverie config --list` shows the presets"
        shown = str(path) if str(path).isprintable() else repr(str(path))
        raise ConfigError(f"{shown[:200]}: no such file, nor a preset of that name; {advice}")
    return FOLDER / f"{preset}.json"
