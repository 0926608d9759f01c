"""Experience replay: steps go in, overlapping sequences come out, and everything lives on disk.

Each environment is one endless stream of rows, cut into memory-mapped chunk files (`chunks`, `store`). Training draws
windows of consecutive rows (`buffer`, `windows`) and hands back fresher latents for them; an undo journal (`journal`)
lets a crashed run return to the exact bytes of its last checkpoint.
"""

from reverie.replay.buffer import ReplayOptions, SequenceReplayBuffer

__all__ = ["ReplayOptions", "SequenceReplayBuffer"]
