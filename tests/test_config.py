"""The loader: what wins, what is refused, and that every refusal is one line that names the key."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from fractions import Fraction
from functools import reduce
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from pydantic import ValidationError

from reverie import config
from reverie.aliases import FLAT, RENAMED
from reverie.config import Config, as_config, build, dump, load, read, reference
from reverie.errors import ConfigError
from reverie.presets import FOLDER
from reverie.strict_json import LARGEST_FILE
from reverie.trees import merge, put


@pytest.fixture
def file(tmp_path):
    def make(content: object) -> Path:
        path = tmp_path / "custom.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return make


def refusal(*arguments, **keywords) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **keywords)
    message = str(caught.value)
    assert message.isprintable(), message
    return message


def test_later_sources_win(file):
    path = file({"seq_len": 32, "run": {"steps": 10, "seed": 1}})
    loaded = load(path, ["run.steps=20", "run.directory=elsewhere", "batch_size=4"], {"run.steps": 30, "device": "cpu"})
    assert (loaded.replay.length, loaded.replay.batch_size, loaded.run.seed) == (32, 4, 1)
    assert (loaded.run.steps, loaded.run.directory, loaded.run.device) == (30, "elsewhere", "cpu")


def test_a_config_is_immutable():
    with pytest.raises(ValidationError):
        Config().run.steps = 5  # type: ignore[misc]


def test_what_is_dumped_loads_to_the_same_config(file):
    original = load(None, ["run.steps=1e6", "agent.world_optimizer.rate=3e-5", "run.target_return=475"])
    assert original.run.steps == 1_000_000
    assert load(file(dump(original).encode())) == original
    assert build(json.loads(dump(original))) == original


def test_the_reference_holds_every_default():
    file = FOLDER / "reference.json"
    assert file.read_text() == reference(), f"run: reverie config --defaults > {file}"


def test_every_option_has_a_default_and_a_description():
    def check(options, prefix):
        for name, field in options.model_fields.items():
            assert not field.is_required(), f"{prefix}{name} has no default"
            if isinstance(field.annotation, type) and issubclass(field.annotation, config.Options):
                check(field.annotation, f"{prefix}{name}.")
            else:
                assert field.description, f"{prefix}{name} has no description"

    check(Config, "")


@pytest.mark.parametrize(("short", "key"), FLAT.items())
def test_short_names_stand_for_existing_options(short, key):
    assert key in set(config.keys(Config))


@pytest.mark.parametrize("short", ["batch_size", "world_lr", "kl_scale", "device", "use_wandb"])
def test_a_short_name_sets_what_it_stands_for(short, file):
    value = {"batch_size": 5, "world_lr": 6e-4, "kl_scale": 0.5, "device": "cpu", "use_wandb": True}[short]
    loaded = load(file({short: value}))
    for part in FLAT[short].split("."):
        loaded = getattr(loaded, part)
    assert loaded == value


def test_run_async_works_in_a_file_and_as_an_override(file):
    path = file({"run": {"async": True, "steps": 5}})
    assert load(path).run.asynchronous and load(path).run.steps == 5
    assert not load(path, ["run.async=false"]).run.asynchronous
    assert load(file(dump(load(path)).encode()), ["run.async=true"]).run.asynchronous
    assert "run.async = true but run.asynchronous = false" in refusal(
        file({"run": {"async": True, "asynchronous": False}})
    )
    assert "run.asynchronous" in refusal(file({"run": {"async": "yes"}}))


def test_a_short_name_and_its_key_may_agree_but_not_differ(file):
    assert load(file({"batch_size": 5, "replay": {"batch_size": 5}})).replay.batch_size == 5
    message = refusal(file({"batch_size": 5, "replay": {"batch_size": 6}}))
    assert "batch_size = 5 but replay.batch_size = 6" in message


@pytest.mark.parametrize(
    ("tree", "parts"),
    [
        ({"run": {"stepz": 5}}, ["run.stepz = 5", "did you mean run.steps?"]),
        ({"steps": 5}, ["steps = 5", "did you mean run.steps?"]),
        ({"kl_scal": 1}, ["kl_scal = 1", "kl_scale?"]),
        ({"run.steps": 5}, ["run.steps = 5", 'sections are nested here: {"run": {"steps": 5}}']),
        ({"agent": {"world_optimizer.rate": 1}}, ['nested here: {"agent": {"world_optimizer": {"rate": 1}}}']),
        ({"agnt": {"horizon": 3}}, ["agnt", "did you mean agent?"]),
        ({"run": {"steps": -5}}, ["run.steps = -5", "greater than or equal to 1"]),
        ({"run": {"steps": "5"}}, ['run.steps = "5"', "integer"]),
        ({"run": {"steps": 5.5}}, ["run.steps = 5.5", "integer"]),
        ({"run": {"steps": True}}, ["run.steps = true", "integer"]),
        ({"run": {"video": 1}}, ["run.video = 1", "boolean"]),
        ({"run": {"device": "tpu"}}, ['run.device = "tpu": choose auto, cpu, cuda or cuda:<number>']),
        ({"actor_optimiser": {"rate": 1.0}}, ["actor_optimiser = ", "did you mean agent.actor_optimizer?"]),
        ({"run": 5}, ["run = 5", "object"]),
        ({"logger": {"level": "LOUD"}}, ['logger.level = "LOUD"', "'DEBUG'"]),
        ({"kl_scale": [0.5, 1.0]}, ["world.kl_scale = [0.5, 1.0]", "number"]),
        ({"agent": {"world_optimizer": {"rate": -1}}}, ["agent.world_optimizer.rate = -1"]),
        ({"agent": {"world_optimizer": {"rat": 1}}}, ["agent.world_optimizer.rate?"]),
        (
            {"world": {"modalities": {"text": {"loss_scale": -1}}}},
            ["world.modalities.text.loss_scale = -1", "equal to 0"],
        ),
        ({"world": {"modalities": {"text": {"scale": 1}}}}, ["world.modalities.text.scale = 1", "unknown key"]),
        ([], ["[]", "object"]),
        ({"batch_size": 5, "replay": 7}, ["batch_size = 5", "replay = 7 should be a section"]),
    ],
)
def test_a_refusal_names_the_key_the_value_and_what_is_allowed(file, tree, parts):
    message = refusal(file(tree))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ".hidden", "", "a b", "x\n", "_x", "x" * 101, "실" * 34])
def test_a_run_name_cannot_leave_its_folder(name):
    assert "run.name" in refusal(None, (), {"run.name": name})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b'{"run": {"steps": 1, "steps": 2}}', "run.steps: written twice"),
        (b'{"agent": 1, "agent": 1}', "agent: written twice"),
        (b'{"run": {"train_ratio": NaN}}', "run.train_ratio = nan: should be a finite number"),
        (b'{"run": {"train_ratio": -Infinity}}', "run.train_ratio = -inf"),
        (b'{"env": {"kwargs": {"a": [1, 1e999]}}}', "env.kwargs.a.1 = inf"),
        (b'{"run": {"steps": ' + b"9" * 5000 + b"}}", "run.steps = inf"),
        (b'{"run": {"steps": ' + b"9" * 50 + b"}}", "run.steps = 1e+50"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"", "empty; write at least {}"),
        (b" \n", "empty; write at least {}"),
        (b"{}{}", "line 1, column 3: not JSON"),
        (b'{\n "run": }', "line 2, column 9: not JSON"),
        (b"[" * 60 + b"]" * 60, "nested too deeply"),
        (b'{"env": {"kwargs": ' + b'{"a": ' * 900 + b"1" + b"}" * 902, "nested too deeply"),
        ("{}".encode("utf-16"), "not UTF-8 at byte 0"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"run": {"directory": "\\ud800"}}', "run.directory"),
        (b'{"\\ud800": 1}', "whole characters"),
        (b'{"a\\nb": 1}', "a\\nb"),
        (b" " * (LARGEST_FILE + 1), "larger than"),
    ],
)
def test_text_that_is_not_sound_json_is_refused(file, text, part):
    assert part in refusal(file(text))


def test_a_run_may_be_named_in_any_script():
    for name in ("실험-1", "첫_실험.2=b", "ä", "x" * 100):
        assert load(None, (), {"run.name": name}).run.name == name


def test_a_mark_of_the_byte_order_is_no_part_of_a_file(file):
    assert load(file(b'\xef\xbb\xbf{"batch_size": 5}')).replay.batch_size == 5


def test_every_number_has_a_largest_value_that_is_named():
    for key in config.keys(Config):
        value = reduce(getattr, key.split("."), Config())
        if key != "run.seed" and not isinstance(value, config.Options | str | bool | list | dict):
            for immense in (1e300, 2**52, 10**40):
                assert key in refusal(None, (), {key: immense})
    assert refusal(None, ["free_nats=1e300"]) == "world.free_nats = 1e+300: should be at most 1e+09"


@pytest.mark.parametrize("tree", [{"a": {1, 2}}, {"a": print}, {"run": {("a", 1): 2}}, {"run": {"name": b"x"}}])
def test_a_dict_of_other_things_than_plain_values_is_refused(tree):
    with pytest.raises(ConfigError, match="made of plain nested values"):
        build(tree)


def test_a_dict_stands_for_a_config():
    tree = {"batch_size": np.int64(5), "run": {"directory": Path("a")}, "world": MappingProxyType({"free_nats": 2})}
    made = as_config(tree)
    assert (made.replay.batch_size, made.run.directory, made.world.free_nats) == (5, "a", 2)
    assert as_config(made) is made
    endless: dict = {}
    endless["env"] = {"kwargs": endless}
    for wrong in ("default.json", None, [1], endless, {"batch_sise": 5}):
        with pytest.raises(ConfigError):
            as_config(wrong)


def test_an_override_of_endless_sections_is_refused():
    assert "nested" in refusal(None, [".".join("a" * 3000) + "=1"])


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "a folder; name a JSON file or a preset" in refusal(tmp_path)
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert "a device or pipe; name a JSON file" in refusal(path)
    assert "no such file, nor a preset" in refusal(tmp_path / "missing.json")


def test_a_preset_is_found_by_name_and_a_users_own_file_wins(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "reverie")
    assert load("pendulum").env.name == "Pendulum-v1"
    (tmp_path / "pendulum").mkdir()
    assert load("pendulum").env.name == "Pendulum-v1" and not caplog.messages
    assert load("configs/pendulum.json").env.name == "Pendulum-v1"
    assert load("configs/ladder/a1_ppo.json") == load("ladder/a1_ppo")
    assert all("the preset" in message for message in caplog.messages) and len(caplog.messages) == 2
    (tmp_path / "configs").mkdir()
    for name in ("flat", "configs/pendulum.json"):
        (tmp_path / name).write_text('{"env": {"name": "Own-v0"}}')
        assert load(name).env.name == "Own-v0"
    for missing in ("pendulm", "pendulum.json", "configs/pendulm.json", "elsewhere/pendulum.json"):
        assert "did you mean the preset pendulum?" in refusal(missing)
    for missing in ("../pendulum", "", "\0", "x" * 5000, "configs/../default.json", str(tmp_path / "pendulum")):
        refusal(missing)


@pytest.mark.parametrize("argument", ["run.steps", "=5", "--steps", "5", "", ".steps=5", "run..steps=5", "run.=5"])
def test_an_override_has_a_key_and_a_value(argument):
    assert "section.key=value" in refusal(None, [argument])


def test_an_override_that_is_not_json_is_text():
    assert load(None, ["run.directory=a=b/c", "env.kwargs.level=3"]).run.directory == "a=b/c"
    assert "run.steps.x" in refusal(None, ["run.steps=5", "run.steps.x=1"])
    assert "run.train_ratio" in refusal(None, ["run.train_ratio=NaN"])


def test_the_train_ratio_counts_replayed_steps_as_published():
    published = load("dmc")
    assert published.run.train_ratio == 512 and published.updates_per_step == Fraction(1, 2)
    for train_ratio, updates in ((16, Fraction(1, 32)), (102.4, Fraction(1, 5)), (1e-9, Fraction(1, 512 * 10**9))):
        settings = [f"run.train_ratio={train_ratio}", "replay.batch_size=32", "replay.length=16"]
        assert load(None, settings).updates_per_step == updates


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["replay.capacity=100"], "replay.capacity = 100"),
        (
            ["run.train_ratio=600", "batch_size=2", "replay.length=4"],
            "run.train_ratio = 600: should be at most 512, which is 64 updates per step",
        ),
        (["agent.starts=65", "replay.length=64"], "agent.starts = 65"),
        (["behavior.minibatches=7", "batch_size=2", "agent.starts=4"], "behavior.minibatches = 7"),
        (["hierarchy.enabled=true", "hierarchy.period=3", "agent.horizon=4"], "hierarchy.period = 3"),
        (
            [
                "hierarchy.enabled=true",
                "hierarchy.period=5",
                "hierarchy.minibatches=7",
                "batch_size=2",
                "agent.starts=4",
            ],
            "hierarchy.minibatches = 7",
        ),
        (
            ["hierarchy.enabled=true", "hierarchy.period=5", "hierarchy.preset=director", "hierarchy.goal_weight=0"],
            "hierarchy.goal_weight = 0",
        ),
        (["run.target_return=1", "run.evaluate_every=0"], "run.target_return"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(overrides, part):
    assert part in refusal(None, overrides)


EXECUTED = {"exec", "compile", "import", "os.system", "subprocess.Popen", "socket.connect", "pickle.find_class"}
HOSTILE = [
    None,
    True,
    -1,
    0,
    0.5,
    10**400,
    -(10**18),
    "",
    "x" * 300,
    "\ud800",
    "\n",
    "__import__('os').system('x')",
    [],
    [[]],
]
HOSTILE += [
    {},
    {"": {}},
    {"\n": 1},
    {"\ud800": 1},
    {"a": {"b": 1}},
    [1, 2],
    float("nan"),
    float("inf"),
    "os:system",
    "../../etc",
    "1e999",
]


def test_no_damaged_config_raises_anything_but_one_line(file, monkeypatch):
    """Puts hostile values at random keys and flips random bytes, and watches for code that runs."""
    seen: list[str] = []
    watching = False
    sys.addaudithook(lambda event, _: seen.append(event) if watching and event in EXECUTED else None)
    keys = [*config.keys(Config), *FLAT, "unknown", "run.x.y", "", "."]
    draw = random.Random(0)
    text = dump(Config()).encode()
    refused = 0
    for trial in range(600):
        if trial % 2:
            damaged = bytearray(text)
            for _ in range(draw.randint(1, 4)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            path = file(bytes(damaged))
        else:
            tree: dict = {}
            for _ in range(draw.randint(1, 3)):
                try:
                    put(tree, draw.choice(keys), draw.choice(HOSTILE))
                except ConfigError:
                    refused += 1
            path = file(tree)
        watching = trial > 1
        message = attempt(path)
        watching = False
        refused += message is not None
        assert message is None or message.isprintable(), repr(message)
    assert refused > 300
    assert not seen


def attempt(path: Path) -> str | None:
    """What the loader says against a file, if anything."""
    try:
        load(path)
    except ConfigError as error:
        return str(error)
    return None


def test_a_later_file_changes_single_options_of_an_earlier_one():
    first = {"env": {"name": "a", "kwargs": {"x": 1}}, "agent": {"actor_optimizer": {"rate": 1, "eps": 2}}, "seed": 5}
    later = {"env": {"kwargs": {"y": 2}}, "agent": {"actor_optimizer": {"rate": 3}}, "run": {"steps": 4}, "seed": {}}
    assert merge(first, later) == {
        "env": {"name": "a", "kwargs": {"x": 1, "y": 2}},
        "agent": {"actor_optimizer": {"rate": 3, "eps": 2}},
        "run": {"steps": 4},
        "seed": {},
    }
    assert first["env"] == {"name": "a", "kwargs": {"x": 1}}


def test_reading_keeps_lists_for_a_sweep(file):
    assert read(file({"kl_scale": [0.5, 1.0]})) == {"world": {"kl_scale": [0.5, 1.0]}}


@pytest.mark.parametrize("old", RENAMED)
def test_the_name_of_an_earlier_version_is_refused_with_the_present_one(old: str):
    with pytest.raises(ConfigError, match=re.escape(f"{old} = 1: this is now {RENAMED[old]}")):
        load(overrides=[f"{old}=1"])
