"""How wide the world model is: the published presets, a smaller one, and the rule that links their numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Widths of every layer of the world model; the behavior takes ``units`` and ``bins`` from here."""

    deter: int
    """D, the recurrent state."""
    hidden: int
    """Layers inside the recurrent core, the prior and the posterior."""
    classes: int
    """C, classes of each stochastic group."""
    units: int
    """Layers of encoders, decoders and heads."""
    depth: int
    """Channels of the first image layer are twice this."""
    embed: int
    """Width of the tokens of a vector."""
    stoch: int = 32
    """S, stochastic groups."""
    blocks: int = 8
    """Diagonal blocks of the recurrent core."""
    layers: int = 3
    """Layers of encoders and decoders."""
    bins: int = 255
    """Of every two-hot head."""

    @property
    def features(self) -> int:
        """F, the width of deterministic and stochastic state together."""
        return self.deter + self.stoch * self.classes


def published(hidden: int) -> Sizes:
    """The rule behind the published sizes: everything follows from the width of the hidden layers."""
    return Sizes(8 * hidden, hidden, hidden // 16, hidden, hidden // 16, hidden)


PRESETS: dict[str, Sizes] = {
    "tiny": Sizes(deter=128, hidden=32, classes=4, units=64, depth=4, embed=64, stoch=16, bins=63),
    "1m": published(64),
    "12m": published(256),
    "25m": published(384),
    "50m": published(512),
    "100m": published(768),
    "200m": published(1024),
    "400m": published(1536),
}
