"""The training loop: connects agent, environments and replay, and says when to save, log and evaluate.

`DreamerV3Trainer.train` is a list of "every": it contains no formula and no tensor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reverie import compilation
from reverie import config as configuration
from reverie.agent import Agent
from reverie.compatibility import explained
from reverie.config import Config
from reverie.env import make_vector, repeats, spaces_of, with_mode
from reverie.env.worker import summary
from reverie.errors import EnvironmentFailure, StoredDataError
from reverie.replay import SequenceReplayBuffer
from reverie.run import checkpoint, rates, video
from reverie.run.asynchronous import AsynchronousPlayer, sufficient_lead
from reverie.run.checkpoint import DivergenceError
from reverie.run.collect import Collector, Player
from reverie.run.device import choose_device, set_up, warn_of_precision
from reverie.run.evaluate import RECORDED, Evaluation, evaluate
from reverie.run.exactness import differences, surroundings
from reverie.run.film import films
from reverie.run.folder import branch, claim, keep_identity, lock, refuse_occupied
from reverie.run.logger import Logger
from reverie.run.progress import Progress
from reverie.run.schedule import Every, Interruption, TrainRatio
from reverie.types import Batch, Metrics

PATIENCE = 50
"""Updates without a finite gradient after which a run gives up; a few in a row do happen, and are skipped."""

log = logging.getLogger(__name__)


class DreamerV3Trainer:
    """One run: trains an agent on an environment and keeps everything in ``runs/<name>/``.

    ``state`` is a loaded checkpoint to go on from, ``folder`` the run folder that it belongs to. Call `train`, which
    closes the run when it ends, or `close`, which ends workers, threads and logs and gives the run folder free.
    """

    def __init__(
        self, config: Config | Mapping[str, Any], folder: Path | None = None, state: Mapping[str, Any] | None = None
    ):
        self.config = config = configuration.as_config(config)
        run = config.run
        self.step = self.updates = self.episodes = 0
        self.seconds = 0.0  # spent on training, evaluations left out
        self.best_return: float | None = None
        self.history: list[dict[str, float]] = []
        self.interruption, self.updates_due = Interruption(), TrainRatio(config.updates_per_step)
        self._sums: Metrics = {}
        self._summed = 0
        with ExitStack() as resources:  # whatever fails from here on, nothing stays open
            self._open(resources, folder, state)
            self.close = resources.pop_all().close
        self.progress = Progress(run.steps, self.step)

    def _open(self, resources: ExitStack, folder: Path | None, state: Mapping[str, Any] | None) -> None:
        """Takes the folder, starts environments and replay, and goes back to ``state``."""
        run = self.config.run
        device = choose_device(run.device)
        warn_of_precision(self.config.agent.precision, device)
        set_up(run.threads, run.kernels)
        config = self.config = self.config.model_copy(update={"env": with_mode(self.config.env)})
        self.envs = make_vector(config.env, run.seed)  # before the folder is: a wrong name leaves nothing behind
        resources.callback(self.envs.close)
        self.folder = folder or claim(config, run.name)
        resources.enter_context(lock(self.folder))
        if state is None:
            refuse_occupied(self.folder)
        spaces = self.envs.observation, self.envs.action
        parts = config.agent, config.world, config.behavior, config.hierarchy
        self.agent = Agent(*parts, spaces, device, run.seed, config.meta, config.intrinsic)
        updates = float(run.steps * config.updates_per_step)
        self.agent.compiles = compilation.repays(config.agent.compile, device, updates)
        self.compiling = self.agent.compiles
        latent, directory = self.agent.world.stored, self.folder / "replay"
        self.replay = SequenceReplayBuffer(config.replay, directory, *spaces, latent, self.envs.size, run.seed)
        resources.callback(self.replay.close)
        lead = sufficient_lead(config.updates_per_step, self.envs.size)
        self.player = (
            AsynchronousPlayer(self.envs, self.agent, lead) if run.asynchronous else Player(self.envs, self.agent)
        )
        resources.callback(self.player.close)
        self.collector = Collector(self.player, self.replay)
        self.checkpoints = checkpoint.Checkpoints(self.folder / "checkpoints", Path(run.checkpoint_dir))
        if state is not None:
            self._restore(state)
        (self.folder / "config.json").write_text(configuration.dump(config))
        mark = None if state is None else state.get("metrics")
        self.logger = Logger(config.logger, self.folder, config.model_dump(mode="json"), self.step, mark)
        resources.callback(self.logger.close)

    @classmethod
    def resume(
        cls,
        path: str | Path,
        overrides: Sequence[str] = (),
        values: Mapping[str, Any] | None = None,
        trust: bool = False,
    ):
        """Goes on from a checkpoint, with its configuration changed by what the caller sets.

        The run's own latest checkpoint goes on in its folder, bit for bit; where it is corrupt, the one before it does,
        with a warning. Any other one begins a new run with a copy of the replay: the old run is left as it is.

        Raises StoredDataError where no checkpoint can be used, and ConfigError for what the caller sets, and where the
        checkpoint names code to run, unless its source is to be trusted or the caller names the same.
        """
        path = Path(path)
        real = path.resolve()
        folder = real.parent.parent
        own = real.name == "latest.pt" and (folder / "replay").is_dir()
        config, state = checkpoint.load_run(path, *([real.with_name("previous.pt")] if own else []))
        stored = config.model_dump(mode="json")
        config = configuration.settle(stored, str(path), overrides, values, trust)
        with explained(stored, config.model_dump(mode="json")):
            if own:
                keep_identity(config, state["config"]["run"], real)
                return cls(config, folder, state)
            spaces_of(config.env)  # before the folder is: a wrong name leaves nothing behind
            return cls(config, *branch(config, path, state))

    # --- the loop ---

    def train(self) -> int:
        """Trains until the step budget, the target return or a signal, then closes; returns the process's exit code."""
        try:
            return self._train()
        except (EnvironmentFailure, KeyboardInterrupt):  # a signal does not raise this one, but environments may
            self.envs.abandon()  # some environments took a step that replay never saw
            self.save()
            log.info("Saved at step %d; go on with --checkpoint %s", self.step, self.checkpoints.latest)
            raise
        finally:
            self.close()

    def _train(self) -> int:
        run = self.config.run
        evaluations, saves = Every(run.evaluate_every), Every(run.checkpoint_every)
        self._introduce()
        reached = False
        evaluated = self.history[-1]["step"] if self.history else 0
        with self.interruption, self.progress:
            if evaluations(int(evaluated), self.step):  # one that was interrupted
                reached = self._evaluate()
            while self.step < run.steps and not reached and not self.interruption.wished():
                before = self.step
                self.advance()
                if evaluations(before, self.step):
                    reached = self._evaluate()
                if saves(before, self.step):
                    self.save()
                self.progress.update(self.step, self.updates)
            if self._summed:
                self._log()
            self.save()
        if self.config.meta.enabled and (path := rates.draw(self.folder)):
            self.logger.media(self.step, "meta/rates", path)
        verb = "Stopped" if self.interruption.wished() else "Finished"
        log.info("%s at step %d; go on with --checkpoint %s", verb, self.step, self.checkpoints.latest)
        return self.interruption.exit_code

    def advance(self) -> None:
        """One step in every environment, the updates that are due, and a row of metrics every now and then."""
        before, began = self.step, time.monotonic()
        self._collect()
        if self.replay.ready:
            for _ in range(self.updates_due(self.step)):
                self.learn()
        self.seconds += time.monotonic() - began
        if Every(self.config.run.log_every)(before, self.step):
            self._log()

    def _collect(self) -> None:
        ended = self.collector.step()
        self.step += self.envs.size
        for episode in ended:
            self.episodes += 1
            self.logger.episode(self.step, episode.total, episode.length, episode.info)
            self.progress.episode(episode.total)

    def learn(self) -> None:
        """One update from replay, which has to be ready."""
        batch = self.replay.sample()
        metrics, latent = self._compile(batch) if self.compiling else self.agent.learn(batch)
        self.replay.write_latent(batch.slot, {name: value.cpu() for name, value in latent.items()})
        self.player.refresh()
        self.updates += 1
        self._sums = {name: self._sums[name] + value if self._summed else value for name, value in metrics.items()}
        self._summed += 1

    def _compile(self, batch: Batch) -> tuple[Metrics, dict[str, Tensor]]:
        """The first update, which makes machine code; nobody may act meanwhile, for a tracing torch patches modules."""
        self.compiling = False
        log.info("compiling the update: a minute or more, unless %s has it", compilation.folder())
        self.player.settle()
        return self.agent.learn(batch)

    def _log(self) -> None:
        means = {name: total / self._summed for name, total in self._sums.items()}
        lost = [name for name in means if name.endswith("/skipped") and means[name] == 1.0]
        if lost and self._summed >= PATIENCE:
            raise DivergenceError(f"the last {self._summed} gradients of {lost[0].removesuffix('/skipped')} were "
                                  "not finite; lower the learning rates and go on from the last checkpoint, "
                                  f"{self.checkpoints.latest}")  # fmt: skip
        self._sums, self._summed = {}, 0
        if not self.updates:
            log.info("Step %d: filling the replay, %d windows so far", self.step, self.replay.items)
        counters = {"run/updates": float(self.updates), "run/episodes": float(self.episodes)}
        counters["run/frames"] = float(self.step * repeats(self.config.env))
        stats = {f"replay/{name}": value for name, value in self.replay.get_stats().items()}
        self.logger.write(self.step, means | counters | stats)

    def _evaluate(self) -> bool:
        """Plays, saves the best, and films; whether the target return was reached."""
        run = self.config.run
        seed, stopped = (run.seed + 1_000_003 * (1 + self.step)) % 2**32, self.interruption.wished
        result = evaluate(
            self.agent,
            self.config.env,
            run.evaluate_episodes,
            seed,
            record=RECORDED * run.video,
            unwanted=stopped,
            limit=run.evaluate_limit,
            deterministic=run.evaluate_deterministic,
        )
        if stopped():
            return False
        log.info("Evaluation at step %d: %s", self.step, result)
        row = {"evaluation/return": result.mean, "evaluation/deviation": result.deviation}
        row |= {"evaluation/length": result.length, "run/seconds": self.seconds} | result.info | result.goals
        self.history.append({"step": self.step, "updates": self.updates, **row})
        self.logger.write(self.step, row)
        if self.best_return is None or result.mean > self.best_return:
            self.best_return = result.mean
            self.save(best=True)
        if run.video:
            try:
                self._film(result)
            except Exception as error:  # whatever the video library raises, training goes on
                log.warning("no video of step %d: %s", self.step, summary(error))
        return run.target_return is not None and result.mean >= run.target_return

    def _film(self, result: Evaluation) -> None:
        for key, frames, track in films(self.agent, result.recording):
            path = video.write(self.folder / "media" / f"{self.step:09d}_{key}.mp4", frames, track=track)
            self.logger.media(self.step, f"dream/{key}", path)

    def _introduce(self) -> None:
        sizes = sum(parameter.numel() for parameter in self.agent.parameters() if parameter.requires_grad)
        keys, actions = (
            ", ".join(f"{key} ({text})" for key, text in kind.items()) for kind in self.agent.spaces.values()
        )
        log.info("%s: observes %s; acts by %s", self.config.env.name, keys, actions)
        log.info("%d parameters on %s, %d environments, from step %d to %d (frames per step: %d), in %s", sizes,
                 self.agent.device, self.envs.size, self.step, self.config.run.steps, repeats(self.config.env),
                 self.folder)  # fmt: skip

    # --- saving ---

    def save(self, best: bool = False) -> None:
        """Writes a checkpoint that names the replay rows it belongs to.

        Before the first evaluation the newest is also the best.
        """
        self.player.settle()
        self.replay.flush()
        state = self.agent.checkpoint() | surroundings(self.agent)
        state |= {
            "config": self.config.model_dump(mode="json"),
            "directory": str(self.folder.resolve()),
            "global_step": self.step,
            "updates": self.updates,
            "seconds": self.seconds,
            "episodes_collected": self.episodes,
            "best_return": self.best_return,
            "metrics_history": self.history,
            "trained_to": self.updates_due.state(),
            "entropy": {level.name: level.options.entropy for level in self.agent.behavior.levels},
            "sums": {"of": self._summed, "metrics": {name: float(value) for name, value in self._sums.items()}},
            "metrics": self.logger.mark(),
            "collector": self.collector.state_dict(),
            "replay": self.replay.state_dict(),
        }
        replaced = self.checkpoints.save(state, best=best or self.best_return is None)
        self.replay.commit(replaced=replaced)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.agent.restore(state)
        self.step, self.updates, self.episodes = state["global_step"], state["updates"], state["episodes_collected"]
        self.seconds = state["seconds"]
        self.best_return, self.history = state["best_return"], list(state["metrics_history"])
        self.updates_due.load_state(state["trained_to"])
        self._summed, sums = state["sums"]["of"], state["sums"]["metrics"]
        self._sums = {name: torch.tensor(value) for name, value in sums.items()}
        for level in self.agent.behavior.levels:
            if level.options.entropy != state["entropy"].get(level.name):
                level.entropy_weight.fill_(level.options.entropy)
                log.info("%s: the weight of the entropy is %g from here on", level.name, level.options.entropy)
        try:
            if "replay" in state:
                self.replay.load_state_dict(state["replay"])
                self.collector.load_state_dict(state["collector"])
        except (KeyError, TypeError, AttributeError) as error:
            raise StoredDataError(f"the checkpoint's replay or collector lacks {error}; use another one") from error
        inexact = ["collection is asynchronous"] if self.config.run.asynchronous else []
        for reason in [*inexact, *differences(state, self.agent)]:
            log.warning("resume is not bit-exact: %s", reason)
