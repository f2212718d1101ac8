"""The optimiser of a run: AdamW or gradient descent, learning-rate schedules, clipping, saved state."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mesaopt.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Compute the learning rate of one step.

    Constant, or a linear warm-up from 0 and then a cosine down to `final_learning_rate`:
    final + (peak - final) (1 + cos(pi x)) / 2, x = (step - warmup_steps) / (decay_steps - warmup_steps).

    Args:
        config: the schedule.
        step: 0 for the first one.

    Returns:
        The learning rate.

    Source: von Oswald et al., training details; `warmup_cosine_decay_schedule` of their code.

    Example:
        >>> config = TrainConfig(schedule="warmup_cosine", learning_rate=1e-3, warmup_steps=10)
        >>> [learning_rate(config, step) for step in (0, 5, 10, 10**6)]
        [0.0, 0.0005, 0.001, 1e-05]
    """
    if config.schedule == "constant":
        return config.learning_rate
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine


def clip_gradients(parameters: Iterable[nn.Parameter], bound: float) -> None:
    """Clip every element of every gradient to [-bound, bound], real and imaginary parts by themselves.

    Args:
        parameters: with or without gradients.
        bound: greater than 0.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
        >>> weight.grad = torch.tensor([3.0 - 0.5j])
        >>> clip_gradients([weight], 1.0)
        >>> weight.grad.item()
        (1-0.5j)
    """
    for gradient in (p.grad for p in parameters if p.grad is not None):
        parts = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        parts.clamp_(-bound, bound)


class Optimizer:
    """AdamW, or gradient descent without momentum and decay, with a schedule and clipped gradients.

    The gradient of a complex number x + iy is dL/dx + i dL/dy, so that a learning rate means what it does
    for x and y by themselves.

    Args:
        config: which optimiser, schedule and bound of the gradients.
        parameters: real or complex, by name.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> optimizer = Optimizer(TrainConfig(learning_rate=0.1, weight_decay=0.0), {"weight": weight})
        >>> optimizer.zero_grad()
        >>> weight.sum().backward()
        >>> optimizer.step(0)
        >>> weight.data
        tensor([-0.1000, -0.1000])
        >>> sorted(optimizer.state())
        ['weight/exp_avg', 'weight/exp_avg_sq', 'weight/step']
    """

    def __init__(self, config: TrainConfig, parameters: Mapping[str, nn.Parameter]):
        self.config = config
        self.parameters = dict(parameters)
        self._optimizer = _make(config, list(parameters.values()))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad()

    def step(self, step: int) -> None:
        """Clip the gradients and change the parameters, at the learning rate of this step.

        Args:
            step: 0 for the first one.
        """
        if self.config.gradient_clip is not None:
            clip_gradients(self.parameters.values(), self.config.gradient_clip)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts, "<parameter>/<name>" to tensor."""
        return {
            f"{name}/{key}": tensor
            for name, parameter in self.parameters.items()
            for key, tensor in self._optimizer.state.get(parameter, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the moments and step counts.

        Args:
            state: as :meth:`state` returns it.
        """
        for name, tensor in state.items():
            parameter, key = name.rsplit("/", 1)
            target = self.parameters[parameter]
            self._optimizer.state[target][key] = tensor.clone().to(target.device)


def _make(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser; its learning rate is set at every step."""
    if config.optimizer == "gradient_descent":
        return torch.optim.SGD(parameters, lr=config.learning_rate)
    real = all(p.is_floating_point() for p in parameters)  # fused AdamW has no complex numbers
    return torch.optim.AdamW(parameters, weight_decay=config.weight_decay, fused=real)
