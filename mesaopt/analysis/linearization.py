"""Linearisation: the loss of a model with attention layers replaced by linear ones."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesaopt.analysis.capture import capture, differentiating, evaluating, like_weights
from mesaopt.analysis.estimate import Estimate
from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import AnyModel, AnyTask, as_model, as_task
from mesaopt.analysis.in_context import in_context_loss
from mesaopt.config import require_count
from mesaopt.display import Curve, Drawn, Row
from mesaopt.layers import Frame, LinearSelfAttention, SelfAttention
from mesaopt.models import SequenceModel
from mesaopt.models.mixers import make_mixer
from mesaopt.models.random import keep_global_random
from mesaopt.progress import AnyProgress, Report, reporting
from mesaopt.tasks import generator
from mesaopt.workers import current_workers

LayerPairs = tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch time width"]]
"""Inputs and outputs of a layer."""

_SMALLEST_VARIANCE = 1e-3
"""Directions with a smaller share of the largest variance are not scaled up to the others: along them a
batch teaches noise."""
_NO_VARIANCE = 1e-9
"""Directions with a smaller share are rounding errors of single precision: their weights are zero."""
NOT_DISTILLED = 0.9
"""Unexplained share above which a layer counts as not distilled: less than a tenth of the variance of its
output is explained, or less than by the mean. Its ratio is then one of the distillation alone."""
_PLAIN = Frame()
_STREAM = "distillation"  # of random numbers, different from that of the initial weights of models


@dataclass(frozen=True, repr=False)
class Linearization(Drawn):
    """Losses of a model whose attention layers are replaced by linear ones, one at a time."""

    layers: tuple[int, ...]
    """The replaced layers, counted from 0; everything below is in this order."""
    distilled: tuple[LinearSelfAttention, ...]
    """The linear layers."""
    losses: Float[Tensor, "layer sequence position"]
    """Test losses with the linear layer."""
    model_losses: Float[Tensor, "sequence position"]
    """Those of the original model, on the same sequences."""
    unexplained: Float[Tensor, " layer"]
    """Share of the variance of the layer's output that the linear layer misses, on test sequences."""

    _axes = {"xlabel": "replaced layer", "ylabel": "loss / loss of the model"}

    def _headline(self) -> str:
        failed = ", ".join(str(i) for i in self.failed)
        doubts = f"; could not be distilled: layer {failed}" if failed else ""
        return f"Loss with one linear layer, of {self.loss:.4g} for the model{doubts}"

    def _rows(self) -> list[Row]:
        each = zip(self.layers, self.estimates(), self.unexplained.tolist(), strict=True)
        return [
            {"layer": layer, "loss_ratio": ratio, "unexplained": missed}
            for layer, ratio, missed in each
        ]

    def _table(self) -> list[Row]:
        return self._rows()

    def _curves(self) -> list[Curve]:
        names = [str(layer) for layer in self.layers]
        return [Curve.of("loss ratio", names, self.estimates())]

    def estimates(self, positions: slice = slice(None)) -> list[Estimate]:
        """Divide the mean loss with each linear layer by that of the original model.

        Args:
            positions: that are compared; most of a mean over all of them comes from the first ones.

        Returns:
            The ratios, with their errors over test sequences.
        """
        before = self.model_losses[:, positions].double().mean(1)
        after = self.losses[..., positions].double().mean(2)  # [layer, sequence]
        return [Estimate.ratio(one, before) for one in after]

    @property
    def ratios(self) -> Float[Tensor, " layer"]:
        """Mean test loss with the linear layer, divided by that of the original model."""
        return torch.tensor([one.value for one in self.estimates()], dtype=torch.float64)

    @property
    def ratio_errors(self) -> Float[Tensor, " layer"]:
        """Standard error of each ratio over test sequences, on which both losses are measured."""
        return torch.tensor([one.error for one in self.estimates()], dtype=torch.float64)

    @property
    def loss(self) -> float:
        """Mean test loss of the original model."""
        return self.model_losses.double().mean().item()

    @property
    def failed(self) -> tuple[int, ...]:
        """Layers that could not be distilled: more than 0.9 of their variance is unexplained.

        Their ratios measure the distillation, not the layer; another seed or more steps may do.
        """
        shares = zip(self.layers, self.unexplained.tolist(), strict=True)
        return tuple(layer for layer, share in shares if not share <= NOT_DISTILLED)


@differentiating()
def linearize(
    model: AnyModel,
    task: AnyTask,
    *,
    layers: Sequence[int] | None = None,
    steps: int = 3000,
    batch_size: int = 64,
    learning_rate: float = 5e-3,
    num_sequences: int = 2560,
    seed: int = 0,
    progress: AnyProgress = True,
) -> Linearization:
    """Distil every attention layer into a linear one, swap each in alone, and compare losses.

    A linear layer learns y_t = P sum_{s <= t} W_v x_s (W_k x_s . W_q x_t), with heads, key size, positions
    and norms of the layer it replaces, from the layer's own inputs and outputs on fresh training
    sequences, as :func:`distil` does. All layers learn from the same passes of the model.

    Args:
        model: a stack of attention layers, a Run or its path. It is not changed, and computes in
            evaluation mode. Linear layers have the type of its weights.
        task: its training task.
        layers: one or more layers, counted from 0; all of them if not given.
        steps: of the optimiser, 1 or more.
        batch_size: fresh sequences in a step, 1 or more.
        learning_rate: at the start, greater than 0.
        num_sequences: test sequences, rounded up to whole batches of 256, 1 or more.
        seed: of the first weights and of the sequences.
        progress: a bar, nothing, or a function of the number of finished steps: see
            :data:`mesaopt.progress.AnyProgress`.

    Returns:
        Ratios of losses, by layer; `.failed` names layers that could not be distilled, whose ratios mean
        little.

    Raises:
        ValueError: the model is no stack of attention layers (see :func:`distil` for others), there is no
            such layer, or a number is out of range.

    Source: von Oswald et al., the comparison of softmax layers with linear ones (Fig. 5A). The authors
    take 15,000 steps of AdamW at a rate of 1e-3; see :func:`distil` for the method here.

    Example:
        >>> from mesaopt.config import LinearSystemConfig, ModelConfig
        >>> from mesaopt.tasks import LinearSystem
        >>> task = LinearSystem(LinearSystemConfig(dim=2, length=6, token_slots=("current",)))
        >>> config = ModelConfig(token_dim=2, output_dim=2, embed_dim=4, readout="linear", head_dim=4)
        >>> result = linearize(SequenceModel(config), task, steps=5, num_sequences=256)
        >>> result.layers, round(result.ratios.item(), 3)  # an untrained layer does nothing yet
        ((0,), 1.0)
    """
    model, task = as_model(model), as_task(task)
    if not isinstance(model, SequenceModel):
        wanted = "must be a SequenceModel; use distil for parts of others"
        raise ValueError(f"model: is a {type(model).__name__}: {wanted}")
    chosen = tuple(range(len(model.blocks)) if layers is None else dict.fromkeys(layers))
    if not chosen:
        raise ValueError("layers=(): must not be empty")
    for index in chosen:
        _check_index(model, index, "layers: ")
    _check_numbers(learning_rate, steps=steps, batch_size=batch_size)
    evaluation = Evaluation(num_sequences=num_sequences, seed=seed)

    def pairs_of(step: int) -> list[LayerPairs]:
        batch = task.sample(batch_size, seed=seed, step=step, split="train")
        return _pairs(model, chosen, batch.tokens)

    random = generator(seed, _STREAM)
    distilled = [_linear_twin(model.mixers[index], random) for index in chosen]
    pairs = current_workers().map(pairs_of, range(steps))
    with reporting(progress, "linearization") as report:
        _learn(distilled, pairs, steps, learning_rate, report)

    replaced = {str(i): _replaced(model, i, new) for i, new in zip(chosen, distilled, strict=True)}
    losses = in_context_loss({"original": model, **replaced}, task, evaluation)
    (batch,) = replace(evaluation, num_sequences=1).batches(task)
    missed = [
        unexplained(layer, *pair)
        for layer, pair in zip(distilled, _pairs(model, chosen, batch.tokens), strict=True)
    ]
    return Linearization(
        layers=chosen,
        distilled=tuple(distilled),
        losses=torch.stack([losses[str(index)].losses for index in chosen]),
        model_losses=losses["original"].losses,
        unexplained=torch.tensor(missed),
    )


@differentiating()
def distil(
    inputs: Float[Tensor, "sequence time width"],
    outputs: Float[Tensor, "sequence time width"],
    *,
    num_heads: int,
    head_dim: int,
    frame: Frame = _PLAIN,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 3e-2,
    seed: int = 0,
    progress: AnyProgress = True,
) -> LinearSelfAttention:
    """Find the linear self-attention layer whose outputs come nearest to those of another layer.

    Minimises the mean squared error of its outputs with Adam, at a rate that falls to zero along a cosine.
    Inputs are whitened while it learns, and the layer begins with outputs of the right size; both are then
    folded into its weights. Without whitening Adam needs many times the steps, since inputs vary far
    less in some directions than in others.

    Args:
        inputs: inputs of the other layer, [sequence, time, width], such as those that
            :func:`mesaopt.analysis.capture` returns for `blocks.1.mixer.input`. Thousands of sequences are
            needed: products of three inputs have heavy tails, and a layer learned from a hundred sequences
            does not generalise.
        outputs: outputs of the other layer, the same shape.
        num_heads: of the linear layer.
        head_dim: width of its queries, keys and values.
        frame: positions and norms of the linear layer.
        steps: of the optimiser, 1 or more.
        batch_size: sequences in a step, drawn anew each time.
        learning_rate: at the start, greater than 0.
        seed: of the first weights and of the batches.
        progress: a bar, nothing, or a function of the number of finished steps: see
            :data:`mesaopt.progress.AnyProgress`.

    Returns:
        The layer, in the type and on the device of the inputs.

    Raises:
        ValueError: shapes differ, or a number is out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> teacher, x = LinearSelfAttention(width=4, num_heads=1, head_dim=4), torch.randn(512, 5, 4)
        >>> y = teacher(x).detach()
        >>> layer = distil(x, y, num_heads=1, head_dim=4, steps=300)
        >>> unexplained(layer, x, y) < 0.01
        True
    """
    if inputs.dim() != 3 or inputs.shape != outputs.shape:
        shapes = f"inputs {tuple(inputs.shape)}, outputs {tuple(outputs.shape)}"
        raise ValueError(f"{shapes}: must be the same, [sequence, time, width]")
    _check_numbers(learning_rate, steps=steps, batch_size=batch_size)
    inputs, outputs = (x.detach() for x in (inputs, outputs))
    random = generator(seed, _STREAM)
    with keep_global_random():
        layer = LinearSelfAttention(inputs.shape[-1], num_heads, head_dim, frame=frame).to(inputs)
    _draw_weights(layer, random)
    drawn = (torch.from_numpy(random.integers(len(inputs), size=batch_size)) for _ in range(steps))
    batches = ([(inputs[rows], outputs[rows])] for rows in drawn)
    with reporting(progress, "distillation") as report:
        _learn([layer], batches, steps, learning_rate, report)
    return layer


@torch.no_grad()
def unexplained(
    layer: nn.Module,
    inputs: Float[Tensor, "sequence time width"],
    outputs: Float[Tensor, "sequence time width"],
) -> float:
    """Compute the share of the variance of some outputs that a layer does not explain.

    sum |layer(x) - y|^2 / sum |y - mean(y)|^2, over sequences, positions and coordinates.

    Args:
        layer: maps [sequence, time, width] to the same shape; it computes in evaluation mode.
        inputs: x, preferably of sequences that the layer did not learn from.
        outputs: y, the same shape.

    Returns:
        0 for a perfect fit, 1 for the fit of the mean; it may be greater.

    Raises:
        ValueError: the layer gives another shape than that of the outputs.
        ZeroDivisionError: the outputs do not vary, and the layer does not reproduce them.

    Example:
        >>> x = torch.randn(8, 5, 4)
        >>> unexplained(nn.Identity(), x, x)
        0.0
    """
    with evaluating(layer):
        predicted = layer(like_weights(layer, inputs))
    if predicted.shape != outputs.shape:
        shapes = f"{tuple(predicted.shape)}, outputs {tuple(outputs.shape)}"
        raise ValueError(f"layer gives shape {shapes}: must be the same")
    missed = (predicted.double() - outputs.double()).square().sum().item()
    spread = (outputs.double() - outputs.double().mean((0, 1))).square().sum().item()
    return missed / spread if missed > 0 else 0.0


def with_layer(model: SequenceModel, index: int, layer: LinearSelfAttention) -> SequenceModel:
    """Copy a model and replace one of its attention layers by a linear one.

    Args:
        model: a stack of attention layers; it is not changed.
        index: of the layer to be replaced, counted from 0.
        layer: of the same width, heads and head size; it is copied too, in the type of the model.

    Returns:
        The new model, with a configuration that names the new layer.

    Raises:
        ValueError: there is no such layer, or the new one has another shape, or a frame that no
            configuration of linear attention has, such as that of a delta rule.

    Example:
        >>> from mesaopt.config import ModelConfig
        >>> model = SequenceModel(ModelConfig(mixers=("softmax_attention",) * 2))
        >>> with_layer(model, 1, LinearSelfAttention(40, 4, 20)).config.mixers
        ('softmax_attention', 'linear_attention')
        >>> with_layer(model, 2, LinearSelfAttention(40, 4, 20))
        Traceback (most recent call last):
        ...
        ValueError: index=2: must be between 0 and 1
    """
    _check_index(model, index, "index=")
    old = model.mixers[index]
    if _shape(layer) != _shape(old):
        given, wanted = _shape(layer), _shape(old)
        raise ValueError(f"layer: (width, heads, head size, frame) {given}: must be {wanted}")
    names = model.config.mixers
    mixers = (*names[:index], "linear_attention", *names[index + 1 :])
    config = replace(model.config, mixers=mixers)
    frame = make_mixer(config, index).frame
    if layer.frame != frame:
        raise ValueError(f"layer: its frame {layer.frame} has no configuration: must be {frame}")
    changed = _replaced(model, index, layer)
    changed.config = config
    return changed


def _replaced(model: SequenceModel, index: int, layer: LinearSelfAttention) -> SequenceModel:
    """Copy a model with another layer, whatever its frame; the configuration stays."""
    changed = copy.deepcopy(model)
    old = model.mixers[index]
    changed.blocks[index].mixer = copy.deepcopy(layer).to(old.output.weight)
    return changed


def _shape(layer: SelfAttention) -> tuple[int, int, int, Frame]:
    return layer.width, layer.num_heads, layer.head_dim, layer.frame


def _linear_twin(layer: SelfAttention, random: np.random.Generator) -> LinearSelfAttention:
    """Make a linear layer of the same shape, with random weights."""
    width, heads, head_dim, frame = _shape(layer)
    with keep_global_random():
        twin = LinearSelfAttention(width, heads, head_dim, frame=frame).to(layer.output.weight)
    _draw_weights(twin, random)
    return twin


def _draw_weights(layer: LinearSelfAttention, random: np.random.Generator) -> None:
    """Draw weights that keep the size of their inputs."""
    for _, weight in sorted(layer.named_parameters()):
        drawn = random.standard_normal(weight.shape) / weight.shape[-1] ** 0.5
        weight.data = torch.from_numpy(drawn).to(weight)


@torch.no_grad()
def _pairs(model: SequenceModel, layers: Sequence[int], tokens: Tensor) -> list[LayerPairs]:
    names = [(f"blocks.{i}.mixer.input", f"blocks.{i}.mixer.output") for i in layers]
    wanted = [name for pair in names for name in pair]
    with evaluating(model):
        captured = capture(model, like_weights(model, tokens), wanted)
    return [(captured[inputs], captured[outputs]) for inputs, outputs in names]


class _Student(nn.Module):
    """A layer while it learns, with whitened inputs and outputs scaled to the right size."""

    def __init__(self, layer: LinearSelfAttention, inputs: Tensor, outputs: Tensor):
        super().__init__()
        self.layer = layer
        self.whitening = _whitening(inputs)
        self.gain = 1.0
        with torch.no_grad():
            self.gain = _size(outputs) / (_size(self(inputs)) or 1.0)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return self.gain * self.layer(x @ self.whitening)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the whitening and the scale into the weights."""
        width = self.layer.width
        for projection in (self.layer.query, self.layer.key, self.layer.value):
            weight = projection.weight  # of the input, and perhaps of its position after it
            weight[:, :width] = weight[:, :width] @ self.whitening.T
        self.layer.output.weight.mul_(self.gain)


def _learn(
    layers: Sequence[LinearSelfAttention],
    batches: Iterable[Sequence[LayerPairs]],
    steps: int,
    learning_rate: float,
    report: Report,
) -> None:
    """Fit each layer to its pairs, all in one optimiser; no layer's loss depends on another."""
    students, scales, optimizer, schedule = [], [], None, None
    for done, pairs in enumerate(batches, start=1):
        if optimizer is None or schedule is None:
            students = [_Student(layer, *pair) for layer, pair in zip(layers, pairs, strict=True)]
            scales = [_size(y) or 1.0 for _, y in pairs]
            weights = [weight for layer in layers for weight in layer.parameters()]
            optimizer = torch.optim.Adam(weights, lr=learning_rate, fused=True)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        each = zip(students, scales, pairs, strict=True)
        for student, slopes in zip(students, current_workers().map(_gradients, each), strict=True):
            for weight, slope in zip(student.parameters(), slopes, strict=True):
                weight.grad = slope
        optimizer.step()
        schedule.step()
        report(done, steps)
    for student in students:
        student.fold()


def _gradients(problem: tuple[_Student, float, LayerPairs]) -> tuple[Tensor, ...]:
    """Differentiate the mean squared error of a layer, in units of a scale, by its weights."""
    student, scale, (x, y) = problem
    loss = ((student(x) - y) / scale).square().mean()
    return torch.autograd.grad(loss, list(student.parameters()))


def _whitening(x: Float[Tensor, "batch time width"]) -> Float[Tensor, "width width"]:
    """Give W such that x W has unit second moments, except in directions of little variance or none."""
    rows = x.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    largest = values.max()
    scales = values.clamp(min=_SMALLEST_VARIANCE * largest).rsqrt()
    scales = scales.where(values > _NO_VARIANCE * largest, 0.0)
    return (vectors * scales @ vectors.T).to(x.dtype)


def _size(x: Tensor) -> float:
    """Compute the root mean square."""
    return x.double().square().mean().sqrt().item()


def _check_index(model: SequenceModel, index: int, argument: str) -> None:
    if not 0 <= index < len(model.blocks):
        raise ValueError(f"{argument}{index}: must be between 0 and {len(model.blocks) - 1}")


def _check_numbers(learning_rate: float, **counts: int) -> None:
    for name, value in counts.items():
        require_count(name, value, smallest=1)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate={learning_rate}: must be greater than 0 and finite")
