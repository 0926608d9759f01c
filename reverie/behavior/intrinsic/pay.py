"""What an intrinsic reward counts for, whichever it is."""

from __future__ import annotations

from pydantic import Field

from reverie.behavior.streams import CONSTANT, Schedule, Stream
from reverie.options import Options

NONE = "none"
"""In place of an intrinsic reward."""


class PayOptions(Options):
    """What an intrinsic reward counts for: for the manager where there is one, else for the level that acts."""

    kind: str = NONE
    """Which one of `INTRINSIC`; `none` for nothing."""
    weight: float = Field(default=0.1, ge=0)
    """Weight of its advantages, which are over the spread of its returns. With 0 the reward is learned
    and shown, its critic is not."""
    horizon: float = Field(default=100, gt=1)
    """Discount, as an effective number of steps."""
    episodic: bool = False
    """Whether nothing is expected after an episode's end: then ending costs what there would have been to find."""
    clip: float | None = Field(default=None, gt=0)
    """Largest reward; left out, any."""
    floor: float = Field(default=0.05, gt=0)
    """Least spread of returns that its advantages are divided by."""
    warmup: int = Field(default=200, ge=1)
    """Updates in which it learns, one of `intrinsic.every`, before it pays anything."""
    schedule: Schedule = CONSTANT
    """How its weight changes."""

    def unread(self) -> dict[str, tuple[str, ...]]:
        """What a stream is paid for, where there is none; how an intrinsic reward works does not depend on that."""
        return dict.fromkeys(PayOptions.model_fields.keys() - {"kind"}, ("kind",)) if self.kind == NONE else {}

    @property
    def stream(self) -> Stream:
        """What whoever explores is paid for."""
        return Stream(
            self.weight,
            self.horizon,
            episodic=self.episodic,
            floor=self.floor,
            silent=True,
            schedule=self.schedule,
        )
