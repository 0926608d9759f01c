"""What the benchmarks rest on: workloads of known sizes, peers in environments of their own, an honest clock."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from reverie.env import EnvOptions, spaces_of
from tests.core import make_agent

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("speed")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")
    return importlib.import_module("clock")


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("ladder")


def outcome(ladder: ModuleType, arm: str, seed: int, returns: list[float], task: str = "task") -> Any:
    curve = {"step": [10.0 * (i + 1) for i in range(len(returns))], "return": returns, "seconds": [1.0] * len(returns)}
    return ladder.Outcome(task, arm, seed, random=1.0, goal=11.0, curve=curve, shuffled_return=None)


def test_interquartile_mean_leaves_the_outer_quarters_out(ladder: ModuleType) -> None:
    assert ladder.interquartile_mean(np.array([100.0, 3.0, 1.0, -50.0])) == 2.0
    assert ladder.interquartile_mean(np.array([9.0, 1.0, 2.0])) == 4.0  # too few to leave any out
    rows = np.array([[1.0, 2.0, 3.0, 4.0], [8.0, 6.0, 0.0, 4.0]])
    assert ladder.interquartile_mean(rows).tolist() == [2.5, 5.0]


def test_interval_holds_the_mean_and_is_a_point_where_seeds_agree(ladder: ModuleType) -> None:
    assert ladder.aggregate([[0.5, 0.5, 0.5], [0.5, 0.5]]) == (0.5, 0.5, 0.5)
    # Seeds are drawn within their task: the difference between tasks adds nothing to the interval.
    middle, low, high = ladder.aggregate([[0.0, 0.0], [1.0, 1.0]])
    assert middle == low == high == 0.5
    middle, low, high = ladder.aggregate([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]])
    assert 0.5 < low < middle == 3.5 < high < 6.5


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """With folders for runs and results of its own."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("learning")
    for name in ("RUNS", "RESULTS"):
        monkeypatch.setattr(module, name, tmp_path / name.lower())
        (tmp_path / name.lower()).mkdir()
    return module


def test_a_folder_of_another_configuration_is_refused(learning: ModuleType) -> None:
    run = learning.Run("vecpad3", 0, "a1_ppo")
    learning.check(run)
    run.folder.mkdir()
    with pytest.raises(SystemExit, match="another configuration"):
        learning.check(run)
    run.plan.write_text(learning.dump(run.config()))
    learning.check(run)


def test_a_run_that_fails_stops_no_other_and_is_told(
    learning: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = learning.subprocess.run

    def fail_at_first(command: list[str], **settings: Any) -> CompletedProcess[Any]:
        folder = next((word.split("=")[1] for word in command if word.startswith("run.name=")), None)
        if folder is None:  # a plot looks for fonts
            return run(command, **settings)
        row = {"step": 1, "run/seconds": 1.0, "evaluation/return": 500.0}
        (learning.RUNS / folder / "metrics.jsonl").write_text(f"{row}\n".replace("'", '"'))
        return CompletedProcess(command, 5 if folder.endswith("0") else 0)

    monkeypatch.setattr(learning, "random_return", lambda task: 0.0)
    monkeypatch.setattr(learning.subprocess, "run", fail_at_first)
    monkeypatch.setattr(sys, "argv", ["learning.py", "vecpad3", "--seeds", "2"])
    with pytest.raises(SystemExit) as ending:
        learning.main()
    assert ending.value.code
    assert "vecpad3-0 failed with exit code 5" in capsys.readouterr().out
    assert '"return": [\n    500.0' in (learning.RESULTS / "learning_vecpad3.json").read_text()


def test_arms_of_earlier_comparisons_stay_in_the_table(
    learning: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learning, "random_return", lambda task: 0.0)
    monkeypatch.setattr(learning, "shuffled_return", lambda run: None)
    points = {"step": [10], "seconds": [1.0], "return": [5.0]}
    for task, arm, last in (("doorkey", "a1_ppo", 5.0), ("vecpad3", "a1_ppo", 6.0), ("doorkey", "a1_ppo", 7.0)):
        learning.compare({learning.Run(task, 0, arm): points | {"return": [last]}}, "alone")
    table = capsys.readouterr().out.split("| task |")[-1]
    assert "| vecpad3 | a1_ppo | 6.00 |" in table
    assert "| doorkey | a1_ppo | 7.00 |" in table
    assert "5.00" not in table.split("| arm |")[0]


def test_outcome_of_a_run_is_its_area_and_its_last_tenth(ladder: ModuleType) -> None:
    run = outcome(ladder, "arm", 0, [3.0] * 18 + [5.0, 7.0])
    assert run.final == pytest.approx(5.0)  # of the evaluations at 180, 190 and 200
    assert run.area == pytest.approx((2.0 * 10 + 3.0 * 170 + 4.0 * 10 + 6.0 * 10) / 200)
    assert run.normalised(6.0) == 0.5


def test_table_has_every_arm_of_every_task_and_the_arms_together(ladder: ModuleType, tmp_path: Path) -> None:
    runs = [outcome(ladder, arm, seed, [float(seed), 11.0], task)
            for task in ("x", "y") for arm in ("a", "b") for seed in range(3)]  # fmt: skip
    lines = list(ladder.table(runs))
    assert [line.split("|")[1:4] for line in lines if "11.00" in line] == [
        [f" {task} ", f" {arm} ", " 11.00, 11.00, 11.00 "] for task in "xy" for arm in "ab"
    ]
    assert lines[-1].startswith("| b | ")
    assert lines[-1].endswith("| 1.00 (1.00 to 1.00) |")
    runs += [outcome(ladder, "a", 0, [1.0], "z")]  # where the other was not trained
    assert lines[-4:] == list(ladder.table(runs))[-4:]
    apart = [outcome(ladder, "a", 0, [1.0], "x"), outcome(ladder, "b", 0, [1.0], "y")]
    assert len(list(ladder.table(apart))) == 4  # a heading and two rows: nothing to compare
    ladder.plot(runs, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("workload", "parameters"), [("size1m", 639_316), ("mid", 9_612_820), ("image", 14_102_919), ("cartpole", 148_101)]
)
def test_workload_has_the_size_that_the_peers_are_built_at(
    speed: ModuleType, clock: ModuleType, monkeypatch: pytest.MonkeyPatch, workload: str, parameters: int
) -> None:
    peer = importlib.import_module("reverie_update")
    monkeypatch.setattr(peer, "set_up", lambda *_: None)  # it would change this whole process
    agent = peer.make_agent(speed.describe(speed.WORKLOADS[workload], threads=1, seconds=0))
    assert peer.count(agent) == parameters


def test_update_is_measured_in_a_process_of_its_own(speed: ModuleType) -> None:
    small = ("replay.batch_size=4", "replay.length=4", "agent.starts=2", "agent.horizon=2")
    task = speed.describe(speed.WORKLOADS["cartpole"], threads=1, seconds=0, changes=small)
    answer = speed.run(speed.program_of("reverie"), task)
    assert len(answer["milliseconds"]) == 1
    assert answer["milliseconds"][0] > 0
    assert answer["parameters"] == 148_101
    assert answer["megabytes"] > 50


def test_failure_of_a_contestant_ends_the_benchmark_with_its_error(speed: ModuleType) -> None:
    task = speed.describe(speed.WORKLOADS["cartpole"], threads=1, seconds=0)
    with pytest.raises(SystemExit, match="no memory left"):
        speed.run([sys.executable, "-c", "raise SystemExit('no memory left')"], task)


def test_share_is_that_of_the_fastest_peer_in_any_precision(
    speed: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {"reverie": 200.0, "reverie-bf16": 150.0, "sheeprl": 500.0, "reference": 450.0, "reference-bf16": 400.0}
    table = {name: {"milliseconds": time, "fastest": time, "megabytes": 1, "parameters": 1, "updates": 1}
             for name, time in times.items()}  # fmt: skip
    speed.show("size1m", table, {"gigaflop": 30.0, "gigaflops": 200.0, "gigaflops in bf16": 400.0})
    printed = capsys.readouterr().out
    assert "reverie takes 50% of the time of the fastest peer, reference-bf16" in printed
    assert "reverie-bf16 takes 38% of the time of the fastest peer, reference-bf16" in printed


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--contestants", "reference"], "name it with --reference"),
        (["--reference", "empty"], "it has no dreamerv3/configs.yaml"),
    ],
)
def test_reference_needs_a_checkout(
    speed: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    error: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", "size1m", "--results", str(tmp_path), *arguments])
    with pytest.raises(SystemExit):
        speed.main()
    assert error in capsys.readouterr().err


def test_reference_takes_part_where_its_checkout_is_given(
    speed: ModuleType, clock: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []
    checkout = tmp_path / "dreamerv3"
    (checkout / "dreamerv3").mkdir(parents=True)
    (checkout / "dreamerv3" / "configs.yaml").touch()
    monkeypatch.setattr(speed, "install", lambda peer: Path(peer) / "python")

    def run(program: list[str], task: dict[str, Any]) -> dict[str, Any]:
        asked.append(program)
        if "limit.py" in program[-1]:
            return dict.fromkeys(("gigaflop", *speed.RATES.values()), 1.0)
        return {"milliseconds": [1.0], "megabytes": 1.0, "parameters": 1}

    monkeypatch.setattr(speed, "run", run)
    for arguments in ([], ["--reference", str(checkout)]):
        monkeypatch.setattr(sys, "argv", ["speed.py", "size1m", "--results", str(tmp_path), *arguments])
        asked.clear()
        speed.main()
        programs = [program for program in asked if any("reference_update.py" in word for word in program)]
        assert bool(programs) == bool(arguments)
        assert all(program[0] == "reference/python" and program[-1] == str(checkout) for program in programs)
    monkeypatch.setattr(sys, "argv", ["script", str(checkout), '{"seconds": 1}'])
    assert clock.task() == {"seconds": 1}


INFO = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n"


def test_machine_names_the_generation_of_its_processor(speed: ModuleType, tmp_path: Path) -> None:
    curves, info = importlib.import_module("curves"), tmp_path / "cpuinfo"
    names = []
    for family, model in ((25, 17), (26, 2)):
        info.write_text(INFO.format(family, model) * 2)
        names.append(curves.processor(info))
    assert names == ["AMD EPYC family 25 model 17", "AMD EPYC family 26 model 2"]
    info.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    assert curves.processor(info)
    assert curves.processor(tmp_path / "missing") is not None


def test_stored_limits_belong_to_machines_whose_generation_is_told(speed: ModuleType) -> None:
    for name in json.loads((speed.RESULTS / "speed.json").read_text()):
        assert re.search(r" family \d+ model \d+ |family and model not recorded", name), name


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 1), (1.0, 2), (1.2, 3)])
def test_clock_repeats_until_the_time_is_over(
    clock: ModuleType, monkeypatch: pytest.MonkeyPatch, seconds: float, count: int
) -> None:
    now = iter(0.5 * tick for tick in range(100))  # every look at the clock is half a second later
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    calls: list[None] = []
    assert clock.times_of(lambda: calls.append(None), seconds) == [500.0] * count
    assert len(calls) == count


def test_summary_is_over_all_processes(speed: ModuleType) -> None:
    answers = [
        {"milliseconds": [9.0, 1.0], "megabytes": 200.4, "parameters": 7},
        {"milliseconds": [3.0], "megabytes": 300.4, "parameters": 7},
    ]
    assert speed.summary(answers) == {
        "milliseconds": 3.0,
        "fastest": 1.0,
        "megabytes": 300,
        "parameters": 7,
        "updates": 3,
    }


def test_peer_is_installed_once_and_again_when_its_requirements_change(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Path] = []

    def create(folder: Path, **_: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        made.append(folder)

    monkeypatch.setattr(speed, "INSTALLED", tmp_path / "installed")
    monkeypatch.setattr(speed, "SCRIPTS", tmp_path)
    monkeypatch.setattr(speed.venv, "create", create)
    monkeypatch.setattr(speed.subprocess, "run", lambda command: CompletedProcess(command, 0))
    for requirements, times in (("a==1", 1), ("a==1", 1), ("a==2", 2)):
        (tmp_path / "peer.txt").write_text(requirements)
        speed.install("peer")
        assert len(made) == times


def test_peer_that_could_not_be_installed_is_tried_again(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "peer.txt").write_text("a==1")
    monkeypatch.setattr(speed, "INSTALLED", tmp_path / "installed")
    monkeypatch.setattr(speed, "SCRIPTS", tmp_path)
    monkeypatch.setattr(speed.venv, "create", lambda folder, **_: folder.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(speed.subprocess, "run", lambda command: CompletedProcess(command, 1))
    for _ in range(2):
        with pytest.raises(SystemExit, match="peer could not be installed"):
            speed.install("peer")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


@pytest.mark.timeout(900)
def test_benchmark_of_a_gpu_runs_through_all_of_its_parts(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("minigrid")
    (tmp_path / "test_one.py").write_text("def test_one(): pass\n\ndef test_two(): assert not __name__\n")
    monkeypatch.setattr(gpu, "TESTS", (str(tmp_path / "test_one.py"),))
    choices = ["--device", "cpu", "--ways", "off", "--seconds", "0", "--minutes", "30", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *choices])
    gpu.main()
    found = json.loads((tmp_path / "rehearsal.json").read_text())
    assert [row.get("outcome") for row in found["tests"]] == ["passed", "failed", None]
    assert found["tests"][-1]["stopped"].startswith("failed with 1")
    assert [(row["size"], row["precision"]) for row in found["updates"]] == [("tiny", "fp32"), ("tiny", "bf16")]
    assert all(row["milliseconds"] > 0 and row["products"] > 0 for row in found["updates"])
    for part in ("cartpole", "minigrid"):
        assert [row["step"] for row in found[part]] == [80]
    assert "| tiny | as written | bf16 |" in (tmp_path / "rehearsal.md").read_text()


def test_benchmark_of_a_gpu_needs_one(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as ending:
        gpu.main()
    assert ending.value.code == 8
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


CHATTER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("asked") or {} or sys.exit(3))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid)
time.sleep(600)
"""


@pytest.mark.parametrize("obeys", [True, False])
def test_program_ends_when_its_time_is_up_and_leaves_no_children(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, obeys: bool
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    script = CHATTER.replace("{}", "None" if obeys else "time.sleep(600)")
    program = gpu.Program([sys.executable, "-c", script], time.monotonic() + 5.0, tmp_path / "log")
    child, *rest = program.lines()
    assert rest == ["asked\n"]
    assert program.ended == "no time left"
    status, patience = Path(f"/proc/{int(child)}/status"), time.monotonic() + 60.0
    while status.exists() and "zombie" not in status.read_text():  # until init has looked
        assert time.monotonic() < patience, "a child goes on"
        time.sleep(0.05)


def test_measurements_that_do_not_fit_are_named(gpu: ModuleType, tmp_path: Path) -> None:
    options = argparse.Namespace(device="cpu", sizes=["tiny", "1m"], ways=["off", "graphs"], seconds=0.0)
    report = gpu.Report(tmp_path / "report", {})
    gpu.run_updates(report, options, time.monotonic())
    assert len(report.parts["updates"]) == 8
    assert {row["skipped"] for row in report.parts["updates"]} == {"no time left"}
    assert json.loads((tmp_path / "report.json").read_text())["updates"] == report.parts["updates"]


FACT = torch.arange(40) % 2
GATHERED = FACT[:, None].float(), FACT[:, None].expand(-1, 3), torch.arange(40) // 2
"""What `probe.gather` would find of forty steps in twenty episodes, if features said all."""


def test_probe_reads_what_is_there_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    probe = importlib.import_module("probe")
    torch.manual_seed(0)
    fact, tried = torch.randint(3, (3000,)), torch.arange(3000) % 2 == 1
    noise = torch.randn(3000, 20)
    mixed = torch.nn.functional.one_hot(fact, 3).float() @ torch.randn(3, 20)
    assert probe.read(mixed + 0.01 * noise, fact, tried)[0] == 1.0
    right, guessed = probe.read(noise, fact, tried)
    assert abs(right - 1 / 3) < 0.05 and abs(guessed - 1 / 3) < 0.05


def test_probe_labels_every_step_with_what_its_episode_ended_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    probe = importlib.import_module("probe")
    options = EnvOptions(name="tests.counting:CountingEnv", mode="inline")
    observation, action = spaces_of(options)
    agent = make_agent(observation, action)
    features, facts, episode = probe.gather(agent, options, ["inner/count"], 5, 0)
    assert features.shape == (len(facts), agent.world.sizes.features)
    assert episode.unique().tolist() == [*range(episode.max() + 1)] and episode.max() >= 4  # some end together
    for number in range(5):
        own = facts[episode == number, 0]
        assert (own == len(own) - 1).all()  # the first row is no step


def test_the_senses_are_learned_by_the_world_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    senses, worlds = importlib.import_module("senses"), []
    monkeypatch.setattr(senses.probe, "gather", lambda agent, *_: worlds.append(agent) or GATHERED)
    read = senses.measure(10.0, seed=0, updates=2, episodes=2)
    assert read == {"wall": [1.0, 0.5], "color": [1.0, 0.5], "hand": [1.0, 0.5]}
    (agent,) = worlds
    counts = {name: float(optimizer.count) for name, optimizer in agent.optimizers.items()}
    assert counts.pop("world") == 2 and not any(counts.values())
    assert agent.world.weights.floor == 10.0 and agent.world.weights()["recon_body"] > 1.0


def test_each_modality_is_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    modalities = importlib.import_module("modalities")
    for name in ("ROWS", "LENGTH"):
        monkeypatch.setattr(modalities, name, 2)
    monkeypatch.setattr(modalities, "ARMS", {name: modalities.ARMS[name] for name in ("500 tokens", "text")})
    turns, learn = [], modalities.Agent.learn
    monkeypatch.setattr(
        modalities.Agent, "learn", lambda agent, batch: turns.append(batch.obs["text"]) or learn(agent, batch)
    )
    measured = modalities.measure("tiny", rounds=2)
    assert [text.dtype for text in turns] == 3 * [torch.uint16, torch.uint8]
    assert all(bool((text.long() > 0).all()) for text in turns) and turns[0].long().max() > 255
    assert [len(row) for row in measured.values()] == [2, 2]
    assert all(row["milliseconds"] > 0 and row["parameters"] > 100_000 for row in measured.values())


# --- learned rates ---


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("rates")


def test_share_of_a_gap_that_is_regained_has_an_interval_over_seeds(rates: ModuleType) -> None:
    assert rates.regained([4.0, 4.0], [1.0, 1.0], [0.0, 0.0]) == (0.75, 0.75, 0.75)
    share, low, high = rates.regained([4.0, 6.0, 5.0], [1.0, 3.0, 2.0], [0.0, 0.0, 0.0])
    assert share == pytest.approx(0.6) and 0.5 <= low < share < high <= 0.75
    assert rates.noisy([1.0, 0.0, 2.0], [1.1, 0.2, 1.8]) and not rates.noisy([4.0, 4.1], [0.0, 0.0])


def test_table_compares_with_the_fixed_arms_of_the_same_start(rates: ModuleType) -> None:
    areas = {("fixed", 1.0): 1.0, ("fixed", 0.1): 5.0, ("fixed", 10.0): 1.0, ("adam", 1.0): 1.1, ("adam", 0.1): 2.0}
    areas |= {("adam", 10.0): 0.5}
    arms = [rates.Arm("rate", way, start, [area, area], [[1.0]]) for (way, start), area in areas.items()]
    said = [line.split(" | ")[-1].removesuffix(" |") for line in rates.table(arms)][2:]
    assert said == ["", "", "", "+10.0% against fixed", "75% (75% to 75%)",
                    "no gap beyond noise; -50.0% against fixed"]  # fmt: skip


def test_runs_with_wrong_rates_are_planned_by_their_names(rates: ModuleType) -> None:
    planned = rates.plan("pendulum")
    assert len(planned) == 3 + 4 * 2 * 2
    learning = importlib.import_module("learning")
    config = learning.Run(planned["world", "learned", 10.0], 3).config()
    tuned = rates.load("pendulum")
    assert config.agent.world_optimizer.rate == pytest.approx(10 * tuned.agent.world_optimizer.rate)
    assert config.agent.actor_optimizer == tuned.agent.actor_optimizer
    assert config.meta.enabled and config.run.seed == 3
    assert not learning.Run(planned["all", "fixed", 1.0], 0).config().meta.enabled


def test_toy_regains_a_wrong_start_and_draws_what_it_saw(
    rates: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rates, "UPDATES", 200)
    monkeypatch.setattr(rates, "STARTS", (0.1, 1.0))
    monkeypatch.setattr(rates, "RULES", {name: rates.RULES[name] for name in ("fixed", "sign")})
    monkeypatch.setattr(rates.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(rates, "RESULTS", tmp_path)
    arms = rates.toy("laprop", 2)
    rates.report("toy", arms, "here")
    area = {(arm.way, arm.start): np.mean(arm.area) for arm in arms}
    assert area["fixed", 1.0] < area["sign", 0.1] < area["fixed", 0.1]
    assert "| rate | x0.1 | sign |" in (tmp_path / "rates_toy.md").read_text()
    assert len(json.loads((tmp_path / "rates_toy.json").read_text())["arms"]) == 4
