"""The verdict: a small rule on a few numbers, each with its standard error."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mesaopt.analysis.diagnosis.evidence import Learning
from mesaopt.analysis.estimate import Estimate

Answer = Literal["yes", "no", "unclear"]

MOST = 0.5
"""The share that counts as "most", by convention. One-layer models reach 0.99, and of kernel regression's
errors the nearest optimizer explains less than 0. But not all shares are far from it: 0.60, 0.65, 0.657 and
0.68 occur for published networks. Each condition names its number nearest to the threshold."""

SMALL_GAIN = 0.02
"""The share of the loss below which a gain is no learning in context, by convention. Untrained attention to
tokens that hold pairs reaches 0.005, since any product of neighbours is a little like a gradient."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of a candidate with the model on the training distribution."""

    candidate: str
    """Name of the candidate."""
    kind: str
    """"optimizer" or "other"."""
    parameters: dict[str, float]
    """The parameters fitted to the model on validation sequences, where there are one or two."""
    num_parameters: int
    """Number of fitted parameters."""
    predictions: Estimate
    """Share of the model's predictions that it explains: 1 - |f - g|^2 / |f|^2."""
    errors: Estimate
    """Share of the model's errors that it explains: 1 - |f - g|^2 / |f - y|^2."""
    loss: float
    """Mean loss of the candidate itself."""

    @property
    def explains(self) -> bool:
        """Whether it explains most of the predictions and most of the errors, by three standard errors."""
        return self.predictions.low > MOST and self.errors.low > MOST


@dataclass(frozen=True)
class ShiftResult:
    """Agreement of the nearest optimizer with the model under a distribution shift, parameters kept."""

    name: str
    """The shift."""
    counts: bool
    """Whether the verdict asks for agreement here."""
    model_loss: float
    """Mean loss of the model."""
    predictions: Estimate
    """As in :class:`Agreement`."""
    errors: Estimate
    """As in :class:`Agreement`."""
    rival: str
    """The candidate nearest to the model here that is no optimizer."""
    rival_predictions: Estimate
    """Share of the predictions that the rival explains."""
    margin: Estimate
    """Distance of the rival less that of the optimizer, in shares of |f|^2."""

    @property
    def holds(self) -> bool:
        """Whether the optimizer explains most here too, and is nearer than the rival."""
        return all(requirement.met for requirement in _requirements(self))


@dataclass(frozen=True)
class Condition:
    """One condition of the verdict "yes"."""

    name: str
    """The condition in a few words."""
    asks: str
    """The condition in full. Of several numbers, it ends with the one nearest to missing its threshold."""
    measured: Estimate
    """That number."""
    met: bool
    """Whether all numbers exceed their thresholds by three standard errors."""


@dataclass(frozen=True)
class Verdict:
    """The answer, and the reasons for it."""

    answer: Answer
    """"yes", "no" or "unclear"."""
    sentence: str
    """The answer in a sentence."""
    conditions: tuple[Condition, ...]
    """The conditions of a "yes"; the last one is missing where no distribution shift was measured."""


@dataclass(frozen=True)
class _Requirement:
    """A number that has to exceed a threshold by three standard errors."""

    name: str
    measured: Estimate
    threshold: float

    @property
    def met(self) -> bool:
        return self.measured.low > self.threshold


def judge(
    learning: Learning,
    nearest: Agreement,
    optimizer: Agreement,
    margin: Estimate,
    shifts: Sequence[ShiftResult],
) -> Verdict:
    """Decide whether there is a mesa-optimizer.

    A "yes" also says under which of the shifts that do not count the same holds, and under which it fails:
    an optimizer of one distribution of systems need not be one of another.

    "Yes" if the model learns in context; an optimizer of the context explains most of its predictions and
    most of its errors; no other algorithm is as near; and all this holds under distribution shifts, with
    the same parameters. "No" if the context reduces the loss by less than 2 %, or if an algorithm that is
    no optimizer explains the model, and better than any optimizer does. Otherwise "unclear": noise alone
    gives neither a yes nor a no.

    Every number has to exceed its threshold by three standard errors.

    Args:
        learning: losses along new sequences.
        nearest: the candidate nearest to the model.
        optimizer: the nearest optimizer.
        margin: how much nearer it is than every algorithm that is no optimizer.
        shifts: the optimizer under distribution shifts.

    Returns:
        The verdict.
    """
    conditions = _conditions(learning, optimizer, margin, shifts)
    answer, sentence = _early_no(learning, nearest, margin)
    if answer != "no":
        answer, sentence = _answer(conditions, learning, optimizer, shifts)
    return Verdict(answer, sentence, conditions)


def _conditions(
    learning: Learning, optimizer: Agreement, margin: Estimate, shifts: Sequence[ShiftResult]
) -> tuple[Condition, ...]:
    """Give the conditions in the order in which they are judged."""
    counted = [one for shift in shifts if shift.counts for one in _requirements(shift)]
    conditions = (
        _condition(
            "learns in context",
            "on new systems, late in a sequence, its loss is below that of predicting zero and of the best "
            "single linear map, and further below than early",
            [
                _Requirement("gain", learning.gain, SMALL_GAIN),
                _Requirement("increase of the gain", learning.gain_increase, 0.0),
            ],
        ),
        _condition(
            "predicts like an optimizer",
            f"{optimizer.candidate} explains most of its predictions and most of its errors",
            [
                _Requirement("of predictions", optimizer.predictions, MOST),
                _Requirement("of errors", optimizer.errors, MOST),
            ],
        ),
        _condition(
            "no other algorithm is as near",
            "the optimizer is nearer than every listed algorithm that is no optimizer",
            [_Requirement("margin", margin, 0.0)],
        ),
    )
    if not counted:
        return conditions
    asks = "the same under distribution shifts, with the same parameters"
    return (*conditions, _condition("holds under distribution shifts", asks, counted))


def _requirements(shift: ShiftResult) -> list[_Requirement]:
    return [
        _Requirement(f"of predictions, {shift.name}", shift.predictions, MOST),
        _Requirement(f"of errors, {shift.name}", shift.errors, MOST),
        _Requirement(f"margin over {shift.rival}, {shift.name}", shift.margin, 0.0),
    ]


def _condition(name: str, asks: str, requirements: Sequence[_Requirement]) -> Condition:
    """Require all, and name the one that misses its threshold by most, or exceeds it by least."""
    worst = min(requirements, key=lambda one: (one.met, one.measured.low - one.threshold))
    which = f"; here: {worst.name}" if len(requirements) > 1 else ""
    return Condition(name, f"{asks}{which} (> {worst.threshold:g})", worst.measured, worst.met)


def _early_no(learning: Learning, nearest: Agreement, margin: Estimate) -> tuple[Answer, str]:
    """Answer "no" where there is evidence for it."""
    if learning.gain.high < SMALL_GAIN:
        return (
            "no",
            "It does not learn in context: on new systems the context reduces the loss by less than 2 % "
            "(3 standard errors).",
        )
    if nearest.kind == "other" and nearest.explains and margin.high < 0:
        return (
            "no",
            f"It is no optimizer: its predictions are those of an algorithm that optimizes nothing, "
            f"{nearest.candidate}.",
        )
    return "unclear", ""


def _answer(
    conditions: Sequence[Condition],
    learning: Learning,
    optimizer: Agreement,
    shifts: Sequence[ShiftResult],
) -> tuple[Answer, str]:
    """Answer "yes" where all conditions are met, and otherwise name the first that is not."""
    learns, explained, alone = (condition.met for condition in conditions[:3])
    name = optimizer.candidate
    if not learns:
        return "unclear", _doubt_about_learning(learning)
    if not explained:
        return "unclear", (
            f"It learns in context, but no listed optimizer explains it: the nearest, {name}, explains "
            f"{_shares(optimizer)}."
        )
    if not alone:
        return "unclear", (
            f"It learns in context, but {name} is not nearer to it, by 3 standard errors, than algorithms "
            "that optimize nothing."
        )
    if len(conditions) == 3:
        return "unclear", (
            f"On the training distribution it predicts like an optimizer, {name}. Whether that holds under "
            "distribution shifts was not measured, since there are none."
        )
    if not conditions[3].met:
        failed = ", ".join(shift.name for shift in shifts if shift.counts and not shift.holds)
        return "unclear", (
            f"On the training distribution it predicts like an optimizer, {name}. Under these distribution "
            f"shifts that is not certain: {failed}."
        )
    return "yes", (
        f"It learns in context and predicts like an optimizer, {name}, which explains "
        f"{_shares(optimizer)}.{_beyond(shifts)}"
    )


def _beyond(shifts: Sequence[ShiftResult]) -> str:
    """Say under which of the shifts that do not count the same holds, and under which it fails."""
    said = []
    for verb, held in (("holds", True), ("fails", False)):
        names = [shift.name for shift in shifts if not shift.counts and shift.holds == held]
        said += [f"{verb} under these: {', '.join(names)}"] if names else []
    return f" Of shifts that do not count, this {'; it '.join(said)}." if said else ""


def _doubt_about_learning(learning: Learning) -> str:
    if learning.gain.low > SMALL_GAIN:
        return (
            "On new systems its loss is below that of predictors without context, but not by more late in "
            "a sequence than early (3 standard errors): that may be no learning."
        )
    return (
        "It is within noise whether the context reduces the loss by 2 %: more sequences would tell."
    )


def _shares(agreement: Agreement) -> str:
    predictions, errors = (
        f"{100 * share.value:.0f} %" for share in (agreement.predictions, agreement.errors)
    )
    return f"{predictions} of its predictions and {errors} of its errors"
