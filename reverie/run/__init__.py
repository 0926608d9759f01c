"""A run: what connects agent, environments and replay, and says when to save, log and evaluate."""
