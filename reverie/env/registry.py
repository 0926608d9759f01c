"""Finds an environment by name, builds it, and puts the wrappers around it that the options ask for.

A name is a key of `ENVIRONMENTS` (``crafter``, or your own), a suite and a task (``dmc/walker_walk``), a Gymnasium id
(``CartPole-v1``, ``module:CartPole-v1``) or ``module:callable``. Simulators are imported only when one of their
environments is made.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from pydantic import AfterValidator, Field, field_validator

from reverie.env import plugins
from reverie.env.gymnasium import GymnasiumEnvironment
from reverie.env.info import RESERVED, Aggregate
from reverie.env.text import KIND
from reverie.env.tokens import read_tokenizer
from reverie.env.wrappers import Environment, Mute, Repeat, TimeLimit, grayscale, one_hot, resize
from reverie.errors import ConfigError
from reverie.options import Options
from reverie.types import action_width


class EnvOptions(Options):
    """Which environment to play, how many of them, and what to change about them."""

    name: str = Field(default="CartPole-v1", min_length=1, max_length=200)
    """A Gymnasium id, `suite/task`, `module:callable`, `module:id`, or a name added to ENVIRONMENTS."""
    envs: int = Field(default=8, ge=1, le=1024)
    """Environments that are played side by side."""
    mode: Literal["auto", "inline", "processes"] = "auto"
    """Where they run: in this process, each in its own, or, as a short timing at the start tells, in
    processes where steps outlast several messages."""
    repeat: int | None = Field(default=None, ge=1, le=10_000)
    """Frames that one step of the agent lasts, its action repeated; null: as the suite does, else 1."""
    frame_pool: bool | None = None
    """Show the brighter of the last two repeated frames; null: as the suite does, else no."""
    time_limit: int = Field(default=0, ge=0)
    """Steps after which an episode is truncated, beside the environment's own limit; 0: only that."""
    size: int | None = Field(default=None, ge=0, le=4096)
    """Height and width of images; 0: as they are; null: as the suite does, else as they are."""
    grayscale: bool | None = None
    """Show images in gray; null: as the suite does, else no."""
    one_hot: bool | list[str] | None = None
    """Integer observations to show as one-hot vectors: all, none, or these; null: as the suite does, else none."""
    kinds: dict[str, Annotated[str, Field(min_length=1, max_length=200)] | None] = {}
    """What an observation is, by key: `image`, `text`, `audio`, `vector` or a modality of your own, whatever it
    looks like; null leaves it out."""
    text_length: int = Field(default=64, ge=1, le=65_536)
    """Bytes of a text, as UTF-8, or its tokens; longer ones are cut."""
    text_tokenizer: Annotated[str, AfterValidator(read_tokenizer)] | None = None
    """A `tokenizer.json` of the package `tokenizers` (the extra `tokenizers`), whose content is kept; null: bytes."""
    mute: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default=[], max_length=1_000)
    """Observations that fall silent, or zeros, and are missing where they may be. Their shapes stay the same."""
    info_metrics: dict[Annotated[str, Field(min_length=1)], Aggregate] = Field(default={}, max_length=100)
    """Numbers of `info` to report of each episode, such as `{"success": "max"}`: their last, max, sum or mean."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments for whatever makes the environment."""
    plugins: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default=[], max_length=100)
    """Modules or Python files to import first: there they add to ENVIRONMENTS or to Gymnasium's registry."""
    obs_dim: int | None = Field(default=None, ge=1, le=10**7)
    """Numbers in one observation, without texts: checked; a custom environment without spaces takes it from here."""
    action_dim: int | None = Field(default=None, ge=1, le=100_000)
    """Length of the flat action vector: checked; a custom environment without spaces takes it from here."""
    step_timeout: float = Field(default=60.0, gt=0)
    """Seconds after which a worker that does not answer a step is replaced."""
    reset_timeout: float = Field(default=300.0, gt=0)
    """The same for building an environment, for beginning an episode, and for going back into one."""
    restarts: int = Field(default=5, ge=0)
    """Failures of one environment within ten minutes that are mended by starting it again."""

    @field_validator("info_metrics")
    @classmethod
    def _names_are_free(cls, names: dict[str, Aggregate]) -> dict[str, Aggregate]:
        if taken := sorted(RESERVED & names.keys()):
            raise ValueError(f"{taken[0]} is a metric of every episode already; leave it out")
        return names


ENVIRONMENTS: dict[str, Callable[..., Any] | str] = {
    "atari": "reverie.env.atari:create",
    "atari100k": "reverie.env.atari:create",
    "crafter": "reverie.env.crafter:create",
    "deep_sea": "reverie.env.deep_sea:create",
    "dmc": "reverie.env.dm_control:create",
    "dmc_pixels": "reverie.env.dm_control:create_pixels",
    "highway": "reverie.env.highway:create",
    "minigrid": "reverie.env.minigrid:create",
    "pinpad": "reverie.env.pinpad:create",
    "senses": "reverie.env.senses:create",
}
"""Suite or custom name -> function that makes a `gymnasium.Env` (or a lazy ``module:callable``).

It is called with the options' ``kwargs``; for ``suite/task`` the task comes first, as it was written.
"""

PROTOCOLS: dict[str, dict[str, Any]] = {
    "atari": {"repeat": 4, "frame_pool": True, "size": 96, "grayscale": True},
    "atari100k": {"repeat": 4, "frame_pool": True, "size": 64, "kwargs": {"sticky": 0.0, "all_actions": False}},
    "minigrid": {"one_hot": True},
    "pinpad": {"one_hot": True},
}
"""How a suite is usually played: what the options left open is taken from here."""

EXTRAS = {
    "ale_py": "atari",
    "crafter": "crafter",
    "dm_control": "dmc",
    "highway_env": "highway",
    "minigrid": "minigrid",
    "mujoco": "dmc",
}
"""Missing module -> the extra of this package that installs it."""

RAW_IDS = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
"""Prefixes of Gymnasium ids -> the module that registers them."""


def make(options: EnvOptions) -> Environment:
    """One environment, adapted and wrapped.

    Raises `ConfigError` for an unknown name, a missing package, an unsupported space, or if ``obs_dim`` or
    ``action_dim`` disagree with the environment.
    """
    plugins.load(options.plugins)
    options = with_protocol(options)
    try:
        env = find(options.name)(**options.kwargs)
    except ModuleNotFoundError as error:
        if (module := (error.name or "").partition(".")[0]) not in EXTRAS:
            raise
        raise ConfigError(
            f"{options.name} needs the package {module}: pip install 'reverie[{EXTRAS[module]}]'"
        ) from error
    except TypeError as error:
        raise ConfigError(f"{options.name} cannot be made with env.kwargs = {options.kwargs}: {error}") from error
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(f"{options.name} needs a package that is not installed: {error}") from error
    return adapt(env, options)


def adapt(env: Any, options: EnvOptions) -> Environment:
    """A `gymnasium.Env`, adapted and wrapped as the options ask for. Raises `ConfigError` as `make` does."""
    options = with_protocol(options)
    adapted = GymnasiumEnvironment(
        _with_spaces(env, options),
        options.kinds,
        options.text_length,
        options.text_tokenizer or "",
        options.info_metrics,
    )
    return _check_sizes(_wrap(adapted, options), options)


def find(name: str) -> Callable[..., Any]:
    """The function that makes the environment called ``name`` out of its ``kwargs``.

    Raises `ConfigError`, with the most similar name, if there is none.
    """
    suite, _, task = name.partition("/")
    if name in ENVIRONMENTS:
        return _load(ENVIRONMENTS[name])
    if task and suite in ENVIRONMENTS:
        return functools.partial(_load(ENVIRONMENTS[suite]), task)
    if ":" in name:
        return _import(name)
    if name.startswith(("MiniGrid-", "BabyAI-")):
        return functools.partial(_load(ENVIRONMENTS["minigrid"]), name)
    return functools.partial(make_registered, name)


def make_registered(name: str, **kwargs: Any) -> gymnasium.Env:
    """Makes the environment with this Gymnasium id; pictures are available where it can draw them."""
    module = next((module for prefix, module in RAW_IDS.items() if name.startswith(prefix)), None)
    if module:
        gymnasium.register_envs(importlib.import_module(module))
    try:
        spec = copy.copy(gymnasium.spec(name))
    except gymnasium.error.Error as error:
        raise ConfigError(
            f"unknown environment {name!r}; {suggest(name, [*gymnasium.registry, *ENVIRONMENTS])}"
        ) from error
    spec.order_enforce = False  # `Slot` resets before it steps
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    if "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", []):
        kwargs = {"render_mode": "rgb_array"} | kwargs
    return gymnasium.make(spec, disable_env_checker=True, **kwargs)


def suggest(name: str, known: Iterable[str]) -> str:
    """What to type instead of an unknown name."""
    similar = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), similar, n=1, cutoff=0.5)
    return f"did you mean {similar[matches[0]]!r}?" if matches else "give a Gymnasium id, suite/task or module:callable"


def suite_of(name: str) -> str:
    """The key of `ENVIRONMENTS` that makes ``name``, or an empty string."""
    prefix = "minigrid" if name.startswith(("MiniGrid-", "BabyAI-")) else name.partition("/")[0]
    return name if name in ENVIRONMENTS else prefix if prefix in ENVIRONMENTS else ""


def with_protocol(options: EnvOptions) -> EnvOptions:
    """The options with everything that was left open (null) decided."""
    usual = {"repeat": 1, "frame_pool": False, "size": 0, "grayscale": False, "one_hot": False, "kwargs": {}}
    usual |= PROTOCOLS.get(suite_of(options.name), {})
    decided = {key: value for key, value in usual.items() if getattr(options, key) is None}
    return options.model_copy(update=decided | {"kwargs": usual["kwargs"] | options.kwargs})


def repeats(options: EnvOptions) -> int:
    """Frames of the environment that one step of the agent lasts."""
    return with_protocol(options).repeat or 1


def _load(entry: Callable[..., Any] | str) -> Callable[..., Any]:
    """The function itself, or what a ``module:callable`` names."""
    return entry if callable(entry) else _import(entry)


def _import(entry: str) -> Callable[..., Any]:
    """What a ``module:callable`` names, or ``module:id`` where the module registers a Gymnasium id."""
    module, _, name = entry.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a foreign module may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            raise
        raise ConfigError(f"environment {entry!r} cannot be loaded: {type(error).__name__}: {error}; "
                          "write it as 'module:callable'") from error  # fmt: skip
    if callable(found):
        return found
    if name in gymnasium.registry:
        return functools.partial(make_registered, name)
    raise ConfigError(f"environment {entry!r} cannot be loaded: {module} has no callable {name!r} and registers no "
                      "such id; write it as 'module:callable'")  # fmt: skip


def _with_spaces(env: Any, options: EnvOptions) -> Any:
    """Gives a custom environment without spaces the sizes from the options."""
    if options.obs_dim and not hasattr(env, "observation_space"):
        env.observation_space = spaces.Box(-np.inf, np.inf, (options.obs_dim,), np.float32)
    if options.action_dim and not hasattr(env, "action_space"):
        env.action_space = spaces.Discrete(options.action_dim)
    return env


def _wrap(env: Environment, options: EnvOptions) -> Environment:
    if (options.repeat or 1) > 1:
        env = Repeat(env, options.repeat or 1, pool=bool(options.frame_pool))
    if options.size:
        env = resize(env, options.size)
    if options.grayscale:
        env = grayscale(env)
    if options.one_hot:
        env = one_hot(env, options.one_hot)
    if options.mute:
        env = Mute(env, options.mute)
    return TimeLimit(env, options.time_limit) if options.time_limit else env


def _check_sizes(env: Environment, options: EnvOptions) -> Environment:
    values = sum(int(np.prod(spec.shape)) for spec in env.observation.values() if spec.kind != KIND)
    actions = action_width(env.action)
    for name, wanted, found in (("obs_dim", options.obs_dim, values), ("action_dim", options.action_dim, actions)):
        if wanted not in (None, found):
            env.close()
            raise ConfigError(
                f"{name} is {wanted}, but {options.name} has {found}; set {name} to {found} or leave it out"
            )
    return env
