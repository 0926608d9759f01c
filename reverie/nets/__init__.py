"""Building blocks that worlds and behaviors share: layers, and distributions over actions."""
