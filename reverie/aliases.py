"""Names of options beside their own: short ones, and those of earlier versions."""

FLAT = {
    "obs_dim": "env.obs_dim",
    "action_dim": "env.action_dim",
    "embed_dim": "world.embed_dim",
    "batch_size": "replay.batch_size",
    "seq_len": "replay.length",
    "buffer_size": "replay.capacity",
    "world_lr": "agent.world_optimizer.rate",
    "actor_lr": "agent.actor_optimizer.rate",
    "kl_scale": "world.kl_scale",
    "free_nats": "world.free_nats",
    "clip_ratio": "behavior.clip",
    "entropy_coef": "behavior.entropy",
    "value_coef": "behavior.value_scale",
    "num_options": "hierarchy.num_options",
    "curiosity_weight": "intrinsic.curiosity.weight",
    "empowerment_k": "intrinsic.empowerment.steps",
    "empowerment_weight": "intrinsic.empowerment.weight",
    "intrinsic_lr": "intrinsic.optimizer.rate",
    "precision": "agent.precision",
    "compile": "agent.compile",
    "gradient_checkpointing": "world.gradient_checkpointing",
    "use_wandb": "logger.wandb",
    "device": "run.device",
    "checkpoint_dir": "run.checkpoint_dir",
    "log_interval": "run.log_every",
    "checkpoint_interval": "run.checkpoint_every",
    "run.async": "run.asynchronous",
}
"""Other names that users may write, and the keys that they stand for."""

RENAMED = {
    "agent.goal_optimizer": "hierarchy.goal_optimizer",
    "behavior.mix": "behavior.return_lambda",
    "hierarchy.time": "part of hierarchy.preset: hybrid and goals_only count steps, director counts goals",
    "run.ratio": "run.train_ratio, which counts replayed steps: multiply by replay.batch_size * replay.length",
}
"""Keys of earlier versions, and where they went."""
