"""Problems for the mesa operator, and their comparison with the dense definition."""

import torch

from mesaopt.ops import MesaState, mesa, reference

EPS = torch.finfo(torch.float64).eps
# Every solve of a `problem` has a condition number under 1e3 in float64; results then agree to some
# 1e3 EPS, times the 1e1 to 1e2 roundings of a sum over positions.
CLOSE = 1e5 * EPS
NAMES = ("q", "k", "v", "ridge", "beta", "log_decay")
# Bound of the gates and ridge mode.
EXACT_MODES = [(None, "static"), (0.05, "decayed")]
MODES = [*EXACT_MODES, (0.05, "static")]
DIRECT = ("auto", "cg", "recursive")


def make(time, *, gate=0.05, batch=2, heads=2, key=4, value=3, ridge=0.25, seed=0, dtype=None):
    """Unit queries and keys, normal values, gates up to exp(-gate), ridges from `ridge` up."""
    random = torch.Generator().manual_seed(seed)
    dtype = dtype or torch.float64

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(normal(batch, time, heads, key), dim=-1) for _ in "qk")
    given = {
        "q": q,
        "k": k,
        "v": normal(batch, time, heads, value),
        "ridge": ridge * (1 + uniform(heads, key)),
        "beta": uniform(batch, time, heads),
        "log_decay": None if gate is None else -gate * uniform(batch, time, heads),
    }
    return {n: None if x is None else x.to(dtype).requires_grad_() for n, x in given.items()}


def make_state(seed=1, *, batch=2, heads=2, key=4, value=3):
    random = torch.Generator().manual_seed(seed)
    root = torch.randn(batch, heads, key, key, generator=random, dtype=torch.float64)
    cross = torch.randn(batch, heads, value, key, generator=random, dtype=torch.float64)
    past = -torch.rand(batch, heads, generator=random, dtype=torch.float64)
    return MesaState(*(x.requires_grad_() for x in (root @ root.mT / key, cross, past)))


def error(found, wanted):
    """Relative error in the Frobenius norm; 0 where both are 0."""
    found, wanted = found.detach().double(), wanted.detach().double()
    scale = wanted.norm().item()
    return (found - wanted).norm().item() / (scale or 1.0)


def gradients(output, inputs, upstream):
    tensors = [x for x in inputs.values() if x is not None]
    return torch.autograd.grad(output, tensors, upstream)


def reference_of(inputs, mode, state=None):
    exact = {n: None if x is None else x.detach().double() for n, x in inputs.items()}
    exact = {n: None if x is None else x.requires_grad_() for n, x in exact.items()}
    output, end = reference.mesa(**exact, ridge_mode=mode, state=state)
    return exact, output, end


def compare(inputs, mode, *, tolerance, **options):
    """Check values, final state and every gradient against the dense definition in float64."""
    result = mesa(**inputs, ridge_mode=mode, **options)
    exact, wanted, end = reference_of(inputs, mode)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(9))
    upstream = upstream.to(result.output.dtype)
    found_gradients = gradients(result.output, inputs, upstream)
    wanted_gradients = gradients(wanted, exact, upstream.double())
    errors = {"output": error(result.output, wanted)}
    errors |= {f"state {i}": error(a, b) for i, (a, b) in enumerate(zip(result.state, end))}  # noqa: B905
    present = [n for n in NAMES if inputs[n] is not None]
    for name, found, right in zip(present, found_gradients, wanted_gradients, strict=True):
        errors[f"d{name}"] = error(found, right)
    assert max(errors.values()) <= tolerance, errors
    return result


def define_steps(q, k, v, *, ridge, beta, log_decay=None, ridge_mode, solver):
    """Take the steps of Neumann or Chebyshev on dense matrices; also return their bounds."""
    log_decay = torch.zeros_like(beta) if log_decay is None else log_decay
    gram, cross, past = 0.0, 0.0, torch.zeros_like(beta[:, 0])
    outputs, bounds = [], []
    for t in range(q.shape[1]):
        decay, strength = (x[:, t, :, None, None] for x in (log_decay.exp(), beta))
        gram = decay * gram + strength * k[:, t, :, :, None] * k[:, t, :, None]
        cross = decay * cross + strength * v[:, t, :, :, None] * k[:, t, :, None]
        past = past + log_decay[:, t]
        own = ridge * (past.exp()[..., None] if ridge_mode == "decayed" else 1.0)  # [B,H,K]
        matrix = gram + torch.diag_embed(own.expand(q[:, t].shape))
        least = own.amin(-1)[..., None, None]
        bound = (gram.square().sum((-2, -1), keepdim=True) + least.square()).sqrt()
        bound = bound + own.amax(-1)[..., None, None]
        steps = _take_neumann_steps if type(solver).__name__ == "Neumann" else _take_chebyshev_steps
        solution = steps(matrix, q[:, t].unsqueeze(-1), least, bound, solver.steps)
        outputs.append((cross @ solution).squeeze(-1))
        bounds.append(bound.squeeze(-1))
    return torch.stack(outputs, dim=1), torch.stack(bounds, dim=1)


def _take_neumann_steps(matrix, rhs, least, bound, steps):
    solution = rhs
    for _ in range(steps):
        solution = solution + (rhs - matrix @ solution) / bound
    return solution


def _take_chebyshev_steps(matrix, rhs, least, bound, steps):
    """Take the three-term form: another recursion of the same polynomials as the solver's."""
    middle, radius = (bound + least) / 2, (bound - least) / 2
    before, solution = rhs, rhs
    ratio, weight = middle / radius, None
    for step in range(steps):
        residual = rhs - matrix @ solution
        if step == 0:
            before, solution = solution, solution + residual / middle
            weight = 2.0 * torch.ones_like(ratio)
            continue
        weight = 1 / (1 - weight / (4 * ratio.square()))
        before, solution = solution, before + weight * (solution - before + residual / middle)
    return solution
