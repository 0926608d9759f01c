"""The chart of learned rates: drawn at the end of a run, shown in TensorBoard, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reverie.config import LoggerOptions
from reverie.run import rates
from reverie.run.logger import Logger
from reverie.run.train import DreamerV3Trainer
from tests.run.test_train import make_config

ROWS = [
    {"step": 8, "episode/return": 1.0},
    {"step": 10, "meta/lr_world": 1e-3, "meta/bound_world": 0.0, "meta/lr_actor": 1e-4, "meta/bound_actor": 0.0},
    {"step": 20, "meta/lr_world": 1e-2, "meta/bound_world": 1.0, "meta/lr_actor": None, "meta/bound_actor": None},
]


def write(folder: Path, rows: list[dict[str, float]]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_group_is_a_line_and_bounds_are_dots(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    kept = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda drawn, path, **_: kept.append(drawn))
    assert rates.draw(write(tmp_path, ROWS)) == tmp_path / "media" / "rates.png"
    lines = {
        line.get_label(): [list(map(float, points)) for points in line.get_data()]
        for line in kept[0].axes[0].get_lines()
        if len(line.get_xdata())
    }
    dots = next(label for label in lines if label.startswith("_"))
    assert lines == {"world": [[10, 20], [1e-3, 1e-2]], "actor": [[10], [1e-4]], dots: [[20], [1e-2]]}


@pytest.mark.parametrize(
    "content", ["", '{"step": 1, "world/lr": 0.1}\n', '{"step": 1, "meta/lr_world": 0.1}\n', "dust\n"]
)
def test_what_cannot_be_drawn_costs_a_warning_at_most(tmp_path, content, caplog):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert rates.draw(tmp_path) is None
    assert len(caplog.records) == (1 if "dust" in content or "meta" in content else 0)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_run_that_learns_its_rates_ends_with_a_chart(tmp_path, enabled):
    pytest.importorskip("matplotlib")
    config = make_config(tmp_path, run={"steps": 60}, meta={"enabled": enabled})
    assert DreamerV3Trainer(config).train() == 0
    assert (tmp_path / "run" / "media" / "rates.png").exists() == enabled


def test_tensorboard_shows_pictures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = rates.draw(write(tmp_path, ROWS))
    assert path is not None
    log = Logger(LoggerOptions(tensorboard=True), tmp_path, {})
    log.media(20, "meta/rates", path)
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (image,) = events.Images("meta/rates")
    assert image.step == 20 and image.width > 500
