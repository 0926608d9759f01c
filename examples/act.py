"""Plays one episode with a trained agent: ``python examples/act.py checkpoints/best_model.pt``."""

import sys

from reverie import TrainedAgent

agent = TrainedAgent.load(sys.argv[1])
env = agent.environment()  # or agent.environment(my_gymnasium_env), which gets the same wrappers
observation, total, over = env.reset(seed=0), 0.0, False
while not over:
    action = agent.act(observation)  # deterministic=True: the likeliest action
    observation, reward, terminated, truncated = env.step(action)
    total, over = total + reward, terminated or truncated
agent.reset()  # before the next episode
print(f"return {total:.1f}")
