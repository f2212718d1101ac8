"""Language models of both papers in small: bytes of the Python standard library, about a million weights.

Each trains in minutes on two cores. All read the same text in the same order, with the same training, and
have as many parameters as those they are compared with, within two in a hundred.
"""

from dataclasses import replace

from mesaopt.config import LanguageModelConfig, MixerName, RunConfig, TextConfig, TrainConfig
from mesaopt.recipes.recipe import Recipe

_TASK = TextConfig(length=256)
_TRAIN = TrainConfig(
    steps=2400,
    batch_size=8,
    learning_rate=3e-3,
    schedule="warmup_cosine",
    warmup_steps=60,
    decay_steps=2400,
    final_learning_rate=3e-4,
    weight_decay=0.1,
    evaluate_every=400,
    evaluation_sequences=256,
)
_UNCOVERING = LanguageModelConfig(
    width=128,
    num_heads=8,
    unit_queries_keys=True,
    positions="sinusoidal",
    scale_embeddings=True,
    mlp="none",
    norm="layer",
    logit_cap=None,
)
"""The model of von Oswald et al. 2023, table 4, but for its mixers: positions are added to embeddings of
about their size (the paper does not say how large embeddings are), queries and keys of linear and mesa
layers have unit length. Eight heads of 16, and not four of 32, keep the features of DPFP at 96 numbers a
key."""
_MESANET = LanguageModelConfig(
    width=128, mixers=("mesanet2025",) * 4, convolution=4, head_norm=True, unit_queries_keys=True
)
"""MesaNet, whose mixer is exchanged: convolutions, unit queries and keys, norms of heads, gated
networks."""
MIXERS: dict[str, MixerName] = {
    "softmax": "softmax_attention",
    "linear": "linear_attention",
    "gated-linear": "gated_linear_attention",
    "delta": "delta_rule",
    "gated-delta": "gated_delta_rule",
    "longhorn": "longhorn",
    "mesa": "mesa",
    "mesanet": "mesanet2025",
}
"""The mixers that are compared, by their short names: "mesa" is that of 2023, "mesanet" that of 2025."""
FEATURES = ("none", "dpfp1", "dpfp2", "dpfp3")
"""Feature maps of one layer, nu = 0 to 3."""
WINDOWS = (4, 16, 64)
"""Windows of the controls, which use no more of the context than these tokens."""


def _recipe(name: str, model: LanguageModelConfig, summary: str) -> Recipe:
    return Recipe(
        summary=summary,
        source="language",
        architecture=name,
        task="text",
        config=RunConfig(recipe=name, task=_TASK, model=model, train=_TRAIN),
    )


def _one_layer() -> list[Recipe]:
    """One layer that sees pairs of neighbours, with every feature map: figure 26 of the first paper."""
    base = replace(_UNCOVERING, mixers=("softmax_attention",), key_shift=True)
    recipes = [
        _recipe("lm-1-softmax", base, "one softmax layer whose keys are of the token before")
    ]
    for short in ("linear", "mesa"):
        for features in FEATURES:
            model = replace(base, mixers=(MIXERS[short],), feature_map=features)
            name = f"lm-1-{short}" + ("" if features == "none" else f"-{features}")
            mapped = "" if features == "none" else f", with the features {features}"
            summary = f"one {short} layer whose keys are of the token before{mapped}"
            recipes.append(_recipe(name, model, summary))
    return recipes


def _hybrids() -> list[Recipe]:
    """Two layers of attention, and four with networks, the first always softmax: figure 27."""
    recipes = []
    names = {"tf": "softmax", "hybrid-linear": "linear", "hybrid-mesa": "mesa"}
    for depth, mlp in ((2, "none"), (4, "relu")):
        for name, short in names.items():
            model = replace(
                _UNCOVERING,
                mixers=("softmax_attention", *(MIXERS[short],) * (depth - 1)),
                mlp=mlp,
                feature_map="none" if short == "softmax" else "dpfp3",
            )
            networks = "" if mlp == "none" else " and networks"
            summary = f"a softmax layer, then {depth - 1} of {short} attention{networks}"
            recipes.append(_recipe(f"lm-{name}-{depth}", model, summary))
    return recipes


def _backbone() -> list[Recipe]:
    """Four layers of every mixer in the surroundings of MesaNet, and windows as controls."""
    softmax = replace(
        _MESANET,
        mixers=("softmax_attention",) * 4,
        convolution=None,
        head_norm=False,
        unit_queries_keys=False,
        positions="rotary",
    )
    recipes = [
        _recipe(
            f"lm-{short}",
            softmax if short == "softmax" else replace(_MESANET, mixers=(mixer,) * 4),
            f"MesaNet with four {mixer} layers",
        )
        for short, mixer in MIXERS.items()
    ]
    for window in WINDOWS:
        summary = f"MesaNet with softmax attention to the last {window} tokens: a control"
        recipes.append(
            _recipe(f"lm-softmax-window-{window}", replace(softmax, window=window), summary)
        )
    hybrid = replace(
        _MESANET, mixers=("softmax_attention", "mesanet2025") * 2, window=64, positions="rotary"
    )
    summary = "MesaNet with softmax attention to the last 64 tokens in every other layer"
    return [*recipes, _recipe("lm-hybrid-mesanet", hybrid, summary)]


ONE_LAYER = tuple(_one_layer())
HYBRIDS = tuple(_hybrids())
RECIPES = (*ONE_LAYER, *HYBRIDS, *_backbone())
"""In the order of `mesaopt list`."""
