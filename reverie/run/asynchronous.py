"""Asynchronous playing: environments step and the agent acts in a thread of their own while the agent learns.

It pays where few environments are slow: in lock-step, one update hides one step of theirs, here as many as it lasts.
"""

from __future__ import annotations

import math
import threading
from fractions import Fraction

import torch

from reverie.agent import Agent
from reverie.env import VectorEnv
from reverie.run.collect import Played, Player

LONGEST_LEAD = 64


def sufficient_lead(updates_per_step: Fraction, envs: int) -> int:
    """Steps to play ahead so that learning waits for none: those that one update belongs to, and one more."""
    return min(1 + math.ceil(1 / (updates_per_step * envs)), LONGEST_LEAD)


class AsynchronousPlayer(Player):
    """Plays with a copy of the weights, in a thread that is at most ``lead`` steps ahead of whoever takes them.

    Steps are taken one at a time, in order, so that updates keep their ratio to them. Which update's weights chose an
    action depends on timing.
    """

    def __init__(self, envs: VectorEnv, agent: Agent, lead: int):
        super().__init__(envs, agent.twin())
        self.lead = lead
        # On the stream that the agent learns on, a step would wait for the whole update before it.
        self.stream = torch.cuda.Stream(agent.device) if agent.device.type == "cuda" else None
        self.copies, self.originals = (list(one.state_dict().values()) for one in (self.agent, agent))
        self.failure: BaseException | None = None
        self.closed = False
        self.changed = threading.Condition()  # guards `ahead`, `failure` and `closed`
        self.weights = threading.Lock()  # the copy acts, or is refreshed
        self.thread = threading.Thread(target=self._play_ahead, name="player", daemon=True)

    def take(self) -> Played:
        """As soon as there is one, the oldest step that nobody took; after the last, what ended the thread."""
        if self.thread.ident is None:
            self.refresh()
            self.thread.start()
        with self.changed:
            self.changed.wait_for(lambda: self.ahead or self.failure)
            if self.failure and not self.ahead:
                raise self.failure
            self.changed.notify()
            return self.ahead.popleft()

    def refresh(self) -> None:
        with self.weights:
            torch._foreach_copy_(self.copies, self.originals)
            if self.stream is not None:
                self.stream.wait_stream(torch.cuda.current_stream(self.agent.device))  # no act sees half of the copy

    def settle(self) -> None:
        if self.thread.is_alive():
            with self.changed:
                self.changed.wait_for(lambda: len(self.ahead) >= self.lead or self.failure)

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        if self.thread.is_alive():
            self.thread.join()

    def _play_ahead(self) -> None:
        try:
            with torch.cuda.stream(self.stream):  # nothing where there is none
                while self._has_room():
                    played = self.play(acting=self.weights)
                    with self.changed:
                        self.ahead.append(played)
                        self.changed.notify()
        except BaseException as failure:
            self.envs.abandon()  # some environments took a step that nobody saw
            with self.changed:
                self.failure = failure
                self.changed.notify()

    def _has_room(self) -> bool:
        """Waits until another step may be played; false when there is none to play any more."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.ahead) < self.lead or self.closed)
            return not self.closed
