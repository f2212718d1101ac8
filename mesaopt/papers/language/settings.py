"""Every setting of the study by scale: which tasks, models and trainings, and how many test sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mesaopt.config import (
    FORGETTING_MIXERS,
    AutoEncoderConfig,
    ContinuousMQARConfig,
    LanguageModelConfig,
    MADConfig,
    MixerName,
    ModelConfig,
    MQARConfig,
    ParityConfig,
    RegBenchConfig,
    TaskConfig,
    TextConfig,
    TrainConfig,
)
from mesaopt.recipes.language import MIXERS


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A task on which mixers are compared, and the training that each of them gets."""

    task: TaskConfig
    model: LanguageModelConfig | ModelConfig
    """Its mixers are exchanged for each that is compared."""
    train: TrainConfig
    """Its learning rate is exchanged for each of the rates."""
    rates: tuple[float, ...]
    """Learning rates that may be tried, increasing. Of the first seed's models, the one with the least loss
    on validation sequences is taken for all seeds."""
    sequences: int
    """Validation sequences, and test sequences of each difficulty."""
    step_seconds: float
    """Rough time of a step on two cores, the mean over mixers."""

    @property
    def methods(self) -> dict[str, MixerName]:
        """The mixers that can take part, by their short names; signs are for forget gates alone."""
        signed = isinstance(self.model, LanguageModelConfig) and self.model.signed_decay
        return {
            name: mixer
            for name, mixer in MIXERS.items()
            if mixer in FORGETTING_MIXERS or not signed
        }

    def with_mixer(self, mixer: MixerName) -> LanguageModelConfig | ModelConfig:
        """Give the model with one mixer in all its layers; on text, softmax attention knows positions."""
        turns = mixer == "softmax_attention" and isinstance(self.task, TextConfig)
        turned: dict[str, Any] = {"positions": "rotary"} if turns else {}
        return replace(self.model, mixers=(mixer,) * self.model.depth, **turned)

    def seconds(self, seeds: int, methods: int | None = None) -> float:
        """Estimate the time of the trainings of all methods, or of some, on two cores."""
        methods = len(self.methods) if methods is None else methods
        trainings = methods * (len(next_rates(self.rates, {})) + seeds - 1)
        return trainings * (self.sequences / 512 + self.train.steps * self.step_seconds)


def next_rates(rates: Sequence[float], losses: Mapping[float, float]) -> list[float]:
    """Choose the learning rates to try next: those in the middle, then those beside the best one so far.

    Where none is left, the best rate lies between two that are worse, or at an end of all rates.

    Args:
        rates: that may be tried, increasing.
        losses: on validation sequences, by rate; infinite where a training diverged.

    Returns:
        The rates.

    Example:
        >>> next_rates((0.1, 0.2, 0.4, 0.8, 1.6), {})
        [0.2, 0.4, 0.8]
        >>> next_rates((0.1, 0.2, 0.4, 0.8, 1.6), {0.2: 3.0, 0.4: 2.0, 0.8: 1.5})
        [1.6]
    """
    best = min(sorted(losses), key=losses.__getitem__, default=rates[len(rates) // 2])
    place = rates.index(best)
    return [rate for rate in rates[max(place - 1, 0) : place + 2] if rate not in losses]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything by scale that is no part of a plan."""

    comparisons: Mapping[str, Comparison]
    """By name."""
    score_positions: tuple[int, int]
    """The early and the late position of the in-context score; 50 and 500 in the literature."""
    text_sequences: int
    """Test sequences of the language models."""
    attention_sequences: int
    """Test sequences of attention maps."""


SEEDS: dict[str, int] = {"smoke": 1, "small": 3, "paper": 3}
"""Models of every method of a comparison at the learning rate that was chosen."""


def _training(steps: int, batch_size: int, *, weight_decay: float = 0.1) -> TrainConfig:
    """Warm up for a tenth of the steps, and decay to a hundredth of the usual rate."""
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        schedule="warmup_cosine",
        warmup_steps=steps // 10,
        decay_steps=steps,
        weight_decay=weight_decay,
        evaluate_every=-(-steps // 2),
        evaluation_sequences=256,
    )


_SURROUNDINGS: dict[str, Any] = {
    "width": 64,
    "mixers": ("softmax_attention",) * 2,
    "convolution": 4,
    "head_norm": True,
    "unit_queries_keys": True,
    "logit_cap": None,
}
"""Two layers in the surroundings of MesaNet: all mixers, softmax attention too, have the same short
convolutions and head norms, which replace positions; on text, softmax attention has rotary ones, too."""
_RECALL = LanguageModelConfig(vocabulary=8192, num_heads=2, mlp="none", **_SURROUNDINGS)
_ONE_LAYER = ModelConfig(
    mixers=("mesa",),
    token_dim=64,
    output_dim=32,
    readout="linear",
    num_heads=1,
    head_dim=32,
    initial_std=0.05,
    activation_clip=None,
)
"""One layer on vectors, and a linear readout; convolutions in mesanet2025 alone."""
_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_RECALL_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Higher ones first: at 0.001 short trainings on recall learn next to nothing."""


def _mqar(pairs: int, steps: int, batch_size: int, **model: int) -> Comparison:
    return Comparison(
        task=MQARConfig(pairs=pairs, vocabulary=model.get("vocabulary", 8192)),
        model=replace(_RECALL, **model),  # type: ignore[arg-type]
        train=_training(steps, batch_size),
        rates=_RECALL_RATES,
        sequences=1024,
        step_seconds=0.15,
    )


def _continuous(pairs: int, dim: int, tested: tuple[int, ...], train: TrainConfig) -> Comparison:
    return Comparison(
        task=ContinuousMQARConfig(dim=dim, pairs=pairs, test_on=tested, codes=1024),
        model=replace(_ONE_LAYER, token_dim=2 * dim, output_dim=dim, head_dim=dim),
        train=train,
        rates=_RATES,
        sequences=512,
        step_seconds=0.025,
    )


_MAD = LanguageModelConfig(vocabulary=16, num_heads=4, mlp="swiglu", **_SURROUNDINGS)
"""As in recall, with networks, which the authors' models of these tasks have, too."""
_COMPRESSION = AutoEncoderConfig(
    vocabulary=16, num_heads=4, mlp="swiglu", initial_std=0.2, **_SURROUNDINGS
)
"""Weights are as large as the sines of its positions: with smaller ones training starts slowly."""
_SIGNED = replace(_MAD, mixers=("gated_delta_rule",) * 2, signed_decay=True)
"""Forget gates between -1 and 1."""


def _on_tokens(
    task: TaskConfig,
    train: TrainConfig,
    seconds: float,
    *,
    model: LanguageModelConfig = _MAD,
    sequences: int = 256,
) -> Comparison:
    """Make a comparison of two layers with networks."""
    return Comparison(
        task=task,
        model=replace(model, vocabulary=task.dim),
        train=train,
        rates=_RATES,
        sequences=sequences,
        step_seconds=seconds,
    )


def _mad(length: int, copied: int, train: TrainConfig, seconds: float) -> dict[str, Comparison]:
    """Make the comparisons of the six tasks of MAD."""
    noise = {"vocabulary": 32, "noise_vocabulary": 16, "noise_fraction": 0.2}
    tasks = {
        "recall": MADConfig(length=length),
        "fuzzy": MADConfig(task="fuzzy_recall", length=length),
        "noisy": MADConfig(task="noisy_recall", length=length, **noise),  # type: ignore[arg-type]
        "copying": MADConfig(task="selective_copying", length=2 * length, copied=copied),
        "memory": MADConfig(task="memorization", vocabulary=256, length=32, examples=256),
        "compression": MADConfig(task="compression", length=length // 4),
    }
    compression = _on_tokens(tasks.pop("compression"), train, seconds / 4, model=_COMPRESSION)
    others = {f"mad-{name}": _on_tokens(task, train, seconds) for name, task in tasks.items()}
    return others | {"mad-compression": compression}


def _parity(
    task: ParityConfig, train: TrainConfig, seconds: float, *, width: int = 64
) -> dict[str, Comparison]:
    """Make the comparisons of parity, with forget gates between 0 and 1, and between -1 and 1."""
    models = {"parity": _MAD, "parity-signed": _SIGNED}
    return {
        name: _on_tokens(task, train, seconds, model=replace(model, width=width))
        for name, model in models.items()
    }


def _smoke() -> dict[str, Comparison]:
    """Show that everything works, with a vocabulary and widths next to nothing."""
    tiny = Comparison(
        task=MQARConfig(vocabulary=64, length=16, pairs=2, examples=64),
        model=replace(_RECALL, vocabulary=64, width=16),
        train=replace(_training(2, 8), evaluation_sequences=8),
        rates=(3e-3,),
        sequences=256,
        step_seconds=0.03,
    )
    continuous = _continuous(4, 8, (4, 8), tiny.train)
    narrow, short = replace(_MAD, width=16), replace(tiny.train, batch_size=2)
    parity = ParityConfig(longest=8, test_shortest=8, test_longest=12)
    comparisons = {
        "text": _on_tokens(TextConfig(length=64), short, 0.03, model=narrow, sequences=32),
        "mad-recall": _on_tokens(MADConfig(length=16, examples=64), tiny.train, 0.03, model=narrow),
        "mad-compression": _on_tokens(
            MADConfig(task="compression", length=8, examples=64),
            tiny.train,
            0.03,
            model=replace(_COMPRESSION, width=16),
        ),
        "regbench": _on_tokens(
            RegBenchConfig(length=24, examples=64), tiny.train, 0.03, model=narrow
        ),
        **_parity(parity, tiny.train, 0.03, width=16),
    }
    return {
        **{name: replace(comparison, rates=(3e-3,)) for name, comparison in comparisons.items()},
        "mqar": replace(tiny, rates=(1e-3, 1e-2)),
        "mqar-state-4": replace(tiny, model=replace(tiny.model, head_dim=4)),
        "faults": tiny,
        "continuous": replace(continuous, rates=(3e-3,), sequences=256, step_seconds=0.03),
    }


def _small() -> dict[str, Comparison]:
    """List what two cores train in a few hours.

    Batches are small and steps many: with as many tokens in larger batches, most models learned nothing.
    """
    harder = _mqar(8, 800, 16, vocabulary=128)
    return {
        "mqar": _mqar(4, 400, 128),
        "faults": replace(_mqar(4, 400, 32, vocabulary=512), step_seconds=0.06),
        **{
            f"mqar-state-{head_dim}": replace(
                harder,
                model=replace(harder.model, head_dim=head_dim),
                step_seconds=0.025,
            )
            for head_dim in (4, 8, 16)
        },
        "continuous": _continuous(32, 32, (4, 8, 16, 32, 64), _training(500, 128)),
        **_mad(64, 8, _training(600, 16), 0.05),
        "regbench": _on_tokens(RegBenchConfig(length=128, examples=2500), _training(500, 16), 0.08),
        **_parity(ParityConfig(longest=12), _training(1000, 16), 0.025),
        "text": _on_tokens(TextConfig(length=256), _training(600, 4), 0.08),
    }


def _paper() -> dict[str, Comparison]:
    """List trainings as long as published: 64 epochs of 100,000 sequences."""
    long = _training(12_500, 512)
    harder = replace(_mqar(16, 12_500, 512), step_seconds=1.0)
    easier = replace(harder, task=MQARConfig(pairs=4))
    return {
        "mqar": easier,
        "faults": easier,
        **{
            f"mqar-state-{head_dim}": replace(
                harder, model=replace(harder.model, head_dim=head_dim)
            )
            for head_dim in (4, 8, 16, 32)
        },
        "continuous": replace(
            _continuous(64, 64, (4, 8, 16, 32, 64, 128, 256), long), step_seconds=0.5
        ),
        **_mad(128, 16, _training(20_000, 128), 0.5),
        "regbench": _on_tokens(RegBenchConfig(), _training(30_000, 32), 1.0),
        **_parity(ParityConfig(), _training(10_000, 256), 0.5),
        "text": _on_tokens(TextConfig(length=1024), _training(20_000, 32), 1.0, sequences=1024),
    }


SETTINGS: dict[str, Settings] = {
    "smoke": Settings(
        comparisons=_smoke(), score_positions=(8, 48), text_sequences=64, attention_sequences=8
    ),
    "small": Settings(
        comparisons=_small(), score_positions=(50, 250), text_sequences=256, attention_sequences=32
    ),
    "paper": Settings(
        comparisons=_paper(), score_positions=(50, 500), text_sequences=1024, attention_sequences=64
    ),
}


def comparison_seconds(*names: str, methods: int | None = None) -> dict[Any, float]:
    """Estimate the time of comparisons by scale; a name that ends in a hyphen stands for all that begin so.

    Example:
        >>> comparison_seconds("mqar")["small"] > comparison_seconds("mqar", methods=2)["small"]
        True
    """

    def is_meant(known: str) -> bool:
        return any(
            known == name or (name.endswith("-") and known.startswith(name)) for name in names
        )

    seconds: dict[Any, float] = {}
    for scale, settings in SETTINGS.items():
        meant = [
            comparison for known, comparison in settings.comparisons.items() if is_meant(known)
        ]
        seconds[scale] = 2 + sum(comparison.seconds(SEEDS[scale], methods) for comparison in meant)
    return seconds
