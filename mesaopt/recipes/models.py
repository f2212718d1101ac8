"""The networks of von Oswald et al. (arXiv 2309.05858) by name."""

from dataclasses import replace

from mesaopt.config import MixerName, ModelConfig

DIMENSIONS = (4, 6, 10, 20, 40, 60)
"""Dimensions of a state that seven softmax layers were trained on."""
WIDTHS = (10, 20, 30, 50)
"""Widths of the stream besides 80, on partial observations. The authors' 5 and 15 are missing: they hold no
pairs of a sine and a cosine."""

LINEAR: MixerName = "linear_attention"
SOFTMAX: MixerName = "softmax_attention"


def plain(
    mixers: tuple[MixerName, ...],
    *,
    activation_clip: float | None = None,
    dim: int = 10,
    embed_dim: int = 40,
) -> ModelConfig:
    """Configure a model on plain tokens: it learns to copy, with positions in its first layer."""
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


def partial(
    mixers: tuple[MixerName, ...], *, activation_clip: float | None = None, width: int = 80
) -> ModelConfig:
    """Configure a model on partial observations, with another width of the stream if given."""
    model = plain(mixers, activation_clip=activation_clip, dim=5, embed_dim=width)
    return replace(model, num_heads=12, head_dim=min(20, width))


def nonlinear(
    mixers: tuple[MixerName, ...], *, activation_clip: float | None = None
) -> ModelConfig:
    """Configure a model on nonlinear systems, with hidden layers and unit queries and keys."""
    model = plain(mixers, activation_clip=activation_clip, embed_dim=60)
    return replace(model, mlp_dim=300, unit_queries_keys="after_first")


def by_dimension(dim: int) -> ModelConfig:
    """Configure seven softmax layers whose widths grow with the dimension of a state."""
    return replace(plain((SOFTMAX,) * 7, dim=dim, embed_dim=4 * dim), head_dim=2 * dim)


MODELS: dict[str, ModelConfig] = {
    "lsa-1": ModelConfig(mixers=(LINEAR,), num_heads=2),
    "lsa-2": ModelConfig(mixers=(LINEAR,) * 2),
    "lsa-4": ModelConfig(mixers=(LINEAR,) * 4),
    "lsa-6": ModelConfig(mixers=(LINEAR,) * 6),
    "mesa-1": ModelConfig(mixers=("mesa",)),
    "tf-3": plain((SOFTMAX,) * 3),
    "tf-7": plain((SOFTMAX,) * 7),
    "tf-12": plain((SOFTMAX,) * 12),
    "hybrid-mesa": plain((SOFTMAX, "mesa"), activation_clip=1.0),
    "full-mesa-published": plain((LINEAR, "mesa")),
    "full-mesa": plain(("mesa", "mesa")),
    "tf-7-partial": partial((SOFTMAX,) * 7),
    "hybrid-mesa-partial": partial((SOFTMAX, "mesa"), activation_clip=1.0),
    "tf-7-nonlinear": nonlinear((SOFTMAX,) * 7),
    "hybrid-mesa-nonlinear": nonlinear((SOFTMAX, "mesa"), activation_clip=15.0),
    "lsa-6-key-40": ModelConfig(mixers=(LINEAR,) * 6, head_dim=40),
    "softmax-2": ModelConfig(
        mixers=(SOFTMAX,) * 2,
        token_dim=80,
        output_dim=20,
        num_heads=1,
        head_dim=40,
        initial_std=0.05,
        activation_clip=None,
    ),
    **{f"tf-7-dim-{dim}": by_dimension(dim) for dim in DIMENSIONS},
    **{f"tf-7-partial-width-{w}": partial((SOFTMAX,) * 7, width=w) for w in WIDTHS},
    **{
        f"hybrid-mesa-partial-width-{w}": partial((SOFTMAX, "mesa"), activation_clip=1.0, width=w)
        for w in WIDTHS
    },
}
"""Models by name. Those not made by :func:`plain` read constructed tokens, which hold the previous state
next to the current one, so that the model need not copy it."""
