"""The command line: ``reverie train | sweep | evaluate | play | profile | config | inspect``.

Every mistake that a user can mend is one line on standard error and a documented exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reverie import config as configuration
from reverie import trees
from reverie.errors import ConfigError, ReverieError
from reverie.flags import Parser, add_code_flags, add_config_flags, add_sweep_flags, at_least, seed, values
from reverie.options import refuse_in_vain
from reverie.presets import PRESETS
from reverie.run.grid import axes, single

if TYPE_CHECKING:
    from reverie.agent import Agent

log = logging.getLogger(__name__)

EXIT_CODES = """exit codes:
  0 done                        6 disk, memory or permission
  2 command line or config      7 run folder in use
  3 checkpoint or replay        8 device or backend missing
  4 environment keeps failing   70 internal error (see crash.txt)
  5 numbers diverged            129, 130, 143 stopped by a signal, after a checkpoint"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    main = Parser(prog="reverie", description="Train agents in dreams.", epilog=EXIT_CODES,
                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = main.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train an agent (what run_dreamer.py does)")
    add_config_flags(train)
    add_sweep_flags(train)
    train.add_argument("--checkpoint", type=Path, help="go on from this checkpoint")
    train.set_defaults(run=_train)

    sweep = commands.add_parser("sweep", help="train with every combination of the lists in a configuration, and rank")
    add_config_flags(sweep)
    add_sweep_flags(sweep)
    sweep.add_argument("--report", type=Path, metavar="DIR", help="train nothing: rank what is in the sweep's folder")
    sweep.set_defaults(run=_sweep)

    evaluate = commands.add_parser("evaluate", help="play whole episodes and print the mean return")
    play = commands.add_parser("play", help="film episodes, and the world model's dream of one")
    for command, run, episodes in ((evaluate, _evaluate, 100), (play, _play, 1)):
        command.add_argument("--checkpoint", type=Path, default=Path("checkpoints/best_model.pt"))
        command.add_argument("--episodes", type=at_least(1), default=episodes)
        command.add_argument("--deterministic", action="store_true", help="take the likeliest actions, draw none")
        command.add_argument("--seed", type=seed, default=0)
        command.add_argument("--env", help="another name for its environment, such as module:callable")
        add_code_flags(command)
        command.add_argument("--device", default="auto")
        command.add_argument("overrides", nargs="*", metavar="section.key=value")
        command.set_defaults(run=run)
    evaluate.add_argument("--shuffle-goals", action="store_true", help="give every environment the goals of another")
    play.add_argument("--output", type=Path, default=Path("media"), help="folder for the videos")

    profile = commands.add_parser("profile", help="say where the time of a training step goes")
    add_config_flags(profile)
    profile.add_argument("--updates", type=at_least(1), default=50, help="updates to measure")
    profile.add_argument("--output", type=Path, help="a JSON file for the figures; a chart goes beside it")
    profile.set_defaults(run=_profile)

    show = commands.add_parser("config", help="print the configuration that a command would run with")
    add_config_flags(show)
    show.add_argument("--list", action="store_true", help="the presets instead, with a line on each")
    show.add_argument("--defaults", action="store_true", help="every option at its default instead")
    show.set_defaults(run=_config)

    inspect = commands.add_parser("inspect", help="say what is in a checkpoint")
    inspect.add_argument("--checkpoint", type=Path, default=Path("checkpoints/latest.pt"))
    inspect.set_defaults(run=_inspect)
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    sys.path.append("")  # `--env module:callable` may be in the working folder
    try:
        options = parse(arguments)
        code = options.run(options)
        sys.stdout.flush()
        return code
    except ReverieError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)  # what it quotes may have lines
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    """Says in one line what nobody foresaw, and returns its exit code; an internal error leaves its trace behind."""
    from reverie.run.device import lacks_memory, what_to_lower

    said = " ".join(f"{type(error).__name__}: {error}".split())
    if lacks_memory(error):
        print(f"error: out of memory: {said}; lower {what_to_lower(error)}, or free some", file=sys.stderr)
        return 6
    if isinstance(error, OSError):
        print(f"error: {said}; check disk and permissions", file=sys.stderr)
        return 6
    with contextlib.suppress(OSError):
        Path("crash.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")
    print(f"error: internal: {said}; please report crash.txt", file=sys.stderr)
    return 70


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one command. ``section.key=value`` may stand anywhere: argparse alone takes one group of them.

    Raises ConfigError.
    """
    main = parser()
    options, rest = main.parse_known_args(arguments)
    strangers = [text for text in rest if text.startswith("-") or "overrides" not in options]
    if strangers:
        main.error(f"unrecognized arguments: {' '.join(strangers)}")
    if rest:
        options.overrides += rest
    return options


def _sources(options: argparse.Namespace) -> list[str]:
    """The files and presets that configure a command, the later of which change the earlier."""
    if options.multimodal and options.config:
        raise ConfigError("--multimodal and --config both name a configuration; give one of them")
    return ["multimodal"] if options.multimodal else options.config or ["default"]


def _tree(options: argparse.Namespace) -> dict[str, Any]:
    """What files, presets and flags say, lists of a sweep included."""
    sources = _sources(options)
    if not (options.config or options.multimodal):
        log.info("no --config: the preset %s, %s", sources[0], PRESETS[sources[0]])
    tree = reduce(trees.merge, map(configuration.read, sources))
    return configuration.adopt(tree, ", ".join(sources), options.overrides, values(options), options.trust)


def _single(options: argparse.Namespace, tree: dict[str, Any]) -> configuration.Config:
    """The configuration of one run. Raises ConfigError also where nothing reads what the flags set."""
    config = single(tree)
    refuse_in_vain(config, configuration.change({}, options.overrides, values(options)))
    return config


def _train(options: argparse.Namespace) -> int:
    from reverie.run.logger import console
    from reverie.run.train import DreamerV3Trainer

    console(options.log_level or "INFO")
    if options.checkpoint is None:
        tree = _tree(options)
        if options.parallel or axes(tree):
            return _train_all(options, tree)
        config = _single(options, tree)
        console(config.logger.level)
        return DreamerV3Trainer(config).train()
    if options.config or options.multimodal or options.parallel:
        raise ConfigError("--checkpoint brings its own configuration; leave out --config, --multimodal and --parallel, "
                          "and change single keys with section.key=value")  # fmt: skip
    trainer = DreamerV3Trainer.resume(options.checkpoint, options.overrides, values(options), options.trust)
    console(trainer.config.logger.level)
    return trainer.train()


def _sweep(options: argparse.Namespace) -> int:
    from reverie.run import leaderboard, sweep
    from reverie.run.logger import console

    console(options.log_level or "INFO")
    if options.report is None:
        return _train_all(options, _tree(options))
    plan = sweep.reopen(options.report)
    print("\n".join(leaderboard.table(plan, sweep.read(plan))))
    return 0


def _train_all(options: argparse.Namespace, tree: dict[str, Any]) -> int:
    """Trains every combination of the lists in a configuration."""
    from reverie.run import grid, leaderboard, sweep

    plan = grid.expand(tree, "-".join(Path(source).stem for source in _sources(options)))
    code = sweep.run(plan, options.parallel or 1, lambda results: leaderboard.write(plan, results))
    results = sweep.read(plan)
    print("\n".join(leaderboard.table(plan, results)))
    leaderboard.write(plan, results)
    leaderboard.plot(plan, results)
    return code


def _restore(options: argparse.Namespace) -> tuple[Agent, configuration.Config]:
    from reverie.run.evaluate import restore_agent

    source, device, env, plugins = options.checkpoint, options.device, options.env, options.plugin
    return restore_agent(source, device, env, plugins, options.overrides, trust=options.trust)


def _evaluate(options: argparse.Namespace) -> int:
    from reverie.run.evaluate import HELD_OUT, evaluate

    agent, config = _restore(options)
    if options.shuffle_goals:
        agent.behavior.shuffle()
    limit, likeliest = config.run.evaluate_limit, options.deterministic or config.run.evaluate_deterministic
    result = evaluate(
        agent, config.env, options.episodes, HELD_OUT + options.seed, limit=limit, deterministic=likeliest
    )
    for name, mean in result.info.items():
        print(f"{name}: {mean:.4g}")
    for name, share in result.goals.items():
        print(f"{name}: {share:.1%}")
    print(result)
    return 0


def _play(options: argparse.Namespace) -> int:
    from reverie.run.evaluate import HELD_OUT
    from reverie.run.play import play

    if options.output.exists() and not options.output.is_dir():
        raise ConfigError(f"--output {options.output} is a file; name a folder for the videos")
    agent, config = _restore(options)
    limit = config.run.evaluate_limit
    held_out = HELD_OUT + options.seed
    for line in play(agent, config.env, options.episodes, held_out, options.output, limit, options.deterministic):
        print(line, flush=True)
    return 0


def _profile(options: argparse.Namespace) -> int:
    from reverie.run.profile import profile

    if options.output and options.output.suffix == ".png":
        raise ConfigError(f"--output {options.output} is where the chart goes; name a JSON file")
    result = profile(_single(options, _tree(options)), options.updates)
    print("\n".join(result.lines()))
    if options.output:
        result.write(options.output)
    return 0


def _config(options: argparse.Namespace) -> int:
    if options.list:
        width = max(map(len, PRESETS))
        print("\n".join(f"{name:{width}}  {text}" for name, text in PRESETS.items()))
    elif options.defaults:
        print(configuration.reference(), end="")
    else:
        options.trust = True  # nothing runs here
        print(configuration.dump(_single(options, _tree(options))), end="")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from reverie.run.inspect import describe

    logging.getLogger("reverie").setLevel("WARNING")
    print("\n".join(describe(options.checkpoint)))
    return 0
