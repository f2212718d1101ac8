"""Runs that nobody trained, and figures measured and drawn on them, for the tests of papers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mesaopt import recipes
from mesaopt.analysis import Linearization
from mesaopt.config import RunConfig
from mesaopt.layers import LinearSelfAttention
from mesaopt.models import SequenceModel
from mesaopt.papers.claims import Claim
from mesaopt.papers.figure import Figure, draw, judge, measure
from mesaopt.papers.laboratory import Laboratory, Plan
from mesaopt.papers.rows import PanelData, Rows, read_table, table
from mesaopt.training import Checkpoint, Run, RunFolder, load_run

PLAN = Plan(what="uncovering2023", scale="smoke", num_sequences=256)


def run_of(
    recipe: str, model: SequenceModel | None = None, *, steps: int | None = None, seed: int = 0
) -> Run:
    """Make a run with a model set by hand, or with the weights that training starts from."""
    config = recipes.get(recipe, seed=seed)
    train = config.train if steps is None else replace(config.train, steps=steps)
    model = SequenceModel(config.sequence_model, seed=seed) if model is None else model
    metrics = [{"step": 0, "test_loss": 1.7}, {"step": train.steps, "test_loss": 1.0}]
    return Run(Path("nowhere"), replace(config, train=train), model, metrics, 0.0)


def a_linearization(
    ratios: Sequence[float],
    *,
    layers: Sequence[int] | None = None,
    distilled: Sequence[LinearSelfAttention] = (),
    unexplained: Sequence[float] | None = None,
    loss: float = 1.0,
) -> Linearization:
    """Make a linearisation with these ratios at every position, and errors of 1 %."""
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
    noise = 0.03**0.5 * 0.1 * signs  # its standard deviation, over 2, is 0.01
    losses = (
        torch.tensor(ratios, dtype=torch.float64)[:, None, None] + noise
    )  # [layer, sequence, 1]
    return Linearization(
        layers=tuple(range(len(ratios)) if layers is None else layers),
        distilled=tuple(distilled),
        losses=loss * losses.expand(-1, -1, 50),
        model_losses=torch.full((4, 50), loss, dtype=torch.float64),
        unexplained=torch.zeros(len(ratios)) if unexplained is None else torch.tensor(unexplained),
    )


def save_run(path: Path, config: RunConfig, models: Mapping[int, nn.Module]) -> Run:
    """Write a run folder whose checkpoints, by step, were set by hand: an AdamW that saw no gradient."""
    folder = RunFolder.open(path, config, resume=False)
    folder.log({"step": 0, "train_loss": None, "test_loss": 1.7, "learning_rate": 1e-3})
    for step, model in models.items():
        moments: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters() if step else ():
            moments[f"{name}/step"] = torch.tensor(float(step))
            for moment in ("exp_avg", "exp_avg_sq"):
                moments[f"{name}/{moment}"] = torch.zeros_like(parameter.detach())
        folder.save(Checkpoint(step, 0.0, dict(model.state_dict()), moments))
    return load_run(folder.path, device="cpu")


@dataclass
class Computed:
    """What a figure came to."""

    panels: dict[str, PanelData]
    claims: dict[str, Claim]
    settings: dict[str, Any]

    @property
    def rows(self) -> Rows:
        return [row for data in self.panels.values() for row in data.rows]

    @property
    def verdicts(self) -> dict[str, bool]:
        return {name: claim.passed for name, claim in self.claims.items()}


def compute(figure: Figure[Any], lab: Laboratory) -> Computed:
    """Measure a figure, draw it from what its files would hold, and judge its claims."""
    panels = measure(figure, lab)
    if panels:
        rows = iter(_saved([row for data in panels.values() for row in data.rows]))
        draw(figure, {n: replace(d, rows=[next(rows) for _ in d.rows]) for n, d in panels.items()})
    claims = {claim.name: claim for claim in judge(figure, lab)}
    return Computed(panels, claims, figure.settings(lab) if panels else {})


def _saved(rows: Rows) -> Rows:
    return read_table(table(rows)) if rows else []
