"""Affine maps from activations to a variable, fitted by ridge regression at many places at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesaopt.tasks import squared_error

RIDGE = 1e-9
"""Default penalty of a probe, relative to the variance of each feature. Features that are copies of others
need one; in float64 this is enough, and it costs less than the sampling of sequences."""


@dataclass(frozen=True)
class Probe:
    """An affine map: features @ weight + intercept. Made by :func:`fit_probe`.

    Example:
        >>> Probe(torch.tensor([[2.0]]), torch.tensor([1.0])).predict(torch.tensor([[3.0]])).item()
        7.0
    """

    weight: Float[Tensor, "*place feature dim"]
    """One column per coordinate of the target."""
    intercept: Float[Tensor, "*place dim"]
    """Prediction where all features are zero."""

    def predict(
        self, features: Float[Tensor, "*place sequence feature"]
    ) -> Float[Tensor, "*place sequence dim"]:
        """Predict the target from features.

        Args:
            features: [..., sequence, feature].

        Returns:
            [..., sequence, dim], in float64.
        """
        return features.to(self.weight.dtype) @ self.weight + self.intercept[..., None, :]


def fit_probe(
    features: Tensor,
    targets: Tensor,
    *,
    ridge: float = RIDGE,
) -> Probe:
    """Fit an affine map by ridge regression in float64, at many places at once.

        minimise over A, b:  mean_n |y_n - A x_n - b|^2 + ridge * sum_f v_f |a_f|^2,

    with the variance v_f and the weights a_f of every feature, so that the ridge has no unit and the
    prediction does not depend on the units of features; b is not penalised. Features that do not vary get
    no weight. Combinations of features with less than the ridge of a feature's variance are not read.

    Args:
        features: x [..., sequence, feature], real, with more sequences than features: F features and an
            intercept are determined by F + 1 sequences or more.
        targets: y [..., sequence, dim], real.
        ridge: 0 or greater. 0 is refused where features do not vary or are linearly dependent.

    Returns:
        The probe, one per place.

    Raises:
        ValueError: the numbers of sequences differ, there are too few, ridge is negative or infinite, or it
            is 0 and the features are linearly dependent.

    Example:
        >>> x = torch.randn(100, 3)
        >>> probe = fit_probe(x, 2 * x + 1)
        >>> bool((probe.predict(x) - (2 * x + 1)).abs().max() < 1e-6)
        True
    """
    check_pair("features", features, "targets", targets)
    check_enough("features", features.shape)
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge}: must be 0 or greater")
    x, y = features.double(), targets.double()
    x_mean, y_mean = sequence_mean(x), sequence_mean(y)
    x, scale = _to_unit_variance(x - x_mean)
    y = y - y_mean
    gram = x.mT @ x / x.shape[-2]  # [..., F, F]
    if ridge == 0:
        _check_independent(gram)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram + ridge * identity, x.mT @ y / x.shape[-2]) / scale.mT
    return Probe(weight, (y_mean - x_mean @ weight).squeeze(-2))


def official_probe_error(
    features: Tensor,
    targets: Tensor,
    *,
    outlier_score: float | None = None,
) -> float:
    """Fit and score on the same sequences, as the published probes were: for comparison with them only.

    Least squares without an intercept, singular values cut off as in float32. The error is too small by
    about the ratio of features to sequences: 40 features that are independent of the target reach 84 % of
    its variance on 256 sequences.

    Args:
        features: [sequence, feature]; published with 256 sequences.
        targets: [sequence, dim].
        outlier_score: sequences whose targets have a norm more than this many standard deviations above
            the mean norm are left out, 0 or greater; published with 2 for preconditioned inputs. None: all
            count.

    Returns:
        Mean of half the squared error.

    Raises:
        ValueError: the numbers of sequences differ, or outlier_score is out of range.

    Source: von Oswald et al., the authors' code for Figures 2, 4, 6, 24 and 25.

    Example:
        >>> x = torch.randn(256, 40)
        >>> official_probe_error(x, x @ torch.randn(40, 10)) < 1e-8
        True
    """
    check_pair("features", features, "targets", targets)
    if outlier_score is not None and not outlier_score >= 0:
        raise ValueError(f"outlier_score={outlier_score}: must be 0 or greater")
    x, y = features.double(), targets.double()
    if outlier_score is not None:
        norms = y.norm(dim=-1, keepdim=True)
        above = (norms - sequence_mean(norms)).squeeze(-1)
        kept = above <= outlier_score * above.square().mean().sqrt()
        x, y = x[kept], y[kept]
    cutoff = torch.finfo(torch.float32).eps * max(x.shape)
    # Through the Gram matrix, whose eigenvalues are squares: float64 has enough digits for it.
    weight = torch.linalg.pinv(x.mT @ x, rtol=cutoff**2, hermitian=True) @ (x.mT @ y)
    return squared_error((x @ weight)[None], y[None]).mean().item()


def sequence_mean(x: Float[Tensor, "*place sequence channel"]) -> Float[Tensor, "*place 1 channel"]:
    """Give means over sequences, without rounding where a channel is constant."""
    first = x[..., :1, :]
    return first + (x - first).mean(-2, keepdim=True)


def _to_unit_variance(
    x: Float[Tensor, "*place sequence feature"],
) -> tuple[Float[Tensor, "*place sequence feature"], Float[Tensor, "*place 1 feature"]]:
    """Divide centred features by their standard deviations, and those that are zero by 1."""
    peak = x.abs().amax(-2, keepdim=True)
    peak = peak.where(peak > 0, 1.0)
    x = x / peak  # whose squares neither overflow nor vanish
    spread = x.square().mean(-2, keepdim=True).sqrt()
    spread = spread.where(spread > 0, 1.0)
    return x / spread, peak * spread


def _check_independent(gram: Float[Tensor, "*place feature feature"]) -> None:
    """Refuse features of unit variance whose combinations vary by no more than rounding."""
    values = torch.linalg.eigvalsh(gram)
    share = (values[..., 0] / values[..., -1]).min().item()
    if not share > gram.shape[-1] * torch.finfo(gram.dtype).eps:
        raise ValueError("ridge=0: features are linearly dependent: must be greater than 0")


def check_enough(argument: str, shape: Sequence[int], of: str = "") -> None:
    """Refuse features [..., sequence, feature] that do not determine a probe."""
    sequences, features = shape[-2:]
    if sequences <= features:
        given = f"{sequences} sequences for {features} features"
        raise ValueError(f"{argument}: {given}{of}: must be {features + 1} or more")


def check_pair(name: str, features: Tensor, other: str, targets: Tensor) -> None:
    """Refuse features and targets that are not real, or of other numbers of sequences."""
    for which, x in ((name, features), (other, targets)):
        if x.dim() < 2 or not x.is_floating_point():
            given = f"{tuple(x.shape)}, {x.dtype}"
            raise ValueError(f"{which}: {given}: must be real, [..., sequence, channel]")
    if features.shape[:-1] != targets.shape[:-1]:
        shapes = f"{name} is {tuple(features.shape)}, {other} {tuple(targets.shape)}"
        raise ValueError(f"{shapes}: must be of as many sequences")
