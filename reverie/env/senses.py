"""The room of senses: four sentences to its riddle, each told to another sense. ``senses/5`` is a room of 5 x 5 cells.

At the middle of each wall lie pads of different colors, in any order. One pad is to be touched, with the right hand:

    text     names its color
    sound    tells at which wall it is, by its pitch
    picture  shows the pads that are near, 7 x 7 cells around the player
    body     says which hand is free, and where the player stands

The first touch of a pad ends the episode and pays 1 if wall, color and hand are right. The player begins in the middle.
Who lacks a sense can do no better than chance in what only that tells: 1 in ``colors`` without text or picture, 1 in
``walls`` without sound, 1 in 2 without body (the player's own steps tell where it is). `EnvOptions.mute` takes senses
away.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Int16, UInt8

from reverie.errors import ConfigError

COLORS = {"red": (220, 50, 47), "green": (60, 180, 75), "blue": (65, 105, 225)}
WALLS = {"west": (-1, 0), "east": (1, 0), "north": (0, -1), "south": (0, 1)}
"""And where each lies from the middle."""
MOVES = tuple(WALLS.values())
HANDS = 2

PITCHES = (330.0, 520.0, 820.0, 1290.0)
"""Of the walls, in Hz; none is a harmonic of another."""
RATE, SAMPLES = 8000, 800
SENTENCES = ("touch {}", "the {} one", "where is {}?", "{}, please")

VIEW, TILE, RENDERED = 7, 4, 32
"""Cells that are seen around the player, and pixels of a cell, to the agent and in videos."""
FLOOR, WALL, PLAYER = (20, 20, 26), (96, 100, 108), (245, 245, 245)


def create(task: str, colors: int = 2, walls: int = 4) -> gymnasium.Env:
    """The room of this width. Raises `ConfigError` if it is too narrow or not odd, and for other numbers of things."""
    if not task.isdecimal() or int(task) < 5 or int(task) % 2 == 0:
        raise ConfigError(f"senses/{task} is no room; write an odd width of at least 5, as in senses/5")
    for name, value, most in (("colors", colors, len(COLORS)), ("walls", walls, len(WALLS))):
        if value not in range(1, most + 1):
            raise ConfigError(f"env.kwargs.{name} = {value!r}: should be a whole number from 1 to {most}")
    return Senses(int(task), colors, walls)


class Senses(gymnasium.Env):
    """The room. ``info`` has ``success`` and what is to be known of the episode: wall, color and hand."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, size: int, colors: int, walls: int):
        self.size, self.middle, self.limit = size, size // 2, 4 * size
        self.colors, self.walls = list(COLORS)[:colors], list(WALLS)[:walls]
        self.action_space = spaces.Discrete(len(MOVES) + HANDS)
        sound = spaces.Box(-(2**15), 2**15 - 1, (SAMPLES,), np.int16)
        sound.kind, sound.rate = "audio", RATE  # type: ignore[attr-defined]
        letters = sorted({letter for text in (*SENTENCES, *COLORS) for letter in text} - set("{}"))
        self.observation_space = spaces.Dict(
            {
                "body": spaces.Box(-1, 1, (3,), np.float32),
                "picture": spaces.Box(0, 255, (VIEW * TILE, VIEW * TILE, 3), np.uint8),
                "sound": sound,
                "text": spaces.Text(32, charset="".join(letters)),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        draw = self.np_random
        self.wall, self.color, self.hand = (int(draw.integers(n)) for n in (len(self.walls), len(self.colors), HANDS))
        self.sentence = SENTENCES[draw.integers(len(SENTENCES))].format(self.colors[self.color])
        self.place([draw.permutation(len(self.colors)).tolist() for _ in self.walls])
        self.position, self.steps = (self.middle, self.middle), 0
        return self._observe(), self._info(success=False)

    def place(self, orders: list[list[int]]) -> None:
        """Lays the pads at each wall, in these orders of colors."""
        self.pads: dict[tuple[int, int], tuple[int, int]] = {}
        for wall, order in enumerate(orders):
            for offset, color in zip(self._offsets(), order, strict=True):
                right, down = WALLS[self.walls[wall]]
                x, y = (self.middle * (1 + away) + offset * (not away) for away in (right, down))
                self.pads[x, y] = wall, color

    def step(self, action: int | np.integer) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        touched, success = None, False
        if action < len(MOVES):
            x, y = (
                min(max(place + move, 0), self.size - 1)
                for place, move in zip(self.position, MOVES[action], strict=True)
            )
            self.position = x, y
        else:
            touched = self.pads.get(self.position)
            success = touched == (self.wall, self.color) and action - len(MOVES) == self.hand
        terminated = touched is not None
        truncated = not terminated and self.steps >= self.limit
        return self._observe(), float(success), terminated, truncated, self._info(success)

    def render(self) -> UInt8[np.ndarray, "_ _ 3"]:
        return self._room()[1:-1, 1:-1].repeat(RENDERED, 0).repeat(RENDERED, 1)

    def _offsets(self) -> list[int]:
        """Where the pads of a wall lie along it, from its middle: on both sides, the third one between."""
        return [-1, 1, 0][: len(self.colors)]

    def _info(self, success: bool) -> dict[str, Any]:
        return {"success": float(success), "wall": self.wall, "color": self.color, "hand": self.hand}

    def _observe(self) -> dict[str, Any]:
        x, y = self.position
        return {
            "body": np.array([2 * self.hand - 1, x / self.middle - 1, y / self.middle - 1], np.float32),
            "picture": self._picture(),
            "sound": self._sound(),
            "text": self.sentence,
        }

    def _sound(self) -> Int16[np.ndarray, "_"]:
        """A tone whose phase tells nothing."""
        angle = 2 * np.pi * (PITCHES[self.wall] / RATE * np.arange(SAMPLES) + self.np_random.random())
        return (8000 * np.sin(angle)).astype(np.int16)

    def _room(self, edge: int = 1) -> UInt8[np.ndarray, "_ _ 3"]:
        """One pixel a cell, with a wall of ``edge`` cells around."""
        cells = np.full((self.size + 2 * edge, self.size + 2 * edge, 3), WALL, np.uint8)
        cells[edge:-edge, edge:-edge] = FLOOR
        for (x, y), (_, color) in self.pads.items():
            cells[y + edge, x + edge] = COLORS[self.colors[color]]
        x, y = self.position
        cells[y + edge, x + edge] = PLAYER
        return cells

    def _picture(self) -> UInt8[np.ndarray, "_ _ 3"]:
        x, y = self.position
        near = self._room(VIEW // 2)[y : y + VIEW, x : x + VIEW]
        return near.repeat(TILE, 0).repeat(TILE, 1)
