"""A task of your own: sparse linear regression, learnt in context by a small transformer.

y_i = w . x_i, where only two of the eight entries of w are not zero. A token is (x_i, y_{i-1}).
"""

import torch

import mesaopt
from mesaopt.analysis import in_context_loss
from mesaopt.config import ModelConfig
from mesaopt.tasks import Batch, generator


class SparseRegression:
    def __init__(self, dim=8, nonzero=2, length=24):
        self.dim, self.nonzero, self.length = dim, nonzero, length

    def sample(self, batch_size, *, seed, step, split):
        random = generator(seed, f"sparse/{split}", step)
        x = torch.from_numpy(random.standard_normal((batch_size, self.length, self.dim)))
        w = random.standard_normal((batch_size, self.dim, 1))
        w[random.random(w.shape).argsort(1).argsort(1) >= self.nonzero] = 0
        y = x @ torch.from_numpy(w)
        return Batch(tokens=torch.cat([x, before(y)], dim=2), targets=y)


def before(z):
    """What was seen one token earlier; zero at the first."""
    return torch.nn.functional.pad(z[:, :-1], (0, 0, 1, 0))


def least_squares(batch):
    """An algorithm of your own is a function from a batch to predictions."""
    x, y = batch.tokens[..., :-1], batch.tokens[..., -1:]
    query, key, value = (z.unsqueeze(2) for z in (x, before(x), y))  # one head
    return mesaopt.ops.mesa(query, key, value, ridge=0.01).output.squeeze(2)


def main(out="runs/sparse", **settings):
    task = SparseRegression()
    model = ModelConfig(
        mixers=("softmax_attention",) * 3, token_dim=9, output_dim=1, embed_dim=64, readout="linear",
        positions="first_layer", mlp_dim=64, initial_std=0.1, activation_clip=None,
    )  # fmt: skip
    run = mesaopt.train(model=model, task=task, out=out, resume=True, **settings)
    losses = in_context_loss({"model": run, "least squares": least_squares}, task)
    for name, loss in losses.items():
        print(f"{name:14}", *(f"{loss.curve[i - 1]:.3f}" for i in (1, 4, 8, 12, 16, 24)))
    return losses


if __name__ == "__main__":
    main(steps=2000, batch_size=64, learning_rate=1e-3, evaluate_every=500)
