"""Published settings of the baselines of von Oswald et al., who tuned them on their test sequences."""

from dataclasses import dataclass

from mesaopt.theory.inverses import ApproximateInverse


@dataclass(frozen=True)
class PublishedSetting:
    """A number that the authors chose by the loss on their test sequences, not on held-out ones.

    Example:
        >>> PUBLISHED_SETTINGS["fully-observed/ridge"].value
        0.001
    """

    value: float
    """The number."""
    source: str
    """Figures that use it."""


PUBLISHED_SETTINGS: dict[str, PublishedSetting] = {
    "fully-observed/ridge": PublishedSetting(0.001, "Figures 4 to 7, least squares"),
    "fully-observed/step-size": PublishedSetting(0.032, "Figure 4, one gradient step"),
    "contracting/step-size": PublishedSetting(
        8.83e-4, "Figure 11, one gradient step; the best of 25 from 1e-5 to 1e-3"
    ),
    "contracting/ridge": PublishedSetting(1.33339, "Figure 11, Proposition 2"),
    "partially-observed/ridge": PublishedSetting(10.0, "Figure 24, probes and Proposition 2"),
    "partially-observed/loss-ridge": PublishedSetting(0.001, "Figure 7B, Proposition 2"),
}
"""Published settings, by task and setting."""


def _learned(
    step_sizes: tuple[float, ...], momenta: tuple[float, ...], *, ridge: float = 0.001
) -> ApproximateInverse:
    return ApproximateInverse(
        step_sizes=step_sizes, momenta=momenta, ridge=ridge, scale="frobenius"
    )


PUBLISHED_INVERSES: dict[str, ApproximateInverse] = {
    "7-layer": _learned(
        (1.0292, 3.8551, 3.7469, 3.3828, 2.9882, 2.0934),
        (0.0, 0.6402, 0.4798, 0.8144, 1.6680, 2.4196),
    ),
    "3-layer": _learned((1.2316, 8.1996), (0.0, 4.9499)),
    "constructed": _learned(
        (1.0258, 3.2508, 3.2584, 3.2123, 2.6944, 1.2727),
        (0.0, 0.6788, 0.3075, 0.7447, 1.8360, 2.3438),
    ),
    "nonlinear": _learned(
        (1.0031, 4.0158, 3.8662, 3.3217, 2.7571, 2.1693),
        (0.0, 0.5630, 0.5661, 0.9348, 1.5603, 2.4258),
    ),
    "partially-observed": _learned(
        (1.0931, 3.1099, 3.1626, 3.0759, 1.9026, 0.2224),
        (0.0, 0.7379, 0.1828, 0.7572, 1.2498, 2.2920),
        ridge=10.0,
    ),
    "contracting": _learned(
        (1.0062, 3.0710, 3.4642, 2.7946, 1.8724, 0.8222),
        (0.0, 0.2959, 0.3160, 0.9746, 1.5110, 1.8157),
        ridge=1.33339,
    ),
    "fixed-transition": _learned(
        (1.0406, 4.1751, 4.0838, 3.6817, 3.2784, 2.3700),
        (0.0, 0.6201, 0.5153, 0.8791, 1.7479, 2.5255),
    ),
}
"""Step sizes and momenta learned by the authors, by the model or task that they are compared with.

The baseline of a transformer of n layers has n - 1 steps and one gradient step after them. The authors'
solver drops the newest pair; on all pairs the same steps do better. The ridge is 0.001 for fully observed
systems and 1.33339 for contracting ones. For systems observed in part it is 10 in the probing figure, which
also draws the losses of the steps of seven layers with it, and 0.001 in Figure 7B. For the nonlinear system
and the fixed matrix it is not known; 0.001 is assumed.

Source: the files behind Figures 4, 6, 7, 11 and 12 in the authors' repository.
"""
