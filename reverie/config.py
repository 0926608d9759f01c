"""One immutable Config for a whole run, read strictly: defaults, then a JSON file, then ``section.key=value``.

Every component states its own Options; this file only composes them and checks what concerns more than one.
Any mistake is a ConfigError of one line: the key, its value, what is allowed, and the nearest key that exists.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, Field, ValidationError, model_validator

from reverie.agent import AgentOptions
from reverie.aliases import FLAT, RENAMED
from reverie.behavior.actor_critic import BehaviorOptions
from reverie.behavior.hierarchy import HierarchyOptions
from reverie.behavior.intrinsic import IntrinsicOptions
from reverie.env import EnvOptions
from reverie.errors import ConfigError
from reverie.learned_rates import MetaOptions
from reverie.options import Options, keys, mistake, refuse_immense, refuse_in_vain
from reverie.presets import locate
from reverie.rate_free import OPTIMIZERS
from reverie.replay import ReplayOptions
from reverie.strict_json import parse, plain, read_file
from reverie.trees import children, find, join, put, show
from reverie.trust import refuse_code
from reverie.world.options import WorldOptions

LONGEST_NAME = 100
"""Bytes of a run's name; the trial of a sweep adds some."""

MOST_UPDATES = 64
"""Per step of the agent; more would be a mistake."""


def _known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", name):
        raise ValueError("choose auto, cpu, cuda or cuda:<number>")
    return name


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[^\W_][\w.=,-]*", name) or len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"should be letters, digits and . _ = , - (at most {LONGEST_NAME} bytes), a letter or digit first"
        )
    return name


class RunOptions(Options):
    """How long to train, on what, and how often to look and to save."""

    name: Annotated[str, AfterValidator(_folder_name)] | None = None
    """The run's folder inside `directory`; made from environment, date and seed when left out."""
    directory: str = Field(default="runs", min_length=1)
    """Where the folders of all runs are kept."""
    steps: int = Field(default=100_000, ge=1)
    """Steps of the agent to train for, all environments together; where actions repeat, each is several frames."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides every random number of the run."""
    device: Annotated[str, AfterValidator(_known_device)] = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:<number>`."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch, at most a container's share of the cores; 0: as torch chooses. Workers have one."""
    kernels: Literal["auto", "off"] = "auto"
    """Native kernels on a CPU: built once with the machine's C compiler, where there is one."""
    train_ratio: float = Field(default=256.0, gt=0)
    """Replayed steps per step of the agent: updates per step, times `replay.batch_size`, times `replay.length`."""
    asynchronous: bool = False
    """Play in a thread of its own, a few steps ahead of learning: faster where few environments are slow."""
    evaluate_every: int = Field(default=10_000, ge=0)
    """Steps between evaluations; 0 for none."""
    evaluate_episodes: int = Field(default=10, ge=1, le=10_000)
    """Episodes per evaluation."""
    evaluate_limit: int = Field(default=30_000, ge=0)
    """Steps after which an episode is stopped that is not played for training: in evaluations and films; 0: none."""
    evaluate_deterministic: bool = False
    """Evaluate with the likeliest actions; as published, they are drawn from the policy."""
    checkpoint_every: int = Field(default=5_000, ge=1)
    """Steps between checkpoints."""
    checkpoint_dir: str = Field(default="checkpoints", min_length=1)
    """A folder where `latest.pt` and `best_model.pt` always lead to the newest run's."""
    log_every: int = Field(default=1_000, ge=1)
    """Steps between two rows of metrics."""
    video: bool = True
    """Whether each evaluation writes a video of what the world model predicts."""
    target_return: float | None = None
    """Stop early when an evaluation reaches this mean return."""


class LoggerOptions(Options):
    """Where metrics are shown, beside the run's own files."""

    switches = {"wandb": {"wandb_project"}}

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """How much the console says; DEBUG shows every metric."""
    tensorboard: bool = True
    """Write event files for TensorBoard, if it is installed."""
    wandb: bool = False
    """Send metrics to Weights & Biases; they stay on disk when it cannot be reached."""
    wandb_project: str = Field(default="reverie", min_length=1, max_length=100)
    """The project that the runs appear in."""


class Config(Options):
    """All choices of one run."""

    run: RunOptions = RunOptions()
    env: EnvOptions = EnvOptions()
    replay: ReplayOptions = ReplayOptions()
    world: WorldOptions = WorldOptions()
    behavior: BehaviorOptions = BehaviorOptions()
    hierarchy: HierarchyOptions = HierarchyOptions()
    intrinsic: IntrinsicOptions = IntrinsicOptions()
    agent: AgentOptions = AgentOptions()
    meta: MetaOptions = MetaOptions()
    logger: LoggerOptions = LoggerOptions()

    @property
    def updates_per_step(self) -> Fraction:
        """Updates of the agent per step of it, exactly: `run.train_ratio` over the replayed steps of one update."""
        return Fraction(str(self.run.train_ratio)) / (self.replay.batch_size * self.replay.length)

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        refuse_immense(self)
        refuse_in_vain(self)
        replay, starts = self.replay, self.agent.starts
        needed = replay.least_capacity(self.env.envs)
        if replay.capacity < needed:
            raise ConfigError(f"replay.capacity = {replay.capacity}: one batch needs {needed} steps; raise it, or "
                              "lower replay.batch_size, replay.length or env.envs")  # fmt: skip
        if self.updates_per_step > MOST_UPDATES:
            most = MOST_UPDATES * replay.batch_size * replay.length
            raise ConfigError(f"run.train_ratio = {self.run.train_ratio:g}: should be at most {most}, which is "
                              f"{MOST_UPDATES} updates per step")  # fmt: skip
        if starts > replay.length:
            raise ConfigError(f"agent.starts = {starts}: should be at most replay.length = {replay.length}")
        if (starts or replay.length) < 2:
            raise ConfigError("agent.starts or replay.length = 1: the critic needs two replayed steps in a row")
        steps = replay.batch_size * ((starts or replay.length) - 1)
        if self.behavior.minibatches > steps:
            raise ConfigError(f"behavior.minibatches = {self.behavior.minibatches}: an update values {steps} steps")
        kind = self.agent.actor_optimizer.kind
        if self.behavior.objective.learned and kind in OPTIMIZERS:
            raise ConfigError(f"behavior.objective.learned needs a step whose derivative is known, and "
                              f"agent.actor_optimizer.kind = {kind} has none; choose adam or laprop")  # fmt: skip
        if self.hierarchy.enabled:
            self._levels_fit_together(steps)
        else:
            self.intrinsic.refuse_without_manager()
        if self.run.target_return is not None and not self.run.evaluate_every:
            raise ConfigError("run.target_return needs evaluations; set run.evaluate_every above 0")
        return self

    def _levels_fit_together(self, steps: int) -> None:
        hierarchy, horizon = self.hierarchy, self.agent.horizon
        if horizon % hierarchy.period:
            raise ConfigError(f"hierarchy.period = {hierarchy.period}: should divide agent.horizon = {horizon}")
        if hierarchy.minibatches > steps:
            raise ConfigError(f"hierarchy.minibatches = {hierarchy.minibatches}: an update values {steps} steps")


def load(
    source: str | Path | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Config:
    """Defaults, then a file or preset, then ``section.key=value`` overrides, then values by key; the later wins.

    Without a source it is `Config`, every option at its default; the command line begins with the preset ``default``.
    Short names are understood everywhere. Raises ConfigError, also where the file names code to run: that counts only
    in overrides and values, or where its source is to be trusted.
    """
    return settle({} if source is None else read(source), str(source), overrides, values, trust)


def settle(
    tree: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Config:
    """The Config of what `adopt` returns. Raises ConfigError also where nothing reads what overrides and values set."""
    config = build(adopt(tree, source, overrides, values, trust))
    refuse_in_vain(config, change({}, overrides, values))
    return config


def adopt(
    tree: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Values from a file or checkpoint, changed as `change` does. Raises ConfigError also for code, as `load` does."""
    changed = change(tree, overrides, values)
    if not trust:
        refuse_code(changed, change({}, overrides, values), source)
    return changed


def override(tree: Mapping[str, Any], overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> Config:
    """The Config of nested plain values, changed by ``section.key=value`` and by values by key. Raises ConfigError."""
    return build(change(tree, overrides, values))


def change(
    tree: Mapping[str, Any], overrides: Sequence[str], values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A copy of nested plain values, changed as `override` does, before anything is checked. Raises ConfigError."""
    tree = copy.deepcopy(dict(tree))
    for key, value in [*map(_parse_override, overrides), *(values or {}).items()]:
        put(tree, FLAT.get(key, key), value)
    return tree


def build(tree: Mapping[str, Any]) -> Config:
    """The Config that nested plain values describe; short names are understood. Raises ConfigError."""
    try:
        nested = _nested(parse(json.dumps(tree, default=plain)))
        return Config.model_validate_json(json.dumps(nested), strict=True)
    except ValidationError as error:
        _explain(error, nested)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"a configuration is made of plain nested values: {error}") from None


def as_config(config: object) -> Config:
    """A Config as it is, or the one that a dict describes. Raises ConfigError for anything else."""
    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        return build(config)
    raise ConfigError(f"{config!r} is no configuration; give a Config, a dict, or config.load(path)")


def read(source: str | Path) -> dict[str, Any]:
    """The values in a JSON file or a preset, with short names replaced by the keys they stand for.

    Raises ConfigError.
    """
    path = locate(source)
    try:
        return _nested(read_file(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def dump(config: Config) -> str:
    """Every option of the configuration as JSON text."""
    return config.model_dump_json(indent=4) + "\n"


def reference() -> str:
    """Every option at its default, as JSON text: the content of the preset ``reference``."""
    return dump(Config())


def _nested(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under their full keys."""
    nested = {name: dict(value) if isinstance(value, dict) else value for name, value in tree.items()}
    for short, key in FLAT.items():
        place, _, name = short.rpartition(".")
        section = find(nested, place) if place else nested
        if not isinstance(section, dict) or name not in section:
            continue
        value = section.pop(name)
        present = find(nested, key)
        if present is not None and present != value:
            raise ConfigError(f"{short} = {show(value)} but {key} = {show(present)}: the same option; keep one")
        put(nested, key, value)
    return nested


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (equals and all(key.split("."))):
        raise ConfigError(f"{show(text)}: unknown argument; an option is written section.key=value")
    try:
        return key, parse(value)
    except json.JSONDecodeError:
        return key, value
    except ConfigError as error:
        raise ConfigError(f"{join('', key)}: {error}") from None


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> NoReturn:
    """Turns the first thing that is wrong into one line."""
    first, path, value = error.errors()[0], "", tree
    for part in first["loc"]:
        if part in children(value):  # other parts name the branch of a union
            path, value = join(path, part), children(value)[part]
    message = mistake(error)[-1]
    if path in RENAMED:
        message = f"this is now {RENAMED[path]}"
    elif first["type"] == "extra_forbidden":
        message = f"unknown key; {_suggestion(path, value)}"
    raise ConfigError(f"{path or 'configuration'} = {show(value)}: {message}") from None


def _suggestion(path: str, value: Any) -> str:
    """What to write instead of a key that there is not."""
    known = list(keys(Config))
    if path in known:  # of several sections in one name, which overrides and values by key may have
        nested: dict[str, Any] = {}
        put(nested, path, value)
        return f"sections are nested here: {json.dumps(nested)}"
    sections = {key.rpartition(".")[0] for key in known}
    likely = [key for key in known if (key in sections) == isinstance(value, Mapping)]
    likely.sort(key=lambda key: -key.count("."))  # of keys that end alike, the least nested one is meant
    names = {alias: key for key in likely for alias in (key, key.rpartition(".")[2])}
    names |= {} if isinstance(value, Mapping) else {short: short for short in FLAT}
    return f"did you mean {names[difflib.get_close_matches(path, names, 1, 0)[0]]}?"
