"""The room of senses: what each sense tells, and that nothing else tells it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from reverie.env import EnvOptions, make, make_vector
from reverie.env.senses import COLORS, MOVES, PITCHES, RATE, TILE, VIEW, WALLS, Senses, create
from reverie.env.text import to_text
from reverie.errors import ConfigError


def read(obs: dict[str, np.ndarray], colors: int, walls: int) -> dict[str, object]:
    """What the senses tell: the color that the text names, the wall that sounds, the seen pads, the free hand."""
    text = to_text(obs["text"])
    named = [color for color, name in enumerate(list(COLORS)[:colors]) if name in text]
    spectrum = np.abs(np.fft.rfft(obs["sound"].astype(float)))
    pitch = spectrum.argmax() * RATE / len(obs["sound"])
    x, y = np.rint((obs["body"][1:] + 1) * 2).astype(int)
    seen = obs["picture"][::TILE, ::TILE]
    paints = {paint: color for color, paint in enumerate(COLORS.values())}
    pads = {
        (x + column - VIEW // 2, y + row - VIEW // 2): paints[paint]
        for row, column in itertools.product(range(VIEW), repeat=2)
        if (paint := tuple(seen[row, column].tolist())) in paints
    }
    wall = int(np.abs(np.array(PITCHES[:walls]) - pitch).argmin()) if spectrum.any() else None
    return {
        "color": named[0] if named else None,
        "wall": wall,
        "pads": pads,
        "hand": int(obs["body"][0] > 0) if obs["body"].any() else None,
    }


def plan(env: Senses, told: dict[str, object]) -> list[int]:
    """The way of whoever believes what it is told, and takes the first of everything else."""
    wall, color, hand = (told[name] or 0 for name in ("wall", "color", "hand"))
    places = [place for place, (of, _) in env.pads.items() if of == wall]  # the room itself is known
    fitting = [place for place in places if told["pads"] and told["pads"].get(place) == color]  # type: ignore[attr-defined]
    x, y = (fitting or places)[0]
    right, down = x - env.middle, y - env.middle
    across = abs(right) * [MOVES.index((1 if right > 0 else -1, 0))]
    along = abs(down) * [MOVES.index((0, 1 if down > 0 else -1))]
    return [*across, *along, len(MOVES) + hand]


def episodes(env: Senses):
    """The room in each of its states, after a reset."""
    orders = list(itertools.permutations(range(len(env.colors))))
    for wall, color, hand in itertools.product(range(len(env.walls)), range(len(env.colors)), range(2)):
        for laid in itertools.product(orders, repeat=len(env.walls)):
            env.wall, env.color, env.hand = wall, color, hand
            env.sentence = f"touch {env.colors[color]}"
            env.position, env.steps = (env.middle, env.middle), 0
            env.place([list(order) for order in laid])
            yield


@pytest.mark.parametrize(("colors", "walls"), [(2, 4), (3, 2), (2, 2)])
@pytest.mark.parametrize("mute", [None, "text", "sound", "picture", "body"])
def test_who_lacks_a_sense_is_at_chance_in_what_it_tells_and_who_has_all_is_always_right(colors, walls, mute):
    kwargs = {"colors": colors, "walls": walls}
    adapted = make(EnvOptions(name="senses/5", kwargs=kwargs, mute=[mute] if mute else []))
    adapted.reset(0)
    inner = adapted
    while hasattr(inner, "inner"):
        inner = inner.inner
    env: Senses = inner.env  # type: ignore[attr-defined]
    rewards = []
    for _ in episodes(env):
        aside = len(MOVES)  # a touch of the floor does nothing
        obs, *_ = adapted.step(np.eye(6, dtype=np.float32)[aside])
        told = read(obs, colors, walls)
        if mute == "body":  # which says where the picture is from
            told["pads"] = read(obs | {"body": np.zeros(3, np.float32)}, colors, walls)["pads"]
        for action in plan(env, told):
            _, reward, terminated, truncated = adapted.step(np.eye(6, dtype=np.float32)[action])
        assert terminated and not truncated
        rewards.append(reward)
    chance = {None: 1.0, "text": 1 / colors, "picture": 1 / colors, "sound": 1 / walls, "body": 0.5}
    assert np.mean(rewards) == pytest.approx(chance[mute], abs=1e-12)


def test_the_checker_of_gymnasium_has_no_complaint():
    check_env(create("5"), skip_render_check=True)


def test_all_that_is_to_be_known_is_drawn_evenly_and_from_the_seed():
    env, seen = create("7", colors=3), []
    for seed in range(300):
        _, info = env.reset(seed=seed)
        seen.append((info["wall"], info["color"], info["hand"], env.pads[env.middle, 0][1]))
    for values, count in zip(zip(*seen, strict=True), (4, 3, 2, 3), strict=True):
        shares = np.bincount(values, minlength=count) / 300
        assert (np.abs(shares - 1 / count) < 4 * np.sqrt(0.25 / 300)).all()
    assert env.reset(seed=5)[0]["sound"].tobytes() == env.reset(seed=5)[0]["sound"].tobytes()


def test_a_wall_stops_and_time_runs_out():
    env = create("5")
    env.reset(seed=1)
    for step in range(1, 21):
        _, reward, terminated, truncated, info = env.step(0)
        assert (reward, terminated, truncated, info["success"]) == (0.0, False, step == 20, 0.0)
    assert env.position == (0, 2)
    assert env.render().shape == (160, 160, 3)


@pytest.mark.parametrize("wall", range(4))
def test_pads_lie_at_their_wall(wall):
    env = create("9", colors=3)
    env.reset(seed=0)
    places = [place for place, (of, _) in env.pads.items() if of == wall]
    right, down = WALLS[env.walls[wall]]
    assert len(places) == 3 and {place[0 if right else 1] for place in places} == {8 if right + down > 0 else 0}
    assert {place[1 if right else 0] for place in places} == {3, 4, 5}


@pytest.mark.parametrize(("name", "kwargs"), [
    ("senses/4", {}), ("senses/3", {}), ("senses/wide", {}), ("senses/5", {"colors": 4}), ("senses/5", {"walls": 0}),
])  # fmt: skip
def test_a_room_that_cannot_be_is_refused(name, kwargs):
    with pytest.raises(ConfigError, match=r"is no room|should be a whole number from 1 to"):
        make(EnvOptions(name=name, kwargs=kwargs))


def test_rows_are_the_same_in_processes_and_tell_of_success():
    rows = []
    for mode in ("inline", "processes"):
        envs = make_vector(EnvOptions(name="senses/5", mode=mode, info_metrics={"success": "last"}), seed=3, envs=2)
        draw = np.random.default_rng(0)
        rows.append([envs.step(np.eye(6, dtype=np.float32)[draw.integers(6, size=2)]) for _ in range(60)])
        envs.close()
    for one, other in zip(*rows, strict=True):
        assert all(np.array_equal(one.obs[key], other.obs[key]) for key in ("body", "picture", "sound", "text"))
    ended = [step for step in rows[0] if step.last.any()]
    assert ended and all(step.info["success"][step.last, 1].all() for step in ended)
