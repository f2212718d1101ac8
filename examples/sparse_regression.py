"""A task of your own: sparse linear regression in context, learnt by a two-layer transformer."""

import torch

from mesaopt.tasks import Batch, generator


class SparseRegression:
    """y_i = w . x_i, where w has few entries that are not zero; tokens are (x_i, y_{i-1})."""

    def __init__(self, dim=8, nonzero=2, length=24):
        self.dim, self.nonzero, self.length = dim, nonzero, length

    def sample(self, batch_size, *, seed, step, split):
        random = generator(seed, f"sparse/{split}", step)
        x = random.standard_normal((batch_size, self.length, self.dim))
        w = random.standard_normal((batch_size, self.dim, 1))
        w[random.random(w.shape).argsort(1) >= self.nonzero] = 0
        y = torch.from_numpy(x @ w)
        before = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], dim=1)
        return Batch(tokens=torch.cat([torch.from_numpy(x), before], dim=2), targets=y)


if __name__ == "__main__":
    pass
