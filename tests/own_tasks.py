"""A task and a module of one's own, as a user would write them; imported by name in some tests."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mesaopt.tasks import Batch, generator


class Regression:
    """Regression in context: tokens (x_i, x_{i-1}, y_{i-1}), targets y_i; nothing but these two."""

    def __init__(self, dim: int = 2, length: int = 6, scale: float = 1.0):
        self.dim, self.length, self.scale = dim, length, scale

    def sample(self, batch_size: int, *, seed: int, step: int, split: str) -> Batch:
        random = generator(seed, f"regression/{split}", step)
        x = torch.from_numpy(random.standard_normal((batch_size, self.length, self.dim)))
        w = self.scale * torch.from_numpy(random.standard_normal((batch_size, self.dim, 1)))
        pairs = torch.cat([x, x @ w], dim=2)
        before = torch.nn.functional.pad(pairs[:, :-1], (0, 0, 1, 0))
        return Batch(tokens=torch.cat([x, before], dim=2), targets=x @ w)


class Net(nn.Module):
    """A running mean of a hidden layer, with a frozen weight, a buffer and a weight used twice."""

    def __init__(self, tokens: int = 5, width: int = 4, targets: int = 1):
        super().__init__()
        self.first = nn.Linear(tokens, width)
        self.middle = nn.Linear(width, width)
        self.again = nn.Linear(width, width)
        self.again.weight = self.middle.weight
        self.frozen = nn.Parameter(torch.ones(width), requires_grad=False)
        self.register_buffer("share", torch.tensor(0.5))
        self.last = nn.Linear(width, targets)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(tokens)).cumsum(1) * self.share
        return self.last(torch.tanh(self.again(self.middle(hidden))) * self.frozen)


class Changed:
    """A task whose batches a function changes after they are drawn."""

    def __init__(self, change: Callable[..., object]):
        self.change = change

    def sample(self, batch_size: int, *, seed: int, step: int, split: str) -> object:
        batch = Regression().sample(batch_size, seed=seed, step=step, split=split)
        return self.change(batch, seed=seed, step=step, split=split)
