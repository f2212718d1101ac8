"""Numbers behind the published figures: mean losses, and losses by position, of the authors' own runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedCurve:
    """One curve of a figure.

    Args:
        mean: over positions.
        at: loss by position, counted from 1.
    """

    mean: float
    at: dict[int, float]


_POSITIONS = (6, 11, 21, 31, 41, 50)


def _curve(mean: float, *values: float) -> PublishedCurve:
    return PublishedCurve(mean, dict(zip(_POSITIONS, values, strict=True)) if values else {})


CURVES: dict[str, dict[str, PublishedCurve]] = {
    "linear": {
        "lsa-1": _curve(0.8924, 1.470, 1.209, 0.804, 0.604, 0.607, 0.787),
        "one gradient step": _curve(0.9004, 1.471, 1.219, 0.821, 0.616, 0.609, 0.775),
        "lsa-2": _curve(0.4302, 1.136, 0.650, 0.254, 0.153, 0.148, 0.242),
        "lsa-4": _curve(0.2361, 0.920, 0.258, 0.0388, 0.0182, 0.0143, 0.0157),
        "lsa-6": _curve(0.2157, 0.888, 0.184, 0.0189, 0.0108, 0.0092, 0.0093),
        "6 steps and one, official": _curve(0.2339, 0.979, 0.182, 0.0242, 0.0168, 0.0146, 0.0137),
        "mesa-1": _curve(0.1903),
        "tf-3": _curve(0.3153, 1.029, 0.387, 0.117, 0.0747, 0.0627, 0.0573),
        "tf-7": _curve(0.2302, 0.971, 0.157, 0.0231, 0.0149, 0.0130, 0.0118),
        "3-layer steps, official": _curve(0.3047, 0.997, 0.326, 0.109, 0.0858, 0.0774, 0.0739),
        "7-layer steps, official": _curve(0.2318, 0.978, 0.177, 0.0218, 0.0149, 0.0129, 0.0121),
        "tf-12": _curve(0.1994, 0.881, 0.0792, 0.0082, 0.0054, 0.0047, 0.0041),
        "hybrid-mesa": _curve(0.1984, 0.856, 0.0543, 0.0048, 0.0028, 0.0024, 0.0023),
        "least squares, official": _curve(0.2108, 0.976, 0.0855, 0.0009, 0.0007, 0.0007, 0.0006),
    },
    "partial": {
        "tf-7-partial": _curve(0.7953, 2.594, 1.856, 0.255, 0.0922, 0.0710, 0.0628),
        "hybrid-mesa-partial": _curve(0.7973, 2.648, 1.979, 0.167, 0.0535, 0.0383, 0.0351),
        "steps on one observation, official": _curve(2.349, 4.63, 3.11, 2.02, 1.82, 1.83, 1.74),
        "steps on 16 observations, official": _curve(1.034, 3.32, 2.13, 0.649, 0.233, 0.158, 0.135),
        "7-layer steps on 16 observations, official": _curve(
            0.941, 2.70, 2.03, 0.654, 0.191, 0.113, 0.0905
        ),
    },
    "nonlinear": {
        "tf-7-nonlinear": _curve(0.0392, 0.0760, 0.0158, 0.0055, 0.0042, 0.0036, 0.0034),
        "hybrid-mesa-nonlinear": _curve(0.0375, 0.0745, 0.0118, 0.0032, 0.0024, 0.0021, 0.0019),
        "steps on states, official": _curve(0.0921, 0.312, 0.0779, 0.0274, 0.0204, 0.0178, 0.0154),
        "steps on features, official": _curve(
            0.0467, 0.105, 0.0177, 0.0058, 0.0046, 0.0039, 0.0037
        ),
    },
    "contracting": {
        "contracting-lsa-1": _curve(0.8905),
        "one gradient step": _curve(0.9068),
        "contracting-lsa-2": _curve(0.3951),
        "contracting-lsa-4": _curve(0.1934),
        "contracting-lsa-6": _curve(0.2191),
        "contracting-mesa-1": _curve(0.1536),
        "steps, official": _curve(0.2626),
    },
    "fixed": {},
    "core": {},
}
"""By task and predictor: figures 4, 6C, 7, 11, 24C. The mean of lsa-1 is that of Fig. 4A, the training of
our recipe; its positions are those of the authors' other one-layer model, with a mean of 0.8942 (Fig. 4C).
Figure 12 has no numbers, only a picture."""

LEARNING: dict[str, dict[int, float]] = {
    "lsa-1": {
        200: 1.341,
        300: 0.9787,
        400: 0.9149,
        600: 0.9029,
        1000: 0.8985,
        2000: 0.8937,
        3400: 0.8924,
    },
    "lsa-2-notebook": {300: 1.34284, 400: 0.84098, 600: 0.58369, 1000: 0.44729, 2400: 0.43118},
    "mesa-1": {
        100: 1.519,
        200: 0.485,
        300: 0.305,
        500: 0.247,
        1000: 0.215,
        2000: 0.1995,
        4400: 0.1903,
    },
}
"""Test losses by optimiser step: of lsa-1 and mesa-1 from the data of Fig. 4A, of lsa-2-notebook from the
authors' notebook."""

MILESTONES: dict[str, dict[int, float]] = {
    "lsa-1": {400: 0.915, 1000: 0.898, 3400: 0.892},
    "lsa-2-notebook": {400: 0.84098},
    "mesa-1": {200: 0.485, 500: 0.247, 1000: 0.215, 4400: 0.190},
}
"""Of these, the ones that `core` judges, as the paper prints them."""

NOTEBOOK_POSITIONS = {
    6: (1.1280, 0.0166),
    11: (0.6393, 0.0154),
    21: (0.24274, 0.0025),
    31: (0.15469, 0.0094),
}
"""Two linear layers in the authors' notebook: loss by position, counted from 1 (there from 0), and the
standard deviation over five test sets."""

COEFFICIENT = 0.0334
"""Figures 3B and 13: the effective coefficient of lsa-1 that stands out, its step size."""

COMPRESSED = {"lsa-1": 0.8944}
INTERPOLATED_BY_STEP = {
    "lsa-1": {0: 1.330, 200: 1.047, 300: 0.9144, 400: 0.8985, 1000: 0.8946, 3400: 0.8921}
}
"""Figure 4A: loss of a layer compressed after 2500 steps, and of the layers halfway to it, by step."""

RELEASED_COMPRESSED = {
    "lsa-1": (0.8975, 0.8962),
    "lsa-2": (0.4306, 0.4229),
    "lsa-4": (0.2336, 0.3362),
    "lsa-6": (0.2125, 0.4018),
}
"""Loss of the authors' released weights, trained longer than those of figures 4A and 4B, and of the scalars
that they compress to: computed from the weights, not printed in the paper."""

KEY_QUERY_ENERGY = {(1, 4): (0.92, 0.98), (5,): (0.73, 0.91), (6,): (0.37, 0.53)}
"""Six linear layers, released weights: the share of the squared entries of W_k^T W_q that multiples of the
identity explain, lowest and highest of the heads, by first and last layer. Not printed in the paper."""
FEW_SHOT: dict[str, dict[str, dict[int, float]]] = {
    "tf-7-few-shot": {
        "pairs": {
            **{0: 1.685, 1: 1.797, 3: 1.803, 4: 1.918, 5: 1.838},
            **{10: 1.410, 20: 1.007, 30: 0.885, 59: 0.755},
        },
        "separator": {
            **{0: 1.685, 1: 1.816, 3: 2.113, 5: 1.624},
            **{10: 1.077, 20: 0.856, 30: 0.704, 59: 0.584},
        },
        "prefix": {
            **{0: 1.792, 1: 1.777, 3: 1.607, 5: 1.317},
            **{10: 0.943, 20: 0.754, 30: 0.638, 59: 0.550},
        },
    },
    "hybrid-mesa-few-shot": {
        "pairs": {
            **{0: 2.143, 1: 1.728, 3: 2.003, 5: 2.508},
            **{10: 1.496, 20: 0.874, 30: 0.755, 59: 0.633},
        },
        "separator": {
            **{0: 2.144, 1: 1.583, 3: 1.473, 5: 1.333},
            **{10: 0.847, 20: 0.649, 30: 0.598, 59: 0.567},
        },
        "prefix": {
            **{0: 1.675, 1: 1.602, 3: 1.342, 5: 1.187},
            **{10: 0.831, 20: 0.667, 30: 0.610, 59: 0.571},
        },
    },
    "least squares": {
        "pairs": {
            **{0: 1.645, 1: 1.511, 3: 1.915, 4: 2.155, 5: 2.074},
            **{10: 1.318, 20: 0.784, 30: 0.661, 59: 0.527},
        }
    },
}
"""Figures 8 and 18: loss by pairs seen before, of models on bare pairs, with EOS, with a prefix too. The
means of `FEW_SHOT_SEQUENCES` sequences, in five batches of 128."""
FEW_SHOT_SEQUENCES = 640
FEW_SHOT_SECOND_TASK = (2.2, 2.35)
"""Figures 8 and 18: range of the losses of all models at the switch to a second task."""
FEW_SHOT_SWITCHES = {"pairs": 40, "separator": 27}
"""Figures 8 and 18: pairs before the second task, without EOS and with it (81 tokens)."""

LOSS_PER_DIMENSION: dict[str, dict[int, float]] = {
    "least squares, official": {
        **{4: 0.0329, 6: 0.0285, 10: 0.0264},
        **{20: 0.0247, 40: 0.0231, 60: 0.0224},
    },
    "kernel regression": {
        **{4: 0.0798, 6: 0.0780, 10: 0.0844},
        **{20: 0.0947, 40: 0.1076, 60: 0.1150},
    },
}
"""Figure 5B, noise 0.01: loss per dimension, 2 (batch) (time) (dim) in the denominator; least squares as
the authors' code has it, without the newest pair; the means of `LOSS_PER_DIMENSION_SEQUENCES` sequences.
Figure 20 has more noise, and no numbers."""
LOSS_PER_DIMENSION_SEQUENCES = 640

ByDepth = dict[int, tuple[float, ...]]
"""By position: before the first layer and behind each."""

_LSA_NEXT: ByDepth = {
    6: (1.533, 0.995, 0.937, 0.882, 0.805, 0.771, 0.748),
    21: (1.526, 0.573, 0.394, 0.181, 0.073, 0.042, 0.0152),
    50: (1.535, 0.492, 0.197, 0.043, 0.044, 0.029, 0.0075),
}
_LSA_STEPS: ByDepth = {
    6: (2.75, 1.10, 1.28, 0.664, 0.435, 0.404, 0.404),
    21: (0.0465, 0.0237, 0.0197, 0.0070, 0.0024, 0.0025, 0.0027),
    41: (0.0084, 0.0044, 0.0025, 0.0014, 0.0009, 0.0016, 0.0017),
}
_TF_NEXT: ByDepth = {
    21: (1.614, 1.371, 0.864, 0.502, 0.325, 0.189, 0.0728, 0.0188),
    50: (1.620, 1.376, 0.798, 0.422, 0.262, 0.114, 0.0374, 0.0092),
}
_TF_STEPS: ByDepth = {
    6: (3.269, 2.727, 2.287, 1.647, 1.301, 1.078, 1.100, 1.107),
    21: (0.0513, 0.0452, 0.0374, 0.0297, 0.0224, 0.0184, 0.0188, 0.0186),
    50: (0.0058, 0.0049, 0.0042, 0.0033, 0.0022, 0.0018, 0.0019, 0.0020),
}
_NONLINEAR_NEXT: ByDepth = {50: (0.308, 0.105, 0.080, 0.021, 0.0161, 0.0109, 0.0046, 0.0022)}
_NONLINEAR_STEPS: ByDepth = {50: (0.0054, 0.0023, 0.0021, 0.0018, 0.0019, 0.0020, 0.0021, 0.0021)}

NEXT_TOKEN_PROBES: dict[str, ByDepth] = {
    "lsa-6": _LSA_NEXT,
    "tf-7": _TF_NEXT,
    "tf-7-nonlinear": _NONLINEAR_NEXT,
}
PRECONDITIONING_PROBES: dict[str, ByDepth] = {
    "lsa-6": _LSA_STEPS,
    "tf-7": _TF_STEPS,
    "tf-7-nonlinear": _NONLINEAR_STEPS,
}
"""Figures 4E, 4F, 6 and 25: by recipe and position, before the first layer and behind each. Half
squares, fitted and scored on the same 256 sequences; preconditioned inputs without those whose norm is an
outlier."""


def _last_tokens(*values: float) -> dict[int, float]:
    return dict(zip(range(43, 51), values, strict=True))


TOKEN_PROBES: dict[str, dict[int, float]] = {
    "tf-7": _last_tokens(0.2529, 0.2557, 0.2587, 0.2613, 0.2611, 0.1507, 0.0004, 0.00001),
    "hybrid-mesa": _last_tokens(0.2789, 0.2715, 0.2629, 0.2530, 0.1190, 0.1111, 0.0048, 0.0),
    "full-mesa-published": _last_tokens(
        0.2530, 0.2541, 0.2480, 0.2445, 0.2322, 0.2330, 0.2060, 0.0004
    ),
    "tf-7-partial": _last_tokens(0.764, 0.721, 0.696, 0.549, 0.0258, 0.0008, 0.0001, 0.0),
    "hybrid-mesa-partial": _last_tokens(0.556, 0.588, 0.530, 0.0463, 0.0014, 0.0002, 0.00004, 0.0),
}
"""Figures 2A and 17: by recipe and token, mean squares per coordinate of probes behind the first
layer at position 50, fitted and scored on the same 256 sequences. The models are not those of other
figures: tf-7 had 20,000 steps, hybrid-mesa 12,000."""

TEACHER_PROBES: dict[str, dict[int, tuple[float | None, ...]]] = {
    "tf-7-nonlinear": {
        49: (21.5, 0.065, 0.586, 1.28, 1.68, 2.24, 2.60, None),
        50: (11.7, 0.042, 0.281, 1.10, 1.70, 2.08, 2.50, None),
    },
    "hybrid-mesa-nonlinear": {49: (None, 0.140, 0.151), 50: (None, 0.121, 0.132)},
}
"""Figure 2B: the teacher's output for the last two tokens, decoded at position 50, mean squares per
coordinate; before the first layer and behind each, None where it is not known. Keys are tokens, not
positions."""
LINEARISED = {
    4: (2.07, 1.58, 1.21, 1.12, 1.15, 1.13, 1.19),
    6: (2.19, 1.45, 1.29, 1.14, 1.16, 1.14, 1.17),
    10: (2.27, 1.44, 1.18, 1.09, 1.08, 1.05, 1.04),
    20: (3.15, 1.35, 1.06, 1.06, 1.02, 1.01, 1.05),
}
"""Figure 5A, by dimension: loss with one layer linear over that of the softmax model, layer 1 to 7, mean
over five seeds; they spread by 0.09 to 0.45 in the first layer and 0.004 to 0.2 in the others."""

ATTENTION_SHARES: dict[str, tuple[tuple[float, float], ...]] = {
    "tf-7": ((0.586, 0.236), (0.442, 0.518), (0.020, 0.847), (0.975, 0.024)),
    "hybrid-mesa": ((0.53, 0.41), (0.65, 0.32), (0.54, 0.41), (0.32, 0.61)),
}
"""Shares of attention of the first layer on the token itself and on the previous one, by head: computed
from the authors' released weights, positions from the sixth on; not printed in the paper."""

SENSITIVITIES: dict[str, tuple[float, ...]] = {
    "tf-7": (1.229, 1.007, 0.280, 0.036, 0.010, 0.008, 0.0036),
    "hybrid-mesa": (0.333, 0.323, 0.073, 0.011, 0.003, 0.001, 0.00005),
    "tf-7-partial": (0.873, 0.674, 0.462, 0.291, 0.133, 0.061, 0.003),
    "hybrid-mesa-partial": (0.166, 0.163, 0.173, 0.125, 0.073, 0.019, 0.001),
    "tf-7-nonlinear": (0.313, 0.0735, 0.027, 0.012, 0.009, 0.009, 0.002),
    "hybrid-mesa-nonlinear": (0.752, 0.504, 0.041, 0.002, 0.0002, 0.0001, 0.0003),
}
SENSITIVITY_STEP = 2900
"""Figures 16, 22 and 23: sensitivity of the last position to tokens 50 ... 45 and the mean of older ones,
after this many steps."""
