"""Learns a world model of a data set, without an agent: melodies and the words that they spell.

``python examples/worldmodel_on_data.py`` hides melodies and words by turns while it learns, and then reads words off
melodies that it hears without them.
"""

import random
import sys
from dataclasses import replace

import numpy as np
import torch

from reverie import MODALITY_CONFIGS, MultimodalWorldModel
from reverie.env.text import to_bytes, to_text
from reverie.optim import Optimizer, OptimizerOptions
from reverie.types import ObservationSpec
from reverie.world.options import WorldOptions

WORDS = ["bread", "cloud", "dream", "house", "light", "music", "plant", "river", "stone", "world"]
RATE, SAMPLES = 8_000, 800


def melody(word: str, chance: random.Random) -> np.ndarray:
    """A tone of a random phase for each letter: [letters, SAMPLES]."""
    time, phase = np.arange(SAMPLES) / RATE, 2 * np.pi * np.array([[chance.random()] for _ in word])
    pitch = np.array([[200 * 1.12 ** (ord(letter) - ord("a"))] for letter in word])
    return np.sin(2 * np.pi * pitch * time + phase).astype(np.float32)


def sequences(count: int, chance: random.Random) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Melodies [count, T, SAMPLES], at each letter the word so far [count, T, 8], and the words."""
    words = [chance.choice(WORDS) for _ in range(count)]
    said = [[to_bytes(word[: end + 1], 8) for end in range(len(word))] for word in words]
    return np.stack([melody(word, chance) for word in words]), np.array(said), words


def main(updates: int) -> float:
    """Learns, and returns how many words are read right."""
    torch.manual_seed(0)
    chance = random.Random(0)
    observed = {
        "sound": ObservationSpec((SAMPLES,), "float32", kind="audio", rate=RATE),
        "text": replace(MODALITY_CONFIGS["text"], input_shape=(8,)),
    }
    world = MultimodalWorldModel(observed, options=WorldOptions(size="tiny", modality_dropout=0.5))
    optimizer = Optimizer("world", world.parameters(), OptimizerOptions(rate=3e-3, warmup=20), world.scales)
    for update in range(updates):
        sound, text, _ = sequences(16, chance)
        _, _, losses = world.loss(world.batch({"sound": sound, "text": text}))
        optimizer.step(losses)
        if update % 50 == 0:
            print(update, {name: round(loss.mean().item(), 3) for name, loss in losses.items()})
    sound, _, words = sequences(50, chance)
    latent, _ = world.observe(world.batch({"sound": sound}))
    read = [to_text(text.numpy()) for text in world.decode(latent)["text"][:, -1]]
    right = float(np.mean([word == said for word, said in zip(words, read, strict=True)]))
    print(f"{right:.0%} of 50 words read off their melodies alone, for example {read[:5]} for {words[:5]}")
    return right


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 800)
