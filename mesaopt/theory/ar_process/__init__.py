"""The theory of one layer of linear attention trained on x_{t+1} = W x_t, as code that runs.

Three engines compute the loss: :class:`ClosedForm`, :func:`population_loss` and :func:`sampled_loss`.
:func:`descend` and :func:`flow` train on any of them. :func:`one_step` gives the limit of training.
"""

from mesaopt.theory.ar_process.closed_form import (
    ClosedForm,
    OneStep,
    harmonic,
    off_diagonal_gradients,
    one_step,
)
from mesaopt.theory.ar_process.conditions import (
    Recovery,
    SignFlipTest,
    one_step_identity,
    recovery_test,
    sign_flip_test,
)
from mesaopt.theory.ar_process.contrast import (
    DescentLimit,
    descent_limit,
    descent_predictions,
    mesa_predictions,
    unexplained,
)
from mesaopt.theory.ar_process.dynamics import OffDiagonal, Trajectory, descend, flow
from mesaopt.theory.ar_process.evaluation import LastToken, last_token
from mesaopt.theory.ar_process.moments import StartMoments, start_moments
from mesaopt.theory.ar_process.population import population_loss
from mesaopt.theory.ar_process.reduced import (
    limit_weights,
    logistic,
    reduced_flow,
    time_to_within,
)
from mesaopt.theory.ar_process.sampled import (
    DirectLoss,
    Stream,
    TiedEstimate,
    sampled_loss,
    sequences,
    tied_estimate,
)
from mesaopt.theory.ar_process.statistics import (
    Engine,
    QuadraticLoss,
    TiedLoss,
    stability_bound,
    tied_loss,
)
from mesaopt.theory.ar_process.weights import Blocks, Contexts, Weights, diagonal, normal

__all__ = [
    "Blocks",
    "ClosedForm",
    "Contexts",
    "DescentLimit",
    "DirectLoss",
    "Engine",
    "LastToken",
    "OffDiagonal",
    "OneStep",
    "QuadraticLoss",
    "Recovery",
    "SignFlipTest",
    "StartMoments",
    "Stream",
    "TiedEstimate",
    "TiedLoss",
    "Trajectory",
    "Weights",
    "descend",
    "descent_limit",
    "descent_predictions",
    "diagonal",
    "flow",
    "harmonic",
    "last_token",
    "limit_weights",
    "logistic",
    "mesa_predictions",
    "normal",
    "off_diagonal_gradients",
    "one_step",
    "one_step_identity",
    "population_loss",
    "recovery_test",
    "reduced_flow",
    "sampled_loss",
    "sequences",
    "sign_flip_test",
    "stability_bound",
    "start_moments",
    "tied_estimate",
    "tied_loss",
    "time_to_within",
    "unexplained",
]
