"""The world model: turns steps into latents and predicts what follows. It knows nothing of any behavior."""
