import torch

from metalearn import Episodes, random
from metalearn.tasks.base import episode_keys


class Pendulum:
    name, kind, input_shape, num_outputs = "pendulum", "regression", (3,), 1
    splits = ("train", "val", "test")

    def __init__(self, shots=10, query_shots=20, device="cpu"):
        self.shots, self.query_shots, self.device = shots, query_shots, device

    def episodes(self, split, indices, *, seed=0):
        keys = episode_keys(split, indices, seed=seed, splits=self.splits, device=self.device)  # one random key a task
        bits = random.uniform(keys, (3 + 3 * (self.shots + self.query_shots), 1))  # [task, draw, 1], from 0 to 1
        pull, friction, motor = (bits[:, :3] * torch.tensor([[18], [3], [9]], device=self.device) + 1).split(1, dim=1)
        x = (bits[:, 3:].unflatten(1, (-1, 3)).squeeze(-1) * 2 - 1) * torch.tensor([3, 3, 1], device=self.device)
        angle, speed, push = x.split(1, dim=-1)  # [task, trial, 1] each
        for _ in range(25):  # half a second
            speed = speed + 0.02 * (motor * push - pull * torch.sin(angle) - friction * speed)
            angle = angle + 0.02 * speed
        y, seen = angle - x[..., :1], self.shots
        return Episodes(support=(x[:, :seen], y[:, :seen]), query=(x[:, seen:], y[:, seen:]), key=keys)

    def to(self, device):
        return type(self)(self.shots, self.query_shots, device)

    def protocol(self):
        return {"dataset": self.name, "shots": self.shots, "query_shots": self.query_shots}
