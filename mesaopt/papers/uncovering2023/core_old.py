"""The story of von Oswald et al. on one page: a linear self-attention layer becomes gradient descent.

The plans are here; what is measured, drawn and judged stands in the modules `core_measure`,
`core_figures` and `core_claims`.
"""

from mesaopt.papers.plan import Item, Measured, Part, Plan, Report, Results, Scale, Training
from mesaopt.papers.uncovering2023 import core_claims, core_figures
from mesaopt.papers.uncovering2023.core_measure import LSA_1, LSA_2, MESA, measure

_SECONDS_PER_BATCH = 0.25
_PREDICTORS_PER_RUN = 5  # its last weights, some earlier ones, a compressed form


def compute(trained: Measured, report: Report) -> Results:
    """Turn trained runs into figures and claims.

    Args:
        trained: what was run.
        report: told how many batches of 256 test sequences are done.

    Returns:
        Figures and claims, in the order of the report.
    """
    batches = _batches(trained.plan)
    measured = measure(trained.plan, trained.runs, lambda done: report(done, batches))
    return Results(figures=core_figures.draw(measured), claims=core_claims.judge(measured))


def _batches(plan: Plan) -> int:
    return -(-plan.num_sequences // 256)


def _memory(plan: Plan) -> int:
    """The losses that scoring keeps: float32, by sequence and position."""
    lengths = [config.task.length for config in plan.configs.values()]
    return 4 * _PREDICTORS_PER_RUN * (len(lengths) + 1) * plan.num_sequences * max(lengths)


def _plan(scale: Scale, lsa_1: Training, lsa_2: Training, mesa: Training, sequences: int) -> Plan:
    return Plan(what="core", scale=scale, trainings=(lsa_1, lsa_2, mesa), num_sequences=sequences)


CORE = Item(
    name="core",
    title="A mesa-optimizer, learned and taken apart",
    summary="one linear self-attention layer becomes gradient descent; two layers and a mesa layer beat it",
    introduction=(
        "Small sequence models are trained from scratch to predict the next state of linear systems, "
        "each sequence with a rotation of its own. To predict well, a model has to learn the rotation "
        "from the sequence it is reading. The paper's finding: one linear self-attention layer comes to "
        "do this by a step of gradient descent, two layers go further, and a mesa layer solves the "
        "least-squares problem exactly. Everything below was trained and measured on this machine."
    ),
    plans={
        "smoke": _plan(
            "smoke",
            Training(recipe=LSA_1, seeds=1, steps=1000, evaluation_sequences=512),
            Training(recipe=LSA_2, seeds=1, steps=400, evaluation_sequences=512),
            Training(recipe=MESA, seeds=1, steps=500, evaluation_sequences=512),
            2048,
        ),
        "small": _plan(
            "small",
            Training(recipe=LSA_1, seeds=3, steps=3500),
            Training(recipe=LSA_2, seeds=1, steps=2500),
            Training(recipe=MESA, seeds=1, steps=4500),
            20_480,
        ),
        "paper": _plan(
            "paper",
            Training(recipe=LSA_1, seeds=5, steps=3500),
            Training(recipe=LSA_2, seeds=5, steps=2500),
            Training(recipe=MESA, seeds=5, steps=4500),
            102_400,
        ),
    },
    measure=Measured,
    parts=(
        Part(
            name="measuring",
            summary="every model and baseline on the same test sequences, drawn and judged",
            compute=compute,
            seconds=lambda plan: _batches(plan) * _SECONDS_PER_BATCH,
            memory=_memory,
        ),
    ),
)
