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
}
"""By task and predictor: figures 4, 6C, 7, 11. The mean of lsa-1 is that of Fig. 4A, the training of our
recipe; its positions are those of the authors' other one-layer model, with a mean of 0.8942 (Fig. 4C).
Figure 12 has no numbers, only a picture."""

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
means of five batches of 128 sequences. At the switch to a second task all are between 2.2 and 2.35."""

LEAST_SQUARES_PER_DIMENSION = {4: 0.0329, 6: 0.0285, 10: 0.0264, 20: 0.0247, 40: 0.0231, 60: 0.0224}
KERNEL_PER_DIMENSION = {4: 0.0798, 6: 0.0780, 10: 0.0844, 20: 0.0947, 40: 0.1076, 60: 0.1150}
"""Figure 5B, noise 0.01: loss per dimension, 2 (batch) (time) (dim) in the denominator; least squares as
the authors' code has it, without the newest pair. Figure 20 has more noise, and no numbers."""
