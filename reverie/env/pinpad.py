"""Pin Pad: step on coloured pads in the right order. ``pinpad/three`` to ``pinpad/six``, ``pinpad/vec-3`` to ``vec-5``.

The game is that of Hafner et al., "Deep Hierarchical Planning from Pixels" (2022). The player stays or moves one cell;
a history holds the last n pads that were stepped on, each noted when it differs from the one before. When it reads
1, 2, ..., n the reward is 1 (published: 10). The tenth step after that begins in a random cell with an empty history.
Only time ends an episode, so its return counts its successes.

``three`` to ``six`` are the published boards of 16 x 14 cells; the others are for small computers: 9 x 9 cells with
three or four pads and 11 x 11 with five, their outer walls included.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.env.registry import suggest
from reverie.errors import ConfigError

COUNTDOWN = 10
"""Steps from a success to the step that begins somewhere else."""

MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
"""Rows and columns that the actions stay, down, up, right, left go."""

RENDERED = 64
"""Height and width of the picture for videos."""

WALL, FLOOR, CELEBRATION, PLAYER = (192, 192, 192), (255, 255, 255), (223, 255, 223), (0, 0, 0)
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))
"""Of the pads 1 to 6."""

BOARDS = {
    "vec-3": """
        11..22.
        11..22.
        .......
        .......
        .......
        33.....
        33.....
    """,
    "vec-4": """
        11..44.
        11..44.
        .......
        .......
        .......
        33..22.
        33..22.
    """,
    "vec-5": """
        11.....44
        11.....44
        .........
        ...55....
        ...55....
        .........
        .........
        33.....22
        33.....22
    """,
    "three": """
        ################
        #1111......3333#
        #1111......3333#
        #1111......3333#
        #1111......3333#
        #..............#
        #..............#
        #..............#
        #..............#
        #.....2222.....#
        #.....2222.....#
        #.....2222.....#
        #.....2222.....#
        ################
    """,
    "four": """
        ################
        #1111......4444#
        #1111......4444#
        #1111......4444#
        #1111......4444#
        #..............#
        #..............#
        #..............#
        #..............#
        #3333......2222#
        #3333......2222#
        #3333......2222#
        #3333......2222#
        ################
    """,
    "five": """
        ################
        #..........4444#
        #111.......4444#
        #111.......4444#
        #111...........#
        #111........555#
        #...........555#
        #...........555#
        #333........555#
        #333...........#
        #333.......2222#
        #333.......2222#
        #..........2222#
        ################
    """,
    "six": """
        ################
        #111........555#
        #111........555#
        #111........555#
        #..............#
        #33..........66#
        #33..........66#
        #33..........66#
        #33..........66#
        #..............#
        #444........222#
        #444........222#
        #444........222#
        ################
    """,
}
"""Digits are pads, # is a wall; so is the edge."""


def create(task: str, length: int = 1000, vector: bool = True, image: int = 0) -> gymnasium.Env:
    """The board of this name, with episodes of ``length`` steps.

    ``vector`` shows the state as classes. ``image`` draws a picture beside it (alone, without ``vector``) that many
    pixels high and wide: 64, or as small as one pixel a cell, which is 8 for ``vec-3`` and ``vec-4`` and 16 for the
    others. Raises `ConfigError` if there is no such board, no time, nothing to see, or an image that does not fit.
    """
    if task not in BOARDS:
        raise ConfigError(f"unknown Pin Pad board {task!r}; {suggest(task, BOARDS)}")
    if length < 1:
        raise ConfigError(f"env.kwargs.length = {length} leaves no time to play; set it to at least 1")
    return PinPad(BOARDS[task].split(), length, vector, image)


class PinPad(gymnasium.Env):
    """A board of equally long ``rows``.

    The observation has ``cell`` (counted over the floor, row by row), ``pad`` (the one stood on, 0 for none),
    ``history`` (n pads, the latest last, 0 where there is none yet) and ``countdown`` (10 after a success, down to 0),
    which determine what follows; ``info`` has them always. The picture shows all of it but how far the countdown is.

    In one case this is not the published game: there, who is put down on a pad and walks into a wall has not stepped
    on that pad.
    """

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, rows: list[str], length: int, vector: bool, image: int):
        self.rows, self.length, self.vector, self.image = rows, length, vector, image
        self.floor = [(y, x) for y, row in enumerate(rows) for x, tile in enumerate(row) if tile != "#"]
        self.pads = [int(rows[y][x]) if rows[y][x].isdigit() else 0 for y, x in self.floor]
        self.target = tuple(range(1, max(self.pads) + 1))
        numbers = {place: cell for cell, place in enumerate(self.floor)}
        self.neighbours = [[numbers.get((y + down, x + right), cell) for down, right in MOVES]
                           for (y, x), cell in numbers.items()]  # fmt: skip
        # The picture, in cells: the board and, below it, the history.
        self.side = 8 if max(len(rows) + 1, len(rows[0])) <= 8 else 16
        self.canvases = {(pad, celebrating): self._paint(pad, celebrating)
                         for pad in (0, *self.target) for celebrating in (False, True)}  # fmt: skip
        self.action_space = spaces.Discrete(len(MOVES))
        self.observation_space = self._space()
        self.cell, self.history, self.countdown, self.steps = 0, (0,) * len(self.target), 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.countdown = self.steps = 0
        self._put_down()
        info = self._state()
        return self._observe(info), info

    def step(self, action: int | np.integer) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.countdown:
            self.countdown -= 1
            if not self.countdown:
                self._put_down()
        self.cell = self.neighbours[self.cell][action]
        pad = self.pads[self.cell]
        if pad and pad != self.history[-1]:
            self.history = (*self.history[1:], pad)
        success = self.history == self.target and not self.countdown
        if success:
            self.countdown = COUNTDOWN
        self.steps += 1
        info = self._state()
        return self._observe(info), float(success), False, self.steps >= self.length, info

    def render(self) -> np.ndarray:
        return self._picture(RENDERED)

    def _put_down(self) -> None:
        self.cell = int(self.np_random.integers(len(self.floor)))
        self.history = (0,) * len(self.target)

    def _space(self) -> spaces.Space:
        if not self.vector and not self.image:
            raise ConfigError("Pin Pad with env.kwargs.vector = false shows nothing; set env.kwargs.image to 64")
        if self.image % self.side or self.image < 0:
            raise ConfigError(f"env.kwargs.image = {self.image} does not fit this Pin Pad board; "
                              f"set it to 64 or another multiple of {self.side}")  # fmt: skip
        shown: dict[str, spaces.Space] = {}
        if self.vector:
            codes = len(self.target) + 1
            shown["cell"] = spaces.Discrete(len(self.floor))
            shown["pad"] = spaces.Discrete(codes)
            shown["history"] = spaces.MultiDiscrete([codes] * len(self.target))
            shown["countdown"] = spaces.Discrete(COUNTDOWN + 1)
        if self.image:
            shown["image"] = spaces.Box(0, 255, (self.image, self.image, 3), np.uint8)
        return spaces.Dict(shown)

    def _state(self) -> dict[str, Any]:
        return {
            "cell": self.cell,
            "pad": self.pads[self.cell],
            "history": np.array(self.history),
            "countdown": self.countdown,
        }

    def _observe(self, state: dict[str, Any]) -> dict[str, Any]:
        shown = state.copy() if self.vector else {}
        if self.image:
            shown["image"] = self._picture(self.image)
        return shown

    def _picture(self, size: int) -> np.ndarray:
        """Uint8 [size, size, 3]: player, pads with the one stood on in full colour, and the history from the left."""
        cells = self.canvases[self.pads[self.cell], self.countdown > 0].copy()
        cells[self.floor[self.cell]] = PLAYER
        for place, pad in enumerate(filter(None, self.history)):
            cells[len(self.rows), 2 * place + 1] = COLORS[pad - 1]
        return cells.repeat(size // self.side, 0).repeat(size // self.side, 1)

    def _paint(self, current: int, celebrating: bool) -> np.ndarray:
        """The picture without player and history, one pixel a cell."""
        cells = np.full((self.side, self.side, 3), WALL, np.uint8)
        for place, pad in zip(self.floor, self.pads, strict=True):
            if not pad:
                cells[place] = CELEBRATION if celebrating else FLOOR
            elif pad == current:
                cells[place] = COLORS[pad - 1]
            else:
                cells[place] = (np.array(COLORS[pad - 1]) + 9 * np.array(FLOOR)) // 10
        return cells
