"""Episodes for an audience, where environments draw nothing, draw badly, or end no episode."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from reverie.agent import Agent
from reverie.env import ENVIRONMENTS, EnvOptions, make
from reverie.run import evaluate as evaluation
from reverie.run import video
from reverie.run.evaluate import evaluate
from reverie.run.play import play
from tests.core import make_agent
from tests.counting import CountingEnv

OPTIONS = EnvOptions(name="painter", mode="inline", envs=2)
ENDLESS = 10**9


class Painter(CountingEnv):
    """Counts, and draws what ``paint`` makes of the count."""

    render_mode = "rgb_array"
    paint = staticmethod(lambda count: np.full((32, 32), count, np.uint8))

    def render(self):
        return self.paint(self.count)


@pytest.fixture
def agent(monkeypatch) -> Agent:
    """One that acts in a `Painter`."""
    monkeypatch.setitem(ENVIRONMENTS, "painter", Painter)
    env = make(OPTIONS)
    return make_agent(env.observation, env.action)


def films(folder: Path, lines: list[str]) -> set[str]:
    paths = [Path(line.strip()) for line in lines if line.startswith("  ")]
    assert all(path.parent == folder and path.stat().st_size > 0 for path in paths)
    return {path.stem for path in paths}


def refuse(count: int) -> np.ndarray:
    raise RuntimeError("no display")


def refuse_at_times(count: int) -> np.ndarray:
    return refuse(count) if count == 2 else np.zeros((32, 32, 3), np.uint8)


DREAMS = {"dream_1_action", "dream_1_count", "dream_1_episode"}


@pytest.mark.parametrize(
    ("paint", "filmed", "warnings"),
    [
        (lambda count: [[[count, 0.5, 0.5, 1.0]] * 24] * 24, True, 0),
        (lambda count: np.zeros((20 + count, 24, 3), np.uint8), True, 0),
        (lambda count: None, False, 0),
        (lambda count: np.zeros(3), False, 1),
        (refuse_at_times, True, 1),
        (refuse, False, 1),
    ],
    ids=["lists", "sizes that change", "nothing", "no picture", "fails once", "fails"],
)
def test_an_environment_that_draws_badly_is_played_all_the_same(
    agent, tmp_path, monkeypatch, caplog, paint, filmed, warnings
):
    monkeypatch.setattr(Painter, "paint", staticmethod(paint))
    with caplog.at_level(logging.WARNING):
        lines = list(play(agent, OPTIONS, 1, 0, tmp_path))
    assert re.fullmatch(r"episode 1: return \d+\.0, length \d+", lines[0])
    assert films(tmp_path, lines) == DREAMS | ({"episode_1"} if filmed else set())
    assert caplog.text.count("painter cannot draw itself") == len(caplog.records) == warnings


class Singer(Painter):
    """Says how far it has counted, at eight times a second."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        sound = spaces.Box(0, 255, (1000,), np.uint8)
        sound.rate = 8000  # type: ignore[attr-defined]
        self.observation_space = spaces.Dict({**self.observation_space.spaces, "sound": sound})

    def _observe(self):
        return super()._observe() | {"sound": np.full(1000, 128 + 20 * (self.count % 3), np.uint8)}


def test_an_episode_and_its_dream_are_heard(agent, tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    monkeypatch.setitem(ENVIRONMENTS, "painter", Singer)
    env, tracks = make(OPTIONS), []
    write = video.write
    monkeypatch.setattr(
        video,
        "write",
        lambda path, frames, track: tracks.append((path.stem, track)) or write(path, frames, track=track),
    )
    lines = list(play(make_agent(env.observation, env.action), OPTIONS, 2, 0, tmp_path))
    lengths = [int(re.search(r"length (\d+)", line)[1]) for line in lines if line.startswith("episode")]
    by_name = dict(tracks)
    assert by_name.keys() == {f"{film}_{number}{key}" for number in (1, 2) for film, key in FILMS}
    for number, length in enumerate(lengths, 1):
        with av.open(str(tmp_path / f"episode_{number}.mp4")) as film:
            picture, sound = film.streams.video[0], film.streams.audio[0]
            assert picture.frames == length + 1 and picture.average_rate == 8
            assert float(sound.duration * sound.time_base) == pytest.approx((length + 1) / 8, abs=0.001)
        dreamed = by_name[f"dream_{number}_sound"]
        said = [20 * (count % 3) / 128 for count in range(length + 1)]
        assert dreamed.whole[0, ::1000].tolist() == pytest.approx(said) and dreamed.channels == 2
    assert tracks[0][1].whole.shape == (1, 1000 * (lengths[1] + 1))  # one track, used again by each episode


FILMS = [("episode", ""), *(("dream", f"_{key}") for key in ("action", "count", "episode", "sound"))]


@pytest.mark.parametrize("limit", [5, 0])
def test_an_episode_without_an_end_is_stopped_and_pointed_out(agent, monkeypatch, caplog, limit):
    monkeypatch.setattr(evaluation, "LONG", 20)
    options = OPTIONS.model_copy(update={"kwargs": {"longest": ENDLESS}})
    steps = iter(range(30))
    result = evaluate(agent, options, 3, 0, unwanted=lambda: next(steps, None) is None, limit=limit)
    assert [episode.length for episode in result.episodes] == [limit] * (3 if limit else 0)
    (record,) = caplog.records
    how = "5 steps and is stopped after 5 (run.evaluate_limit)" if limit else "21 steps and is never stopped"
    assert record.getMessage() == f"painter: an episode has lasted {how}; where episodes do not end by themselves, " \
                                  "set env.time_limit"  # fmt: skip


@pytest.mark.parametrize(("limit", "time_limit"), [(13, 0), (5, 5), (9, 5), (0, 0)])
def test_a_limit_changes_no_episode_that_ends_before_it(agent, caplog, limit, time_limit):
    options = OPTIONS.model_copy(update={"time_limit": time_limit})
    plain, limited = (evaluate(agent, options, 4, 0, limit=number) for number in (0, limit))
    assert plain.episodes == limited.episodes and not caplog.records


def test_a_film_of_an_episode_without_an_end_is_stopped(agent, tmp_path, caplog):
    options = OPTIONS.model_copy(update={"kwargs": {"longest": ENDLESS}})
    lines = list(play(agent, options, 1, 0, tmp_path, limit=7))
    assert lines[0].endswith("length 7") and "set env.time_limit" in caplog.text
    assert films(tmp_path, lines) == DREAMS | {"episode_1"}
