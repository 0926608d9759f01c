"""The behavior: turns latents into actions and learns from dreams. It knows nothing of any world model."""
