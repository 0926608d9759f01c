"""Whole runs: they resume bit for bit, leave no trace when evaluated, and keep every step in order."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reverie import config as configuration
from reverie import native
from reverie.agent import Agent
from reverie.behavior.intrinsic import INTRINSIC, OF_MANAGERS
from reverie.config import Config
from reverie.env import ENVIRONMENTS
from reverie.errors import ConfigError, ReverieError, StoredDataError
from reverie.run import checkpoint, train
from reverie.run.checkpoint import DivergenceError
from reverie.run.evaluate import restore_agent
from reverie.run.folder import FolderInUse, claim, lock
from reverie.run.train import DreamerV3Trainer
from reverie.types import Batch, Carry, Step
from tests.counting import create_counting

TINY = {
    "run": {
        "steps": 160,
        "train_ratio": 2,
        "evaluate_every": 0,
        "checkpoint_every": 10_000,
        "log_every": 40,
        "seed": 3,
    },
    "env": {"name": "CartPole-v1", "envs": 2},
    "replay": {"batch_size": 4, "length": 8, "capacity": 2000, "chunk": 32},
    "world": {"deter": 16, "hidden": 8, "stoch": 4, "classes": 4, "units": 16, "bins": 15, "blocks": 2},
    "agent": {"horizon": 3, "starts": 4, "world_optimizer": {"rate": 1e-3, "warmup": 2}},
    "logger": {"tensorboard": False, "level": "WARNING"},
}


def make_config(folder: Path, **sections: dict[str, Any]) -> Config:
    tree = json.loads(json.dumps(TINY))
    tree["run"] |= {"directory": str(folder), "name": "run", "checkpoint_dir": str(folder / "newest")}
    for section, values in sections.items():
        tree.setdefault(section, {}).update(values)
    return configuration.build(tree)


def digest(value: Any) -> str:
    """One number for everything in nested plain containers; where a run is kept and how long it took do not count."""
    if isinstance(value, torch.Tensor):
        return sha256(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in ("seconds", "directory", "config", "generation")}
        return sha256(json.dumps({str(key): digest(kept[key]) for key in sorted(kept, key=str)}).encode()).hexdigest()
    if isinstance(value, list | tuple):
        return sha256(json.dumps([digest(item) for item in value]).encode()).hexdigest()
    return repr(value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, to be looked at only."""
    folder = tmp_path_factory.mktemp("whole")
    DreamerV3Trainer(make_config(folder)).train()
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended at step 100, to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    DreamerV3Trainer(make_config(folder, run={"steps": 100})).train()
    return folder


def test_a_dict_configures_a_run(tmp_path):
    config = make_config(tmp_path)
    trainer = DreamerV3Trainer(config.model_dump(mode="json"))
    trainer.close()
    assert trainer.config.replay == config.replay and trainer.folder == tmp_path / "run"


@pytest.fixture
def parts(stopped: Path, tmp_path: Path) -> Path:
    """A run that ended at step 100 and can go on."""
    return shutil.copytree(stopped, tmp_path / "parts")


def final_state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "run" / "checkpoints" / "latest.pt")


def rows(trainer: DreamerV3Trainer) -> str:
    """A digest of the next batches, latents included."""
    batches = [trainer.replay.sample() for _ in range(3)]
    return digest([[batch.action, batch.reward, batch.obs, batch.context_latent, batch.slot] for batch in batches])


MANAGED = {"hierarchy": {"enabled": True, "period": 2, "goal_warmup": 1, "goal_mix": 0.3}, "agent": {"horizon": 4}}
"""Changes of `TINY` for a manager over the worker."""


ELSEWHERE = {"seconds", "directory", "config", "replay", "metrics"}
"""What differs where a run ended on its way: `rows` compares the replay, and whoever ends writes a row of metrics."""


@pytest.mark.parametrize(
    "changes",
    [
        {"behavior": {"epochs": 1, "minibatches": 1}},
        {"behavior": {"epochs": 2, "minibatches": 2}},
        MANAGED | {"meta": {"enabled": True, "warmup": 2}},
        *[
            {"intrinsic": {"curiosity": {"kind": kind, "warmup": 2}}} | (MANAGED if kind in OF_MANAGERS else {})
            for kind in INTRINSIC
        ],
    ],
    ids=["published", "ppo", "hierarchy_with_learned_rates", *INTRINSIC],
)
def test_a_resumed_run_ends_with_the_same_bits_as_an_uninterrupted_one(tmp_path, changes):
    DreamerV3Trainer(make_config(tmp_path / "whole", **changes)).train()
    DreamerV3Trainer(make_config(tmp_path / "parts", **changes | {"run": {"steps": 100}})).train()
    middle = final_state(tmp_path / "parts")
    latest = tmp_path / "parts" / "run" / "checkpoints" / "latest.pt"
    DreamerV3Trainer.resume(latest, ["run.steps=160"]).train()

    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    assert middle["global_step"] == 100 and middle["updates"] > 0
    assert digest(middle["model_state"]) != digest(whole["model_state"])
    for key in whole:
        assert digest(whole[key]) == digest(parts[key]) or key in ELSEWHERE, key
    trainers = [DreamerV3Trainer.resume(tmp_path / name / "run/checkpoints/latest.pt") for name in ("whole", "parts")]
    first, second = map(rows, trainers)
    assert first == second
    for trainer in trainers:
        trainer.close()


def test_what_the_player_remembers_is_saved_as_copies(tmp_path):
    """They are on the CPU, so that a checkpoint opens where there is no GPU."""
    trainer = DreamerV3Trainer(make_config(tmp_path, run={"steps": 8}, **MANAGED))
    trainer.train()
    carry, saved = trainer.player.carry, trainer.player.state_dict()
    pairs = [
        *zip(carry.latent.fields, saved["latent"], strict=True),
        *zip(carry.goal.fields, saved["goal"], strict=True),
    ]
    for mine, stored in [*pairs, (carry.action, saved["action"]), (carry.age, saved["age"])]:
        assert torch.equal(mine, stored) and stored.device.type == "cpu"
        assert mine.data_ptr() != stored.data_ptr()


def test_a_resume_with_other_kernels_does_not_claim_to_be_exact(tmp_path, caplog):
    exact = native.version() == ""
    try:
        DreamerV3Trainer(make_config(tmp_path, run={"steps": 60, "kernels": "off"})).train()
        assert final_state(tmp_path)["kernels"] == ""
        latest = tmp_path / "run" / "checkpoints" / "latest.pt"
        DreamerV3Trainer.resume(latest, ["run.kernels=off"]).close()
        assert "not bit-exact" not in caplog.text
        DreamerV3Trainer.resume(latest, ["run.kernels=auto"]).close()
        assert ("not bit-exact: the native kernels" in caplog.text) != exact
    finally:
        native.use(True)


def test_a_resume_that_compiles_otherwise_does_not_claim_to_be_exact(tmp_path, caplog):
    DreamerV3Trainer(make_config(tmp_path, run={"steps": 4}, agent={"compile": "on"})).train()
    assert final_state(tmp_path)["compiled"]
    latest = tmp_path / "run" / "checkpoints" / "latest.pt"
    DreamerV3Trainer.resume(latest).close()
    assert "not bit-exact" not in caplog.text
    DreamerV3Trainer.resume(latest, ["agent.compile=off"]).close()
    assert "not bit-exact: updates are compiled only before" in caplog.text


def test_work_done_after_the_last_checkpoint_is_undone_by_resume(whole, parts):
    latest = parts / "run" / "checkpoints" / "latest.pt"
    doomed = DreamerV3Trainer.resume(latest, ["run.steps=160"])
    for _ in range(20):  # steps and updates that no checkpoint knows of, as before a kill
        doomed._collect()
        doomed.learn()
    doomed.close()
    DreamerV3Trainer.resume(latest, ["run.steps=160"]).train()
    assert digest(final_state(whole)["model_state"]) == digest(final_state(parts)["model_state"])


@pytest.mark.parametrize("forgotten", ["generators", "trained_to", "world_optimizer"])
def test_every_part_of_the_state_is_needed(tmp_path, whole, parts, forgotten):
    path = parts / "run" / "checkpoints" / "latest.pt"
    state = checkpoint.load(path)
    fresh = DreamerV3Trainer(make_config(tmp_path / "fresh"))
    state[forgotten] = fresh.agent.checkpoint().get(forgotten)
    fresh.close()
    checkpoint.save(path, {key: value for key, value in state.items() if key != "format"})
    DreamerV3Trainer.resume(path, ["run.steps=160"]).train()
    assert digest(final_state(whole)["model_state"]) != digest(final_state(parts)["model_state"])


def test_evaluation_leaves_no_trace_in_training(tmp_path, whole):
    busy = make_config(tmp_path, run={"evaluate_every": 40, "evaluate_episodes": 2, "video": False})
    DreamerV3Trainer(busy).train()
    one, other = final_state(whole), final_state(tmp_path)
    assert digest(one["model_state"]) == digest(other["model_state"])
    assert other["best_return"] is not None and len(other["metrics_history"]) == 4


def test_another_checkpoint_than_the_latest_begins_a_new_run_and_leaves_the_old_one_alone(tmp_path):
    config = make_config(tmp_path, run={"evaluate_every": 80, "evaluate_episodes": 2, "video": False})
    DreamerV3Trainer(config).train()
    before = digest(final_state(tmp_path))
    branch = DreamerV3Trainer.resume(tmp_path / "run" / "checkpoints" / "best_model.pt", ["run.steps=200"])
    assert branch.folder != tmp_path / "run" and len(branch.replay) == branch.step > 0
    branch.train()
    assert digest(final_state(tmp_path)) == before


def test_two_branches_of_one_name_do_not_fill_the_same_folder(tmp_path):
    DreamerV3Trainer(make_config(tmp_path)).train()
    best, changes = tmp_path / "run" / "checkpoints" / "best_model.pt", ["run.name=branch", "run.steps=200"]
    with lock(tmp_path / "branch"), pytest.raises(FolderInUse, match="in use by process"):
        DreamerV3Trainer.resume(best, changes)
    assert [path.name for path in (tmp_path / "branch").iterdir()] == ["lock"]
    assert DreamerV3Trainer.resume(best, changes).train() == 0


def test_a_run_that_no_longer_learns_ends_and_keeps_its_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "PATIENCE", 2)
    trainer = DreamerV3Trainer(make_config(tmp_path))
    while trainer.step < 80:
        trainer.advance()
    trainer.save()
    kept = digest(final_state(tmp_path))
    next(trainer.agent.world.parameters()).data.fill_(torch.nan)
    with pytest.raises(DivergenceError, match=r"gradients of world were not finite; .*latest\.pt"):
        trainer.train()
    assert digest(final_state(tmp_path)) == kept


def test_a_corrupt_latest_checkpoint_gives_way_to_the_one_before_it(tmp_path, caplog):
    DreamerV3Trainer(make_config(tmp_path, run={"checkpoint_every": 80})).train()
    latest = tmp_path / "run" / "checkpoints" / "latest.pt"
    latest.write_bytes(latest.read_bytes()[:-1000])
    with caplog.at_level("WARNING"):
        again = DreamerV3Trainer.resume(latest, ["run.steps=200"])
    assert again.folder == tmp_path / "run" and again.step == len(again.replay) < 200
    for words in ("latest.pt: not a checkpoint", "going on from", "previous.pt"):
        assert words in caplog.text
    assert "forgotten" not in caplog.text
    again.train()
    assert final_state(tmp_path)["global_step"] == 200


def test_what_was_changed_so_that_a_checkpoint_does_not_fit_is_named(tmp_path):
    DreamerV3Trainer(make_config(tmp_path, run={"steps": 8})).train()
    latest = tmp_path / "newest" / "latest.pt"
    with pytest.raises(
        ConfigError, match=r'float32\[4\] in it and float32\[6\] here; .* env.name \(was "CartPole-v1"\)$'
    ):
        DreamerV3Trainer.resume(latest, values={"env.name": "Acrobot-v1"})
    with pytest.raises(ConfigError, match=r"does not fit: .*; changed: world.hidden \(was"):
        restore_agent(latest, "cpu", overrides=["world.hidden=24"])


def test_an_intrinsic_reward_is_switched_off_by_its_weight(tmp_path):
    DreamerV3Trainer(
        make_config(tmp_path, run={"steps": 8}, intrinsic={"curiosity": {"kind": "rnd", "floor": 0.2}})
    ).train()
    latest = tmp_path / "newest" / "latest.pt"
    changed = r'unpaid with a weight of 0; changed: intrinsic.curiosity.kind \(was "rnd"\)$'
    with pytest.raises(ConfigError, match=changed):
        DreamerV3Trainer.resume(latest, ["intrinsic.curiosity.kind=none"])
    with pytest.raises(ConfigError, match=changed):
        restore_agent(latest, "cpu", overrides=["intrinsic.curiosity.kind=none"])
    DreamerV3Trainer.resume(latest, ["curiosity_weight=0", "run.steps=16"]).train()


def test_a_run_folder_is_not_overwritten(tmp_path):
    DreamerV3Trainer(make_config(tmp_path, run={"steps": 8})).train()
    with pytest.raises(ReverieError, match="resume it with --checkpoint"):
        DreamerV3Trainer(make_config(tmp_path))


@pytest.mark.parametrize("left", ["previous.pt", "best_model.pt", None])
def test_a_run_folder_without_its_latest_checkpoint_is_not_overwritten_either(tmp_path, left):
    DreamerV3Trainer(make_config(tmp_path, run={"checkpoint_every": 40})).train()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if path.name != left:
            path.unlink()
    before = sorted(path.name for path in (tmp_path / "run" / "replay").iterdir())
    with pytest.raises(StoredDataError, match="resume it with --checkpoint" if left else "whose checkpoints are gone"):
        DreamerV3Trainer(make_config(tmp_path))
    assert sorted(path.name for path in (tmp_path / "run" / "replay").iterdir()) == before


def test_a_copy_of_a_replay_does_not_go_where_another_one_is(tmp_path):
    DreamerV3Trainer(make_config(tmp_path, run={"steps": 8})).train()
    killed = DreamerV3Trainer(make_config(tmp_path, run={"name": "other"}))
    killed.advance()
    killed.close()
    before = sorted((tmp_path / "other").rglob("*"))
    with pytest.raises(StoredDataError, match=r"other holds a replay without a checkpoint; remove it"):
        DreamerV3Trainer.resume(tmp_path / "run" / "checkpoints" / "best_model.pt", ["run.name=other"])
    assert sorted((tmp_path / "other").rglob("*")) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_may_begin_again(tmp_path):
    doomed = DreamerV3Trainer(make_config(tmp_path))
    for _ in range(5):
        doomed.advance()
    doomed.close()
    DreamerV3Trainer(make_config(tmp_path)).train()
    assert final_state(tmp_path)["global_step"] == 160


def test_runs_that_begin_in_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    config = make_config(tmp_path, run={"name": None})
    claimed = [claim(config, None) for _ in range(3)]
    assert len(set(claimed)) == 3 and all(folder.is_dir() for folder in claimed)


@pytest.mark.parametrize("name", ["latest.pt", "best_model.pt"])
def test_a_run_that_was_moved_goes_on(parts, tmp_path, caplog, name):
    shutil.move(parts / "run", tmp_path / "elsewhere")
    again = DreamerV3Trainer.resume(tmp_path / "elsewhere" / "checkpoints" / name, ["run.steps=120"])
    assert len(again.replay) == again.step == 100
    again.close()
    assert "is gone" not in caplog.text


def test_a_checkpoint_that_was_copied_away_finds_the_replay_of_its_run(tmp_path, caplog):
    DreamerV3Trainer(make_config(tmp_path, run={"steps": 40})).train()
    copy = shutil.copy(tmp_path / "run" / "checkpoints" / "latest.pt", tmp_path / "copy.pt")
    again = DreamerV3Trainer.resume(Path(copy))
    assert len(again.replay) == 40 and again.folder != tmp_path / "run"
    again.close()


def test_a_row_is_written_once_however_often_a_run_is_killed(tmp_path):
    """Rows of means cover all updates since the row before, whether they were made before a kill or after it."""
    every = {"run": {"checkpoint_every": 60, "log_every": 50}}
    DreamerV3Trainer(make_config(tmp_path / "whole", **every)).train()
    doomed = DreamerV3Trainer(make_config(tmp_path / "parts", **every))
    latest = tmp_path / "parts" / "run" / "checkpoints" / "latest.pt"
    for checkpointed, killed in ((60, 70), (120, 134)):
        while doomed.step < killed:
            doomed.advance()
            if doomed.step == checkpointed:
                doomed.save()
        doomed.close()
        doomed = DreamerV3Trainer.resume(latest)
        assert doomed.step == checkpointed
    doomed.train()
    whole, parts = ((tmp_path / name / "run" / "metrics.jsonl").read_text() for name in ("whole", "parts"))
    assert whole == parts
    assert "episode/return" in whole and "world/recon_loss" in whole


@pytest.mark.parametrize("target", [None, 0.5])
def test_a_weight_of_the_entropy_that_is_given_on_resume_counts(parts, target):
    latest = parts / "run" / "checkpoints" / "latest.pt"
    change = [] if target is None else [f"behavior.entropy_target={target}"]
    same = DreamerV3Trainer.resume(latest, change)
    (level,) = same.agent.behavior.levels
    before = level.entropy_weight.item()
    assert before == pytest.approx(level.options.entropy)
    level.entropy_weight.fill_(0.5)  # as if it had been adapted
    same.save()
    same.close()
    for overrides, weight in ((change, 0.5), ([*change, "behavior.entropy=0.01"], 0.01)):
        again = DreamerV3Trainer.resume(latest, overrides)
        assert again.agent.behavior.levels[0].entropy_weight.item() == pytest.approx(weight)
        again.close()


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    owner = DreamerV3Trainer(make_config(tmp_path))
    with pytest.raises(ReverieError, match=f"in use by process {os.getpid()}") as refusal:
        DreamerV3Trainer(make_config(tmp_path))
    assert refusal.value.exit_code == 7
    owner.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_stops(tmp_path, number, code):
    trainer = DreamerV3Trainer(make_config(tmp_path, run={"steps": 100_000}))
    collect = trainer._collect

    def interrupt() -> None:
        collect()
        if trainer.step == 120:
            os.kill(os.getpid(), number)

    trainer._collect = interrupt  # type: ignore[method-assign]
    assert trainer.train() == code
    assert final_state(tmp_path)["global_step"] == 120


def test_a_signal_during_an_evaluation_saves_and_stops(tmp_path, monkeypatch):
    run = {"evaluate_every": 40, "evaluate_episodes": 2, "video": False, "steps": 100_000}
    trainer = DreamerV3Trainer(make_config(tmp_path, run=run))
    play = train.evaluate

    def interrupt(*arguments: Any, **choices: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return play(*arguments, **choices)

    monkeypatch.setattr(train, "evaluate", interrupt)
    assert trainer.train() == 130
    assert final_state(tmp_path)["global_step"] == 40 and final_state(tmp_path)["best_return"] is None
    monkeypatch.undo()
    assert DreamerV3Trainer.resume(trainer.checkpoints.latest, ["run.steps=40"]).train() == 0
    assert [row["step"] for row in final_state(tmp_path)["metrics_history"]] == [40]


def test_an_environment_that_interrupts_leaves_a_checkpoint_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(ENVIRONMENTS, "counting", create_counting)
    env = {"name": "counting", "mode": "inline", "kwargs": {"fault": "interrupt", "when": 9}}
    trainer = DreamerV3Trainer(make_config(tmp_path, env=env))
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert final_state(tmp_path)["global_step"] == len(trainer.replay) > 0
    latest = tmp_path / "run" / "checkpoints" / "latest.pt"
    assert f"Saved at step {trainer.step}; go on with --checkpoint {latest}" in caplog.text
    assert DreamerV3Trainer.resume(latest, ["env.kwargs={}"]).train() == 0


def test_a_film_that_fails_ends_nothing(tmp_path, monkeypatch, caplog):
    def refuse(*arguments: Any, **how: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.video, "write", refuse)
    run = {"steps": 80, "evaluate_every": 80, "evaluate_episodes": 1}
    assert DreamerV3Trainer(make_config(tmp_path, run=run)).train() == 0
    assert "no video of step 80: OSError: [Errno 28] No space left" in caplog.text


@pytest.mark.parametrize("deterministic", [False, True])
def test_evaluations_alone_take_the_likeliest_actions_where_that_is_chosen(tmp_path, monkeypatch, deterministic):
    run = {"steps": 40, "evaluate_every": 40, "evaluate_episodes": 1, "video": False}
    trainer = DreamerV3Trainer(make_config(tmp_path, run=run | {"evaluate_deterministic": deterministic}))
    act, chosen = Agent.act, []

    def note(agent: Agent, step: Step, carry: Carry, generator: Any, likeliest: bool) -> tuple[np.ndarray, Carry]:
        chosen.append((generator is not None, likeliest))
        return act(agent, step, carry, generator, likeliest)

    monkeypatch.setattr(Agent, "act", note)
    trainer.train()
    assert set(chosen) == {(False, False), (True, deterministic)}


def test_until_one_is_evaluated_the_newest_checkpoint_is_the_best(tmp_path):
    DreamerV3Trainer(make_config(tmp_path, run={"checkpoint_every": 40, "steps": 80})).train()
    best = checkpoint.load(tmp_path / "run" / "checkpoints" / "best_model.pt")
    assert digest(best["model_state"]) == digest(final_state(tmp_path)["model_state"])


def test_a_run_that_goes_on_keeps_its_name_and_its_random_states(parts, caplog):
    latest = parts / "run" / "checkpoints" / "latest.pt"
    with pytest.raises(ReverieError, match=r"run.name = 'other': .* goes on in its own folder; .*best_model\.pt"):
        DreamerV3Trainer.resume(latest, ["run.name=other"])
    DreamerV3Trainer.resume(latest, ["run.seed=8"]).close()
    assert "run.seed = 8 changes evaluations alone" in caplog.text


def test_an_environment_that_does_not_exist_leaves_no_folder_behind(tmp_path):
    with pytest.raises(ReverieError, match="CartPol"):
        DreamerV3Trainer(make_config(tmp_path, env={"name": "CartPol-v1"}))
    assert not (tmp_path / "run").exists()


class CountingAgent(Agent):
    """Acts at random, and asserts in `act` and `learn` that counts go on by one and actions are those it took."""

    learned = 0

    def act(self, step: Step, carry: Carry, *choices: Any) -> tuple[np.ndarray, Carry]:
        took = np.where(step.first, -1, carry.action.numpy().argmax(-1))
        assert (step.obs["action"][:, 0] == took).all()
        assert (step.obs["count"][:, 0][step.first] == 0).all()
        assert (step.reward == step.obs["count"][:, 0]).all()
        return super().act(step, carry, *choices)

    def learn(self, batch: Batch):
        count, first = batch.obs["count"][..., 0], batch.first
        assert (count[first] == 0).all()
        assert (count[:, 1:] == torch.where(first[:, 1:], 0, count[:, :-1] + 1)).all()
        assert (batch.last[:, :-1] == first[:, 1:]).all()
        took = torch.where(first, -1, batch.previous_action.argmax(-1))
        assert (batch.obs["action"][..., 0] == took).all()
        odd = batch.obs["episode"][..., 0] % 2 == 1
        assert not (batch.terminal & ~batch.last).any() and (batch.terminal == batch.last & ~odd).all()
        self.learned += 1
        return super().learn(batch)


@pytest.mark.parametrize("mode", ["inline", "processes"])
def test_counts_survive_the_way_from_environment_to_learning_and_through_resume(tmp_path, monkeypatch, mode):
    monkeypatch.setattr("reverie.run.train.Agent", CountingAgent)
    monkeypatch.setitem(ENVIRONMENTS, "counting", create_counting)
    config = make_config(tmp_path, env={"name": "counting", "envs": 3, "mode": mode})
    trainer = DreamerV3Trainer(config)
    trainer.train()
    assert trainer.agent.learned > 5
    again = DreamerV3Trainer.resume(tmp_path / "run" / "checkpoints" / "latest.pt", ["run.steps=280"])
    again.train()
    assert again.agent.learned > 5
