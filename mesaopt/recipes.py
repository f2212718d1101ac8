"""Named configurations: what the published experiments trained, ready to run or to vary.

Sources: the authors' configuration files of von Oswald et al. (arXiv 2309.05858), which produced the
published figures, and the code of Zheng et al. (arXiv 2405.16845); where the papers' text differs, the
code is followed.
"""

from dataclasses import dataclass, replace
from typing import Literal, cast

from mesaopt.config import (
    ARProcessConfig,
    FewShotConfig,
    LinearSystemConfig,
    MergedAttentionConfig,
    MixerName,
    ModelConfig,
    NonlinearSystemConfig,
    PartiallyObservedConfig,
    RunConfig,
    StartName,
    TaskConfig,
    TokenSlot,
    TrainConfig,
    stacked,
)
from mesaopt.errors import ConfigError, suggest


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A configuration with the sentence that `mesaopt list` shows beside its name."""

    summary: str
    config: RunConfig


TASKS: dict[str, TaskConfig] = {
    "linear": LinearSystemConfig(token_slots=("current",)),
    "linear-constructed": LinearSystemConfig(),
    "linear-text": LinearSystemConfig(token_slots=("current",), start="normal"),
    "contracting-constructed": LinearSystemConfig(transition="contracting", state_clip=2.0),
    "fixed-constructed": LinearSystemConfig(transition="fixed"),
    "partial": PartiallyObservedConfig(),
    "partial-stacked": PartiallyObservedConfig(token_slots=stacked(16)),
    "partial-text": PartiallyObservedConfig(observation_std=0.5**0.5, start="normal"),
    "nonlinear": NonlinearSystemConfig(),
    "nonlinear-text": NonlinearSystemConfig(normalisation="none", start="normal"),
    "linear-long": LinearSystemConfig(token_slots=("current",), length=224),
    "few-shot": FewShotConfig(),
    "few-shot-separated": FewShotConfig(layout="triples"),
    "few-shot-prefixed": FewShotConfig(layout="triples", prefix_length=20),
    "few-shot-two-tasks": FewShotConfig(switch_after=20),
    "few-shot-text": FewShotConfig(inputs="normal"),
}
"""The tasks of von Oswald et al. by name, as in their code, or as in their text where that differs."""


# One layer has no use for a second copy of the current state: the authors zero it for their one-layer
# models. With it, training escapes its initial plateau some 80 steps earlier than they published.
_ONE_LAYER_TASK = LinearSystemConfig(token_slots=("zero", "zero", "current", "previous"))


def _constructed(*mixers: MixerName, num_heads: int = 4) -> ModelConfig:
    """A model of attention alone on constructed tokens, which carry what it would have to copy."""
    return ModelConfig(mixers=mixers, num_heads=num_heads)


def _plain(
    *mixers: MixerName, activation_clip: float | None = None, dim: int = 10, embed_dim: int = 40
) -> ModelConfig:
    """A model on plain tokens: it learns to copy, with positions in its first layer."""
    return ModelConfig(
        mixers=mixers,
        token_dim=dim,
        output_dim=dim,
        embed_dim=embed_dim,
        readout="linear",
        head_dim=20,
        positions="first_layer",
        initial_std=0.05,
        activation_clip=activation_clip,
    )


def _nonlinear(*mixers: MixerName, activation_clip: float | None = None) -> ModelConfig:
    model = _plain(*mixers, activation_clip=activation_clip, embed_dim=60)
    return replace(model, mlp_dim=300, unit_queries_keys="after_first")


def _partial(*mixers: MixerName, activation_clip: float | None = None) -> ModelConfig:
    model = _plain(*mixers, activation_clip=activation_clip, dim=5, embed_dim=80)
    return replace(model, num_heads=12)


_LINEAR: MixerName = "linear_attention"
_SOFTMAX: MixerName = "softmax_attention"

MODELS: dict[str, ModelConfig] = {
    "lsa-1": _constructed(_LINEAR, num_heads=2),
    "lsa-2": _constructed(*[_LINEAR] * 2),
    "lsa-4": _constructed(*[_LINEAR] * 4),
    "lsa-6": _constructed(*[_LINEAR] * 6),
    "mesa-1": _constructed("mesa"),
    "tf-3": _plain(*[_SOFTMAX] * 3),
    "tf-7": _plain(*[_SOFTMAX] * 7),
    "tf-12": _plain(*[_SOFTMAX] * 12),
    "hybrid-mesa": _plain(_SOFTMAX, "mesa", activation_clip=1.0),
    "full-mesa-published": _plain(_LINEAR, "mesa"),
    "full-mesa": _plain("mesa", "mesa"),
    "tf-7-partial": _partial(*[_SOFTMAX] * 7),
    "hybrid-mesa-partial": _partial(_SOFTMAX, "mesa", activation_clip=1.0),
    "tf-7-nonlinear": _nonlinear(*[_SOFTMAX] * 7),
    "hybrid-mesa-nonlinear": _nonlinear(_SOFTMAX, "mesa", activation_clip=15.0),
}
"""The networks of von Oswald et al. by name; recipes say what they are trained on, and how."""


def _by_dimension(dim: int) -> ModelConfig:
    """Seven softmax layers whose widths grow with the dimension of a state."""
    model = _plain(*[_SOFTMAX] * 7, dim=dim, embed_dim=4 * dim)
    return replace(model, head_dim=2 * dim)


def _of_width(name: str, width: int) -> ModelConfig:
    """A model on partial observations with another width of the stream."""
    return replace(MODELS[name], embed_dim=width, head_dim=min(20, width))


MODELS |= {
    "lsa-6-key-40": replace(MODELS["lsa-6"], head_dim=40),
    "softmax-2": replace(
        _constructed(*[_SOFTMAX] * 2, num_heads=1),
        token_dim=80,
        output_dim=20,
        head_dim=40,
        initial_std=0.05,
        activation_clip=None,
    ),
    **{f"tf-7-dim-{dim}": _by_dimension(dim) for dim in (4, 6, 10, 20, 40, 60)},
    **{
        f"{name}-width-{width}": _of_width(name, width)
        for name in ("tf-7-partial", "hybrid-mesa-partial")
        for width in (10, 20, 30, 50)  # 5 and 15 hold no pairs of a sine and a cosine
    },
}


def _constant(
    steps: int, learning_rate: float, *, weight_decay: float = 0.1, batch_size: int = 256
) -> TrainConfig:
    """Training on constructed tokens."""
    return TrainConfig(
        steps=steps, learning_rate=learning_rate, weight_decay=weight_decay, batch_size=batch_size
    )


def _cosine(
    steps: int, learning_rate: float, *, decay_steps: int = 30_000, batch_size: int = 256
) -> TrainConfig:
    """Training on plain tokens; it ends long before the cosine has come down."""
    return TrainConfig(
        steps=steps,
        learning_rate=learning_rate,
        schedule="warmup_cosine",
        decay_steps=decay_steps,
        batch_size=batch_size,
    )


# Recipe, its model, its training, and what `mesaopt list` says.
_Row = tuple[str, str, TrainConfig, str]


def _recipes(task: TaskConfig, *rows: _Row) -> list[Recipe]:
    return [
        Recipe(
            summary=summary,
            config=RunConfig(recipe=name, task=task, model=MODELS[model], train=train),
        )
        for name, model, train, summary in rows
    ]


def _linear_attention_2_notebook() -> Recipe:
    return Recipe(
        summary="two linear self-attention layers, as in the authors' notebook",
        config=RunConfig(
            recipe="lsa-2-notebook",
            task=TASKS["linear-constructed"],
            model=replace(MODELS["lsa-2"], activation_clip=1.5),
            train=_cosine(2500, 3e-4, decay_steps=20_000),
        ),
    )


def _linear_system() -> list[Recipe]:
    """The fully observed linear system, on constructed and on plain tokens."""
    one_layer = _recipes(
        _ONE_LAYER_TASK,
        (
            *("lsa-1", "lsa-1", _constant(3500, 2e-4, weight_decay=0.05)),
            "one linear self-attention layer, which becomes one step of gradient descent",
        ),
        (
            *("mesa-1", "mesa-1", _constant(4500, 4e-4)),
            "one mesa layer, which solves the in-context least-squares problem exactly",
        ),
    )
    constructed = _recipes(
        TASKS["linear-constructed"],
        ("lsa-2", "lsa-2", _constant(5000, 1e-4), "two linear self-attention layers"),
        ("lsa-4", "lsa-4", _constant(10_000, 1e-4), "four linear self-attention layers"),
        (
            *("lsa-6", "lsa-6", _constant(15_000, 1e-4)),
            "six linear self-attention layers, which precondition the gradient step",
        ),
        (
            *("lsa-6-key-40", "lsa-6-key-40", _constant(4500, 1e-4, batch_size=512)),
            "six linear self-attention layers with heads wide enough for any product of their weights",
        ),
    )
    plain = _recipes(
        TASKS["linear"],
        ("tf-3", "tf-3", _cosine(10_000, 8e-4), "three softmax self-attention layers"),
        (
            *("tf-7", "tf-7", _cosine(10_000, 8e-4)),
            "seven softmax self-attention layers: the first copies, the others learn in context",
        ),
        ("tf-12", "tf-12", _cosine(10_000, 8e-4), "twelve softmax self-attention layers"),
        (
            *("hybrid-mesa", "hybrid-mesa", _cosine(20_000, 3e-4)),
            "a softmax self-attention layer, which copies, and a mesa layer, which solves",
        ),
        (
            *("full-mesa-published", "full-mesa-published", _cosine(3500, 3e-4)),
            "a linear self-attention layer and a mesa layer: what was published as full-mesa",
        ),
        ("full-mesa", "full-mesa", _cosine(3500, 3e-4), "two mesa layers"),
    )
    return [one_layer[0], _linear_attention_2_notebook(), *constructed, one_layer[1], *plain]


def _other_systems() -> list[Recipe]:
    """Partial observation, a nonlinear teacher, contracting systems and one fixed matrix for all."""
    partial = _recipes(
        TASKS["partial"],
        (
            *("tf-7-partial", "tf-7-partial", _cosine(20_000, 4e-4)),
            "seven softmax self-attention layers on partial observations",
        ),
        (
            *("hybrid-mesa-partial", "hybrid-mesa-partial", _cosine(12_000, 4e-4)),
            "a softmax self-attention layer and a mesa layer on partial observations",
        ),
    )
    nonlinear = _recipes(
        TASKS["nonlinear"],
        (
            *("tf-7-nonlinear", "tf-7-nonlinear", _cosine(40_000, 1e-3, decay_steps=50_000)),
            "seven softmax self-attention layers with MLPs on a nonlinear system",
        ),
        (
            "hybrid-mesa-nonlinear",
            "hybrid-mesa-nonlinear",
            _cosine(40_000, 4e-4, decay_steps=50_000),
            "a softmax self-attention layer and a mesa layer with MLPs on a nonlinear system",
        ),
    )
    few_shot = _recipes(
        TASKS["linear-long"],
        (
            *("tf-7-few-shot", "tf-7", _cosine(15_000, 8e-4, batch_size=128)),
            "seven softmax self-attention layers on long sequences, to be used few-shot",
        ),
        (
            *("hybrid-mesa-few-shot", "hybrid-mesa", _cosine(15_000, 8e-4, batch_size=128)),
            "a softmax self-attention layer and a mesa layer on long sequences, to be used few-shot",
        ),
    )
    return [
        *partial,
        *_partial_widths(),
        *nonlinear,
        *few_shot,
        *_dimensions(),
        *_control("contracting"),
        *_control("fixed"),
    ]


def _partial_widths() -> list[Recipe]:
    """The models on partial observations at smaller widths: how many past tokens fit into a stream."""
    lengths = {"tf-7-partial": 20_000, "hybrid-mesa-partial": 12_000}
    rows = [
        (
            *(name, name, _cosine(lengths[name.split("-width-")[0]], 4e-4)),
            f"{name.split('-width-')[0]} with a stream of {name.split('-')[-1]}",
        )
        for name in MODELS
        if "-width-" in name
    ]
    return _recipes(TASKS["partial"], *rows)


def _dimensions() -> list[Recipe]:
    """Softmax layers on systems of several dimensions, to be replaced by linear ones."""
    training = {4: (5000, 4e-3), 6: (5000, 4e-3), 10: (5000, 4e-3), 20: (8000, 9e-3)}
    training |= {40: (3500, 7e-3), 60: (2500, 4e-3)}
    recipes = []
    for dim, (steps, learning_rate) in training.items():
        name, train = f"tf-7-dim-{dim}", _cosine(steps, learning_rate, batch_size=64)
        summary = f"seven softmax self-attention layers on systems of dimension {dim}"
        recipes += _recipes(_system_of(dim, ("current",)), (name, name, train, summary))
    constructed = _system_of(20, ("zero", "current", "current", "previous"))
    train = _cosine(10_000, 7e-4, batch_size=64)
    summary = "two softmax self-attention layers of one head on constructed tokens"
    return [*recipes, *_recipes(constructed, ("softmax-2", "softmax-2", train, summary))]


def _system_of(dim: int, slots: tuple[TokenSlot, ...]) -> LinearSystemConfig:
    return LinearSystemConfig(dim=dim, length=4 * dim, token_slots=slots, state_clip=1000.0)


def _control(name: Literal["contracting", "fixed"]) -> list[Recipe]:
    """The models on constructed tokens, on one of the two other laws of the matrix."""
    task = cast(LinearSystemConfig, TASKS[f"{name}-constructed"])
    if name == "contracting":
        what, batch_size = "a contracting system", 256
        training = {1: (5000, 1e-4), 2: (5000, 1e-4), 4: (10_000, 1e-4), 6: (5000, 1e-4)}
    else:
        what, batch_size = "one fixed matrix, the negative control", 512
        training = {1: (10_000, 1e-3), 2: (10_000, 1e-3), 4: (5000, 1e-3), 6: (5000, 1e-3)}
    linear = [
        (
            f"{name}-lsa-{depth}",
            f"lsa-{depth}",
            _constant(steps, learning_rate, batch_size=batch_size),
            f"{depth} linear self-attention layer{'s' if depth > 1 else ''} on {what}",
        )
        for depth, (steps, learning_rate) in training.items()
    ]
    mesa = _constant(5000, 4e-4, batch_size=batch_size)
    one_layer = replace(task, token_slots=_ONE_LAYER_TASK.token_slots)
    return [
        *_recipes(one_layer, linear[0]),
        *_recipes(task, *linear[1:]),
        *_recipes(one_layer, (f"{name}-mesa-1", "mesa-1", mesa, f"one mesa layer on {what}")),
    ]


def _ar_process(name: str, start: StartName, learning_rate: float, summary: str) -> Recipe:
    """Full-batch gradient descent on one complex layer; the step sizes are those of the authors' plots."""
    return Recipe(
        summary=summary,
        config=RunConfig(
            recipe=name,
            task=ARProcessConfig(start=start),
            model=MergedAttentionConfig(),
            train=TrainConfig(
                steps=200,
                batch_size=10_000,
                data="fixed",
                positions="sum",
                optimizer="gradient_descent",
                learning_rate=learning_rate,
                gradient_clip=None,
                evaluate_every=10,
            ),
        ),
    )


RECIPES: dict[str, Recipe] = {
    recipe.config.recipe: recipe
    for recipe in (
        *_linear_system(),
        *_other_systems(),
        _ar_process(
            *("ar-gaussian", "gaussian", 1e-4),
            "one complex layer on Gaussian starts: one gradient step, which does not recover the sequence",
        ),
        _ar_process(
            *("ar-sparse", "sparse", 1e-3),
            "one complex layer on sparse starts: one gradient step, which recovers the sequence",
        ),
        _ar_process(
            *("ar-full-one", "full_one", 5e-4),
            "one complex layer on starts of ones: a preconditioned gradient step",
        ),
    )
}


def get(name: str, *, seed: int = 0) -> RunConfig:
    """Look a recipe up by name.

    Args:
        name: one of `RECIPES`; `mesaopt list` shows them.
        seed: seed of the initial weights and of the training sequences, 0 or greater.

    Returns:
        The published configuration, with the seed given.

    Raises:
        ConfigError: there is no such recipe.

    Example:
        >>> get("lsa-1", seed=3).train.learning_rate
        0.0002
        >>> get("lsa1")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: recipe='lsa1': did you mean 'lsa-1'?
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe={name!r}: {suggest(name, RECIPES)}")
    return replace(RECIPES[name].config, seed=seed)
